import dataclasses
import math
from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gate import MARGIN, Hour, World, decide, stream
from models.evidence import BET_PRECISION, SCALES_MAX, Evidence, gather, is_above, is_below, summarise

ALPHA = 0.05
PIECES = st.lists(st.floats(-0.25, 0.25), min_size=2, max_size=30)
SLIDES = st.lists(PIECES, min_size=1, max_size=20)
WORLD = World(slides=36, rows=200, twins=200, hour_own=0.4)  # what an hour does outweighs what users do
N_STREAMS = 200
WRONG_MAX = 24  # a rate of alpha exceeds it in one of 100,000 draws of that many streams (binomial)


@cache
def streams() -> tuple[list[Hour], ...]:
    return tuple(stream(WORLD, seed) for seed in range(N_STREAMS))


def gathered(slides: list[list[float]], margin: float = MARGIN) -> Evidence:
    evidence = Evidence()
    for pieces in slides:
        evidence = gather(evidence, np.array(pieces), margin)
    return evidence


@pytest.mark.parametrize(
    ("effect", "threshold", "wrong"), [(0.0, 0.0, "promote"), (MARGIN, MARGIN, "promote"), (MARGIN, MARGIN, "reject")]
)
def test_what_is_not_so_is_certain_in_no_more_than_alpha_of_all_streams(
    effect: float, threshold: float, wrong: str
) -> None:
    found = [decide(hours, effect, threshold)[0] for hours in streams()]
    assert found.count(wrong) <= WRONG_MAX


@pytest.mark.parametrize(("effect", "threshold", "right"), [(-0.03, 0.0, "promote"), (0.05, MARGIN, "reject")])
def test_what_is_so_is_found_in_nearly_all_streams(effect: float, threshold: float, right: str) -> None:
    found = [decide(hours, effect, threshold) for hours in streams()[:50]]
    assert [name for name, _, _ in found].count(right) >= 45
    assert np.median([slides for _, slides, _ in found]) <= 24


@given(SLIDES)
def test_models_that_change_places_change_what_is_certain(slides: list[list[float]]) -> None:
    one, other = gathered(slides, 0.0), gathered([[-piece for piece in pieces] for pieces in slides], 0.0)
    for threshold in (-0.1, -0.01, 0.0, 0.02):
        assert is_below(one, threshold, ALPHA) == is_above(other, -threshold, ALPHA)


@given(SLIDES, st.randoms())
def test_the_order_of_the_slides_changes_nothing(slides: list[list[float]], random: Random) -> None:
    shuffled = list(slides)
    random.shuffle(shuffled)
    one, other = gathered(slides), gathered(shuffled)
    for field in dataclasses.fields(Evidence):
        assert getattr(one, field.name) == pytest.approx(getattr(other, field.name), rel=1e-9, abs=1e-9)


@given(SLIDES)
def test_the_bounds_lie_around_the_mean_and_inside_what_is_possible(slides: list[list[float]]) -> None:
    evidence = gathered(slides)
    found = summarise(evidence, ALPHA, 0.25)
    assert found.mean is not None
    assert found.lower is not None
    assert found.upper is not None
    assert -0.25 <= found.lower <= found.mean <= found.upper <= 0.25
    assert found.lower == -0.25 or is_above(evidence, found.lower, ALPHA)
    assert found.upper == 0.25 or is_below(evidence, found.upper, ALPHA)


def test_the_test_is_the_published_one_over_half_normal_bets() -> None:
    rng = np.random.default_rng(0)
    slides = [rng.normal(-0.01, 0.02, 64) for _ in range(12)]
    scale = [max(pieces.std(ddof=1) / 8.0, MARGIN) for pieces in slides]
    z = [(pieces.mean() - MARGIN) / s for pieces, s in zip(slides, scale, strict=True)]
    bets = np.linspace(0.0, 6.0, 20_001)
    density = 2.0 * np.sqrt(BET_PRECISION / (2.0 * np.pi)) * np.exp(-BET_PRECISION * bets**2 / 2.0)
    won = np.exp(sum(-bets * value - bets**2 * value**2 / 2.0 for value in z))
    wealth = float(np.trapezoid(density * won, bets))
    evidence = gathered([pieces.tolist() for pieces in slides])
    assert wealth > 3.0
    assert is_below(evidence, MARGIN, 1.0 / wealth * 1.001)
    assert not is_below(evidence, MARGIN, 1.0 / wealth * 0.999)


def test_one_slide_alone_is_never_enough_and_a_dozen_are() -> None:
    slide = (-0.2 + np.random.default_rng(0).normal(0.0, 0.01, 64)).tolist()
    few = [n for n in range(1, 13) if is_below(gathered([slide] * n), MARGIN, ALPHA)]
    assert few == list(range(few[0], 13))
    assert 6 <= few[0] <= 10


def test_one_odd_slide_does_not_undo_what_many_have_shown() -> None:
    calm, odd = [0.0, 0.001] * 32, [0.249, 0.25] * 32
    evidence = gathered([calm] * 40 + [odd])
    assert is_below(evidence, MARGIN, ALPHA)
    far = evidence.squares - gathered([calm] * 40).squares
    assert far == pytest.approx((1.0 + SCALES_MAX) ** 2)  # scale: the margin


@pytest.mark.parametrize("pieces", [[], [0.2]])
def test_fewer_than_two_buckets_say_nothing(pieces: list[float]) -> None:
    assert gather(Evidence(), np.array(pieces), MARGIN) == Evidence()


def test_models_that_are_the_same_are_no_evidence_of_superiority() -> None:
    evidence = gathered([[0.0] * 8] * 100, 0.0)
    assert not is_below(evidence, 0.0, ALPHA)
    assert not is_above(evidence, 0.0, ALPHA)
    assert summarise(Evidence(), ALPHA, 0.25).upper is None
    assert math.isfinite(evidence.squares)
