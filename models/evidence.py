"""What is known of a mean log-loss difference after some slides, with bounds that hold at every look.

Owns what one piece of evidence is and the test over pieces. Must not know what is decided on it.

One piece is one slide: what its hour did to both models, and what the two models' newest weights have in common over
all of its rows, is shared by all of its users, so neither rows nor users of a slide are independent of each other. The
users' buckets only say how precise a slide is.

Invariants: a test that is made after every slide is wrong with probability alpha at most over all of them together,
as long as each slide's difference is, given the slides before, as likely to lie above its centre as below it by as
much; nothing is assumed of the rows within a slide, of its variance, or of the slides' being alike.

Shape legend: `K` buckets of users.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BET_PRECISION = 4.0  # bets are half-normal around 0 with this precision; chosen by hand among 0.5, 1, 4 (bench/gate.py)
SCALES_MAX = 5.0  # a slide counts as no farther from the margin than this many of its scales; chosen by hand
SCALE_MIN = 1e-6  # nats; below it two models are the same
STEP_MIN, STEP_GROWTH, HALVINGS = 1e-6, 1.5, 30  # of the search for a bound, nats: far below what is printed


@dataclass(frozen=True)
class Evidence:
    """Sums over the slides so far, each with its difference d (nats per impression) and weight w (1 / its scale).

    Attributes:
        pieces: How many slides.
        weights: Sum of w.
        total: Sum of w d.
        weights_squared: Sum of w^2.
        total_squared: Sum of w^2 d.
        squares: Sum of w^2 d^2.
    """

    pieces: int = 0
    weights: float = 0.0
    total: float = 0.0
    weights_squared: float = 0.0
    total_squared: float = 0.0
    squares: float = 0.0


@dataclass(frozen=True)
class EvidenceSummary:
    """Log loss of one model minus another's, nats per impression; None without evidence.

    Attributes:
        mean: Weighted mean difference.
        lower: Below it with probability alpha at most, at any look.
        upper: Above it with probability alpha at most, at any look.
        pieces: How many slides.
    """

    mean: float | None
    lower: float | None
    upper: float | None
    pieces: int


def gather(evidence: Evidence, new: Floats, margin: float) -> Evidence:
    """Return the evidence with one more slide.

    A slide's scale is the standard error of its mean over buckets, or the margin if that is larger. It is the same for
    d and for its mirror image at the margin, so weighing by it takes no side; nor does the bound of `SCALES_MAX`.

    Args:
        evidence: What was known before.
        new: Mean difference of each bucket of users that has rows in the slide, (K,); fewer than two say nothing.
        margin: Difference that matters, >= 0.
    """
    if len(new) < 2:
        return evidence
    scale = max(float(new.std(ddof=1)) / math.sqrt(len(new)), margin, SCALE_MIN)
    reach = SCALES_MAX * scale
    difference = min(max(float(new.mean()), margin - reach), margin + reach)
    weight = 1.0 / scale
    return Evidence(
        pieces=evidence.pieces + 1,
        weights=evidence.weights + weight,
        total=evidence.total + weight * difference,
        weights_squared=evidence.weights_squared + weight**2,
        total_squared=evidence.total_squared + weight**2 * difference,
        squares=evidence.squares + (weight * difference) ** 2,
    )


def is_below(evidence: Evidence, threshold: float, alpha: float) -> bool:
    """Return whether it is certain that not every slide's centre is at or above a threshold (nats)."""
    return _log_wealth(evidence, threshold, -1.0) >= -math.log(alpha)


def is_above(evidence: Evidence, threshold: float, alpha: float) -> bool:
    """Return whether it is certain that not every slide's centre is at or below a threshold (nats)."""
    return _log_wealth(evidence, threshold, 1.0) >= -math.log(alpha)


def summarise(evidence: Evidence, alpha: float, bound: float) -> EvidenceSummary:
    """Return the mean difference and the two nearest thresholds that the tests exclude.

    Args:
        evidence: What is known.
        alpha: Probability of error of each bound.
        bound: No difference is larger than this, nats.
    """
    if not evidence.pieces:
        return EvidenceSummary(None, None, None, 0)
    mean = min(max(evidence.total / evidence.weights, -bound), bound)
    lower = _first_excluded(mean, -bound, lambda threshold: is_above(evidence, threshold, alpha))
    upper = _first_excluded(mean, bound, lambda threshold: is_below(evidence, threshold, alpha))
    return EvidenceSummary(mean, lower, upper, evidence.pieces)


def _log_wealth(evidence: Evidence, threshold: float, side: float) -> float:
    """Return the logarithm of what bets against a threshold have won, from a stake of 1.

    Source: for z symmetric around 0, exp(b z - b^2 z^2 / 2) has mean 1 at most for every bet b: de la Peña, "A general
    class of exponential inequalities for martingales and ratios", 1999; Howard et al., arXiv:1808.03204, table 3.
    Mixed here over half-normal bets, in closed form. That it also holds where slides' centres lie beyond the threshold,
    each elsewhere, is ours: of two equally likely values the one beyond is then the farther off, and loses more.
    """
    total = side * (evidence.total - threshold * evidence.weights)
    if total <= 0.0:
        return -math.inf
    spread = evidence.squares - 2.0 * threshold * evidence.total_squared + threshold**2 * evidence.weights_squared
    variance = BET_PRECISION + max(spread, 0.0)
    share = math.log(math.erfc(-total / math.sqrt(2.0 * variance)))  # twice the normal distribution function
    return 0.5 * math.log(BET_PRECISION / variance) + total**2 / (2.0 * variance) + share


def _first_excluded(mean: float, end: float, is_excluded: Callable[[float], bool]) -> float:
    """Return the threshold nearest to the mean, on the way to the end, that is excluded; the end if none is."""
    inside, distance = mean, STEP_MIN
    while not is_excluded(outside := mean + math.copysign(min(distance, abs(end - mean)), end - mean)):
        if distance >= abs(end - mean):
            return end
        inside, distance = outside, distance * STEP_GROWTH
    for _ in range(HALVINGS):
        middle = 0.5 * (inside + outside)
        inside, outside = (inside, middle) if is_excluded(middle) else (middle, outside)
    return outside
