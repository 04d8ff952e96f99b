"""The click rate that a policy would have had, from impressions that another one chose with known probabilities.

Owns the estimators, their interval and what says whether to trust them. Must not know policies, models or logs.

A row weighs w = pi(a | x) / p: the probability with which the policy would have shown what was shown, over the one with
which it was shown (its propensity). Every estimator is a ratio of sums over rows, T / D:

| | T | D |
|---|---|---|
| IPS | w y | 1 |
| SNIPS | w y | w |
| DR | sum over a of pi(a, x) q(x, a), plus w (y - q(x, a shown)) | 1 |

Source: IPS: Horvitz, Thompson, A generalization of sampling without replacement (1952). SNIPS: Hajek's ratio (1971),
for bandits Swaminathan, Joachims, The self-normalized estimator for counterfactual learning (2015). DR: Dudik,
Langford, Li, Doubly robust policy evaluation and learning (2011).

The interval is Wilson's for a rate (1927) with the number of independent rows that the estimate is worth in place of
the number of rows, as surveys have it (Dean, Pagano, Evaluating confidence interval methods for binomial proportions in
clustered surveys, 2015). That number is what the spread between clusters says, v (1 - v) / Var(v), but never more than
Kish's (sum w)^2 / sum w^2. The second bound is ours: the spread is known from the clicked rows alone, and is small
exactly when the heavy ones happen to be missing. bench/ope.py compares it with others; docs/results.md has the figures.

Invariants: rows of one cluster count as dependent; weights are never clipped (that would move the estimate without
saying by how much); a figure that is not defined is None, never NaN; where weights say nothing the interval is [0, 1].

Shape legend: `N` rows, `G` clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Logged:
    """Impressions as they were shown.

    Attributes:
        clicks: 0 or 1, (N,).
        propensities: Probability with which each was shown, in (0, 1], (N,).
        clusters: Rows with the same number are dependent: of one request, or of one user's day, (N,).
    """

    clicks: Floats
    propensities: Floats
    clusters: Ints

    def __post_init__(self) -> None:
        """Check that there is something to estimate from."""
        if not len(self.clicks):
            raise ValueError("an estimate needs logged impressions, got none")
        p = self.propensities
        if not np.all((p > 0.0) & (p <= 1.0)):
            raise ValueError(f"propensities must be in (0, 1], got {float(np.min(p))} to {float(np.max(p))}")


@dataclass(frozen=True)
class Estimate:
    """A click rate.

    Attributes:
        rate: None where no row says anything; IPS and DR may lie outside [0, 1].
        lower: End of the interval, in [0, 1].
        upper: The other one.
    """

    rate: float | None
    lower: float
    upper: float


@dataclass(frozen=True)
class Weights:
    """Whether a log can say anything about a policy.

    Attributes:
        effective_rows: (sum w)^2 / sum w^2: so many rows of equal weight would say as much.
        largest: The heaviest row's weight.
        mean: About 1 if propensities are right and the log could have shown whatever the policy would show.
        mean_error: Standard error of the mean.
    """

    effective_rows: float
    largest: float
    mean: float
    mean_error: float


def logged_rate(logged: Logged, alpha: float) -> Estimate:
    """Return the click rate of the policy that chose the rows, with its interval at level 1 - alpha."""
    return ips(logged, logged.propensities, alpha)


def ips(logged: Logged, chosen: Floats, alpha: float) -> Estimate:
    """Return the estimate by inverse propensities: unbiased, and as wide as its heaviest rows.

    Args:
        logged: What was shown.
        chosen: Probability with which the policy would have shown what was shown, (N,).
        alpha: Of the interval.
    """
    weights = _weights(logged, chosen)
    return _ratio(logged, weights * logged.clicks, np.ones_like(weights), weights, alpha)


def snips(logged: Logged, chosen: Floats, alpha: float) -> Estimate:
    """Return the self-normalised estimate: a little biased, never outside [0, 1]; arguments as for `ips`."""
    weights = _weights(logged, chosen)
    return _ratio(logged, weights * logged.clicks, weights, weights, alpha)


def dr(logged: Logged, chosen: Floats, predicted: Floats, expected: Floats, alpha: float) -> Estimate:
    """Return the doubly robust estimate: what a model says of all candidates, corrected by what it got wrong.

    Args:
        logged: What was shown.
        chosen: As for `ips`.
        predicted: The model's click probability of what was shown, (N,); it must not have learnt the row.
        expected: Its mean over what the policy would have shown, (N,).
        alpha: Of the interval.
    """
    weights = _weights(logged, chosen)
    corrected = expected + weights * (logged.clicks - predicted)
    return _ratio(logged, corrected, np.ones_like(weights), weights, alpha)


def weigh(logged: Logged, chosen: Floats) -> Weights:
    """Return what the weights say about the trust in any estimate of a policy."""
    weights = _weights(logged, chosen)
    return Weights(
        effective_rows=_effective_rows(weights),
        largest=float(weights.max()),
        mean=float(weights.mean()),
        mean_error=float(weights.std()) / math.sqrt(len(weights)),
    )


def ratio_variance(residuals: Floats, total: float) -> float:
    """Return the variance of a ratio of two sums over independent clusters (delta method).

    Args:
        residuals: Of each cluster, of which there are two at least, its part of the upper sum minus the ratio times its
            part of the lower one, (G,).
        total: The lower sum.
    """
    n_clusters = len(residuals)
    return float(residuals @ residuals) * n_clusters / (n_clusters - 1) / total**2


def _weights(logged: Logged, chosen: Floats) -> Floats:
    if not np.all((chosen >= 0.0) & (chosen <= 1.0 + 1e-9)):  # a sum of many may be 1 plus a rounding
        raise ValueError(f"a policy must choose with probabilities, got {float(np.min(chosen))} to {np.max(chosen)}")
    weights: Floats = chosen / logged.propensities
    return weights


def _effective_rows(weights: Floats) -> float:
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0.0 else 0.0


def _ratio(logged: Logged, top: Floats, bottom: Floats, weights: Floats, alpha: float) -> Estimate:
    """Return sum of `top` over sum of `bottom` with its interval."""
    total, n_effective = float(bottom.sum()), _effective_rows(weights)
    if total <= 0.0:
        return Estimate(None, 0.0, 1.0)
    rate = float(top.sum()) / total
    _, cluster = np.unique(logged.clusters, return_inverse=True)
    residuals = np.bincount(cluster, top - rate * bottom).astype(np.float64)
    if len(residuals) == 1:
        return Estimate(rate, 0.0, 1.0)
    variance = ratio_variance(residuals, total)
    if variance > 0.0 and 0.0 < rate < 1.0:
        n_effective = min(n_effective, rate * (1.0 - rate) / variance)
    return Estimate(rate, *_wilson(min(max(rate, 0.0), 1.0), n_effective, alpha))


def _wilson(rate: float, n: float, alpha: float) -> tuple[float, float]:
    """Return Wilson's interval for a rate seen in n independent rows; [0, 1] without any."""
    z = NormalDist().inv_cdf(1.0 - alpha / 2.0)
    middle = (n * rate + z * z / 2.0) / (n + z * z)
    reach = z * math.sqrt(n * rate * (1.0 - rate) + z * z / 4.0) / (n + z * z)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)
