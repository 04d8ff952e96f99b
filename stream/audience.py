"""How the people of a simulated hour answer what they are shown, whoever chose it.

Owns the draws that decide about clicks, and what the best list would have been worth. Must not know services, models or
events.

Invariants: what a person makes of a candidate is drawn once, from (seed, hour) alone, before anything is shown: two
services that show the same at the same place get the same answer, so what separates them is what they showed; the
chance of a click is the truth of stream/cascade.py.

Shape legend: `R` requests of the hour, `M` matched candidates of a request, `C` creatives, `K` places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream.cascade import Cascade, Hour, at_position
from stream.simulate import Floats, Ints, click_delays

Choice = tuple[str, str | None]  # an ad by its id, and a creative of it; None: the world draws one, evenly


@dataclass(frozen=True)
class Reaction:
    """What came of one list, (K,) each.

    Attributes:
        creative: Index of the creative that was shown.
        expected: The true chance of a click; where the world drew the creative, the mean over the ad's creatives.
        clicked: Whether it was clicked.
        click_time_s: When; NaN where it was not.
    """

    creative: Ints
    expected: Floats
    clicked: npt.NDArray[np.bool_]
    click_time_s: Floats


class Audience:
    """The people behind the requests of one hour."""

    def __init__(self, cascade: Cascade, hour: Hour) -> None:
        """Draw what they would make of every candidate."""
        self.hour = hour
        shape = hour.matched.shape
        ad = hour.matched.ravel()
        logit = cascade.click_logit(hour, np.repeat(np.arange(shape[0]), shape[1]), ad)
        self._logit = logit.reshape(*shape, -1)  # (R, M, C)
        self._n_creatives = hour.market.n_creatives[hour.matched]  # (R, M)
        rng = np.random.default_rng([cascade.world.seed, 8, hour.index])
        self._creative = (rng.random(shape) * self._n_creatives).astype(np.int64)
        self._luck = rng.random(shape)
        self._delay_s = click_delays(rng, len(ad)).reshape(shape)

    def candidates(self, request: int) -> list[str]:
        """Return the ids of the ads that a request may be answered with."""
        return list(map(str, self.hour.market.number[self.hour.matched[request]].tolist()))

    def react(self, request: int, choices: Sequence[Choice]) -> Reaction:
        """Return what comes of showing these, best first, to the person behind a request.

        Raises:
            ValueError: If one is no candidate of the request, or is there twice, or no creative of its ad is named so.
        """
        place = {ad_id: place for place, ad_id in enumerate(self.candidates(request))}
        if unknown := [ad_id for ad_id, _ in choices if ad_id not in place]:
            raise ValueError(f"request {request} must be answered with its candidates, got ad {unknown[0]}")
        column = np.array([place[ad_id] for ad_id, _ in choices], np.int64)  # (K,)
        if len(np.unique(column)) < len(column):
            raise ValueError(f"request {request} must be answered with each ad once, got {[one for one, _ in choices]}")
        position = np.arange(len(choices))
        ctr = at_position(self._logit[request, column], position[:, None])  # (K, C)
        drawn = self._creative[request, column]
        creative = np.array([self._index(request, *one) for one in zip(column, choices, strict=True)], np.int64)
        chosen = np.where(creative < 0, drawn, creative)
        own = ctr[position, chosen]
        expected = np.where(creative < 0, ctr.sum(axis=1) / self._n_creatives[request, column], own)
        clicked = self._luck[request, column] < own
        time_s = (self.hour.time_s[request] + self._delay_s[request, column]).round(3)
        return Reaction(chosen, expected, clicked, np.where(clicked, time_s, np.nan))

    def best(self, n_places: int) -> Floats:
        """Return the expected clicks of the best list of each request, each ad with its best creative, (R,).

        It holds the ads with the highest chances at the top, in that order: no list is better while all chances are
        below one half.
        """
        top = np.sort(self._logit.max(axis=2), axis=1)[:, ::-1][:, :n_places]  # (R, K)
        expected: Floats = at_position(top, np.arange(n_places)).sum(axis=1)
        return expected

    def _index(self, request: int, column: int, choice: Choice) -> int:
        """Return the index of the chosen creative, -1 if none was chosen."""
        ad_id, creative_id = choice
        if creative_id is None:
            return -1
        owner, _, index = creative_id.rpartition("-")  # as `creative_ids` makes them
        if owner != ad_id or not index.isdecimal() or int(index) >= self._n_creatives[request, column]:
            raise ValueError(f"ad {ad_id} must be shown with a creative of its own, got {creative_id}")
        return int(index)
