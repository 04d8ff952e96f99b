"""What counts say: smoothed click-through rates of values, and the dense inputs that networks read them as.

Owns how strongly a rate leans on its parent (estimated from the data) and the transforms of counts. Must not know
where counts come from or which network reads them.

Invariants: a rate leans on the rate of the same value in the next longer memory, the longest memory on the next
coarser level or on the overall rate, so a value without counts says nothing but its parent; clicks above the
impressions (added late, when their impressions had decayed) count as much as those; no constant of a transform depends
on the data, so training and serving cannot drift apart; every input is finite.

Shape legend: `N` rows, `S` slots, `F` fields, `H` half-lives, `P` dense inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.encode import Keys, slot_fields
from features.fields import Field, slot_counts
from features.priors import STRENGTH_DEFAULT, Counts, Floats, PriorTable, find

ROWS_MAX = 32_768  # rows turned into inputs at a time: bounds the temporaries, changes no value
STRENGTH_MIN, STRENGTH_MAX = 1.0, 1000.0  # chosen by hand: beyond, a rate is noise or its parent anyway
VALUES_MIN = 10  # fewer values of a field tell nothing about how rates differ among them; chosen by hand
EVIDENCE_MIN = 2.0  # a value with fewer impressions tells nothing about its rate; chosen by hand
ROOT_STRENGTH = 100.0  # what a shorter overall rate leans on the longer one with; chosen by hand
LOGIT_MAX = 12.0  # rates closer to 0 or 1 than exp(-12) are taken as that
ROOT_INPUT = 1  # the dense input that is the overall rate's logit
LEVEL_INPUTS = 2  # so many dense inputs come first that set the level alone: 1 and the overall rate; the rest is near 0
LOG_COUNT_SCALE = 0.2  # brings log1p(n) of up to about a million impressions to the size of the other inputs


def estimate_strength(table: PriorTable) -> PriorTable:
    """Return the table with the strength of each field's prior, in impressions, estimated from its counts.

    Fields with too few values keep the default.

    Source: method of moments for the Beta-binomial with weights n (Kleinman 1973, eq. 3.1 onwards), clamped.
    """
    n_fields, n_half_lives = table.strength.shape
    strength = np.full(table.strength.shape, STRENGTH_DEFAULT)
    for h in range(n_half_lives):
        known = table.n[:, h] >= EVIDENCE_MIN
        field, n = table.field[known], table.n[known, h]
        c = np.minimum(table.c[known, h], n)

        def total(weight: Floats, field: npt.NDArray[np.int16] = field) -> Floats:
            return np.bincount(field, weight, minlength=n_fields).astype(np.float64)

        n_values, impressions = total(np.ones_like(n)), total(n)
        rate = np.clip(total(c) / np.maximum(impressions, EVIDENCE_MIN), 1e-9, 1.0 - 1e-9)
        spread = total(n * (c / n - rate[field]) ** 2) / (rate * (1.0 - rate))
        noise = n_values - 1.0
        room = np.maximum(impressions - total(n * n) / np.maximum(impressions, EVIDENCE_MIN) - noise, 1e-9)
        correlation = np.maximum((spread - noise) / room, 1e-9)
        estimate = np.clip(1.0 / correlation - 1.0, STRENGTH_MIN, STRENGTH_MAX)
        strength[:, h] = np.where(n_values >= VALUES_MIN, estimate, STRENGTH_DEFAULT)
    return dataclasses.replace(table, strength=strength)


def deviations(table: PriorTable, keys: Keys) -> npt.NDArray[np.float32]:
    """Return how far the posterior rate of each value lies from the overall rate, longest memory, in logits, (K,).

    Args:
        table: Counts and strengths.
        keys: Values that the table knows, (K,).
    """
    at, _ = find(table.keys, keys)
    h = int(np.argmax(table.half_lives_s))
    root = _root_logits(table.root_n[None, [h]], table.root_c[None, [h]])[:, 0]
    return (_rate(table.n[at, h], table.c[at, h], root, table.strength[table.field[at], h]) - root).astype(np.float32)


def dense_width(fields: Sequence[Field], n_half_lives: int) -> int:
    """Return how many dense inputs a row has, P."""
    return 1 + n_half_lives + 2 * len(fields) * n_half_lives


def dense_inputs(
    counts: Counts, keys: Keys, table: PriorTable, fields: Sequence[Field], levels: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return the dense inputs of rows, (N, P).

    They are 1; the overall rate in the longest memory, as a logit; how far it moves with each shorter memory; per field
    and half-life how far the rate lies from its parent's, in logits; per field and half-life log1p(n), scaled.
    Several values of a field are averaged.

    Args:
        counts: What was known about the rows.
        keys: (N, S), 0 where a slot is absent.
        table: Gives strengths and half-lives alone.
        fields: The fields of the slots.
        levels: Fields from fine to coarse; each backs off to the next.
    """
    dense = np.empty((len(keys), dense_width(fields, len(table.half_lives_s))), np.float32)
    for first in range(0, len(keys), ROWS_MAX):
        rows = slice(first, first + ROWS_MAX)
        part = Counts(counts.n[rows], counts.c[rows], counts.root_n[rows], counts.root_c[rows])
        dense[rows] = _dense_inputs(part, keys[rows], table, fields, levels)
    return dense


def shares(keys: Keys, fields: Sequence[Field]) -> Floats:
    """Return each slot's share in its field's mean: 1 over the number of slots present, 0 where absent, (N, S)."""
    present = (keys != 0).astype(np.float64)
    per_field: Floats = np.maximum(_pool(present[:, :, None], fields), 1.0)
    share: Floats = present / per_field[:, slot_fields(fields)]
    return share


def _dense_inputs(
    counts: Counts, keys: Keys, table: PriorTable, fields: Sequence[Field], levels: Sequence[str]
) -> Floats:
    shortest_first = np.argsort(table.half_lives_s, kind="stable")
    n, c = counts.n[:, :, shortest_first], counts.c[:, :, shortest_first]
    strength = table.strength[slot_fields(fields)][:, shortest_first]  # (S, H)
    root = _root_logits(counts.root_n[:, shortest_first], counts.root_c[:, shortest_first])  # (N, H)
    share = shares(keys, fields)
    parent = np.empty(n.shape)
    rate = np.empty(n.shape)  # as a logit
    longest = n.shape[2] - 1
    parent[:, :, longest] = root[:, longest, None]
    rate[:, :, longest] = _rate(n[:, :, longest], c[:, :, longest], parent[:, :, longest], strength[:, longest])
    for fine, coarse in _pairs(fields, levels):
        parent[:, fine, longest] = _level(share[:, coarse], rate[:, coarse, longest], root[:, longest])[:, None]
        rate[:, fine, longest] = _rate(
            n[:, fine, longest], c[:, fine, longest], parent[:, fine, longest], strength[fine, longest]
        )
    for h in range(longest - 1, -1, -1):
        parent[:, :, h] = rate[:, :, h + 1]
        rate[:, :, h] = _rate(n[:, :, h], c[:, :, h], parent[:, :, h], strength[:, h])
    columns = [np.ones((len(keys), 1)), root[:, longest:], root[:, :longest] - root[:, 1:]]
    columns += [_pool(values * share[:, :, None], fields) for values in (rate - parent, np.log1p(n) * LOG_COUNT_SCALE)]
    return np.concatenate(columns, axis=1)


def _rate(n: Floats, c: Floats, parent: Floats, strength: Floats) -> Floats:
    """Return the posterior rate as a logit: the parent's worth `strength` impressions, plus the counts."""
    prior = 1.0 / (1.0 + np.exp(-parent))
    c = np.minimum(c, n)
    clicks, others = c + strength * prior, n - c + strength * (1.0 - prior)
    logits: Floats = np.clip(np.log(clicks) - np.log(others), -LOGIT_MAX, LOGIT_MAX)
    return logits


def _root_logits(root_n: Floats, root_c: Floats) -> Floats:
    """Return the overall rate as a logit per memory, shortest first; the longest leans on one half, a little."""
    logits = np.empty(root_n.shape)
    parent, strength = np.zeros(len(root_n)), np.float64(2.0)
    for h in range(root_n.shape[1] - 1, -1, -1):
        logits[:, h] = parent = _rate(root_n[:, h], root_c[:, h], parent, np.asarray(strength))
        strength = np.float64(ROOT_STRENGTH)
    return logits


def _pairs(fields: Sequence[Field], levels: Sequence[str]) -> list[tuple[slice, slice]]:
    """Return the slots of each level and of the next coarser one, coarsest pair first."""
    widths = slot_counts(fields)
    ends = np.cumsum(widths)
    slots = {f.name: slice(end - width, end) for f, end, width in zip(fields, ends, widths, strict=True)}
    return [(slots[fine], slots[coarse]) for fine, coarse in itertools.pairwise(levels)][::-1]


def _level(weight: Floats, rate: Floats, root: Floats) -> Floats:
    """Return the mean rate of a coarse level's values, the overall rate where a row has none."""
    return np.where(weight.any(axis=1), (rate * weight).sum(axis=1), root)


def _pool(values: Floats, fields: Sequence[Field]) -> Floats:
    """Return the sums of (N, S, X) over the slots of each field, (N, F * X)."""
    widths = slot_counts(fields)
    first = np.cumsum((0, *widths[:-1]))
    summed = values if max(widths) == 1 else np.add.reduceat(values, first, axis=1)
    return summed.reshape(len(values), len(widths) * values.shape[2])
