"""From values to keys: the one function that training and serving share.

Owns how a raw value becomes a 64-bit key. Must not know counts, vocabularies or where a frame comes from.

Invariants: a key depends on the field's name and the value alone, never on the other rows, the order of the fields or
the process; 0 means absent (missing, unknown column, NaN) and no value has key 0; the keys of a field with several
values are distinct and in one fixed order, so a list and its reordering are the same thing.

Shape legend: `N` rows, `S` slots, `W` slots of one field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from features.fields import Field, field_slots, slot_counts

Keys = npt.NDArray[np.uint64]

MANTISSA_BITS = 3  # 8 buckets per doubling: neighbours differ by about 9 %; chosen by hand
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def encode(frame: pl.DataFrame, fields: Sequence[Field]) -> Keys:
    """Return the keys of a frame's rows, (N, S), slots as `slot_counts` lays them out.

    Raises:
        ValueError: If a `category` or `number` field holds lists.
    """
    parts: dict[str, Keys] = {}
    for field, width in zip(fields, slot_counts(fields), strict=True):
        if field.side == "cross":
            parts[field.name] = cross_keys(field, [parts[name] for name in field.of], width)
        elif field.column not in frame.columns:
            parts[field.name] = np.zeros((len(frame), width), np.uint64)
        else:
            parts[field.name] = _encode_column(frame[field.column], field)
    return np.concatenate([parts[field.name] for field in fields], axis=1)


class ValueEncoder:
    """Keys of one thing's values at a time, those that `encode` gives them, without a frame: serving's way.

    Attributes:
        fields: The raw fields that it reads, in their order.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        """Take the raw fields."""
        self.fields = tuple(fields)
        widths = slot_counts(self.fields)
        self._n_slots = sum(widths)
        starts = np.cumsum([0, *widths]).tolist()
        self._plan = [(f, _seed(f), start) for f, start in zip(self.fields, starts, strict=False)]

    def keys(self, values: Mapping[str, Any]) -> Keys:
        """Return the keys of values by field name, (S,): text, lists of text and numbers, None where absent."""
        keys = np.zeros(self._n_slots, np.uint64)
        for field, seed, start in self._plan:
            value = values.get(field.name)
            if value is None:
                continue
            if field.kind == "category":
                keys[start] = _hash(value.encode(), seed)
            elif field.kind == "number":
                keys[start] = _bucket_keys(np.array([value], np.float64), seed)[0]
            else:
                several = sorted({_hash(one.encode(), seed) for one in value[: field.values_max]}, reverse=True)
                keys[start : start + len(several)] = several
        return keys


def join_keys(fields: Sequence[Field], parts: Sequence[tuple[Sequence[Field], Keys]]) -> Keys:
    """Return the keys of rows from those of their raw fields, crosses added, (N, S).

    Args:
        fields: Of the rows.
        parts: Raw fields with their keys, (N, their S), or (their S,) where all rows share them.
    """
    n_rows = max(len(keys) for _, keys in parts if keys.ndim == 2)
    found: dict[str, Keys] = {}
    for own, keys in parts:
        for field, place in zip(own, field_slots(own), strict=True):
            found[field.name] = np.broadcast_to(keys[..., place], (n_rows, place.stop - place.start))
    for field, width in zip(fields, slot_counts(fields), strict=True):
        if field.side == "cross":
            found[field.name] = cross_keys(field, [found[name] for name in field.of], width)
    return np.concatenate([found[field.name] for field in fields], axis=1)


def cross_keys(field: Field, parts: Sequence[Keys], width: int) -> Keys:
    """Return the keys of a cross, (N, width), from those of its parts in their order; absent as soon as one part is."""
    keys = np.full((len(parts[0]), width), _seed(field), np.uint64)
    absent = np.zeros(keys.shape, bool)
    for part in parts:
        keys = mix(keys + _GOLDEN) ^ part
        absent |= part == 0
    keys = np.maximum(mix(mix(keys + _GOLDEN)), np.uint64(1))
    return np.where(absent, np.uint64(0), keys)


def slot_fields(fields: Sequence[Field]) -> npt.NDArray[np.int16]:
    """Return which field each slot belongs to, (S,)."""
    return np.repeat(np.arange(len(fields), dtype=np.int16), slot_counts(fields))


def field_key(field: Field, value: str) -> int:
    """Return the key of one category value, as `encode` gives it."""
    return _hash(value.encode(), _seed(field))


def hash_strings(values: pl.Series) -> Keys:
    """Return a 64-bit hash of each string, (N,), 0 for null; the same in every process."""
    return _hash_all(values.to_arrow(), 0)


def mix(keys: Keys) -> Keys:
    """Return scrambled keys, element by element and one to one; 0 stays 0.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    """
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _seed(field: Field) -> int:
    return xxhash.xxh3_64_intdigest(field.name.encode())


def _hash(value: bytes, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(value, seed) or 1


def _encode_column(values: pl.Series, field: Field) -> Keys:
    if field.kind == "categories":
        return _encode_lists(values, field)
    if isinstance(values.dtype, pl.List | pl.Array):
        raise ValueError(f'field "{field.name}" must hold one {field.kind} per row, got {values.dtype}')
    if field.kind == "number":
        return _encode_numbers(values, field)[:, None]
    return _hash_all(values.cast(pl.String, strict=False).to_arrow(), _seed(field))[:, None]


def _hash_all(values: pa.Array, seed: int) -> Keys:
    """Hash each distinct value once, then gather: logs repeat themselves."""
    coded = pc.dictionary_encode(values)
    distinct = coded.dictionary.cast(pa.large_binary()).to_pylist()
    keys = np.array([0] + [_hash(value, seed) for value in distinct], np.uint64)
    codes: npt.NDArray[np.int32] = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    return keys[codes + 1]


def _encode_numbers(values: pl.Series, field: Field) -> Keys:
    """Bucket by sign, exponent and top bits of the mantissa: scale-free, without a look at other rows."""
    numbers = values.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    return np.where(np.isnan(numbers), np.uint64(0), _bucket_keys(numbers, _seed(field)))


def _bucket_keys(numbers: npt.NDArray[np.float64], seed: int) -> Keys:
    buckets = (numbers + 0.0).view(np.uint64) >> np.uint64(52 - MANTISSA_BITS)  # -0.0 becomes 0.0
    return np.maximum(mix(mix(buckets + _GOLDEN) ^ np.uint64(seed)), np.uint64(1))


def _encode_lists(values: pl.Series, field: Field) -> Keys:
    if not isinstance(values.dtype, pl.List | pl.Array):
        values = values.cast(pl.String, strict=False).reshape((-1, 1))  # one value is a list of one
    lists = values.cast(pl.List(pl.String), strict=False).list.head(field.values_max).to_arrow()
    lengths: npt.NDArray[np.int64] = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    keys = np.zeros((len(values), field.values_max), np.uint64)
    keys[np.arange(field.values_max) < lengths[:, None]] = _hash_all(lists.flatten(), _seed(field))
    return _distinct(keys)


def _distinct(keys: Keys) -> Keys:
    """Return each row's keys in falling order, repeats taken out, absent ones last."""
    ordered = np.sort(keys, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    return np.sort(ordered, axis=1)[:, ::-1]
