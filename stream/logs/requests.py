"""Which rows are one request, and in what order they stand.

Owns a request's id, the order of its rows and how large it may grow. Must not know files or what the rows mean.

Invariants: an id depends on the request's own columns and its time alone; rows of one request leave together, in order
of position; a request never outgrows the record that it travels in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl
import xxhash

from features.fields import Field, raw_fields
from stream.blocks import REQUEST_SIDES
from stream.logs.columns import EXPOSED, categories

# A request travels as one record, below 1 MB: text needs at most six bytes a byte in JSON (control characters).
REQUEST_BYTES_MAX = 150_000
CANDIDATE_BYTES = 30  # what a candidate has besides its values, likewise: keys and a number


def request_ids(raw: pl.DataFrame, time_s: pl.Series, request: Sequence[str], n_before: int) -> pl.Series:
    """Return the id of each row's request: 16 hex digits of a hash, or the row's number when each row is its own.

    Args:
        raw: A chunk of the log.
        time_s: The rows' times: rows of one key at another time are another request.
        request: Columns that together make one request.
        n_before: Rows of the log before this chunk.
    """
    if not request:
        return pl.Series("request_id", range(n_before, n_before + raw.height), dtype=pl.Int64).cast(pl.String)
    parts = [categories(raw[name]).fill_null("").alias(name) for name in request]
    micros = (time_s * 1e6).round().cast(pl.Int64).cast(pl.String)
    # The unit separator keeps ("a", "bc") apart from ("ab", "c").
    keys = pl.select(pl.concat_str([micros, *parts], separator="\x1f")).to_series()
    digests = [None if key is None else xxhash.xxh3_64_hexdigest(key.encode()) for key in keys.to_list()]
    return pl.Series("request_id", digests, dtype=pl.String)


def whole_requests(frames: Iterator[pl.DataFrame], rows_max: int) -> Iterator[pl.DataFrame]:
    """Yield the rows in time order; those of a chunk's last instant wait for the rest of it in the next chunk.

    More than `rows_max` rows of one instant are let go: memory is bounded, a request may then be cut in two.
    """
    held: pl.DataFrame | None = None
    for frame in frames:
        rows = (frame if held is None else pl.concat([held, frame])).sort("time_s", maintain_order=True)
        cut = int(rows["time_s"].search_sorted(rows["time_s"][-1], side="left")) if rows.height else 0
        if rows.height - cut >= rows_max:
            cut = rows.height
        held = rows[cut:]
        if cut:
            yield rows[:cut]
    if held is not None and held.height:
        yield held


def in_order(frame: pl.DataFrame, fields: Sequence[Field]) -> tuple[pl.DataFrame, int]:
    """Return the rows by (time_s, request_id, position), without those too many for a record, and how many those are.

    Positions that the log does not give count the rows of a request in the order in which they stand. Candidates that
    were not shown have none and stand last.
    """
    number = pl.int_range(pl.len(), dtype=pl.Int32).over("request_id")
    if "stage" in frame.columns:
        number = pl.when(pl.col("stage") == EXPOSED).then(pl.col("stage").eq(EXPOSED).cum_sum().over("request_id") - 1)
    frame = frame.with_columns(pl.coalesce("position", number.cast(pl.Int32)).alias("position"))
    frame = frame.sort("time_s", "request_id", "position", maintain_order=True, nulls_last=True)
    raw = raw_fields(fields)
    of_row = _row_bytes([field for field in raw if field.side not in REQUEST_SIDES]) + CANDIDATE_BYTES
    of_request = _row_bytes([field for field in raw if field.side in REQUEST_SIDES])
    n_bytes = of_row.cum_sum().over("request_id") + of_request.max().over("request_id")
    fits = frame.select((n_bytes <= REQUEST_BYTES_MAX).alias("fits"))["fits"]
    return frame.filter(fits), int((~fits).sum())


def _row_bytes(fields: Sequence[Field]) -> pl.Expr:
    """Return how many bytes of text are as long in JSON, at the worst, as the fields of a row with their names."""
    names = sum(len(field.name.encode()) + 6 for field in fields) // 6 + len(fields)
    return pl.sum_horizontal(pl.lit(names), *(_text_bytes(field) for field in fields))


def _text_bytes(field: Field) -> pl.Expr:
    column = pl.col(field.column)
    if field.kind == "category":
        return column.str.len_bytes().fill_null(0)
    if field.kind == "categories":
        return column.list.eval(pl.element().str.len_bytes() + 4).list.sum().fill_null(0)
    return pl.lit(20)
