"""The number fields of rows, brought to a size that any outside method bears.

Owns that one transform. Must not know the methods.

Shape legend: `N` rows, `M` number fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from features.fields import Field
from features.priors import Floats

LARGEST = np.finfo(np.float64).max  # what an infinite value counts as


def number_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields that hold one number a row, M of them."""
    return tuple(field for field in fields if field.kind == "number" and field.side != "cross")


def log_numbers(frame: pl.DataFrame, fields: Sequence[Field]) -> Floats:
    """Return sign(x) log(1 + |x|) of the number fields, (N, M): NaN where there is none, else within +-710.

    A tree sees the same order of values as before; a linear model is not thrown by one that is far out.
    """
    columns = [pl.col(field.column).cast(pl.Float64, strict=False).fill_null(np.nan) for field in number_fields(fields)]
    if not columns:
        return np.zeros((len(frame), 0))
    values = np.nan_to_num(frame.select(columns).to_numpy(), nan=np.nan, posinf=LARGEST, neginf=-LARGEST)
    numbers: Floats = np.sign(values) * np.log1p(np.abs(values))
    return numbers
