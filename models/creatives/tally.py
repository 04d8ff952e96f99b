"""Impressions and clicks of every creative, and what they say of its rate: a creative leans on its ad, an ad on all.

Owns the counts of creatives by ad and their way into the smoothing of the feature prior (features/posteriors.py), which
is the only smoothing there is. Must not know policies or where counts come from.

Invariants: adding is all that changes a tally, so the order of what is added changes nothing; a creative that is not
present is never counted.

Shape legend: `A` ads, `C` creatives of an ad at most, `N` rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.fields import Field
from features.posteriors import overall_rate, smoothed
from features.priors import Counts, Floats, Ints, PriorTable
from features.strength import add_losses, best_strength, initial_losses

Flags = npt.NDArray[np.bool_]

FIELDS = (Field("ad_id", "item"), Field("creative_id", "creative"))
LEVELS = ("creative_id", "ad_id")
NO_COUNTS = PriorTable.empty((np.inf,), len(FIELDS))  # a tally forgets nothing; the strengths are the default's


@dataclass(frozen=True)
class Tally:
    """What was counted.

    Attributes:
        impressions: (A, C).
        clicks: (A, C).
        present: Which creatives there are; an ad's need not be its first, (A, C).
        root_impressions: Of all ads, also those that `take` left out.
        root_clicks: Likewise.
    """

    impressions: Floats
    clicks: Floats
    present: Flags
    root_impressions: float = 0.0
    root_clicks: float = 0.0

    @classmethod
    def empty(cls, present: Flags) -> Tally:
        """Return a tally that has counted nothing.

        Raises:
            ValueError: If an ad has no creative: there is nothing to choose.
        """
        if not present.any(axis=1).all():
            raise ValueError(f"an ad needs a creative, {int((~present.any(axis=1)).sum())} of {len(present)} have none")
        return cls(np.zeros(present.shape), np.zeros(present.shape), present)

    def plus(self, impressions: Floats, clicks: Floats) -> Tally:
        """Return the tally with more impressions and clicks, (A, C) each."""
        assert not impressions[~self.present].any(), "a creative that is not there cannot have been shown"
        return dataclasses.replace(
            self,
            impressions=self.impressions + impressions,
            clicks=self.clicks + clicks,
            root_impressions=self.root_impressions + float(impressions.sum()),
            root_clicks=self.root_clicks + float(clicks.sum()),
        )

    def take(self, ads: Ints) -> Tally:
        """Return the tally of some ads, in their order; they may repeat."""
        return dataclasses.replace(
            self, impressions=self.impressions[ads], clicks=self.clicks[ads], present=self.present[ads]
        )

    def rows(self, ad: Ints, creative: Ints) -> Counts:
        """Return what is known of rows, as the feature prior counts: of each its ad and its creative, (N, 2, 1)."""
        n, c = (
            np.stack([of_all.sum(axis=1)[ad], of_all[ad, creative]], axis=1)[:, :, None]
            for of_all in (self.impressions, self.clicks)
        )
        root = np.ones((len(ad), 1))
        return Counts(n, c, root * self.root_impressions, root * self.root_clicks)


def posteriors(tally: Tally, strength: Floats) -> tuple[Floats, Floats]:
    """Return the Beta posterior of each creative's rate: clicks and others with the prior, (A, C) each.

    Args:
        tally: What was counted.
        strength: Impressions that the prior of an ad and that of a creative are worth, (2, 1).
    """
    return smoothed(tally.impressions, tally.clicks, ad_rates(tally, strength)[:, None], strength[1])


def ad_rates(tally: Tally, strength: Floats) -> Floats:
    """Return the posterior rate of each ad, which its creatives lean on, (A,); `strength` as for `posteriors`."""
    prior = overall_rate(tally.root_impressions, tally.root_clicks)
    clicks, others = smoothed(tally.impressions.sum(axis=1), tally.clicks.sum(axis=1), prior, strength[0])
    rates: Floats = clicks / (clicks + others)
    return rates


def fit_strength(seen: Iterable[tuple[Counts, Floats]]) -> Floats:
    """Return the strengths that would have predicted the clicks of rows best, (2, 1).

    Args:
        seen: Of some rows after the other what was known when they were shown, as `Tally.rows` has it, and whether
            each was clicked.
    """
    losses, table = initial_losses(len(FIELDS), 1), NO_COUNTS
    for counts, clicks in seen:
        losses = add_losses(losses, counts, _keys(len(clicks)), clicks, table, FIELDS, LEVELS)
        table = dataclasses.replace(table, strength=best_strength(losses))
    return table.strength


def _keys(n_rows: int) -> npt.NDArray[np.uint64]:
    """Return keys of rows that have both values: which ones does not matter, the counts are there."""
    return np.ones((n_rows, len(FIELDS)), np.uint64)
