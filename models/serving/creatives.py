"""Which creative an ad is shown with: by the feature prior, which is there before any ad is scored, or by a ranker.

Owns the choice for one request. Must not know requests, the catalog's records or how anything is scored.

A creative's rate leans on its ad's, an ad's on the overall rate (models/creatives/). With probability 1 - `explore` the
best creative is taken, by that rate or by what a creative ranker says of this request, else one drawn evenly; so the
propensity is exact, and every creative goes on being tried.

Source: that ads and creatives are ranked at the same time, the creatives by what is known of their ads historically, is
Peri-CR's (arXiv:2312.12750); a choice by the prior alone, and the exploration, are ours.

Shape legend: `A` ads, `C` creatives of an ad at most.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.encode import Keys
from features.fields import Field, id_field
from features.priors import Floats, PriorTable, lookup_longest
from models.creatives.policies import EpsilonGreedy, Uniform, best_or_blindly, choose
from models.creatives.tally import Tally
from models.serving.rank import Scores


class Choice(NamedTuple):
    """With which of its creatives each ad is shown, and with which probability that one was drawn, (A,) each."""

    creative: npt.NDArray[np.int64]
    propensity: Floats


def choose_by_prior(
    table: PriorTable, fields: Sequence[Field], keys: Sequence[Keys], *, time_s: float, explore: float, seed: int
) -> Choice:
    """Return a choice by each creative's own rate, the same for everybody.

    Args:
        table: Counts of the click model.
        fields: Of those counts; where none identifies creatives all are drawn evenly.
        keys: Of each ad's creatives, the key of their ids, one at least.
        time_s: Event time of the request; counts decay to it.
        explore: Share of even draws.
        seed: Decides the draws.
    """
    present = _present(keys)
    rng = np.random.default_rng(seed)
    tally, item, creative = Tally.empty(present), id_field(fields, "item"), id_field(fields, "creative")
    if item is None or creative is None:
        return Choice(*choose(Uniform().probabilities(tally, rng), rng))
    n, c = np.zeros(present.shape), np.zeros(present.shape)
    n[present], c[present], *root = lookup_longest(table, np.concatenate(keys), max(time_s, table.as_of_s))
    tally = Tally(n, c, present, *root)
    strength = table.strength[[fields.index(item), fields.index(creative)]][:, [int(np.argmax(table.half_lives_s))]]
    return Choice(*choose(EpsilonGreedy(explore, strength).probabilities(tally, rng), rng))


def choose_by_scores(scores: Sequence[Scores], *, explore: float, seed: int | Sequence[int]) -> Choice:
    """Return a choice by what a creative ranker says.

    Args:
        scores: Of each ad's creatives, one at least.
        explore: Share of even draws.
        seed: Decides the draws.
    """
    present = _present(scores)
    of_ads = np.zeros(present.shape)
    of_ads[present] = np.concatenate(scores)
    return Choice(*choose(best_or_blindly(of_ads, present, explore), np.random.default_rng(seed)))


def _present(of_ads: Sequence[Sized]) -> npt.NDArray[np.bool_]:
    """Return which creatives each ad has, (A, C), from one thing per creative."""
    counts = np.array([len(one) for one in of_ads])
    return np.arange(counts.max()) < counts[:, None]
