"""The gate: whether the challenger may serve, on evidence from later traffic.

Owns what one piece of evidence is, the confidence sequence over pieces, and the rule. Must not know models; predictions
come in as numbers.

Invariants: the bounds hold at every look together with probability 1 - alpha each, so looking often costs nothing; a
decision depends on the evidence up to it alone; the evidence is about the policy "serve the newest model", so it goes
on over promotions and starts anew when the policy did harm.

Shape legend: `N` rows, `K` pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.evaluate import Evaluation, Floats, log_losses

Decision = Literal["warmup", "promote", "hold", "reject"]

PROBABILITY_MIN = 1e-4  # predictions are clipped to [this, 1 - this] before they are compared: bounds what a row weighs
BET_MAX = 0.5  # the cap c of the source
SLIDE_SIGMAS = 3.0  # harm on the newest slide alone that holds a promotion back; chosen by hand


@dataclass(frozen=True)
class Evidence:
    """Sums over the pieces so far, each piece scaled to x in [0, 1] with 1/2 for "no difference".

    Attributes:
        pieces: How many.
        total: Sum of x.
        squares: Sum of (x - running mean)^2.
        bets: Sum of the bets (the source's lambda).
        gains: Sum of bet * x.
        penalty: Sum of the variance terms.
    """

    pieces: int = 0
    total: float = 0.0
    squares: float = 0.0
    bets: float = 0.0
    gains: float = 0.0
    penalty: float = 0.0


@dataclass(frozen=True)
class EvidenceSummary:
    """Log loss of the newest model minus the champion's, nats per impression; None without evidence.

    Attributes:
        mean: Weighted mean difference.
        lower: Below it with probability alpha at most, at any look.
        upper: Above it with probability alpha at most, at any look.
        pieces: How many pieces of evidence.
    """

    mean: float | None
    lower: float | None
    upper: float | None
    pieces: int


@dataclass(frozen=True)
class GateRules:
    """When to promote; see `[gate]` in infra/settings.py for each."""

    alpha: float
    margin: float
    buckets: int
    evidence_clip: float
    clicks_min: int
    calibration: tuple[float, float]


@dataclass(frozen=True)
class GateDecision:
    """What follows from a slide.

    Attributes:
        decision: promote, hold or reject.
        reason: Why, for people.
        summary: What it rests on.
        evidence: What the next slide adds to.
    """

    decision: Decision
    reason: str
    summary: EvidenceSummary
    evidence: Evidence


def judge(evidence: Evidence, new: Floats, latest: Evaluation, rules: GateRules) -> GateDecision:
    """Return what follows for the newest model from one more slide.

    Args:
        evidence: What was known before the slide.
        new: Pieces of evidence of the slide, (K,).
        latest: How good the newest model's predictions of the slide were.
        rules: The rules.
    """
    if latest.clicks < rules.clicks_min:
        reason = f"{latest.clicks} clicks are too few, {rules.clicks_min} are needed"
        return GateDecision("hold", reason, summarise(evidence, rules), evidence)
    evidence = gather(evidence, new, rules)
    summary = summarise(evidence, rules)
    if summary.lower is not None and summary.lower > rules.margin:
        reason = f"worse by more than the margin: at least {summary.lower:.4f} nats against {rules.margin}"
        return GateDecision("reject", reason, summary, Evidence())
    if summary.upper is None or summary.upper >= rules.margin:
        reason = "no evidence yet" if summary.upper is None else f"may be worse by {summary.upper:.4f} nats"
        reason += f", margin {rules.margin}"
        return GateDecision("hold", reason, summary, evidence)
    if guard := _guard(new, latest, rules):
        return GateDecision("hold", guard, summary, evidence)
    reason = f"not worse by more than the margin: at most {summary.upper:+.4f} nats against {rules.margin}"
    return GateDecision("promote", reason, summary, evidence)


def compare(
    latest: npt.NDArray[np.floating],
    champion: npt.NDArray[np.floating],
    clicks: Floats,
    buckets: npt.NDArray[np.int64],
    evidence_clip: float,
) -> Floats:
    """Return the pieces of evidence of one slide: the mean log-loss difference of each bucket that has rows, (K,).

    Args:
        latest: Predicted probabilities of the newest model, (N,).
        champion: The champion's, (N,).
        clicks: 0 or 1, (N,).
        buckets: Which bucket each row's user falls into, (N,).
        evidence_clip: Bound of one piece.
    """
    losses = [log_losses(p.astype(np.float64), clicks, PROBABILITY_MIN) for p in (latest, champion)]
    rows = np.bincount(buckets)
    sums = np.bincount(buckets, losses[0] - losses[1])
    return np.clip(sums[rows > 0] / rows[rows > 0], -evidence_clip, evidence_clip)


def gather(evidence: Evidence, new: Floats, rules: GateRules) -> Evidence:
    """Return the evidence with the pieces of one more slide, (K,), in their order.

    Source: Waudby-Smith and Ramdas, arXiv:2010.09686, Theorem 2 (predictable plug-in empirical-Bernstein), one-sided:
    log(1/alpha) stands where the two-sided form has log(2/alpha).
    """
    if not len(new):
        return evidence
    x = (new + rules.evidence_clip) / (2.0 * rules.evidence_clip)
    i = evidence.pieces + np.arange(1, len(x) + 1)
    mean = (0.5 + evidence.total + np.cumsum(x)) / (i + 1)
    squares = evidence.squares + np.cumsum((x - mean) ** 2)
    mean_before = np.concatenate([[(0.5 + evidence.total) / i[0]], mean[:-1]])
    variance_before = (0.25 + np.concatenate([[evidence.squares], squares[:-1]])) / i
    bet = np.minimum(np.sqrt(2.0 * math.log(1.0 / rules.alpha) / (variance_before * i * np.log1p(i))), BET_MAX)
    penalty = (x - mean_before) ** 2 * (-np.log1p(-bet) - bet)  # v_i psi_E(lambda_i): the 4 and the 1/4 cancel
    return Evidence(
        pieces=evidence.pieces + len(x),
        total=evidence.total + float(x.sum()),
        squares=float(squares[-1]),
        bets=evidence.bets + float(bet.sum()),
        gains=evidence.gains + float((bet * x).sum()),
        penalty=evidence.penalty + float(penalty.sum()),
    )


def summarise(evidence: Evidence, rules: GateRules) -> EvidenceSummary:
    """Return the mean difference and its two one-sided bounds, in nats per impression."""
    if not evidence.pieces:
        return EvidenceSummary(None, None, None, 0)
    centre = evidence.gains / evidence.bets
    reach = (math.log(1.0 / rules.alpha) + evidence.penalty) / evidence.bets
    mean, lower, upper = (
        rules.evidence_clip * (2.0 * min(max(x, 0.0), 1.0) - 1.0) for x in (centre, centre - reach, centre + reach)
    )
    return EvidenceSummary(mean, lower, upper, evidence.pieces)


def _guard(new: Floats, latest: Evaluation, rules: GateRules) -> str:
    """Return why a promotion must wait although the evidence allows it, or nothing."""
    low, high = rules.calibration
    if latest.calibration is None or not low <= latest.calibration <= high:
        return f"calibration must lie in [{low}, {high}], got {latest.calibration}"
    if len(new) > 1:
        certain = float(new.mean() - SLIDE_SIGMAS * new.std(ddof=1) / math.sqrt(len(new)))
        if certain > rules.margin:
            return f"worse on this slide alone: by at least {certain:.4f} nats against {rules.margin}"
    return ""
