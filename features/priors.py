"""Feature priors: decayed impressions and clicks of every value.

Owns the arithmetic on count tables: add, decay, look up. Must not know networks, vocabularies or where rows
come from. What many rows see at their own moments is features/point_in_time.py, what counts say features/posteriors.py.

Invariants: an impression counts (1, click) from the moment it settles and halves with each half-life of event time; a
row that corrects one adds (0, 1) from its own moment; counts at t hold what settled at or before t and nothing else;
sums run in one fixed order; nothing is subtracted, so nothing cancels, and no power grows, so nothing overflows however
long the span.

A corrected impression has decayed a little when its click is added, so c may exceed n; whoever makes a rate of them
clips (features/posteriors.py).

Shape legend: `N` rows, `M` settled rows, `S` slots, `H` half-lives, `V` values, `U` some of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from features.encode import Keys

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_Whole = TypeVar("_Whole", np.uint64, np.int64)

STRENGTH_DEFAULT = 20.0  # impressions that a prior is worth before the data says otherwise; chosen by hand
CORRECTION = "late_corrected"  # the kind of a row that corrects an impression counted before
NEGLIGIBLE = 2.0**-64  # a weight below this adds nothing to a double; as zero it costs no denormal arithmetic
LOG2_LEFT_MIN = -65.0  # of what is certainly below it: the logarithm of less is not needed, and exp2 is slow far down


@dataclass(frozen=True)
class Counts:
    """What was known about rows at their moments: impressions `n` and clicks `c`, zero where a slot is absent.

    Attributes:
        n: (N, S, H).
        c: (N, S, H), >= 0; above n only by clicks that were added late.
        root_n: Overall impressions, (N, H).
        root_c: Overall clicks, (N, H).
    """

    n: Floats
    c: Floats
    root_n: Floats
    root_c: Floats

    def take(self, rows: slice | Ints) -> Counts:
        """Return those of some rows."""
        return Counts(self.n[rows], self.c[rows], self.root_n[rows], self.root_c[rows])


@dataclass(frozen=True)
class SettledRows:
    """Rows whose label is known, in the order in which it became known.

    Attributes:
        keys: (M, S).
        settled_s: When the label became known, ascending, (M,).
        click: 0 or 1, (M,).
        impression: 1, or 0 for a row that corrects an impression counted before, (M,).
    """

    keys: Keys
    settled_s: Floats
    click: Floats
    impression: Floats

    @classmethod
    def empty(cls, n_slots: int) -> SettledRows:
        """Return no rows."""
        return cls(np.zeros((0, n_slots), np.uint64), np.zeros(0), np.zeros(0), np.zeros(0))

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, keys: Keys) -> SettledRows:
        """Return the rows of a frame of examples, put into order, with their keys."""
        settled_s, click = frame["settled_s"].to_numpy(), frame["click"].to_numpy().astype(np.float64)
        impression = (frame["kind"] != CORRECTION).to_numpy().astype(np.float64)
        return in_order([cls(keys, settled_s, click, impression)])

    def between(self, after_s: float, up_to_s: float) -> SettledRows:
        """Return the rows with after_s < settled_s <= up_to_s."""
        first, last = np.searchsorted(self.settled_s, [after_s, up_to_s], side="right")
        rows = slice(first, last)
        return SettledRows(self.keys[rows], self.settled_s[rows], self.click[rows], self.impression[rows])

    def followed_by(self, later: SettledRows) -> SettledRows:
        """Return these rows and then the later ones."""
        return SettledRows(
            np.concatenate([self.keys, later.keys]),
            np.concatenate([self.settled_s, later.settled_s]),
            np.concatenate([self.click, later.click]),
            np.concatenate([self.impression, later.impression]),
        )


def in_order(parts: Sequence[SettledRows]) -> SettledRows:
    """Return the rows of several parts, one at least, put into order; rows that settled together keep theirs."""
    names = [field.name for field in dataclasses.fields(SettledRows)]
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
    rows = SettledRows(*columns)
    if np.all(rows.settled_s[1:] >= rows.settled_s[:-1]):
        return rows
    order = np.argsort(rows.settled_s, kind="stable")
    return SettledRows(*(column[order] for column in columns))


@dataclass(frozen=True)
class PriorTable:
    """The counts of all values of all fields at one moment (a key names its field).

    Attributes:
        half_lives_s: Memories kept side by side, (H,).
        as_of_s: The moment; -inf before anything settled.
        keys: Ascending, (V,).
        field: Which field each key belongs to, (V,).
        n: Impressions, (V, H).
        c: Clicks, (V, H).
        root_n: Overall impressions, (H,).
        root_c: Overall clicks, (H,).
        strength: How many impressions the prior of a field is worth, (F, H); see features/strength.py.
    """

    half_lives_s: Floats
    as_of_s: float
    keys: Keys
    field: npt.NDArray[np.int16]
    n: Floats
    c: Floats
    root_n: Floats
    root_c: Floats
    strength: Floats

    @classmethod
    def empty(cls, half_lives_s: Sequence[float], n_fields: int) -> PriorTable:
        """Return a table that has seen nothing."""
        h = len(half_lives_s)
        return cls(
            half_lives_s=np.array(half_lives_s, np.float64),
            as_of_s=-np.inf,
            keys=np.zeros(0, np.uint64),
            field=np.zeros(0, np.int16),
            n=np.zeros((0, h)),
            c=np.zeros((0, h)),
            root_n=np.zeros(h),
            root_c=np.zeros(h),
            strength=np.full((n_fields, h), STRENGTH_DEFAULT),
        )

    @property
    def evidence(self) -> Floats:
        """Impressions in the longest memory, (V,)."""
        return self.n[:, int(np.argmax(self.half_lives_s))]


def lookup(table: PriorTable, keys: Keys, at_s: float | Floats) -> Counts:
    """Return the table's counts of rows, decayed to each row's moment.

    Raises:
        ValueError: If a row's moment lies before the table's: the table holds what was not known then.
    """
    elapsed_s = elapsed(table.as_of_s, np.broadcast_to(np.float64(at_s), len(keys)))
    left = decay(elapsed_s[:, None], table.half_lives_s)  # (N, H)
    at, found = find(table.keys, keys)  # (N, S)
    weight = found[:, :, None] * left[:, None, :]
    if not len(table.keys):
        zeros = np.zeros(weight.shape)
        return Counts(zeros, zeros.copy(), table.root_n * left, table.root_c * left)
    return Counts(table.n[at] * weight, table.c[at] * weight, table.root_n * left, table.root_c * left)


def lookup_longest(table: PriorTable, keys: Keys, at_s: float) -> tuple[Floats, Floats, float, float]:
    """Return impressions and clicks of values in the longest memory, (K,) each, and the overall ones, at one moment.

    Args:
        table: Counts.
        keys: (K,).
        at_s: The moment, not before the table's.
    """
    h = int(np.argmax(table.half_lives_s))
    left = decay(elapsed(table.as_of_s, np.array([at_s])), table.half_lives_s)[h]
    root = float(table.root_n[h] * left), float(table.root_c[h] * left)
    if not len(table.keys):
        return np.zeros(len(keys)), np.zeros(len(keys)), *root
    at, found = find(table.keys, keys)
    weight = found * left
    return table.n[at, h] * weight, table.c[at, h] * weight, *root


def advance(
    table: PriorTable,
    rows: SettledRows,
    to_s: float,
    *,
    slot_field: npt.NDArray[np.int16],
    evidence_min: float = 0.0,
) -> PriorTable:
    """Return the table with settled rows added, at to_s (or at its own moment, if that is later).

    Args:
        table: Counts that do not hold these rows yet.
        rows: None of them settled later than the new moment.
        to_s: The new moment.
        slot_field: Which field each slot belongs to, (S,).
        evidence_min: Values whose impressions in the longest memory fall below this are forgotten.
    """
    table = _decayed(table, to_s)
    if len(rows.settled_s) and rows.settled_s[-1] > table.as_of_s:
        raise ValueError(f"rows must have settled by {table.as_of_s} to be added, got {rows.settled_s[-1]}")
    weight = decay((table.as_of_s - rows.settled_s)[:, None], table.half_lives_s)  # (M, H)
    row, slot = np.nonzero(rows.keys)
    values, code = codes(rows.keys[row, slot])
    field = np.zeros(len(values), np.int16)
    field[code] = slot_field[slot]
    n, c = weight * rows.impression[:, None], weight * rows.click[:, None]  # (M, H) each
    table = _put(table, values, field, *(_sum_by(code, w[row], len(values)) for w in (n, c)), add=True)
    table = dataclasses.replace(table, root_n=table.root_n + n.sum(axis=0), root_c=table.root_c + c.sum(axis=0))
    return forget(table, evidence_min) if evidence_min > 0.0 else table


def forget(table: PriorTable, evidence_min: float) -> PriorTable:
    """Return the table without the values whose impressions in the longest memory are below `evidence_min`."""
    return select(table, table.evidence >= evidence_min)


def within(table: PriorTable, counts_max: int) -> PriorTable:
    """Return the table, without the values of the least evidence if it has more than `counts_max`."""
    if len(table.keys) <= counts_max:
        return table
    return select(table, strongest(table.evidence, counts_max))


def select(table: PriorTable, wanted: npt.NDArray[np.bool_]) -> PriorTable:
    """Return the table with the counts of some values alone; the root keeps its counts."""
    return dataclasses.replace(
        table, keys=table.keys[wanted], field=table.field[wanted], n=table.n[wanted], c=table.c[wanted]
    )


def strongest(evidence: Floats, limit: int) -> npt.NDArray[np.bool_]:
    """Return which values have the most evidence, at most `limit` of them; of equals the first ones."""
    if len(evidence) <= limit:
        return np.ones(len(evidence), bool)
    bound = np.partition(evidence, -limit)[-limit]
    kept: npt.NDArray[np.bool_] = evidence > bound
    kept[np.flatnonzero(evidence == bound)[: limit - np.count_nonzero(kept)]] = True
    return kept


def one_memory(table: PriorTable, index: int) -> PriorTable:
    """Return the table with one of its memories alone."""
    names = ("half_lives_s", "n", "c", "root_n", "root_c", "strength")
    return dataclasses.replace(table, **{name: getattr(table, name)[..., [index]] for name in names})


def set_counts(  # noqa: PLR0917  # the columns of one update, in their order
    table: PriorTable, keys: Keys, field: npt.NDArray[np.int16], n: Floats, c: Floats, at_s: float
) -> PriorTable:
    """Return the table with the counts of some values replaced by what they were at at_s; new values are added.

    The root keeps its counts. Older and newer counts are both brought to the later moment.
    """
    table = _decayed(table, at_s)
    left = decay(np.array(table.as_of_s - at_s), table.half_lives_s)
    order = np.argsort(keys)
    return _put(table, keys[order], field[order], n[order] * left, c[order] * left, add=False)


def decay(elapsed_s: Floats, half_lives_s: Floats) -> Floats:
    """Return the share of a count that is left after some time, for times and half-lives that broadcast."""
    left: Floats = elapsed_s / -half_lives_s
    np.exp2(np.maximum(left, LOG2_LEFT_MIN, out=left), out=left)
    left *= left >= NEGLIGIBLE
    return left


def elapsed(from_s: float, to_s: Floats) -> Floats:
    """Return the time from a table's moment to others, (N,).

    Raises:
        ValueError: If one of them lies before it.
    """
    if from_s == -np.inf:
        return np.zeros(len(to_s))  # nothing has been counted, so nothing decays
    elapsed_s = to_s - from_s
    if len(elapsed_s) and not elapsed_s.min() >= 0.0:
        raise ValueError(f"counts as of {from_s} must be asked for later moments, got {to_s[np.argmin(elapsed_s)]}")
    return elapsed_s


def find(ascending: npt.NDArray[_Whole], keys: npt.NDArray[_Whole]) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return where each key stands and whether it is there at all; the absent key 0 never is."""
    if not len(ascending):
        return np.zeros(keys.shape, np.int64), np.zeros(keys.shape, bool)
    at = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return at, ascending[at] == keys


def codes(keys: Keys) -> tuple[Keys, Ints]:
    """Return the distinct keys in ascending order and for each key its place among them."""
    coded = pc.dictionary_encode(pa.array(keys))
    distinct = coded.dictionary.to_numpy()
    order = np.argsort(distinct)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return distinct[order], place[coded.indices.to_numpy()]


def _decayed(table: PriorTable, to_s: float) -> PriorTable:
    to_s = max(to_s, table.as_of_s)
    left = decay(elapsed(table.as_of_s, np.array([to_s])), table.half_lives_s)
    return dataclasses.replace(
        table,
        as_of_s=to_s,
        n=table.n * left,
        c=table.c * left,
        root_n=table.root_n * left,
        root_c=table.root_c * left,
    )


def _put(table: PriorTable, keys: Keys, field: npt.NDArray[np.int16], n: Floats, c: Floats, *, add: bool) -> PriorTable:
    """Return the table with counts of ascending keys added to its own, or put in their place."""
    at, known = find(table.keys, keys)
    at[~known] = np.searchsorted(table.keys, keys[~known])
    gaps = at[~known]  # where new keys belong among the old ones
    place = at + np.cumsum(~known) - ~known
    counts = [np.insert(old, gaps, 0.0, axis=0) for old in (table.n, table.c)]
    for old, new in zip(counts, (n, c), strict=True):
        old[place] = old[place] + new if add else new
    return dataclasses.replace(
        table,
        keys=np.insert(table.keys, gaps, keys[~known]),
        field=np.insert(table.field, gaps, field[~known]),
        n=counts[0],
        c=counts[1],
    )


def _sum_by(code: Ints, weight: Floats, n_values: int) -> Floats:
    """Return the sums of weights (E, H) by code, (n_values, H)."""
    return np.stack([np.bincount(code, w, minlength=n_values) for w in weight.T], axis=1)
