import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluate import Evaluation
from models.gate import Evidence, GateRules, compare, gather, judge, summarise

RULES = GateRules(alpha=0.05, margin=0.01, buckets=64, evidence_clip=0.25, clicks_min=50, calibration=(0.5, 2.0))
GOOD = Evaluation(rows=5000, clicks=500, logloss=0.3, calibration=1.0)
PIECES = st.lists(st.floats(-0.25, 0.25), min_size=1, max_size=30)


def stream(seed: int, mean: float, n_slides: int = 40, n_pieces: int = 64) -> list[npt.NDArray[np.float64]]:
    """Slides of evidence around a true difference, with effects of users that stay and of hours that pass."""
    rng = np.random.default_rng(seed)
    users, hours = rng.normal(0.0, 0.02, n_pieces), rng.normal(0.0, 0.01, n_slides)
    users -= users.mean()
    noise = rng.normal(0.0, 0.05, (n_slides, n_pieces))
    return list(np.clip(mean + users + hours[:, None] - hours.mean() + noise, -0.25, 0.25))


def first_verdict(pieces: list[npt.NDArray[np.float64]], rules: GateRules = RULES) -> tuple[str, int]:
    """The first decision that is not to hold, and its slide."""
    evidence = Evidence()
    for i, new in enumerate(pieces):
        verdict = judge(evidence, new, GOOD, rules)
        if verdict.decision != "hold":
            return verdict.decision, i
        evidence = verdict.evidence
    return "hold", len(pieces)


def test_a_model_worse_than_the_margin_is_promoted_in_fewer_than_alpha_of_all_streams() -> None:
    verdicts = [first_verdict(stream(seed, mean=RULES.margin + 0.001))[0] for seed in range(300)]
    assert verdicts.count("promote") / len(verdicts) <= RULES.alpha


def test_a_model_within_the_margin_is_rejected_in_fewer_than_alpha_of_all_streams() -> None:
    verdicts = [first_verdict(stream(seed, mean=RULES.margin - 0.001))[0] for seed in range(300)]
    assert verdicts.count("reject") / len(verdicts) <= RULES.alpha


@pytest.mark.parametrize(("mean", "decision"), [(0.0, "promote"), (-0.02, "promote"), (0.06, "reject")])
def test_a_clear_case_is_decided_within_a_few_slides(mean: float, decision: str) -> None:
    verdicts = [first_verdict(stream(seed, mean)) for seed in range(50)]
    assert [name for name, _ in verdicts].count(decision) >= 49
    assert np.mean([slide for _, slide in verdicts]) < 15


@given(PIECES, PIECES)
def test_evidence_gathered_in_two_slides_equals_that_of_one(first: list[float], second: list[float]) -> None:
    in_two = gather(gather(Evidence(), np.array(first), RULES), np.array(second), RULES)
    in_one = gather(Evidence(), np.array(first + second), RULES)
    for field in dataclasses.fields(Evidence):
        assert getattr(in_two, field.name) == pytest.approx(getattr(in_one, field.name), rel=1e-9, abs=1e-12)


@given(PIECES)
def test_the_bounds_lie_around_the_mean_and_inside_what_is_possible(pieces: list[float]) -> None:
    summary = summarise(gather(Evidence(), np.array(pieces), RULES), RULES)
    assert summary.mean is not None
    assert summary.lower is not None
    assert summary.upper is not None
    assert -0.25 <= summary.lower <= summary.mean <= summary.upper <= 0.25
    assert min(pieces) - 1e-9 <= summary.mean <= max(pieces) + 1e-9


def test_the_sequence_is_the_published_one() -> None:
    """Theorem 2 of arXiv:2010.09686 with log(1/alpha), step by step."""
    pieces = np.random.default_rng(0).uniform(-0.25, 0.2, 400)  # wide enough that bets fall below their bound
    x = pieces / 0.5 + 0.5
    bets, gains, penalty, mean, variance = 0.0, 0.0, 0.0, 0.5, 0.25
    squares = 0.0
    for t in range(1, 401):
        bet = min(np.sqrt(2 * np.log(1 / 0.05) / (variance * t * np.log(1 + t))), 0.5)
        bets, gains = bets + bet, gains + bet * x[t - 1]
        penalty += 4 * (x[t - 1] - mean) ** 2 * (-np.log(1 - bet) - bet) / 4
        mean = (0.5 + x[:t].sum()) / (t + 1)
        squares += (x[t - 1] - mean) ** 2
        variance = (0.25 + squares) / (t + 1)
    summary = summarise(gather(Evidence(), pieces, RULES), RULES)
    reach = (np.log(1 / 0.05) + penalty) / bets
    assert summary.mean == pytest.approx(0.5 * (gains / bets) - 0.25)
    assert summary.upper == pytest.approx(min(0.25, 0.5 * (gains / bets + reach) - 0.25))


def test_a_piece_is_the_mean_difference_of_one_bucket_and_is_clipped() -> None:
    latest, champion = np.array([0.5, 0.5, 0.9, 0.5]), np.array([0.6, 0.5, 0.1, 0.5])
    pieces = compare(latest, champion, np.array([1.0, 1.0, 0.0, 1.0]), np.array([2, 2, 0, 2]), 0.25)
    assert pieces[0] == 0.25  # -log(0.1) + log(0.9) is far more
    assert pieces[1] == pytest.approx((np.log(0.6) - np.log(0.5)) / 3)
    assert len(pieces) == 2  # no piece of bucket 1: nobody was there


@pytest.mark.parametrize(
    ("latest", "reason"),
    [
        (dataclasses.replace(GOOD, clicks=49), "49 clicks are too few, 50 are needed"),
        (dataclasses.replace(GOOD, calibration=2.1), "calibration must lie in [0.5, 2.0], got 2.1"),
        (dataclasses.replace(GOOD, calibration=None), "calibration must lie in [0.5, 2.0], got None"),
    ],
)
def test_a_guardrail_holds_what_the_evidence_would_promote(latest: Evaluation, reason: str) -> None:
    evidence = gather(Evidence(), np.full(2000, -0.05), RULES)
    assert judge(evidence, np.full(64, -0.05), GOOD, RULES).decision == "promote"
    verdict = judge(evidence, np.full(64, -0.05), latest, RULES)
    assert verdict.decision == "hold"
    assert verdict.reason == reason


def test_too_few_clicks_are_no_evidence() -> None:
    verdict = judge(Evidence(), np.full(64, 0.2), dataclasses.replace(GOOD, clicks=1), RULES)
    assert verdict.evidence == Evidence()


def test_harm_on_the_newest_slide_alone_holds_a_promotion_back() -> None:
    evidence = gather(Evidence(), np.full(20_000, -0.01), RULES)
    harm = np.random.default_rng(0).normal(0.05, 0.02, 64)
    verdict = judge(evidence, harm, GOOD, RULES)
    assert verdict.decision == "hold"
    assert "worse on this slide alone" in verdict.reason


def test_after_a_rejection_evidence_starts_anew() -> None:
    verdict = judge(Evidence(), np.full(5000, 0.1), GOOD, RULES)
    assert verdict.decision == "reject"
    assert verdict.evidence == Evidence()
    assert verdict.summary.pieces == 5000


def test_without_any_evidence_nothing_is_promoted() -> None:
    verdict = judge(Evidence(), np.zeros(0), GOOD, RULES)
    assert (verdict.decision, verdict.summary.upper) == ("hold", None)
