"""The rows of a log as codes and numbers, in time order: what every check computes on.

Owns the two views of a field: a code per distinct value, and a number where the values are numbers. Must not know files
or what is looked for.

Invariants: rows are in the order (time_s, the order of the file); a value that is missing has the code -1 and the
number NaN; text is kept as a hash, so a row costs 16 bytes a field.

Shape legend: `N` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.fields import Field, Kind, Side, id_field, raw_fields

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

REQUEST = "request"  # the columns of a compact frame that are no field's
NUMBERS_SHARE_MIN = 0.99  # a category is read as numbers as well when all but stray values are numbers
_CODE, _NUMBER = "code.", "number."


@dataclass(frozen=True)
class Column:
    """One field: a code per distinct value (-1: missing), (N,), and its numbers (NaN: missing), (N,), or None."""

    name: str
    side: Side
    kind: Kind
    codes: Ints
    numbers: Floats | None


@dataclass(frozen=True)
class Table:
    """The rows in time order.

    Attributes:
        time_s: When each was shown, (N,).
        clicks: 0 or 1, (N,).
        requests: Code of the row's request, by its columns alone, (N,).
        positions: Place within the request, (N,).
        columns: The fields, crosses left out.
        user: Name of the field that identifies users, or None.
        item: Name of the field that identifies ads.
        is_explicit: Whether `requests` come from a column that names requests rather than from user and time.
        has_positions: Whether the log itself gives positions.
    """

    time_s: Floats
    clicks: Floats
    requests: Ints
    positions: Ints
    columns: tuple[Column, ...]
    user: str | None
    item: str
    is_explicit: bool
    has_positions: bool

    def __len__(self) -> int:
        """Return N."""
        return len(self.time_s)

    def column(self, name: str) -> Column:
        """Return the field of this name."""
        return next(column for column in self.columns if column.name == name)

    def keys(self) -> dict[str, Ints]:
        """Return what statistics may be counted by: every category field, and the pair of user and ad."""
        keys = {column.name: column.codes for column in self.columns if column.kind != "number"}
        if self.user is not None:
            keys[f"{self.user} x {self.item}"] = combine([keys[self.user], keys[self.item]])
        return keys


def compact(frame: pl.DataFrame, fields: Sequence[Field], request: Sequence[str]) -> pl.DataFrame:
    """Return usable rows of the reader with hashes for text.

    Args:
        frame: time_s, click, request_id, position and a column per raw field, and one per column in `request`.
        request: Columns of `frame` that make a request, without the time; none: `request_id` does.
    """
    made_of = list(request) or ["request_id"]
    columns = [
        pl.col("time_s", "click", "position"),
        pl.struct(made_of).hash(seed=0).alias(REQUEST),
    ]
    for field in raw_fields(fields):
        column = pl.col(field.column)
        if field.kind == "number":
            columns.append(column.alias(_NUMBER + field.name))
        elif field.kind == "categories":
            columns.append(column.list.join("\x1f").hash(seed=0).alias(_CODE + field.name))
            columns.append(column.list.len().cast(pl.Float64).alias(_NUMBER + field.name))
        else:
            hashed = pl.when(column.is_not_null()).then(column.hash(seed=0))
            columns.append(hashed.alias(_CODE + field.name))
            columns.append(column.cast(pl.Float64, strict=False).alias(_NUMBER + field.name))
    return frame.select(columns)


def to_table(rows: pl.DataFrame, fields: Sequence[Field], *, is_explicit: bool, has_positions: bool) -> Table:
    """Return the table of compact rows, in any order."""
    rows = rows.sort("time_s", maintain_order=True)
    user, item = id_field(fields, "user"), id_field(fields, "item")
    assert item is not None, "check_fields asks for an item id"
    requests = _codes(rows[REQUEST])
    in_request = rows.select(pl.int_range(pl.len()).over(REQUEST, "time_s")).to_series()
    return Table(
        time_s=rows["time_s"].to_numpy().astype(np.float64),
        clicks=rows["click"].to_numpy().astype(np.float64),
        requests=requests,
        positions=(rows["position"] if has_positions else in_request).to_numpy().astype(np.int64),
        columns=tuple(_column(rows, field) for field in raw_fields(fields)),
        user=None if user is None else user.name,
        item=item.name,
        is_explicit=is_explicit,
        has_positions=has_positions,
    )


def combine(parts: Sequence[Ints]) -> Ints:
    """Return one code per distinct combination of codes, (N,)."""
    combined = parts[0]
    for part in parts[1:]:
        combined = np.unique(combined * (int(part.max(initial=0)) + 2) + part + 1, return_inverse=True)[1]
    return combined.astype(np.int64)


def _column(rows: pl.DataFrame, field: Field) -> Column:
    numbers = rows[_NUMBER + field.name].to_numpy().astype(np.float64)
    if field.kind == "number":
        return Column(field.name, field.side, field.kind, _codes(rows[_NUMBER + field.name]), numbers)
    codes = _codes(rows[_CODE + field.name])
    present = codes >= 0
    is_numeric = np.isfinite(numbers[present]).mean() >= NUMBERS_SHARE_MIN if present.any() else False
    return Column(field.name, field.side, field.kind, codes, numbers if is_numeric else None)


def _codes(values: pl.Series) -> Ints:
    return (values.rank("dense").cast(pl.Int64) - 1).fill_null(-1).to_numpy().astype(np.int64)
