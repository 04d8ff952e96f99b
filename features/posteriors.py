"""What counts say: smoothed click-through rates of values, and the dense inputs that networks read them as.

Owns the transforms of counts. Must not know where counts come from, how strongly a rate leans on its parent
(features/strength.py) or which network reads the inputs.

Invariants: a rate leans on the rate of the same value in the next longer memory, the longest memory on the next
coarser level or on the overall rate, so a value without counts says nothing but its parent; clicks above the
impressions (added late, when their impressions had decayed) count as much as those; no constant of a transform depends
on the data, so training and serving cannot drift apart; every input is finite.

Shape legend: `N` rows, `B` some of them, `S` slots, `F` fields, `H` half-lives, `P` dense inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.encode import Keys, slot_fields
from features.fields import Field, field_slots
from features.priors import Counts, Floats, PriorTable, find

READ_ROWS = 1024  # rows whose counts are read at a time: all temporaries stay in the cache; the quickest of a few
ROOT_STRENGTH = 100.0  # what a shorter overall rate leans on the longer one with; chosen by hand
ROOT_OWN_STRENGTH = 2.0  # what the overall rate in the longest memory leans on one half with: one click of two
LOGIT_MAX = 12.0  # rates closer to 0 or 1 than exp(-12) are taken as that
ROOT_INPUT = 1  # the dense input that is the overall rate's logit
LEVEL_INPUTS = 2  # so many dense inputs come first that set the level alone: 1 and the overall rate; the rest is near 0
LOG_COUNT_SCALE = 0.2  # brings log1p(n) of up to about a million impressions to the size of the other inputs


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
    slots = field_slots(fields)
    for rows, found in _posteriors(counts, keys, table, fields, levels):
        _put_inputs(found, slots, dense[rows])
    return dense


def level_inputs(counts: Counts, table: PriorTable, width: int) -> npt.NDArray[np.float32]:
    """Return the dense inputs of rows whose values' counts are not to be seen, (N, width): all but the first are 0.

    Args:
        counts: What was known overall.
        table: Gives half-lives alone.
        width: As `dense_width` has it.
    """
    h = int(np.argmax(table.half_lives_s))
    dense = np.zeros((len(counts.root_n), width), np.float32)
    dense[:, 0] = 1.0
    dense[:, ROOT_INPUT] = _root_logits(counts.root_n[:, [h]], counts.root_c[:, [h]])[:, 0]
    return dense


def shares(keys: Keys, fields: Sequence[Field]) -> Floats:
    """Return each slot's share in its field's mean: 1 over the number of slots present, 0 where absent, (N, S)."""
    return np.ascontiguousarray(_shares(keys, field_slots(fields)).T)


def parent_rates(
    counts: Counts, keys: Keys, table: PriorTable, fields: Sequence[Field], levels: Sequence[str]
) -> Floats:
    """Return the rate that each slot's rate leans on, in the order of the table's half-lives, (N, S, H).

    The arguments are those of `dense_inputs`.
    """
    found = _posteriors(counts, keys, table, fields, levels)
    return _to_rates(((rows, one.parent) for rows, one in found), keys, table)


def posterior_rates(
    counts: Counts, keys: Keys, table: PriorTable, fields: Sequence[Field], levels: Sequence[str]
) -> Floats:
    """Return each slot's own rate, in the order of the table's half-lives, (N, S, H).

    The arguments are those of `dense_inputs`.
    """
    found = _posteriors(counts, keys, table, fields, levels)
    return _to_rates(((rows, one.rate) for rows, one in found), keys, table)


def beta_posterior(
    counts: Counts, keys: Keys, table: PriorTable, fields: Sequence[Field], levels: Sequence[str], *, of: Field
) -> tuple[Floats, Floats]:
    """Return the Beta posterior of one field's rate in the longest memory: clicks and others with its prior, (N,) each.

    Args:
        counts: What was known about the rows.
        keys: (N, S).
        table: Gives strengths and half-lives alone.
        fields: The fields of the slots.
        levels: Fields from fine to coarse; each backs off to the next.
        of: One of the fields, with one value a row.
    """
    number = fields.index(of)
    slot, h = field_slots(fields)[number].start, int(np.argmax(table.half_lives_s))
    prior, strength = parent_rates(counts, keys, table, fields, levels)[:, slot, h], table.strength[number, h]
    return smoothed(counts.n[:, slot, h], counts.c[:, slot, h], prior, strength)


def smoothed(n: Floats, c: Floats, prior: Floats | float, strength: Floats) -> tuple[Floats, Floats]:
    """Return clicks and others with those that a prior rate stands for, `strength` impressions in all.

    Args:
        n: Impressions.
        c: Clicks; above the impressions they count as much as those.
        prior: The rate that is leant on, in (0, 1).
        strength: How many impressions it is worth.
    """
    c = np.minimum(c, n)
    return c + strength * prior, n - c + strength * (1.0 - prior)


def overall_rate(n: float, c: float) -> float:
    """Return the overall rate in the longest memory: it leans on one half, a little."""
    return (min(c, n) + 0.5 * ROOT_OWN_STRENGTH) / (n + ROOT_OWN_STRENGTH)


@dataclass(frozen=True)
class _Posteriors:
    """Rates of some rows as logits, the shortest half-life first, slot by slot.

    Attributes:
        n: Impressions behind each, H times (S, B).
        root: The overall rate, (B, H).
        share: See `shares`, (S, B).
        parent: What each rate leans on, H times (S, B).
        rate: H times (S, B).
    """

    n: list[Floats]
    root: Floats
    share: Floats
    parent: list[Floats]
    rate: list[Floats]


def _posteriors(
    counts: Counts, keys: Keys, table: PriorTable, fields: Sequence[Field], levels: Sequence[str]
) -> Iterator[tuple[slice, _Posteriors]]:
    """Yield the posteriors of a few rows after the other, and which rows they are of."""
    shortest_first, slots = np.argsort(table.half_lives_s, kind="stable"), field_slots(fields)
    strength = table.strength[slot_fields(fields)][:, shortest_first].T[:, :, None]  # (H, S, 1)
    root = _root_logits(counts.root_n[:, shortest_first], counts.root_c[:, shortest_first])  # (N, H)
    of_level = {field.name: place for field, place in zip(fields, slots, strict=True)}
    pairs = [(of_level[fine], of_level[coarse]) for fine, coarse in itertools.pairwise(levels)][::-1]  # coarsest first
    for first in range(0, len(keys), READ_ROWS):
        rows = slice(first, first + READ_ROWS)
        n, c = ([np.ascontiguousarray(of_all[rows, :, h].T) for h in shortest_first] for of_all in (counts.n, counts.c))
        share, longest = _shares(keys[rows], slots), root[rows, -1]
        parent, rate = np.empty(share.shape), _rate(n[-1], c[-1], longest, strength[-1])
        parent[:] = longest
        for fine, coarse in pairs:
            parent[fine] = _level(share[coarse], rate[coarse], longest)
            rate[fine] = _rate(n[-1][fine], c[-1][fine], parent[fine], strength[-1, fine])
        rates = [rate]
        for of_n, of_c, of_slots in zip(n[-2::-1], c[-2::-1], strength[-2::-1], strict=True):
            rates.append(_rate(of_n, of_c, rates[-1], of_slots))
        yield rows, _Posteriors(n, root[rows], share, [*rates[-2::-1], parent], rates[::-1])


def _to_rates(logits: Iterable[tuple[slice, list[Floats]]], keys: Keys, table: PriorTable) -> Floats:
    """Return logits of a few rows after the other, as `_Posteriors` holds them, as rates of all, (N, S, H)."""
    rates = np.empty((*keys.shape, len(table.half_lives_s)))
    for rows, of_rows in logits:
        for h, logit in zip(np.argsort(table.half_lives_s, kind="stable"), of_rows, strict=True):
            rates[rows, :, h] = (1.0 / (1.0 + np.exp(-logit))).T
    return rates


def _put_inputs(found: _Posteriors, slots: Sequence[slice], dense: npt.NDArray[np.float32]) -> None:
    """Put the dense inputs of some rows, (B, P)."""
    root, n_half_lives = found.root, len(found.n)
    dense[:, 0] = 1.0
    dense[:, ROOT_INPUT] = root[:, -1]
    dense[:, ROOT_INPUT + 1 : ROOT_INPUT + n_half_lives] = root[:, :-1] - root[:, 1:]
    first, n_told = 1 + n_half_lives, len(slots) * n_half_lives
    for h, (n, rate, parent) in enumerate(zip(found.n, found.rate, found.parent, strict=True)):
        for start, told in ((first, rate - parent), (first + n_told, np.log1p(n) * LOG_COUNT_SCALE)):
            dense[:, start + h : start + n_told : n_half_lives] = _pool(told * found.share, slots).T


def _rate(n: Floats, c: Floats, parent: Floats, strength: Floats) -> Floats:
    """Return the posterior rate as a logit: the parent's worth `strength` impressions, plus the counts."""
    clicks, others = smoothed(n, c, 1.0 / (1.0 + np.exp(-parent)), strength)
    logits: Floats = np.clip(np.log(clicks) - np.log(others), -LOGIT_MAX, LOGIT_MAX)
    return logits


def _root_logits(root_n: Floats, root_c: Floats) -> Floats:
    """Return the overall rate as a logit per memory, shortest first; the longest leans on one half, a little."""
    logits = np.empty(root_n.shape)
    parent, strength = np.zeros(len(root_n)), np.float64(ROOT_OWN_STRENGTH)
    for h in range(root_n.shape[1] - 1, -1, -1):
        logits[:, h] = parent = _rate(root_n[:, h], root_c[:, h], parent, np.asarray(strength))
        strength = np.float64(ROOT_STRENGTH)
    return logits


def _shares(keys: Keys, slots: Sequence[slice]) -> Floats:
    present: Floats = (keys.T != 0).astype(np.float64, order="C")
    for place in slots:
        if place.stop - place.start > 1:
            present[place] /= np.maximum(present[place].sum(axis=0), 1.0)
    return present


def _level(weight: Floats, rate: Floats, root: Floats) -> Floats:
    """Return the mean rate of a coarse level's values, (B,), the overall rate where a row has none."""
    mean: Floats = np.where(weight.any(axis=0), np.ascontiguousarray((rate * weight).T).sum(axis=1), root)
    return mean


def _pool(values: Floats, slots: Sequence[slice]) -> Floats:
    """Return the sums of (S, B) over the slots of each field, (F, B)."""
    if len(slots) == len(values):
        return values
    return np.concatenate([np.add.reduceat(values[place], [0], axis=0) for place in slots])
