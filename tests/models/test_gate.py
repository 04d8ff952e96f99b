import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from models.evaluate import Evaluation
from models.evidence import Evidence, gather
from models.gate import COMMON_MIN, SLICES, Comparison, GateRules, compare, judge, slice_items

RULES = GateRules(
    rule="non_inferiority",
    alpha=0.05,
    margin=0.01,
    buckets=64,
    evidence_clip=0.25,
    clicks_min=50,
    calibration=(0.5, 2.0),
    shift_max=1.5,
    slice_margin=0.05,
    harm_max=0.1,
    rollback_wait=12,
)
SUPERIORITY = dataclasses.replace(RULES, rule="superiority")
GOOD = Evaluation(rows=5000, clicks=500, logloss=0.3, calibration=1.0)
Pieces = npt.NDArray[np.float64]


def says(
    pieces: Pieces,
    shift: float | None = 1.0,
    slices: Mapping[str, Pieces] | None = None,
    expected: float = 0.0,
) -> Comparison:
    return Comparison(pieces, slices or {}, shift, expected)


def around(mean: float, sd: float = 0.02, n_pieces: int = 64) -> Pieces:
    noise = np.random.default_rng(0).normal(0.0, sd, n_pieces)
    return mean + noise - noise.mean()


def evidence_of(mean: float, n_slides: int = 40) -> Evidence:
    evidence = Evidence()
    for _ in range(n_slides):
        evidence = gather(evidence, around(mean), RULES.margin)
    return evidence


@pytest.mark.parametrize(
    ("mean", "rules", "decision", "reason"),
    [
        (0.0, RULES, "promote", "not worse by more than the margin: at most"),
        (0.0, SUPERIORITY, "hold", "may be worse by"),
        (-0.02, RULES, "promote", "not worse by more than the margin: at most"),
        (-0.02, SUPERIORITY, "promote", "better: by at least 0.01"),
        (0.0099, RULES, "hold", "may be worse by"),
        (0.0101, RULES, "hold", "may be worse by"),
        (0.03, RULES, "reject", "worse by more than the margin: at least 0.02"),
        (0.03, SUPERIORITY, "reject", "worse by more than the margin: at least 0.02"),
    ],
)
def test_the_rule_says_what_must_be_certain(mean: float, rules: GateRules, decision: str, reason: str) -> None:
    verdict = judge(evidence_of(mean), says(around(mean)), GOOD, rules)
    assert verdict.decision == decision
    assert verdict.reason.startswith(reason)
    assert verdict.summary.pieces == 41


def test_a_piece_is_the_mean_difference_of_one_bucket_and_is_clipped() -> None:
    difference = np.log([0.6, 0.5, 0.9, 0.5]) - np.log([0.5, 0.5, 0.1, 0.5])
    found = compare(difference, np.array([2, 2, 0, 2]), np.array([0, 0, 2, 2]), 0.25, means=(2.4, 1.7))
    assert found.pieces[0] == 0.25  # log(0.9) - log(0.1) is far more
    assert found.pieces[1] == pytest.approx((np.log(0.6) - np.log(0.5)) / 3)
    assert len(found.pieces) == 2  # no piece of bucket 1: nobody was there
    assert list(found.slices) == ["new", "common"]
    assert found.slices["new"] == pytest.approx([(np.log(0.6) - np.log(0.5)) / 2])
    assert found.slices["common"] == pytest.approx([0.25, 0.0])
    assert found.shift == pytest.approx(2.4 / 1.7)
    assert found.expected == pytest.approx(4 * 1.7)


def test_a_slide_without_rows_says_nothing() -> None:
    none = np.zeros(0)
    found = compare(none, none.astype(np.int64), none.astype(np.int64), 0.25, means=(0.0, 0.0))
    assert (len(found.pieces), dict(found.slices), found.shift, found.expected) == (0, {}, None, 0.0)


def test_items_are_new_rare_or_common_by_what_had_settled_of_them() -> None:
    found = slice_items(np.array([0.0, 0.99, 1.0, COMMON_MIN - 0.1, COMMON_MIN, 1e9]))
    assert [SLICES[index] for index in found] == ["new", "new", "rare", "rare", "common", "common"]


@pytest.mark.parametrize(
    ("latest", "new", "reason"),
    [
        (
            dataclasses.replace(GOOD, clicks=49),
            says(around(-0.05)),
            "49 clicks, come or expected, are too few, 50 are needed",
        ),
        (
            dataclasses.replace(GOOD, calibration=2.1),
            says(around(-0.05)),
            "calibration must lie in [0.5, 2], got 2.1",
        ),
        (
            dataclasses.replace(GOOD, calibration=None),
            says(around(-0.05)),
            "calibration must lie in [0.5, 2], got None",
        ),
        (
            dataclasses.replace(GOOD, calibration=1.7),
            says(around(-0.05), shift=1.6),
            "shift must lie in [0.666667, 1.5], got 1.6",
        ),
        (
            dataclasses.replace(GOOD, calibration=0.55),
            says(around(-0.05), shift=0.6),
            "shift must lie in [0.666667, 1.5], got 0.6",
        ),
        (  # the champion overrates by 1.8, this underrates by 2
            dataclasses.replace(GOOD, calibration=0.5),
            says(around(-0.05), shift=0.28),
            "shift must lie in [0.3136, 3.18878], got 0.28",
        ),
        (
            GOOD,
            says(around(0.05)),
            "worse on this slide alone: by at least 0.0431 nats against 0.01",
        ),
        (
            GOOD,
            says(around(-0.05), slices={"new": around(0.1), "common": around(0.0)}),
            "worse on new items: by at least 0.0931 nats against 0.05",
        ),
    ],
)
def test_a_guardrail_holds_what_the_evidence_would_promote(latest: Evaluation, new: Comparison, reason: str) -> None:
    evidence = evidence_of(-0.02)
    assert judge(evidence, says(around(-0.05)), GOOD, RULES).decision == "promote"
    verdict = judge(evidence, new, latest, RULES)
    assert verdict.decision == "hold"
    assert verdict.reason == reason


@pytest.mark.parametrize(("calibration", "shift"), [(1.1, 0.5), (0.9, 0.4), (0.9, 2.0), (1.2, 2.0)])
def test_a_shift_that_brings_the_mean_nearer_to_the_clicks_is_no_fault(calibration: float, shift: float) -> None:
    latest = dataclasses.replace(GOOD, calibration=calibration)
    assert judge(evidence_of(-0.02), says(around(-0.05), shift=shift), latest, RULES).decision == "promote"


def test_a_decision_carries_every_guardrail_with_what_was_found() -> None:
    new = says(around(-0.05), shift=1.1, slices={"rare": around(0.0), "new": around(0.2)[:9]})
    verdict = judge(evidence_of(-0.02), new, GOOD, RULES)
    assert [(guard.name, guard.passes) for guard in verdict.guards] == [
        *(("clicks", True), ("calibration", True), ("shift", True), ("slide", True), ("slice rare", True))
    ]  # a slice seen by nine buckets of users says too little
    assert [guard.value for guard in verdict.guards[:3]] == [500.0, 1.0, 1.1]


def test_a_rejection_asks_no_guardrail() -> None:
    verdict = judge(evidence_of(0.05), says(around(0.05), shift=9.0), GOOD, RULES)
    assert verdict.decision == "reject"


def test_too_few_clicks_are_no_evidence() -> None:
    verdict = judge(Evidence(), says(around(0.2)), dataclasses.replace(GOOD, clicks=1), RULES)
    assert verdict.evidence == Evidence()


def test_clicks_that_were_expected_and_did_not_come_are_evidence() -> None:
    """Else a champion that nobody clicks on any more would hold out for ever."""
    latest = dataclasses.replace(GOOD, clicks=10)
    assert judge(evidence_of(-0.02), says(around(-0.05), expected=49.0), latest, RULES).decision == "hold"
    assert judge(evidence_of(-0.02), says(around(-0.05), expected=50.0), latest, RULES).decision == "promote"


def test_after_a_rejection_evidence_starts_anew() -> None:
    verdict = judge(evidence_of(0.1), says(around(0.1)), GOOD, RULES)
    assert verdict.decision == "reject"
    assert verdict.evidence == Evidence()
    assert verdict.summary.pieces == 41


def test_without_any_evidence_nothing_is_promoted() -> None:
    verdict = judge(Evidence(), says(np.zeros(0), shift=1.0), GOOD, RULES)
    assert (verdict.decision, verdict.summary.upper) == ("hold", None)
    assert verdict.reason == "0 slides say too little yet"
    one = judge(Evidence(), says(around(0.0)), GOOD, RULES)
    assert (one.decision, one.reason) == ("hold", "1 slides say too little yet")
