"""What the arms got, by hand."""

import math

import numpy as np
import pytest

from stream.demo.arms import ARMS, HourTally, estimate, phases, score


def tally(index: int, clicks: dict[str, list[int]], expected: dict[str, list[float]]) -> HourTally:
    return HourTally(
        index,
        {arm: np.array(clicks[arm]) for arm in ARMS},
        {arm: np.array(expected[arm]) for arm in ARMS},
        best=np.full(len(clicks["random"]), 0.8),
    )


FIRST = tally(
    7,
    {"learning": [1, 0], "static": [1, 0], "random": [0, 0]},
    {"learning": [0.6, 0.4], "static": [0.4, 0.2], "random": [0.1, 0.3]},
)
SECOND = tally(
    8,
    {"learning": [2, 1], "static": [0, 0], "random": [0, 1]},
    {"learning": [0.8, 0.6], "static": [0.3, 0.3], "random": [0.2, 0.2]},
)


def test_rates_and_regret_are_per_impression_over_all_requests_of_the_hours() -> None:
    found = score([FIRST, SECOND], n_places=2)
    assert (found.first_hour, found.last_hour, found.requests) == (7, 8, 4)
    assert found.best_ctr == pytest.approx(0.4)
    learning = found.arms["learning"]
    assert (learning.impressions, learning.clicks, learning.ctr.mean) == (8, 4, pytest.approx(0.5))
    assert learning.expected_ctr == pytest.approx(0.3)
    assert learning.regret.mean == pytest.approx(0.1)
    assert found.arms["random"].regret.mean == pytest.approx(0.4 - 0.1)


def test_arms_are_compared_request_by_request() -> None:
    """Both arms vary much less apart than each does alone: only the difference within a request counts."""
    found = score([FIRST, SECOND], n_places=2).arms
    assert found["static"].behind == estimate(np.array([0.0, 0.0, 1.0, 0.5]))
    assert found["learning"].behind == estimate(np.zeros(4))


def test_an_interval_is_the_mean_and_two_errors_on_either_side() -> None:
    found = estimate(np.array([0.0, 0.1, 0.2, 0.1]))
    error = math.sqrt((0.01 + 0.0 + 0.01 + 0.0) / 3.0 / 4.0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=1e-5)


def test_a_single_request_says_nothing_about_others() -> None:
    found = estimate(np.array([0.3]))
    assert (found.mean, found.low, found.high) == (0.3, -math.inf, math.inf)


def test_phases_cover_the_loop_and_none_goes_over_the_drift() -> None:
    found = phases(4, 16, 32)
    assert list(found.values()) == [(4, 10), (10, 16), (16, 24), (24, 32)]
    assert list(phases(4, 6, 8).values()) == [(4, 5), (5, 6), (6, 7), (7, 8)]


@pytest.mark.parametrize(("drift", "end"), [(5, 10), (6, 7)])
def test_a_loop_too_short_to_have_phases_is_refused(drift: int, end: int) -> None:
    with pytest.raises(ValueError, match="a closed loop must last two hours before the drift and after"):
        phases(4, drift, end)
