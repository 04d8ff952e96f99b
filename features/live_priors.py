"""The live priors: counts that grow with each block of examples, and what their readers make of what is published.

Owns both ends of a publication: which values have changed since the last one (`LivePriors`), and a reader's counts over
those of its snapshot (`PublishedCounts`). Must not know Kafka or how a publication is written.

Invariants: an example counts once, however often a value of it is published, because a publication holds absolute
counts; several writers that share the fields among them publish together what one alone would; a reader needs not know
how many they are: fields are told apart, not writers.

Shape legend: `U` values of a publication, `V` values known, `F` fields, `H` half-lives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import Keys, encode, slot_fields
from features.fields import Field, shard_fields
from features.priors import (
    Floats,
    PriorTable,
    SettledRows,
    advance,
    decay,
    find,
    forget,
    in_order,
    select,
    set_counts,
    within,
)

ROWS_AT_ONCE = 32_768  # chosen by hand: a fraction of a second's, and far more than a pass through the table costs


@dataclass(frozen=True)
class CountUpdate:
    """A publication, or a part of one: absolute counts of the values touched since the last, decayed to `at_s`.

    Attributes:
        at_s: Event time of the counts.
        keys: Keys of the values touched (U,).
        field: Index of the field of each (U,).
        n: Impressions (U, H).
        c: Clicks (U, H).
        root_n: Impressions over all values (H,).
        root_c: Clicks over all values (H,).
        fields: Names of the fields that `field` counts through; empty: those of the reader.
    """

    at_s: float
    keys: Keys
    field: npt.NDArray[np.int16]
    n: Floats
    c: Floats
    root_n: Floats
    root_c: Floats
    fields: tuple[str, ...] = ()

    def under(self, fields: Sequence[str]) -> CountUpdate:
        """Return the same counts for a reader of other fields: told by their names, those it does not have left out."""
        if not self.fields or self.fields == tuple(fields):
            return self
        place = {name: index for index, name in enumerate(fields)}
        field = np.array([place.get(name, -1) for name in self.fields], np.int16)[self.field]
        kept = field >= 0
        return dataclasses.replace(
            self, keys=self.keys[kept], field=field[kept], n=self.n[kept], c=self.c[kept], fields=tuple(fields)
        )


class LivePriors:
    """The counts of all fields, or of one shard's; overall counts are of all rows in every shard.

    Each change of a table passes through all of its values, so blocks wait until there are enough rows, or somebody
    looks.

    Attributes:
        evicted: Values that lost their counts to `counts_max` so far.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        half_lives_s: Sequence[float],
        *,
        evidence_min: float,
        counts_max: int,
        shard: int = 0,
        n_shards: int = 1,
    ) -> None:
        """Begin without counts.

        Args:
            fields: Of the deployment.
            half_lives_s: Memories kept side by side.
            evidence_min: Values whose impressions in the longest memory fall below this are forgotten.
            counts_max: If there are more values than this, those with the least are.
            shard: Which of the shards this is, from 0 on.
            n_shards: Among how many the fields are shared out.
        """
        self._fields = tuple(fields)
        of_field = np.array(shard_fields(fields, n_shards))
        self._is_own = of_field == shard  # (F,)
        own = [field for field, is_own in zip(fields, self._is_own, strict=True) if is_own]
        needed = {field.name for field in own} | {part for field in own for part in field.of}
        self._encoded = tuple(field for field in fields if field.name in needed)
        place = np.array([index for index, field in enumerate(fields) if field.name in needed], np.int16)
        encoded_slots = place[slot_fields(self._encoded)]
        self._slots = np.flatnonzero(self._is_own[encoded_slots])
        self._slot_field = encoded_slots[self._slots]
        self._evidence_min, self._counts_max = evidence_min, counts_max
        self.evicted = 0
        self._changed: list[Keys] = []
        self._uncounted: list[SettledRows] = []
        self._table = PriorTable.empty(half_lives_s, len(fields))

    @property
    def table(self) -> PriorTable:
        """The counts so far."""
        self._count_waiting()
        return self._table

    @property
    def n_fields(self) -> int:
        """How many fields are counted here."""
        return int(self._is_own.sum())

    def counts(self, field: Field) -> bool:
        """Return whether a field is counted here."""
        return bool(self._is_own[self._fields.index(field)])

    def restore(self, table: PriorTable) -> None:
        """Go on from counts that others made, those of other shards left out; all of them count as changed."""
        self._uncounted = []
        self._table = select(table, self._is_own[table.field])
        self.republish()

    def count(self, frame: pl.DataFrame) -> None:
        """Add examples that have not been counted yet: a frame with the columns of a block of examples."""
        if frame.is_empty():
            return
        keys = encode(frame, self._encoded)
        keys = keys if keys.shape[1] == len(self._slots) else keys[:, self._slots]
        self._uncounted.append(SettledRows.from_frame(frame, keys))
        self._changed.append(np.unique(keys[keys > 0]))
        if sum(len(rows.click) for rows in self._uncounted) >= ROWS_AT_ONCE:
            self._count_waiting()

    def _count_waiting(self) -> None:
        if not self._uncounted:
            return
        rows = in_order(self._uncounted)
        self._uncounted, self._changed = [], [np.unique(np.concatenate(self._changed))]
        to_s = max(self._table.as_of_s, float(rows.settled_s[-1]))
        counted = advance(self._table, rows, to_s, slot_field=self._slot_field, evidence_min=self._evidence_min)
        self._table = within(counted, self._counts_max)
        self.evicted += len(counted.keys) - len(self._table.keys)

    def republish(self) -> None:
        """Let every value count as changed: so that a reader of what is published from now on knows them all."""
        self._changed = [self.table.keys] if len(self.table.keys) else []

    def changes(self, values_max: int) -> Iterator[CountUpdate]:
        """Yield what has changed since the last time, in parts of at most `values_max` values; nothing if nothing has.

        Values that have been forgotten since they changed are left out.
        """
        if not self._changed:
            return
        table, changed = self.table, np.unique(np.concatenate(self._changed))
        self._changed = []
        place, is_there = find(table.keys, changed)
        at = place[is_there]
        names = tuple(field.name for field in self._fields)
        for first in range(0, max(len(at), 1), values_max):
            part = at[first : first + values_max]
            yield CountUpdate(
                at_s=table.as_of_s,
                keys=table.keys[part],
                field=table.field[part],
                n=table.n[part],
                c=table.c[part],
                root_n=table.root_n,
                root_c=table.root_c,
                fields=names,
            )


class _Part(NamedTuple):
    keys: Keys
    field: npt.NDArray[np.int16]
    n: Floats
    c: Floats


@dataclass(frozen=True)
class PublishedCounts:
    """What a reader has been told so far.

    Attributes:
        table: The newest counts of each value, brought to the newest moment of all.
        heard_s: Event time of the newest publication that held values of a field, -inf if none did, (F,).
    """

    table: PriorTable
    heard_s: Floats

    @classmethod
    def empty(cls, half_lives_s: Sequence[float], n_fields: int) -> PublishedCounts:
        """Return what is known before the first publication."""
        return cls(PriorTable.empty(half_lives_s, n_fields), np.full(n_fields, -np.inf))

    def check(self, update: CountUpdate) -> None:
        """Check that a publication can be read.

        Raises:
            ValueError: If it was counted with another number of half-lives or fields.
        """
        half_lives, n_fields = len(self.table.half_lives_s), len(self.heard_s)
        if update.n.shape != (len(update.keys), half_lives) or update.c.shape != update.n.shape:
            raise ValueError(f"[prior-updates] counts must have {half_lives} half-lives, got shape {update.n.shape}")
        if len(update.field) and not 0 <= update.field.min() <= update.field.max() < n_fields:
            raise ValueError(f"[prior-updates] fields must be below {n_fields}, got {update.field.max()}")

    def updated(self, updates: Sequence[CountUpdate]) -> PublishedCounts:
        """Return the counts with publications in them, in their order; what a field knows already stays.

        All at once, because each change of a table copies it.
        """
        table, heard_s = self.table, self.heard_s.copy()
        as_of_s = max([table.as_of_s, *(update.at_s for update in updates)])
        root_s, root_n, root_c = table.as_of_s, table.root_n, table.root_c
        parts = [_Part(table.keys[:0], table.field[:0], table.n[:0], table.c[:0])]
        for update in updates:
            left = decay(np.array(as_of_s - update.at_s), table.half_lives_s)
            news = update.at_s >= heard_s[update.field]
            parts.append(_Part(update.keys[news], update.field[news], update.n[news] * left, update.c[news] * left))
            heard_s[update.field[news]] = update.at_s
            if update.at_s >= root_s:
                root_s, root_n, root_c = update.at_s, update.root_n, update.root_c
        keys, field, n, c = (np.concatenate(column) for column in zip(*parts, strict=True))
        _, backwards = np.unique(keys[::-1], return_index=True)
        last = len(keys) - 1 - backwards  # where each value was published last
        table = set_counts(table, keys[last], field[last], n[last], c[last], as_of_s)
        if root_s > -np.inf:
            left = decay(np.array(as_of_s - root_s), table.half_lives_s)
            table = dataclasses.replace(table, root_n=root_n * left, root_c=root_c * left)
        return PublishedCounts(table, heard_s)

    def over(self, own: PriorTable) -> PriorTable:
        """Return a snapshot's counts with the published ones in their place, field by field.

        All values of a field are as new as the field's last publication, whenever each was last published: had one
        been touched since, it would have been published since. What is older than the snapshot tells it nothing.
        """
        live = self.table
        if live.as_of_s < own.as_of_s:
            return own
        newer = self.heard_s[live.field] >= own.as_of_s
        table = set_counts(own, live.keys[newer], live.field[newer], live.n[newer], live.c[newer], live.as_of_s)
        return dataclasses.replace(table, root_n=live.root_n, root_c=live.root_c)

    def without(self, evidence_min: float) -> PublishedCounts:
        """Return the counts without the values whose evidence has decayed below `evidence_min`."""
        return dataclasses.replace(self, table=forget(self.table, evidence_min))

    def within(self, counts_max: int) -> PublishedCounts:
        """Return the counts, without the values of the least evidence if there are more than `counts_max`.

        A snapshot's own counts of a value that is left out stand until it is published again.
        """
        return dataclasses.replace(self, table=within(self.table, counts_max))
