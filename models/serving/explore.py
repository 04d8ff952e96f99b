"""Which ads are shown although others look better: Thompson sampling of whole lists, with the propensity of each ad.

Owns the draw for one request. Must not know requests, models or where rates come from.

What is known of an ad is the Beta posterior of its click rate, which the counts keep anyway. A draw from it over its
mean says how much better or worse than expected the ad may be, and its value (pCTR × bid) is taken times that. Several
lists are drawn, and one of them, or the best list, is shown: so, given the draws, the probability that an ad is in the
list that is shown is a plain count, and exact. An ad that is in none of them cannot be shown by this request, so
estimates for policies that show it often lean on the requests in which it could be.

Invariants: without exploring the list is the best one and every propensity 1; who is shown has a propensity above 0;
the same seed gives the same list.

Source: Thompson sampling, after Chapelle and Li, An empirical evaluation of Thompson sampling (2011); that a model's
pCTR is scaled by a draw of the ad's prior, and that one of several drawn lists is shown, are ours.

Shape legend: `K` ads, `T` places, `L` lists.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.priors import Floats
from models.serving.rank import best_first

LISTS = 64  # a propensity is a multiple of 1/64 of the share that explores; chosen by hand


def draw_list(
    values: Floats, posterior: tuple[Floats, Floats], *, top: int, explore: float, seed: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return which ads are shown, best first, and with which probability each is in the list, (T,) both.

    Args:
        values: What an impression is expected to be worth, (K,).
        posterior: Clicks and others of each ad with its prior, (K,) both.
        top: How many are shown at most.
        explore: Share of requests that are shown a drawn list.
        seed: Decides the draws.
    """
    best = best_first(values, top)
    if not explore or top >= len(values):
        return best, np.ones(len(best))
    clicks, others = posterior
    rng = np.random.default_rng(seed)
    drawn = values * rng.beta(clicks, others, (LISTS, len(values))) * (clicks + others) / clicks  # (L, K)
    lists = np.argpartition(-drawn, top - 1, axis=1)[:, :top]
    share = np.bincount(lists.ravel(), minlength=len(values)) / LISTS
    propensities = explore * share
    propensities[best] += 1.0 - explore
    if rng.random() < explore:
        number = rng.integers(LISTS)
        best = lists[number][np.argsort(-drawn[number, lists[number]], kind="stable")]
    return best, propensities[best]
