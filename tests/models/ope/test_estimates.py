"""Estimates by hand, their laws, and how often the interval holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ope.estimates import Estimate, Floats, Logged, dr, ips, logged_rate, snips, weigh

ALPHA = 0.05


def logged(clicks: Any, propensities: Any, clusters: Any = None) -> Logged:
    clusters = np.arange(len(clicks)) if clusters is None else clusters
    return Logged(np.array(clicks, float), np.array(propensities, float), np.array(clusters))


ROWS = logged([1, 0, 1, 0], [0.5, 0.5, 0.25, 1.0])
CHOSEN = np.array([0.25, 0.5, 0.5, 0.0])  # so the rows weigh 0.5, 1, 2, 0


def test_each_estimate_is_what_its_formula_gives_by_hand() -> None:
    assert ips(ROWS, CHOSEN, ALPHA).rate == pytest.approx((0.5 + 2.0) / 4.0)
    assert snips(ROWS, CHOSEN, ALPHA).rate == pytest.approx((0.5 + 2.0) / 3.5)
    predicted, expected = np.array([0.2, 0.4, 0.6, 0.1]), np.array([0.3, 0.3, 0.5, 0.2])
    corrections = 0.5 * (1.0 - 0.2) + 1.0 * (0.0 - 0.4) + 2.0 * (1.0 - 0.6)
    assert dr(ROWS, CHOSEN, predicted, expected, ALPHA).rate == pytest.approx((1.3 + corrections) / 4.0)


def test_the_weights_say_how_many_rows_the_estimate_rests_on() -> None:
    weights = weigh(ROWS, CHOSEN)
    assert weights.effective_rows == pytest.approx(3.5**2 / (0.25 + 1.0 + 4.0))
    assert (weights.largest, weights.mean) == (2.0, 0.875)
    assert weights.mean_error == pytest.approx(np.std([0.5, 1.0, 2.0, 0.0]) / 2.0)


rows = st.lists(st.tuples(st.booleans(), st.floats(0.01, 1.0), st.floats(0.01, 1.0)), min_size=2, max_size=30)


@given(rows)
def test_of_the_policy_that_chose_the_rows_every_estimate_is_their_mean(given: list[tuple[bool, float, float]]) -> None:
    clicks, p, _ = (np.array(column, float) for column in zip(*given, strict=True))
    log = logged(clicks, p)
    for found in (logged_rate(log, ALPHA), snips(log, p, ALPHA), dr(log, p, 0.3 * p, 0.3 * p, ALPHA)):
        assert found.rate == pytest.approx(clicks.mean(), abs=1e-12)


@given(rows, st.floats(0.01, 1.0))
def test_snips_does_not_depend_on_the_scale_of_the_weights(given: list[tuple[bool, float, float]], by: float) -> None:
    clicks, p, chosen = (np.array(column, float) for column in zip(*given, strict=True))
    one, other = (snips(logged(clicks, p * scale), chosen, ALPHA) for scale in (1.0, by))
    assert other.rate == pytest.approx(one.rate)
    assert (other.lower, other.upper) == pytest.approx((one.lower, one.upper))


@given(rows)
def test_intervals_lie_within_0_and_1_and_around_a_rate_that_does(given: list[tuple[bool, float, float]]) -> None:
    clicks, p, chosen = (np.array(column, float) for column in zip(*given, strict=True))
    for found in (ips(logged(clicks, p), chosen, ALPHA), snips(logged(clicks, p), chosen, ALPHA)):
        assert found.rate is not None
        assert 0.0 <= found.lower <= min(found.rate, 1.0) + 1e-12
        assert min(found.rate, 1.0) - 1e-12 <= found.upper <= 1.0


def test_dr_with_a_model_that_is_right_about_sure_clicks_has_no_noise_at_all() -> None:
    sure = np.random.default_rng(0).integers(0, 2, (1000, 4)).astype(float)  # of each candidate
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    found = []
    for seed in range(20):
        shown = np.random.default_rng(seed).integers(0, 4, 1000)
        clicks = sure[np.arange(1000), shown]
        found.append(dr(logged(clicks, np.full(1000, 0.25)), policy[shown], clicks, sure @ policy, ALPHA).rate)
    np.testing.assert_allclose(found, (sure @ policy).mean(), atol=1e-12)


def test_rows_of_equal_weight_have_wilsons_interval() -> None:
    found = snips(logged([1] * 10 + [0] * 90, [0.5] * 100), np.full(100, 0.5), ALPHA)
    assert (found.lower, found.upper) == pytest.approx((0.0552, 0.1744), abs=5e-4)  # his table for 10 of 100


def test_without_a_click_the_interval_says_how_much_could_have_been_missed() -> None:
    found = ips(logged([0] * 100, [0.5] * 100), np.full(100, 0.5), ALPHA)
    assert found.rate == 0.0
    assert (found.lower, found.upper) == pytest.approx((0.0, 1.96**2 / (100 + 1.96**2)), abs=1e-4)


def test_one_heavy_row_without_a_click_leaves_everything_open() -> None:
    chosen = np.full(1000, 0.01)
    log = logged([1] * 5 + [0] * 995, [0.01] * 999 + [1e-6])
    for found in (ips(log, chosen, ALPHA), snips(log, chosen, ALPHA)):
        assert found.upper > 0.5


def test_rows_of_a_cluster_that_repeat_each_other_add_nothing() -> None:
    rng = np.random.default_rng(0)
    clicks, p, chosen = (rng.random(50) < 0.3).astype(float), rng.uniform(0.3, 1.0, 50), rng.random(50)
    tripled = logged(np.repeat(clicks, 3), np.repeat(p, 3), np.repeat(np.arange(50), 3))
    assert bounds(ips(tripled, np.repeat(chosen, 3), ALPHA)) == pytest.approx(
        bounds(ips(logged(clicks, p), chosen, ALPHA)), rel=0.05
    )
    apart = ips(logged(np.repeat(clicks, 3), np.repeat(p, 3)), np.repeat(chosen, 3), ALPHA)
    assert apart.upper - apart.lower < 0.7 * np.diff(bounds(ips(logged(clicks, p), chosen, ALPHA)))[0]


def bounds(found: Estimate) -> tuple[float, float]:
    return found.lower, found.upper


def test_a_log_of_one_cluster_says_nothing_of_the_spread() -> None:
    assert bounds(ips(logged([1, 0, 0], [1.0] * 3, [7, 7, 7]), np.ones(3), ALPHA)) == (0.0, 1.0)


def test_a_policy_that_never_shows_what_was_shown_stays_unknown() -> None:
    nothing = np.zeros(4)
    assert snips(ROWS, nothing, ALPHA) == Estimate(None, 0.0, 1.0)
    assert ips(ROWS, nothing, ALPHA) == Estimate(0.0, 0.0, 1.0)
    assert dr(ROWS, nothing, nothing, np.full(4, 0.2), ALPHA) == Estimate(pytest.approx(0.2), 0.0, 1.0)
    assert weigh(ROWS, nothing).effective_rows == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: logged([], []), "an estimate needs logged impressions, got none"),
        (lambda: logged([1], [0.0]), r"propensities must be in \(0, 1\], got 0.0 to 0.0"),
        (lambda: logged([1], [np.nan]), r"propensities must be in \(0, 1\], got nan"),
        (lambda: ips(ROWS, np.full(4, 1.5), ALPHA), "a policy must choose with probabilities, got 1.5 to 1.5"),
    ],
)
def test_what_is_no_probability_is_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def drawn(seed: int, n_clusters: int = 800) -> tuple[Logged, Floats, Floats, Floats, float]:
    """A log of rare clicks by a skewed policy, rows of a cluster alike; and the rate of the policy that is judged."""
    rng = np.random.default_rng(seed)
    rates = np.array([0.004, 0.008, 0.016, 0.03])  # of four ads, in the middle between quiet and lively clusters
    logging, policy = np.array([0.6, 0.25, 0.1, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    lively = rng.choice([0.5, 1.5], n_clusters)
    size = rng.integers(1, 6, n_clusters)
    cluster = np.repeat(np.arange(n_clusters), size)
    shown = rng.choice(4, len(cluster), p=logging)
    clicks = (rng.random(len(cluster)) < rates[shown] * lively[cluster]).astype(float)
    believed = 0.5 * rates + 0.004
    log = logged(clicks, logging[shown], cluster)
    return log, policy[shown], believed[shown], np.full(len(cluster), believed @ policy), float(rates @ policy)


def test_intervals_hold_as_often_as_they_say_and_estimates_have_no_bias() -> None:
    n_logs, held, rates, truth = 400, np.zeros(3), [], 0.0
    for seed in range(n_logs):
        log, chosen, predicted, expected, truth = drawn(seed)
        found = (
            ips(log, chosen, ALPHA),
            snips(log, chosen, ALPHA),
            dr(log, chosen, predicted, expected, ALPHA),
        )
        held += [one.lower <= truth <= one.upper for one in found]
        rates.append([one.rate for one in found])
    assert np.all(held / n_logs >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / n_logs))
    assert np.all(held / n_logs < 1.0)
    error = np.std(rates, axis=0) / np.sqrt(n_logs)
    assert np.all(np.abs(np.mean(rates, axis=0) - truth) < 4.0 * error)
