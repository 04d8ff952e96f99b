"""How many impressions the prior of a field is worth: the number that would have predicted the clicks best so far.

Owns the candidates and how their losses are kept. Must not know tables of counts or what strengths are used for.

Each field has a strength per half-life. For each candidate the log loss is summed of predicting the click of a row by
the field's posterior rate alone, with the counts that the row saw; the least sum is the strength. What is judged is
what a strength is for, the next click: so it allows for rates that drift, for counts that are old and for a parent that
is wrong, which the spread of the rates (method of moments) does not.

Invariants: a row is predicted from counts that its own click is not in; without rows the strength is the
candidate nearest to the default.

Shape legend: `N` rows, `S` slots, `F` fields, `H` half-lives, `G` candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.encode import Keys, slot_fields
from features.fields import Field
from features.posteriors import parent_rates, shares
from features.priors import STRENGTH_DEFAULT, Counts, Floats, PriorTable

CANDIDATES = 10.0 ** np.arange(0.0, 4.0, 0.5)  # 1 to 3,162 impressions: beyond, a rate is noise or its parent anyway
DOUBT = 1.0  # nats by which the rows must speak for a strength ten times the default or a tenth of it; chosen by hand
READ_ROWS = 512  # rows judged at a time: all temporaries stay in the cache; the quickest of a few
ROWS_MAX = 8_192  # rows of a slide that are judged, evenly spread: bounds the time; chosen by hand
MEMORY_ROWS = 50_000.0  # judged rows after which a loss counts half; 20,000 and no forgetting did as well on two logs
RATE_MIN = 1e-6  # a rate nearer to 0 or 1 is taken as that: one row cannot decide alone
PASSES = 2  # of `fit_strength`: the parents' strengths first, then those that lean on them


def initial_losses(n_fields: int, n_half_lives: int) -> Floats:
    """Return the losses before any row, (F, H, G): those of the prior, which favours the default."""
    doubt = DOUBT * np.log10(CANDIDATES / STRENGTH_DEFAULT) ** 2
    return np.broadcast_to(doubt, (n_fields, n_half_lives, len(CANDIDATES))).copy()


def add_losses(  # noqa: PLR0917  # what the rows saw, and how it is read
    losses: Floats,
    counts: Counts,
    keys: Keys,
    clicks: Floats,
    table: PriorTable,
    fields: Sequence[Field],
    levels: Sequence[str],
) -> Floats:
    """Return the losses with those of some rows added, the older ones a little forgotten.

    Args:
        losses: So far, (F, H, G).
        counts: What was known of the rows when they were shown.
        keys: (N, S), 0 where a slot is absent.
        clicks: 0 or 1, (N,).
        table: Gives the strengths, which the parents' rates are made with, and the half-lives.
        fields: The fields of the slots.
        levels: Fields from fine to coarse; each backs off to the next.
    """
    every = slice(None, None, max(1, -(-len(keys) // ROWS_MAX)))
    counts, keys = counts.take(every), keys[every]
    missed = (clicks[every, None, None] <= 0.0).astype(np.float64)
    parent, share = parent_rates(counts, keys, table, fields, levels), shares(keys, fields)[:, :, None]
    gained = np.zeros((len(CANDIDATES), *parent.shape[1:]))  # (G, S, H)
    for first in range(0, len(keys), READ_ROWS):
        rows = slice(first, first + READ_ROWS)
        n = np.ascontiguousarray(counts.n[rows])
        c, leaned_on = np.minimum(counts.c[rows], n), parent[rows]
        weight = share[rows] * (n > 0.0)  # a value without counts predicts the same with any strength
        for of_slots, strength in zip(gained, CANDIDATES, strict=True):
            rate = (c + strength * leaned_on) / (n + strength)
            np.clip(rate, RATE_MIN, 1.0 - RATE_MIN, out=rate)
            gain = np.multiply(weight, np.log(np.abs(missed[rows] - rate)), order="C")  # of the rate of what happened
            gain[0] += of_slots  # so the rows are summed in their order, whatever their number here
            gain.sum(axis=0, out=of_slots)
    added = np.zeros_like(losses)
    np.subtract.at(added, slot_fields(fields), gained.transpose(1, 2, 0))
    kept: Floats = losses * 0.5 ** (len(keys) / MEMORY_ROWS)
    return kept + added


def best_strength(losses: Floats) -> Floats:
    """Return the strength with the least loss, impressions, (F, H)."""
    best: Floats = CANDIDATES[losses.argmin(axis=2)]
    return best


def fit_strength(  # noqa: PLR0917  # the same
    counts: Counts,
    keys: Keys,
    clicks: npt.NDArray[np.floating],
    table: PriorTable,
    fields: Sequence[Field],
    levels: Sequence[str],
) -> PriorTable:
    """Return the table with the strengths that some rows speak for; the arguments are those of `add_losses`."""
    for _ in range(PASSES):
        losses = add_losses(
            initial_losses(*table.strength.shape), counts, keys, clicks.astype(np.float64), table, fields, levels
        )
        table = dataclasses.replace(table, strength=best_strength(losses))
    return table
