"""What counts in the comparison of two arms, and what is said where there is nothing to compare or reason to doubt."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from infra.settings import Settings, SettingsError, parse_settings
from stream import ab
from stream.ab import ArmSums, report
from stream.tables import arm_lines, arm_table

FIELDS = [{"name": "user", "side": "user"}, {"name": "ad", "side": "item"}]


def settings_of(**split: Any) -> Settings:
    return parse_settings({"name": "shop", "fields": FIELDS, "split": {"name": "fresh", "share": 0.5} | split})


def sums_of(*frames: pl.DataFrame, since_s: float = -np.inf) -> ArmSums:
    sums = ArmSums(settings_of().fields, "fresh", since_s)
    for frame in frames:
        sums.add(frame)
    return sums


def row(user: str | None, arm: str, click: int = 0, **changed: Any) -> dict[str, Any]:
    kind = "clicked" if click else "expired_negative"
    own = {"request_id": f"r{user}", "kind": kind, "time_s": 100.0, "click": click, "field.user": user}
    return own | {"split": "fresh" if arm else "", "arm": arm, "snapshot": "v1"} | changed


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema_overrides={"click": pl.Int8, "field.user": pl.String})


def group(arm: str, n_users: int, n_clicks: int, first: int = 0) -> pl.DataFrame:
    """Two impressions for each user, the first of them clicked by some."""
    users = [f"{arm}{first + number}" for number in range(n_users)]
    return frame(*(row(user, arm, int(n < n_clicks)) for n, user in enumerate(users)), *(row(u, arm) for u in users))


def test_impressions_clicks_users_and_requests_are_counted_over_blocks() -> None:
    first = frame(row("a", "champion", 1), row("a", "champion"), row("b", "latest", request_id="q1"))
    second = frame(row("a", "champion", request_id="q2"), row("b", "latest", 1, request_id="q1", snapshot="v2"))
    sums = sums_of(first, second)
    assert sums.counts("champion") == {"users": 1, "requests": 2, "impressions": 3, "clicks": 1}
    assert sums.counts("latest") == {"users": 1, "requests": 1, "impressions": 2, "clicks": 1}
    assert sums.snapshots["latest"] == {"v1", "v2"}


def test_sums_that_are_put_together_often_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [group("champion", 30, n) for n in range(10)]
    before = sums_of(*blocks).counts("champion")
    monkeypatch.setattr(ab, "ROWS_MIN", 1)
    assert sums_of(*blocks).counts("champion") == before
    assert (before["users"], before["impressions"], before["clicks"]) == (30, 600, 45)


def test_a_late_click_is_a_click_and_no_impression() -> None:
    sums = sums_of(frame(row("a", "latest"), row("a", "latest", 1, kind="late_corrected")))
    assert sums.counts("latest") == {"users": 1, "requests": 1, "impressions": 1, "clicks": 1}


def test_who_was_not_drawn_and_what_is_outside_is_left_out_and_counted() -> None:
    without = frame(row("a", "")).drop("split", "arm", "snapshot")
    rows = [row(None, "champion"), row("b", ""), row("c", "latest", split="other"), row("d", "red"), row("e", "latest")]
    sums = sums_of(without, frame(*rows))
    assert sums.left_out == {"outside": 4, "anonymous": 1}
    assert sums.counts("latest")["users"] == 1
    assert sums.counts("champion")["users"] == 0


def test_what_was_shown_before_the_moment_does_not_count() -> None:
    rows = [row("a", "latest", time_s=99.0), row("b", "latest", time_s=100.0), row("c", "", time_s=1.0)]
    sums = sums_of(frame(*rows), since_s=100.0)
    assert sums.counts("latest")["users"] == 1
    assert sums.left_out["outside"] == 0


def test_a_fair_experiment_is_compared_without_a_warning() -> None:
    found = report(settings_of(), sums_of(group("champion", 500, 100), group("latest", 520, 156)), None)
    assert found["arms"]["champion"]["ctr"]["mean"] == 0.1
    assert found["arms"]["latest"]["ctr"]["mean"] == 0.15
    assert found["difference"]["absolute"]["mean"] == pytest.approx(0.05)
    assert found["difference"]["relative"]["mean"] == pytest.approx(0.5)
    assert found["difference"]["p_value"] < 0.001
    assert found["draw"]["passes"]
    assert found["warnings"] == []
    assert (found["since_s"], found["from_s"], found["to_s"]) == (None, 100.0, 100.0)
    assert json.loads(json.dumps(found)) == found


def test_what_the_champion_answered_for_the_other_arm_is_of_neither_and_said() -> None:
    fallback = frame(*(row(f"latest{n}", "fallback", 1) for n in range(300)))
    found = report(settings_of(), sums_of(group("champion", 500, 100), group("latest", 500, 100), fallback), None)
    assert found["arms"]["latest"]["ctr"] == found["arms"]["champion"]["ctr"]
    assert found["fallback"] == {"users": 300, "requests": 300, "impressions": 300, "clicks": 300}
    assert found["draw"]["observed"] == 0.5  # they are the same users
    (line,) = found["warnings"]
    assert "300 of 1,300 impressions of users drawn for latest were answered by the champion" in line


def test_a_draw_that_is_not_as_it_was_to_be_is_the_first_warning() -> None:
    found = report(settings_of(), sums_of(group("champion", 600, 60), group("latest", 400, 40)), None)
    assert found["warnings"][0].startswith("sample ratio mismatch: 0.4000 of the users are in the arm latest, 0.5 were")


def test_users_of_both_arms_are_said() -> None:
    moved = frame(*(row(f"champion{n}", "latest", n % 2) for n in range(200)))
    found = report(settings_of(), sums_of(group("champion", 200, 50), moved), None)
    assert found["crossed"] == 200
    assert any("200 users were in both arms" in line for line in found["warnings"])


def test_few_users_or_clicks_are_said() -> None:
    found = report(settings_of(), sums_of(group("champion", 99, 50), group("latest", 101, 9)), None)
    assert [line.split(":")[0] for line in found["warnings"]] == [
        "champion has 99 users and 50 clicks",
        "latest has 101 users and 9 clicks",
    ]


def test_an_experiment_that_has_ended_is_compared_without_a_check_of_the_draw() -> None:
    found = report(settings_of(share=0.0), sums_of(group("champion", 200, 50), group("latest", 200, 50)), None)
    assert found["draw"] is None
    assert found["warnings"] == ["[split] share is 0 now: whether users were drawn as they were to be is not checked"]
    assert not any(line.startswith("draw") for line in arm_lines(found))


@pytest.mark.parametrize(
    ("frames", "split", "message"),
    [
        ((), {}, r"got 0 of champion, 0 of latest, 0 of fallback and 0 outside of it; let `freshrank serve` run"),
        ((group("champion", 3, 1),), {}, r"got 6 of champion, 0 of latest.* settles \[ledger\] wait_s \(60 s\)"),
        ((group("champion", 3, 1),), {"share": 0.0}, r"; set \[split\] share above 0 and restart `freshrank serve`"),
        (
            (group("champion", 3, 1), frame(row("a", "fallback"))),
            {},
            r"1 of fallback .* newest model could not be load",
        ),
    ],
)
def test_nothing_to_compare_says_what_to_do(
    frames: tuple[pl.DataFrame, ...], split: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        report(settings_of(**split), sums_of(*frames), None)


def test_what_people_read_says_the_same() -> None:
    found = report(settings_of(), sums_of(group("champion", 500, 100), group("latest", 520, 156)), None)
    assert arm_table(found).row_count == 2
    difference, relative, draw = arm_lines(found)
    assert difference.startswith("difference: 5.000 (2.")
    assert relative.startswith("relative difference: 50.000 (2")
    assert draw.startswith("draw: 50.98 per cent of the users, 50 were to be; p = 0.531")
