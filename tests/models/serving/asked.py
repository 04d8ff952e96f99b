"""Candidates as a frame of examples, by which what serving does is held against what training does."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from features.fields import Field, Kind, raw_fields
from models.serving.schema import Ad, Clean

# Arrow takes lists of texts from Python forty times as fast as polars does.
_TYPES: dict[Kind, pa.DataType] = {
    "category": pa.large_string(),
    "categories": pa.large_list(pa.large_string()),
    "number": pa.float64(),
}


def candidate_frame(fields: Sequence[Field], values: dict[str, Clean], ads: Sequence[Ad]) -> pl.DataFrame:
    """Return one row per ad with the columns of a frame of examples: the request's values repeated, the ad's own."""
    columns = []
    for field in raw_fields(fields):
        if field.side in ("user", "context"):
            column = _column(field, [values.get(field.name)]).new_from_index(0, len(ads))
        else:
            column = _column(field, [ad.values.get(field.name) for ad in ads])
        columns.append(column)
    return pl.DataFrame(columns)


def _column(field: Field, values: list[Clean]) -> pl.Series:
    return pl.Series(field.column, pa.array(values, _TYPES[field.kind]))
