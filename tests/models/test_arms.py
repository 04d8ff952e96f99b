"""Arms are compared by user: figures worked out by hand, and intervals that hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.arms import Draw, Interval, Users, check_draw, click_rate, compare


def users(*pairs: tuple[float, float]) -> Users:
    impressions, clicks = zip(*pairs, strict=True)
    return Users(np.array(impressions), np.array(clicks))


CONTROL = users((10.0, 1.0), (20.0, 3.0), (10.0, 0.0))
TREATMENT = users((10.0, 2.0), (30.0, 6.0), (10.0, 5.0))


def test_a_click_rate_and_its_interval_are_those_worked_out_by_hand() -> None:
    # R = 4 / 40; residuals 1 - 1, 3 - 2, 0 - 1; variance 3 / 2 * (0 + 1 + 1) / 40^2
    found = click_rate(CONTROL)
    error = math.sqrt(1.5 * 2.0 / 1600.0)
    assert (found.mean, found.lower, found.upper) == pytest.approx(
        (0.1, 0.1 - 1.959964 * error, 0.1 + 1.959964 * error)
    )


def test_a_difference_its_intervals_and_its_p_value_are_those_worked_out_by_hand() -> None:
    # Treatment: R = 13 / 50; residuals 2 - 2.6, 6 - 7.8, 5 - 2.6; variance 3 / 2 * (0.36 + 3.24 + 5.76) / 50^2
    variances = 1.5 * 2.0 / 1600.0, 1.5 * 9.36 / 2500.0
    error = math.sqrt(sum(variances))
    found = compare(CONTROL, TREATMENT)
    ends = (0.16 - 1.959964 * error, 0.16 + 1.959964 * error)
    assert (found.absolute.mean, found.absolute.lower, found.absolute.upper) == pytest.approx((0.16, *ends))
    assert found.p_value == pytest.approx(0.0645112, rel=1e-5)  # scipy's of z = 0.16 / error, two-sided
    reach = 1.959964 * math.sqrt(variances[0] / 0.01 + variances[1] / 0.0676)
    relative = (1.6, 2.6 * math.exp(-reach) - 1.0, 2.6 * math.exp(reach) - 1.0)
    assert (found.relative.mean, found.relative.lower, found.relative.upper) == pytest.approx(relative)


def test_what_is_not_defined_is_none() -> None:
    nobody = Users(np.zeros(0), np.zeros(0))
    assert click_rate(nobody) == Interval(None, None, None)
    assert click_rate(users((10.0, 1.0))) == Interval(0.1, None, None)
    unclicked = users((10.0, 0.0), (5.0, 0.0))
    assert compare(unclicked, unclicked).p_value is None
    assert compare(unclicked, CONTROL).relative == Interval(None, None, None)
    assert compare(users((10.0, 1.0)), CONTROL).p_value is None
    assert compare(CONTROL, unclicked).relative == Interval(-1.0, None, None)


def population(rng: np.random.Generator, n_users: int, rate: float = 0.08) -> Users:
    """Users of very different size, with tastes of their own: impressions of one are anything but independent."""
    impressions = 1.0 + rng.geometric(0.05, n_users)
    tastes = rng.beta(0.5, 4.5, n_users) * rate / 0.1
    return Users(impressions, rng.binomial(impressions.astype(int), tastes).astype(np.float64))


def test_intervals_of_95_per_cent_hold_in_95_of_100_experiments() -> None:
    rng, n_runs = np.random.default_rng(5), 2000
    rate = relative = absolute = significant = naive = 0
    for _ in range(n_runs):
        control, treatment = population(rng, 600), population(rng, 300, 0.096)
        found, own = compare(control, treatment), click_rate(control)
        absolute += bool(found.absolute.lower <= 0.016 <= found.absolute.upper)
        relative += bool(found.relative.lower <= 0.2 <= found.relative.upper)
        rate += bool(own.lower <= 0.08 <= own.upper)
        same = compare(control, population(rng, 300))
        significant += same.p_value < 0.05
        n = control.impressions.sum()
        naive += abs(control.clicks.sum() / n - 0.08) < 1.96 * math.sqrt(0.08 * 0.92 / n)
    assert 0.93 < absolute / n_runs < 0.97
    assert 0.93 < relative / n_runs < 0.97
    assert 0.93 < rate / n_runs < 0.97
    assert 0.03 < significant / n_runs < 0.07
    assert naive / n_runs < 0.85  # what impressions that are taken for independent would promise


def test_the_draw_is_checked_against_its_share() -> None:
    fair = check_draw(700, 300, 0.3)
    assert fair == Draw(0.3, 0.3, 0.0, 1.0, passes=True)
    near = check_draw(670, 330, 0.3)
    assert (near.chi2, near.p_value) == (pytest.approx(900 / 300 + 900 / 700), pytest.approx(0.0384, abs=1e-4))
    assert near.passes
    assert not check_draw(6_700, 3_300, 0.3).passes
    assert not check_draw(1_000, 0, 0.3).passes


def test_the_check_of_the_draw_suspects_one_fair_draw_in_a_thousand() -> None:
    rng = np.random.default_rng(3)
    n_treated = rng.binomial(5_000, 0.1, 20_000)
    failed = sum(not check_draw(5_000 - n, n, 0.1).passes for n in n_treated.tolist())
    assert 5 <= failed <= 45
