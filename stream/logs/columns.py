"""From a raw column to the type that its role asks for, one chunk at a time.

Owns how time, label, click time, position, propensity and field values are understood, and the closed list of rules by
which a row cannot be used. Must not know files, joins or where a chunk came from.

Invariants: no value raises: what cannot be understood becomes null, and a row that needed it gets the name of a rule;
the result depends on the chunk's values alone, so a column may have another type in the next chunk.

| role | becomes | understood |
|---|---|---|
| time | seconds, f64 | numbers in `time_unit`, date-times of Parquet, ISO 8601 text (without an offset: UTC) |
| label | 0 or 1, i8 | 0/1, true/false, or any number when `label_at_least` is given |
| propensity | probability, f64 | numbers above 0 and not above 1 |
| category | text | text; whole numbers without `.0`, so 1, 1.0 and "1.0" are one value; empty is missing |
| categories | list of text | a list; text is split at each of `|` `,` `;` and white space |
| stages | text | 0/1; the first column that has a 1, `exposed` for the first of all |
| number | f64 | numbers, text that is a number; NaN and infinity are missing |
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal

import polars as pl

from features.fields import Field, id_field, raw_fields
from stream.events import ID_CHARS_MAX

EXPOSED = "exposed"  # the stage of what was shown, whatever its column is called
TimeUnit = Literal["s", "ms", "us", "iso"]

TIME_MAX_S = 4_102_444_800.0  # the year 2100: later times are most often a wrong `time_unit`
CLICK_DELAY_MAX_S = 30 * 86_400.0  # chosen by hand; bounds how long a click is kept until its time comes
POSITION_MAX = 1_000_000

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_NESTED = (pl.Struct, pl.Binary, pl.Object)


def normalise(
    raw: pl.DataFrame,
    fields: Sequence[Field],
    *,
    time: str,
    time_unit: TimeUnit,
    label: str,
    label_at_least: float | None,
    click_time: str,
    position: str,
    propensity: str,
    stages: Sequence[str] = (),
    sample_rate: str = "",
) -> pl.DataFrame:
    """Return the columns of `read_rows`, and `rule`: null where a row can be used; a position not given is null, too.

    With `stages` also `stage` and `sample_rate`; a candidate that was not shown has no position, and no click whatever
    the label says; its propensity is not looked at.

    Args:
        raw: A chunk of the log with its joins.
        label: Not looked at when `click_time` names a column: then a click is a row that has one.
        position: Empty: `position` stays null.
        propensity: Empty: each row was certain to be shown, 1.
        stages: Columns that say how far a candidate came, the one that says that it was shown first.
        sample_rate: Empty: the log holds all candidates.
    """
    time_s = seconds(raw[time], time_unit)
    columns = {"time_s": time_s} | {field.column: field_values(raw[field.name], field) for field in raw_fields(fields)}
    if click_time:
        columns["click_time_s"] = seconds(raw[click_time], time_unit)
        columns["click"] = columns["click_time_s"].is_not_null()
        columns["clicked"] = present(raw[click_time])
    else:
        columns["click_time_s"] = pl.Series([None] * raw.height, dtype=pl.Float64)
        columns["click"] = clicks(raw[label], label_at_least)
        columns["clicked"] = columns["click"]
    columns["place"] = numbers(raw[position]) if position else pl.Series([0.0] * raw.height, dtype=pl.Float64)
    columns["propensity"] = numbers(raw[propensity]) if propensity else pl.Series([1.0] * raw.height, dtype=pl.Float64)
    item = id_field(fields, "item")
    assert item is not None, "check_fields asks for an item id"
    if stages:
        columns |= _funnel(columns, raw, stages, sample_rate)
    frame = pl.DataFrame([series.alias(name) for name, series in columns.items()])
    rule = _rule(item.column)
    place = pl.col("place") if position else pl.lit(None)
    if stages:
        rule = _funnel_rule().otherwise(rule).alias("rule")
        place = pl.when(pl.col("stage") == EXPOSED).then(place)
    return frame.with_columns(pl.col(item.column).alias("ad_id"), rule).select(
        "rule",
        "time_s",
        pl.col("click").cast(pl.Int8),
        "click_time_s",
        place.cast(pl.Int32, strict=False).alias("position"),
        "propensity",
        "ad_id",
        *(("stage", "sample_rate") if stages else ()),
        *(field.column for field in raw_fields(fields)),
    )


def _rule(ad_id: str) -> pl.Expr:
    """Return the first rule that a row breaks; docs/cli.md lists them."""
    delay_s = pl.col("click_time_s") - pl.col("time_s")
    place = pl.col("place")
    return (
        pl.when(pl.col("time_s").is_null())
        .then(pl.lit("bad_time"))
        .when(pl.col("click").is_null())
        .then(pl.lit("bad_label"))
        .when((pl.col("clicked") & ~pl.col("click")) | ~delay_s.fill_null(0.0).is_between(0.0, CLICK_DELAY_MAX_S))
        .then(pl.lit("bad_click_time"))
        .when(pl.col(ad_id).is_null())
        .then(pl.lit("no_ad_id"))
        .when(pl.col(ad_id).str.len_chars() > ID_CHARS_MAX)
        .then(pl.lit("bad_ad_id"))
        .when(place.is_null() | (place != place.floor()) | ~place.is_between(0, POSITION_MAX))
        .then(pl.lit("bad_position"))
        .when(pl.col("propensity").is_null() | ~pl.col("propensity").is_between(0.0, 1.0, closed="right"))
        .then(pl.lit("bad_propensity"))
        .otherwise(None)
        .alias("rule")
    )


def _funnel_rule() -> Any:
    """Return the beginning of a chain of rules: those of a log that holds what was not shown."""
    return (
        pl.when(pl.col("stage").is_null())
        .then(pl.lit("no_stage"))
        .when(~pl.col("sample_rate").is_between(0.0, 1.0, closed="right").fill_null(value=False))
        .then(pl.lit("bad_sample_rate"))
    )


def _funnel(
    columns: dict[str, pl.Series], raw: pl.DataFrame, stages: Sequence[str], sample_rate: str
) -> dict[str, pl.Series]:
    """Return `stage` and `sample_rate`, and what is changed by a candidate's not having been shown."""
    reached = pl.lit(None, pl.String)
    for number, name in reversed(list(enumerate(stages))):
        reached = pl.when(pl.col(name)).then(pl.lit(name if number else EXPOSED)).otherwise(reached)
    flags = pl.DataFrame([clicks(raw[name], None).alias(name) for name in stages])
    stage = flags.select(reached.alias("stage"))["stage"]
    unseen = (stage != EXPOSED).fill_null(value=False)
    found = {name: columns[name].set(unseen, value=False) for name in ("click", "clicked")}
    found |= {"click_time_s": columns["click_time_s"].set(unseen, None), "place": columns["place"].set(unseen, 0.0)}
    found["propensity"] = columns["propensity"].set(unseen, 1.0)
    rates = numbers(raw[sample_rate]) if sample_rate else pl.Series([1.0] * raw.height, dtype=pl.Float64)
    return found | {"stage": stage, "sample_rate": rates}


def unreadable(raw: pl.DataFrame, frame: pl.DataFrame, fields: Sequence[Field]) -> dict[str, int]:
    """Return, per `number` field, how many values were there and are no number: they count as missing."""
    found = {
        field.name: int((present(raw[field.name]) & frame[field.column].is_null()).sum())
        for field in raw_fields(fields)
        if field.kind == "number"
    }
    return {name: count for name, count in found.items() if count}


def seconds(column: pl.Series, unit: TimeUnit) -> pl.Series:
    """Return event times in seconds since 1970 (UTC), null where there is none that can be used."""
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if isinstance(column.dtype, pl.Datetime):
        time_s = column.dt.epoch("us") / 1e6
    elif unit == "iso":
        time_s = pl.Series([_iso_seconds(text) for text in column.cast(pl.String).to_list()], dtype=pl.Float64)
    else:
        time_s = numbers(column) / _PER_SECOND[unit]
    return time_s.set(~time_s.is_between(0.0, TIME_MAX_S), None)


def _iso_seconds(text: str | None) -> float | None:
    try:
        time = dt.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()


def clicks(column: pl.Series, at_least: float | None) -> pl.Series:
    """Return whether each row is a click, null where the label is none of the values that a label may have."""
    if column.dtype == pl.String:
        column = column.str.to_lowercase().replace({"true": "1", "false": "0"})
    label = numbers(column)
    if at_least is not None:
        return label >= at_least
    return (label == 1.0).set(~label.is_in([0.0, 1.0]).fill_null(value=True), None)


def numbers(column: pl.Series) -> pl.Series:
    """Return finite f64 values, null where there is none."""
    number = column.cast(pl.Float64, strict=False)
    return number.set(~number.is_finite(), None)


def present(column: pl.Series) -> pl.Series:
    """Return whether there is a value at all: neither null, nor NaN, nor empty text."""
    if column.dtype.is_float():
        return column.is_not_nan().fill_null(value=False)
    return (column != "").fill_null(value=False) if column.dtype == pl.String else column.is_not_null()


def field_values(column: pl.Series, field: Field) -> pl.Series:
    """Return a field's values in the type of its kind."""
    if field.kind == "number":
        return numbers(column)
    return category_lists(column) if field.kind == "categories" else categories(column)


def categories(column: pl.Series) -> pl.Series:
    """Return values as text, the same text for the same value whatever type it came in; empty text is null."""
    if column.dtype.is_float():
        whole = (column == column.floor()) & (column.abs() < 2**53)
        text = column.set(~whole.fill_null(value=False), None).cast(pl.Int64).cast(pl.String)
        column = text.zip_with(whole.fill_null(value=False), column.set(~column.is_finite(), None).cast(pl.String))
    text = column.cast(pl.String).str.replace(r"^(-?\d+)\.0+$", "$1")
    return text.set(text == "", None)


def category_lists(column: pl.Series) -> pl.Series:
    """Return values as lists of text without empty ones; an empty list is null."""
    if isinstance(column.dtype, pl.List | pl.Array):
        flat = column.cast(pl.List(column.dtype.inner)).to_frame("values").with_row_index("row").explode("values")
    else:
        split = categories(column).str.extract_all(r"[^|,;\s]+")
        flat = split.to_frame("values").with_row_index("row").explode("values")
    kept = flat.with_columns(categories(flat["values"])).drop_nulls("values")
    lists = kept.group_by("row", maintain_order=True).agg("values")
    rows = pl.DataFrame({"row": pl.Series(range(len(column)), dtype=lists["row"].dtype)})
    return rows.join(lists, on="row", how="left", maintain_order="left")["values"]


def kind_of(dtype: pl.DataType) -> str:
    """Return what a column holds, as the reader's messages call it: number, text, time, list or nested."""
    if isinstance(dtype, pl.List | pl.Array):
        return "nested" if isinstance(dtype.inner, (*_NESTED, pl.List, pl.Array)) else "list"
    if isinstance(dtype, _NESTED):
        return "nested"
    if dtype.is_temporal():
        return "time"
    return "number" if dtype.is_numeric() or dtype == pl.Boolean else "text"
