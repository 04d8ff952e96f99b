import dataclasses
from typing import Any

import msgspec
import pytest

from models.evaluate import Evaluation
from models.evidence import EvidenceSummary
from models.gate import Guard
from models.update import UpdateReport
from stream.announcement import Announcement, decode_announcement, encode_announcement
from stream.commands import Command
from stream.explain import explain, model_rows
from stream.train_worker import to_announcement, to_answer, versions_in_use

GOOD = Evaluation(rows=100, clicks=10, logloss=0.3, auc=0.7, calibration=1.01)
REPORT = UpdateReport(
    slide=12,
    start_s=0.0,
    end_s=1.0,
    rows=100,
    clicks=10,
    champion=GOOD,
    latest=GOOD,
    decision="promote",
    reason="not worse by more than the margin: at most +0.0020 nats against 0.01",
    evidence=EvidenceSummary(-0.001, -0.004, 0.002, 12),
    guards=(Guard("calibration", 1.01, 0.5, 2.0, passes=True), Guard("slice new", 0.06, None, 0.05, passes=False)),
    champion_version="ctr-000011-b",
    latest_version="ctr-000012-c",
    lost=(),
    values=1,
    counted=1,
    counts_evicted=0,
    rows_evicted=0,
    stale_rows=0,
    corrected=0,
    left_out=0,
    drift=(),
    former_version="ctr-000010-a",
)
BOUNDS = "certainly between -0.0040 and +0.0020"
HARMS = "is certainly worse by more than the margin"


def announced(before: Announcement | None, **changes: Any) -> Announcement:
    announcement = to_announcement("ctr", dataclasses.replace(REPORT, **changes), 0.1, before)
    return decode_announcement(encode_announcement(announcement))


FIRST = announced(None, slide=11, decision="warmup", champion_version="ctr-000010-a", former_version="")
PROMOTED = announced(FIRST)


def test_a_promotion_is_told_with_its_evidence_and_guardrails() -> None:
    assert explain(PROMOTED) == [
        f"ctr-000011-b serves since slide 12, by a promotion in place of ctr-000010-a: {REPORT.reason}.",
        f"Over 12 slides it had a log loss 0.0010 nats lower than the champion of the time, {BOUNDS}.",
        "  passed: mean prediction over click rate 1.01, must be at least 0.5 and at most 2",
        "  FAILED: certain harm on new items, nats 0.06, must be at most 0.05",
        f"ctr-000010-a scores on in the shadow: it comes back if what serves {HARMS}.",
    ]


def test_later_slides_do_not_forget_since_when_it_serves() -> None:
    later = announced(
        PROMOTED, slide=13, decision="hold", reason="may be worse", evidence=EvidenceSummary(*[None] * 3, 0)
    )
    assert later.since == PROMOTED.since
    lines = explain(later)
    assert lines[0] == explain(PROMOTED)[0]
    assert "Newest slide, 13: hold: may be worse." in lines
    assert versions_in_use(later) == {"ctr-000010-a", "ctr-000011-b", "ctr-000012-c"}


@pytest.mark.parametrize(
    ("announcement", "line"),
    [
        (FIRST, "by the warm-up, in which each newest model is promoted: nothing was to be proven."),
        (
            announced(PROMOTED, slide=20, decision="rollback", reason="worse", champion_version="ctr-000010-a"),
            "ctr-000010-a serves since slide 20, by a rollback in place of ctr-000011-b: worse.",
        ),
        (
            announced(
                to_answer(
                    PROMOTED,
                    Command("promote", "ctr-000007-x", note="the sale"),
                    champion="ctr-000007-x",
                    latest="ctr-000012-d",
                    former="",
                    commands=4,
                ),
                slide=20,
                decision="hold",
                champion_version="ctr-000007-x",
            ),
            "ctr-000007-x serves since slide 12, by a promotion in place of ctr-000011-b: asked for: the sale.",
        ),
        (msgspec.structs.replace(PROMOTED, since=None), "since when is not known"),
    ],
)
def test_each_way_to_serve_has_its_words(announcement: Announcement, line: str) -> None:
    assert line in explain(announcement)[0]


def test_a_rollback_says_what_was_found_against_what_served() -> None:
    back = announced(PROMOTED, slide=20, decision="rollback", champion_version="ctr-000010-a")
    assert explain(back)[1].startswith("Over 12 slides what served had a log loss 0.0010 nats lower than this model")


def manifest(slide: int, version: str, **context: Any) -> dict[str, Any]:
    return {"version": version, "slide": slide, "parent": "", "context": context}


def test_a_snapshot_is_listed_with_what_was_found_on_the_slide_after_its_own() -> None:
    found = {"evaluation": {"latest": {"rows": 100, "logloss": 0.3, "auc": 0.7, "calibration": 1.0}}}
    rows = model_rows(
        [
            manifest(11, "ctr-000011-b"),
            manifest(12, "ctr-000012-c", judged="ctr-000011-b", decision="promote", reason="good", **found),
            manifest(10, "ctr-000010-a"),
        ],
        PROMOTED,
    )
    assert [row["does"] for row in rows] == ["serves", "learns", "in the shadow"]
    assert (rows[0]["logloss"], rows[0]["decision"], rows[0]["reason"]) == (0.3, "promote", "good")
    assert (rows[1]["logloss"], rows[1]["decision"]) == (None, None)
