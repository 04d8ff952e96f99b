"""How good a choice of creatives is: sCTR and NSCTR from a log of another choice, regret where the truth is known.

Owns the definitions. Must not know policies or rankers.

Invariants: a figure that is not defined is None, never NaN; the order of the rows changes nothing beyond rounding; a
ranker that would have chosen what the log chose has the log's click rate.

Shape legend: `N` rows, `C` creatives of a row at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.priors import Floats, Ints
from models.creatives.tally import Flags


@dataclass(frozen=True)
class SelectedCtr:
    """Click rates of the impressions whose creative the ranker would have chosen too.

    They are those of the ranker's own choice where the log chose evenly.

    Attributes:
        rows: How many such impressions.
        sctr: Their clicks over their number; None without any.
        nsctr: Their click rate within each ad, averaged by all impressions of the ad; None without any.
        coverage: Share of all impressions whose ad has at least one of those; the other ads are in neither sum.
    """

    rows: int
    sctr: float | None
    nsctr: float | None
    coverage: float


def selected_ctr(ads: Ints, is_same: Flags, clicks: Floats) -> SelectedCtr:
    """Return the click rates of the impressions that a ranker agrees with.

    Args:
        ads: Which ad each impression is of, (N,).
        is_same: Whether the ranker would have chosen the creative that was logged, (N,).
        clicks: 0 or 1, (N,).

    Source: arXiv:2312.12750: NSCTR = sum_m (Clk^s_m / Imp^s_m) Imp_m / sum_m Imp_m, sCTR = sum Clk^s / sum Imp^s.
    """
    if not is_same.any():
        return SelectedCtr(0, None, None, 0.0)
    _, ad = np.unique(ads, return_inverse=True)
    impressions = np.bincount(ad).astype(np.float64)
    selected = np.bincount(ad, weights=is_same)
    selected_clicks = np.bincount(ad, weights=is_same * clicks)
    kept = selected > 0.0
    rates = selected_clicks[kept] / selected[kept]
    return SelectedCtr(
        rows=int(selected.sum()),
        sctr=float(selected_clicks.sum() / selected.sum()),
        nsctr=float(rates @ impressions[kept] / impressions[kept].sum()),
        coverage=float(impressions[kept].sum() / impressions.sum()),
    )


def regret(rates: Floats, probabilities: Floats) -> Floats:
    """Return how far the expected click rate of a choice lies below the best creative's, >= 0, (N,).

    Args:
        rates: True click rate of each creative, 0 where there is none, (N, C).
        probabilities: With which each is chosen, (N, C).
    """
    lost: Floats = ((rates.max(axis=1, keepdims=True) - rates) * probabilities).sum(axis=1)
    return lost
