"""What three ways of choosing got from the same people: click rates, what was missed, and how sure that is.

Owns the arms, the phases of a closed loop and the arithmetic over them. Must not know services, events or screens.

Invariants: all arms are judged on the same requests; an interval is that of the mean over requests, so clicks of one
list may hang together as they like; regret is counted on true chances, not on clicks.

Shape legend: `R` requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec
import numpy as np

from stream.simulate import Floats, Ints

Arm = Literal["learning", "static", "random"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Z_95 = 1.959964


class Estimate(msgspec.Struct, frozen=True):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class HourTally:
    """What came of the requests of an hour, in clicks of a whole list.

    Attributes:
        index: Of the hour.
        clicks: By arm, (R,).
        expected: Sums of true chances by arm, (R,).
        best: The same of the best list, (R,).
    """

    index: int
    clicks: dict[Arm, Ints]
    expected: dict[Arm, Floats]
    best: Floats


class ArmScore(msgspec.Struct, frozen=True):
    """What an arm got, per impression.

    Attributes:
        expected_ctr: Mean true chance of what was shown.
        regret: What the best list would have got more, in true chances.
        behind: Click rate of the learning arm minus this one's, request by request.
    """

    impressions: int
    clicks: int
    ctr: Estimate
    expected_ctr: float
    regret: Estimate
    behind: Estimate


class Score(msgspec.Struct, frozen=True):
    """What all arms got in some hours.

    Attributes:
        first_hour: Of them.
        last_hour: Of them, included.
        best_ctr: Of the best lists, each ad with its best creative.
    """

    first_hour: int
    last_hour: int
    requests: int
    best_ctr: float
    arms: dict[Arm, ArmScore]


def phases(first: int, drift: int, end: int) -> dict[str, tuple[int, int]]:
    """Return the hours of each phase as (from, to), `to` excluded: before and after the drift, each in two halves.

    Args:
        first: First hour of the loop.
        drift: First hour after the drift, at least two later.
        end: The hour after the last, at least two later again.
    """
    if drift < first + 2 or end < drift + 2:
        raise ValueError(f"a closed loop must last two hours before the drift and after, got {first}, {drift}, {end}")
    half, later = (first + drift) // 2, (drift + end) // 2
    return {
        "at first": (first, half),
        "before the drift": (half, drift),
        "after the drift": (drift, later),
        "at last": (later, end),
    }


def score(tallies: Sequence[HourTally], *, n_places: int) -> Score:
    """Return what the arms got in these hours, of which there must be one, with a request.

    Args:
        n_places: Impressions of each list.
    """
    clicks = {arm: _joined([tally.clicks[arm] for tally in tallies]) / n_places for arm in ARMS}
    expected = {arm: _joined([tally.expected[arm] for tally in tallies]) / n_places for arm in ARMS}
    best = _joined([tally.best for tally in tallies]) / n_places
    n_impressions = len(best) * n_places
    arms = {
        arm: ArmScore(
            impressions=n_impressions,
            clicks=round(clicks[arm].sum() * n_places),
            ctr=estimate(clicks[arm]),
            expected_ctr=float(expected[arm].mean()),
            regret=estimate(best - expected[arm]),
            behind=estimate(clicks["learning"] - clicks[arm]),
        )
        for arm in ARMS
    }
    return Score(tallies[0].index, tallies[-1].index, len(best), float(best.mean()), arms)


def estimate(values: Floats) -> Estimate:
    """Return the mean with its 95 % interval, by the normal distribution; of a single value it is endless."""
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(mean, mean - Z_95 * error, mean + Z_95 * error)


def _joined(several: Sequence[Floats | Ints]) -> Floats:
    return np.concatenate(several).astype(np.float64)
