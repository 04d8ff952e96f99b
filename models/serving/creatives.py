"""Which creative an ad is shown with: by the feature prior, which is there before any ad is scored.

Owns the choice for one request. Must not know requests, the catalog's records or how an ad is scored.

A creative's rate leans on its ad's, an ad's on the overall rate (models/creatives/). With probability 1 - `explore` the
creative with the best posterior mean is taken, else one drawn evenly; so the propensity is exact, and every creative
goes on being tried.

Source: that ads need not wait for creatives, as these are chosen by a historical rate, is Peri-CR's (arXiv:2312.12750);
that the choice rests on this rate alone, and the exploration, are ours.

Shape legend: `A` ads, `C` creatives of an ad at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.encode import Keys
from features.fields import Field, id_field
from features.priors import Floats, PriorTable, lookup_longest
from models.creatives.policies import EpsilonGreedy, Uniform, choose
from models.creatives.tally import Tally


def choose_creatives(
    table: PriorTable, fields: Sequence[Field], keys: Sequence[Keys], *, time_s: float, explore: float, seed: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return which of its creatives each ad is shown with, and with which probability, (A,) each.

    Args:
        table: Counts of the click model.
        fields: Of those counts; where none identifies creatives all are drawn evenly.
        keys: Of each ad's creatives, the key of their ids, one at least.
        time_s: Event time of the request; counts decay to it.
        explore: Share of even draws.
        seed: Decides the draws.
    """
    width = max(map(len, keys))
    present = np.arange(width) < np.array([len(one) for one in keys])[:, None]
    rng = np.random.default_rng(seed)
    tally, item, creative = Tally.empty(present), id_field(fields, "item"), id_field(fields, "creative")
    if item is None or creative is None:
        return choose(Uniform().probabilities(tally, rng), rng)
    n, c = np.zeros(present.shape), np.zeros(present.shape)
    n[present], c[present], *root = lookup_longest(table, np.concatenate(keys), max(time_s, table.as_of_s))
    tally = Tally(n, c, present, *root)
    strength = table.strength[[fields.index(item), fields.index(creative)]][:, [int(np.argmax(table.half_lives_s))]]
    return choose(EpsilonGreedy(explore, strength).probabilities(tally, rng), rng)
