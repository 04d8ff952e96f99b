"""Slabs: the values that things were scored on, in Arrow columns from soon after they came.

Owns the check of values against the fields, and how they stand in columns. A value becomes part of its column once,
while it is still in the processor's cache; rows and chains that leave later take it from there, and a column is a
fraction of the objects that it was made of. Must not know what a request or an impression is.

Invariants: what is taken does not depend on how things were spread over slabs; a slab goes with the last that refers to
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

from features.fields import Field
from stream.blocks import ARROW_TYPES, Columns
from stream.events import EventError, Value, fits_64_bits

# A slab is put into columns when it holds so many. Columns of fewer cost more for each (measured: 64 take 4 % longer in
# all, 1024 no less), and a thing that is known for long keeps its whole slab.
SLAB_ROWS = 256
SPARSE = 32  # chosen by hand: where slabs hold so many times what is taken, rows are copied out one by one
SHAPES_MAX = 1024  # chosen by hand: fields that may be absent have this many combinations, and a hostile producer more

_TYPES: dict[str, frozenset[type]] = {
    "category": frozenset({str, int, type(None)}),
    "categories": frozenset({list, type(None)}),
    "number": frozenset({int, float, type(None)}),
}
# What a column takes without a change.
_AS_IT_IS: dict[str, frozenset[type]] = {
    "category": frozenset({str, type(None)}),
    "categories": frozenset({list, type(None)}),  # of texts
    "number": frozenset({float, type(None)}),
}
Cells = tuple[Any, ...]


class Slab:
    """Things that came one after the other: each a tuple of cells, or all in columns.

    Attributes:
        cells: Of each thing, in the order of the columns; empty once they are columns.
        batch: The columns; None before.
        bad: Things whose values are not of their fields' kinds, by place: which field, and what stands there. Known
            with the columns.
    """

    __slots__ = ("bad", "batch", "cells")

    def __init__(self) -> None:
        """Begin empty."""
        self.cells: list[Cells] = []
        self.batch: pa.RecordBatch | None = None
        self.bad: dict[int, tuple[str, str]] = {}


class Slabs:
    """Where things of one kind are put: some fixed columns, and those of fields.

    Attributes:
        names: Of the fields.
    """

    def __init__(self, fixed: Mapping[str, pa.DataType], fields: Sequence[Field]) -> None:
        """Begin with an empty slab."""
        self._n_fixed = len(fixed)
        self.names = [field.name for field in fields]
        self._kinds = [field.kind for field in fields]
        self._types = [(field.name, _TYPES[field.kind]) for field in fields]
        self._good: set[tuple[type, ...]] = set()  # types of cells that need no second look
        values = {field.column: ARROW_TYPES[field.kind] for field in fields}
        self._schema = pa.schema([*fixed.items(), *values.items()])
        self._open = Slab()

    def check(self, cells: Cells) -> None:
        """Check the values of a thing: EventError `bad_value` if one is not of its field's kind."""
        types = tuple(map(type, cells))
        if types not in self._good:
            if (error := self._error(cells)) is not None:
                raise error
            if int not in types and len(self._good) < SHAPES_MAX:  # a whole number may have too many digits
                self._good.add(types)

    def check_at(self, slab: Slab, place: int) -> None:
        """Check the values of a thing in a slab likewise."""
        if slab.batch is None:
            self.check(slab.cells[place])
        elif place in slab.bad:
            raise EventError("bad_value", *slab.bad[place])

    def add(self, cells: Sequence[Cells]) -> tuple[Slab, int]:
        """Add things, their cells in the order of the columns; return their slab, and the place of the first."""
        slab = self._open
        place = len(slab.cells)
        slab.cells += cells
        if len(slab.cells) >= SLAB_ROWS:
            self._columns(slab)
        return slab, place

    def take(self, slabs: Sequence[Slab], places: Iterable[int]) -> Columns:
        """Return the columns of these things: of each its slab, and its place there."""
        if not slabs:
            return {name: [] for name in self._schema.names}
        batches = {slab: self._columns(slab) for slab in dict.fromkeys(slabs)}
        *firsts, n_rows = accumulate((batch.num_rows for batch in batches.values()), initial=0)
        if n_rows > SPARSE * len(slabs):
            taken = pa.concat_batches(batches[slab].slice(place, 1) for slab, place in zip(slabs, places, strict=True))
        else:
            first = dict(zip(batches, firsts, strict=True))
            index = [first[slab] + place for slab, place in zip(slabs, places, strict=True)]
            taken = pa.concat_batches(batches.values()).take(pa.array(index, pa.int64()))
        return dict(zip(taken.schema.names, taken.columns, strict=True))

    def _error(self, cells: Cells) -> EventError | None:
        for (name, allowed), value in zip(self._types, cells[self._n_fixed :], strict=True):
            if value.__class__ not in allowed or (isinstance(value, int) and not fits_64_bits(value)):
                return EventError("bad_value", name, value)
        return None

    def _columns(self, slab: Slab) -> pa.RecordBatch:
        """Return a slab in columns; nothing is added to it any more."""
        if slab.batch is not None:
            return slab.batch
        columns, n_fixed = list(zip(*slab.cells, strict=True)), self._n_fixed
        found = [_canonical(values, kind) for values, kind in zip(columns[n_fixed:], self._kinds, strict=True)]
        if any(one is not values for one, values in zip(found, columns[n_fixed:], strict=True)):
            errors = ((place, self._error(cells)) for place, cells in enumerate(slab.cells))
            slab.bad = {place: (error.field, error.value) for place, error in errors if error is not None}
        arrays = zip([*columns[:n_fixed], *found], self._schema.types, strict=True)
        slab.batch = pa.record_batch([pa.array(values, kind) for values, kind in arrays], schema=self._schema)
        slab.cells = []
        if slab is self._open:
            self._open = Slab()
        return slab.batch


def _canonical(values: Sequence[Any], kind: str) -> Sequence[Any]:
    """Return values as their column holds them: text for categories, however the producer wrote them.

    The same sequence, if nothing is to be changed. A value of another kind is unknown in a column: nobody saw the ad,
    or its event was taken under other fields.
    """
    lists = values if kind == "categories" else ()
    if set(map(type, values)) <= _AS_IT_IS[kind] and set(map(type, chain.from_iterable(filter(None, lists)))) <= {str}:
        return values
    if kind == "category":
        return [value if value is None or value.__class__ is str else _text(value) for value in values]
    if kind == "categories":
        return [None if value.__class__ is not list else [str(one) for one in value] for value in values]
    return [value if value is None or value.__class__ is float else _number(value) for value in values]


def _text(value: Value) -> str | None:
    return None if isinstance(value, list) or (isinstance(value, int) and not fits_64_bits(value)) else str(value)


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, int) and fits_64_bits(value) else None
