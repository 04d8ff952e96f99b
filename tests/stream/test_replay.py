"""The pace of a replay; what it sends to a broker is tested in tests/broker/test_replay.py."""

from __future__ import annotations

import math

import pytest

from stream.replay import Pace


def test_without_a_speed_nothing_waits_or_asks() -> None:
    pace = Pace(None)
    assert pace.until_s == math.inf
    assert pace.wait_s(1e12, 0.0) == 0.0


def test_event_time_runs_as_many_times_faster_as_asked_for() -> None:
    pace = Pace(60.0)
    assert pace.wait_s(1000.0, 5.0) == 0.0, "the first event sets the clock"
    assert pace.wait_s(1060.0, 5.0) == pytest.approx(1.0)
    assert pace.wait_s(1060.0, 5.75) == pytest.approx(0.25)
    assert pace.wait_s(1120.0, 9.0) == pytest.approx(-2.0), "a replay that is behind does not wait"


def test_events_that_are_due_need_not_ask() -> None:
    pace = Pace(10.0)
    pace.wait_s(1000.0, 5.0)
    assert pace.until_s == 1000.0
    pace.wait_s(1001.0, 6.0)
    assert pace.until_s == 1010.0
    pace.wait_s(1030.0, 6.0)
    assert pace.until_s == 1030.0, "it has waited by then"


@pytest.mark.parametrize("speed", [0.0, -1.0, math.inf, math.nan])
def test_a_speed_is_a_positive_number(speed: float) -> None:
    with pytest.raises(ValueError, match=f"speed must be > 0 seconds of event time a second, got {speed}"):
        Pace(speed)
