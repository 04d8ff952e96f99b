"""The gate: whether the challenger may serve, on evidence from later traffic.

Owns what is compared, the rule and the guardrails. Must not know models; predictions come in as numbers.

Invariants: a decision depends on the evidence up to it alone and carries everything that it rests on; a model that is
certainly harmful is not promoted, one that passes no guardrail neither; the evidence is about the policy "serve the
newest model", so it goes on over promotions and starts anew when the policy did harm.

Shape legend: `N` rows, `K` buckets of users.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.evaluate import Evaluation, Floats, Ints
from models.evidence import Evidence, EvidenceSummary, gather, is_above, is_below, summarise

Decision = Literal["warmup", "promote", "hold", "reject", "rollback"]
Rule = Literal["non_inferiority", "superiority"]

PROBABILITY_MIN = 1e-4  # predictions are clipped to [this, 1 - this] before they are compared: bounds what a row weighs
SLIDE_SIGMAS = 3.0  # harm on the newest slide alone that holds a promotion back; chosen by hand
SLICES = ("new", "rare", "common")  # items by what had settled of them when they were shown
BUCKETS_MIN = 10  # fewer say too little about the noise between buckets; chosen by hand
RARE_MIN, COMMON_MIN = 1.0, 100.0  # impressions (longest memory) from which on an item is rare, or common; by hand


@dataclass(frozen=True)
class GateRules:
    """When to promote; see `[gate]` in infra/settings.py for each."""

    rule: Rule
    alpha: float
    margin: float
    buckets: int
    evidence_clip: float
    clicks_min: int
    calibration: tuple[float, float]
    shift_max: float
    slice_margin: float
    harm_max: float
    rollback_wait: int

    @property
    def threshold(self) -> float:
        """Difference that the challenger must certainly stay below, nats per impression."""
        return self.margin if self.rule == "non_inferiority" else 0.0


@dataclass(frozen=True)
class Comparison:
    """What one slide says of the newest model against the champion.

    Attributes:
        pieces: Mean log-loss difference of each bucket of users that has rows, (K,).
        slices: The same of each slice of items that has rows.
        shift: Mean prediction of the newest model over the champion's; None without rows.
        expected: Clicks that the champion predicted.
    """

    pieces: Floats
    slices: Mapping[str, Floats]
    shift: float | None
    expected: float


@dataclass(frozen=True)
class Guard:
    """One guardrail on one slide.

    Attributes:
        name: clicks, calibration, shift, slide, or `slice NAME`.
        value: What was found; None when it could not be said.
        low: The least that lets a promotion pass, if any.
        high: The most, if any.
        passes: Whether it does.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    passes: bool

    def __str__(self) -> str:
        """What was wrong, for people."""
        if self.name in _REASONS and self.value is not None:
            return _REASONS[self.name].format(self.value, self.low)
        if self.name.startswith("sli") and self.value is not None:
            where = "this slide alone" if self.name == "slide" else f"{self.name.removeprefix('slice ')} items"
            return f"worse on {where}: by at least {self.value:.4f} nats against {self.high}"
        return f"{self.name} must lie in [{self.low:g}, {self.high:g}], got {self.value}"


_REASONS = {"clicks": "{:.0f} clicks, come or expected, are too few, {:.0f} are needed"}


@dataclass(frozen=True)
class GateDecision:
    """What follows from a slide.

    Attributes:
        decision: warmup, promote, hold, reject or rollback.
        reason: Why, for people.
        summary: What it rests on.
        evidence: What the next slide adds to.
        guards: The guardrails, those that were passed too; empty where nothing was compared.
    """

    decision: Decision
    reason: str
    summary: EvidenceSummary
    evidence: Evidence
    guards: tuple[Guard, ...] = ()


def judge(evidence: Evidence, new: Comparison, latest: Evaluation, rules: GateRules) -> GateDecision:
    """Return what follows for the newest model from one more slide.

    Args:
        evidence: What was known before the slide.
        new: The slide's comparison.
        latest: How good the newest model's predictions of the slide were.
        rules: The rules.
    """
    guards = check(new, latest, rules)
    if not guards[0].passes:
        return GateDecision("hold", str(guards[0]), summary_of(evidence, rules), evidence, guards)
    evidence = gather(evidence, new.pieces, rules.margin)
    summary = summary_of(evidence, rules)
    if is_above(evidence, rules.margin, rules.alpha):
        reason = f"worse by more than the margin: at least {summary.lower:.4f} nats against {rules.margin}"
        return GateDecision("reject", reason, summary, Evidence(), guards)
    if not is_below(evidence, rules.threshold, rules.alpha):
        return GateDecision("hold", _doubt(summary, rules), summary, evidence, guards)
    if failed := [str(guard) for guard in guards if not guard.passes]:
        return GateDecision("hold", "; ".join(failed), summary, evidence, guards)
    reason = f"not worse by more than the margin: at most {summary.upper:+.4f} nats against {rules.margin}"
    if rules.rule == "superiority":
        reason = f"better: by at least {-(summary.upper or 0.0):.4f} nats"
    return GateDecision("promote", reason, summary, evidence, guards)


def compare(
    difference: Floats, buckets: Ints, slices: Ints, evidence_clip: float, *, means: tuple[float, float]
) -> Comparison:
    """Return what one slide says.

    Args:
        difference: Loss of the newest model less the champion's, nats, (N,).
        buckets: Which bucket each row's user falls into, (N,).
        slices: Which of `SLICES` each row's item falls into, (N,).
        evidence_clip: Bound of one bucket's mean difference, nats.
        means: Mean predictions of the newest model and of the champion.
    """
    return Comparison(
        pieces=_bucket_means(difference, buckets, evidence_clip),
        slices={
            name: _bucket_means(difference[slices == index], buckets[slices == index], evidence_clip)
            for index, name in enumerate(SLICES)
            if (slices == index).any()
        },
        shift=means[0] / means[1] if len(difference) else None,
        expected=means[1] * len(difference) if len(difference) else 0.0,
    )


def slice_items(impressions: Floats) -> Ints:
    """Return which of `SLICES` items fall into by their impressions so far (longest memory), (N,)."""
    return np.digitize(impressions, [RARE_MIN, COMMON_MIN]).astype(np.int64)


def summary_of(evidence: Evidence, rules: GateRules) -> EvidenceSummary:
    """Return what is known, with bounds as the rules want them."""
    return summarise(evidence, rules.alpha, rules.evidence_clip)


def check(new: Comparison, latest: Evaluation, rules: GateRules) -> tuple[Guard, ...]:
    """Return all guardrails of a slide; the first is that of the clicks, without which nothing is evidence."""
    low, high = rules.calibration
    mended = _mended(new.shift, latest.calibration)
    harms = {"slide": (new.pieces, rules.margin)}
    harms |= {f"slice {name}": (pieces, rules.slice_margin) for name, pieces in new.slices.items()}
    return (
        # Clicks that were expected and did not come are evidence as well: of a champion that has lost its way.
        _guard("clicks", max(float(latest.clicks), new.expected), low=rules.clicks_min),
        _guard("calibration", latest.calibration, low=low, high=high),
        _guard("shift", new.shift, low=1.0 / max(rules.shift_max, mended), high=max(rules.shift_max, mended)),
        *(
            _guard(name, certain_harm(pieces), high=limit)
            for name, (pieces, limit) in harms.items()
            if len(pieces) >= BUCKETS_MIN
        ),
    )


def certain_harm(pieces: Floats) -> float:
    """Return how much worse rows are beyond the noise between buckets, (K,), in nats; negative where they are not."""
    return float(pieces.mean() - SLIDE_SIGMAS * pieces.std(ddof=1) / math.sqrt(len(pieces)))


def _mended(shift: float | None, calibration: float | None) -> float:
    """Return the shift up to which the newest mean is no farther from the clicks than the champion's, 1 or more.

    In a closed loop a champion overrates what it has chosen to show; a model that knows better must predict less.
    """
    if not shift or not calibration:
        return 1.0
    champion = calibration / shift
    return max(champion, 1.0 / champion) ** 2 if (champion > 1.0) == (shift < 1.0) else 1.0


def _doubt(summary: EvidenceSummary, rules: GateRules) -> str:
    """Return why the evidence does not allow a promotion."""
    if summary.upper is None or summary.upper >= rules.evidence_clip:
        return f"{summary.pieces} slides say too little yet"
    return f"may be worse by {summary.upper:.4f} nats, margin {rules.threshold}"


def _guard(name: str, value: float | None, low: float | None = None, high: float | None = None) -> Guard:
    passes = value is not None and (low is None or low <= value) and (high is None or value <= high)
    return Guard(name, value, low, high, passes)


def _bucket_means(difference: Floats, buckets: Ints, evidence_clip: float) -> Floats:
    """Return the mean difference of each bucket that has rows, clipped, (K,)."""
    rows = np.bincount(buckets)
    sums = np.bincount(buckets, difference)
    return np.clip(sums[rows > 0] / rows[rows > 0], -evidence_clip, evidence_clip)
