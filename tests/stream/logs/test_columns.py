"""How raw columns are understood, whatever type they come in."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import polars as pl
import pytest

from features.fields import Field
from stream.logs.columns import (
    POSITION_MAX,
    TIME_MAX_S,
    categories,
    category_lists,
    clicks,
    kind_of,
    normalise,
    numbers,
    present,
    seconds,
    unreadable,
)

NEW_YEAR = dt.datetime(2024, 1, 1, tzinfo=dt.UTC).replace(tzinfo=None)
FIELDS = (
    Field(name="user", side="user"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="price", side="item", kind="number"),
)


def rows(**changed: list[Any]) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {"t": [10.0], "y": [1], "user": ["u"], "ad": ["a"], "tags": ["x y"], "price": [2.5]}
    height = max(len(values) for values in changed.values()) if changed else 1
    return pl.DataFrame({name: changed.get(name, values * height) for name, values in (columns | changed).items()})


def normal(raw: pl.DataFrame, **changed: Any) -> pl.DataFrame:
    settings: dict[str, Any] = {"time": "t", "time_unit": "s", "label": "y", "label_at_least": None}
    return normalise(raw, FIELDS, **(settings | {"click_time": "", "position": "", "propensity": ""} | changed))


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([1650812741436], "ms", 1650812741.436),
        ([1_000_000], "us", 1.0),
        (["17.5"], "s", 17.5),
        (["2024-01-01T00:00:00Z"], "iso", 1704067200.0),
        (["2024-01-01 00:00:00.5+01:00"], "iso", 1704063600.5),
        (["2024-01-01"], "iso", 1704067200.0),
        ([NEW_YEAR], "s", 1704067200.0),
        ([NEW_YEAR], "iso", 1704067200.0),
        ([dt.date(2024, 1, 1)], "ms", 1704067200.0),
    ],
)
def test_a_time_is_seconds_since_1970(values: list[Any], unit: Any, expected: float) -> None:
    assert seconds(pl.Series(values), unit).to_list() == [expected]


@pytest.mark.parametrize("value", [None, -1.0, math.nan, math.inf, TIME_MAX_S + 1.0, "soon", ""])
def test_what_is_no_time_is_null(value: Any) -> None:
    assert seconds(pl.Series([value]), "s").to_list() == [None]
    assert seconds(pl.Series([value]).cast(pl.String), "iso").to_list() == [None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, -1, None], [False, True, None, None, None]),
        ([0.0, 1.0, 0.5, math.nan], [False, True, None, None]),
        (["0", "1", "1.0", "yes", ""], [False, True, True, None, None]),
        (["True", "FALSE"], [True, False]),
        ([True, False, None], [True, False, None]),
    ],
)
def test_a_label_is_zero_or_one_and_nothing_else(values: list[Any], expected: list[bool | None]) -> None:
    assert clicks(pl.Series(values, strict=False), None).to_list() == expected


def test_a_rating_is_a_click_from_the_threshold_on() -> None:
    assert clicks(pl.Series([3, 4, 5, None]), 4.0).to_list() == [False, True, True, None]
    assert clicks(pl.Series(["3.5", "4", "x"]), 4.0).to_list() == [False, True, None]


@pytest.mark.parametrize("values", [[17, 17], [17.0, 17.0], ["17", "17.0"], ["17.00", "17"]])
def test_one_value_has_one_text_whatever_its_type(values: list[Any]) -> None:
    assert categories(pl.Series(values)).to_list() == ["17", "17"]


def test_other_categories_keep_their_text() -> None:
    assert categories(pl.Series(["1.50", "v1.0", "-2.0", " a"])).to_list() == ["1.50", "v1.0", "-2", " a"]
    assert categories(pl.Series([0.5, 1e20, None, math.nan, math.inf])).to_list() == ["0.5", "1e+20", None, None, None]
    assert categories(pl.Series([True, False])).to_list() == ["true", "false"]
    assert categories(pl.Series(["a", "b"], dtype=pl.Categorical)).to_list() == ["a", "b"]
    assert categories(pl.Series(["", None])).to_list() == [None, None]


def test_text_is_split_into_categories_at_each_separator() -> None:
    values = ["Children's Sci-Fi", "62,27,42", "a|b", "a; b", "3.0", "", " ", None]
    expected = [["Children's", "Sci-Fi"], ["62", "27", "42"], ["a", "b"], ["a", "b"], ["3"], None, None, None]
    assert category_lists(pl.Series(values)).to_list() == expected


def test_a_list_of_categories_stays_one_and_loses_empty_values() -> None:
    assert category_lists(pl.Series([["two words", "b"], [""], [], None])).to_list() == [
        ["two words", "b"],
        None,
        None,
        None,
    ]
    assert category_lists(pl.Series([[1.0, 2.0], [None, 3.0]])).to_list() == [["1", "2"], ["3"]]


def test_nan_and_infinity_are_missing_numbers() -> None:
    assert numbers(pl.Series([1.5, math.nan, math.inf, -math.inf, None])).to_list() == [1.5, None, None, None, None]
    assert numbers(pl.Series(["1e3", "nan", "inf", "many", ""])).to_list() == [1000.0, None, None, None, None]


def test_what_is_present_is_neither_null_nor_nan_nor_empty() -> None:
    assert present(pl.Series(["a", "", None])).to_list() == [True, False, False]
    assert present(pl.Series([1.0, math.nan, math.inf, None])).to_list() == [True, False, True, False]
    assert present(pl.Series([0, None])).to_list() == [True, False]


def test_a_usable_row_breaks_no_rule_and_has_all_columns() -> None:
    frame = normal(rows())
    assert frame.rows(named=True) == [
        {"rule": None, "time_s": 10.0, "click": 1, "click_time_s": None, "position": None, "propensity": 1.0}
        | {"ad_id": "a", "field.user": "u", "field.ad": "a", "field.tags": ["x", "y"], "field.price": 2.5}
    ]
    assert frame.dtypes[1:7] == [pl.Float64, pl.Int8, pl.Float64, pl.Int32, pl.Float64, pl.String]


@pytest.mark.parametrize("value", [None, 0.0, -0.1, 1.1, math.nan, "often"])
def test_a_propensity_that_is_no_probability_is_a_rule_broken(value: Any) -> None:
    frame = normal(rows().with_columns(p=pl.Series([value])), propensity="p")
    assert frame["rule"].to_list() == ["bad_propensity"]


@pytest.mark.parametrize("value", [1, 1e-6, "0.25"])
def test_a_propensity_is_a_number_above_0_and_not_above_1(value: Any) -> None:
    frame = normal(rows().with_columns(p=pl.Series([value])), propensity="p")
    assert frame.select("rule", "propensity").rows() == [(None, float(value))]


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"t": [None]}, "bad_time"),
        ({"t": [math.nan]}, "bad_time"),
        ({"y": [2]}, "bad_label"),
        ({"y": [None]}, "bad_label"),
        ({"ad": [None]}, "no_ad_id"),
        ({"ad": [""]}, "no_ad_id"),
        ({"ad": ["a" * 257]}, "bad_ad_id"),
        ({"t": [None], "y": [2]}, "bad_time"),
        ({"user": [None], "tags": [None], "price": [None]}, None),
    ],
)
def test_a_row_that_cannot_be_used_has_the_rule_it_breaks(changed: dict[str, list[Any]], rule: str | None) -> None:
    assert normal(rows(**changed))["rule"].to_list() == [rule]


@pytest.mark.parametrize(
    ("clicked_at", "click", "rule"),
    [
        (12.5, 1, None),
        (10.0, 1, None),
        (None, 0, None),
        (math.nan, 0, None),
        (9.9, 1, "bad_click_time"),
        (math.inf, 0, "bad_click_time"),
        (-5.0, 0, "bad_click_time"),
        (10.0 + 31 * 86_400.0, 1, "bad_click_time"),
    ],
)
def test_a_click_time_is_the_label_and_must_follow_the_impression(
    clicked_at: float | None, click: int, rule: str | None
) -> None:
    frame = normal(rows(at=[clicked_at]), click_time="at")
    assert (frame["click"][0], frame["rule"][0]) == (click, rule)


def test_an_empty_click_time_in_text_is_no_click() -> None:
    frame = normal(rows(at=["", "11", "later"]), click_time="at")
    assert frame["click"].to_list()[:2] == [0, 1]
    assert frame["rule"].to_list() == [None, None, "bad_click_time"]


@pytest.mark.parametrize(
    ("place", "position", "rule"),
    [
        (3, 3, None),
        ("4.0", 4, None),
        (None, None, "bad_position"),
        (0.5, 0, "bad_position"),
        (-1, -1, "bad_position"),
        (POSITION_MAX + 1, POSITION_MAX + 1, "bad_position"),
    ],
)
def test_a_position_is_a_whole_number_in_bounds(place: Any, position: int | None, rule: str | None) -> None:
    frame = normal(rows(place=[place]), position="place")
    assert (frame["position"][0], frame["rule"][0]) == (position, rule)


def test_values_that_are_no_numbers_are_counted_by_field() -> None:
    raw = rows(price=["1", "many", "", None, "inf"])
    assert unreadable(raw, normal(raw), FIELDS) == {"price": 2}
    assert unreadable(rows(), normal(rows()), FIELDS) == {}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (pl.Int64(), "number"),
        (pl.Boolean(), "number"),
        (pl.String(), "text"),
        (pl.Categorical(), "text"),
        (pl.Datetime(), "time"),
        (pl.List(pl.Int8), "list"),
        (pl.List(pl.List(pl.Int8)), "nested"),
        (pl.Struct({"a": pl.Int8}), "nested"),
        (pl.Binary(), "nested"),
    ],
)
def test_what_a_type_holds_has_a_plain_name(dtype: pl.DataType, kind: str) -> None:
    assert kind_of(dtype) == kind


def test_a_chunk_without_rows_is_no_special_case() -> None:
    assert normal(rows().clear()).height == 0


STAGES = ("shown", "ranked", "matched")


@pytest.mark.parametrize(
    ("flags", "rate", "rule", "stage"),
    [
        ((1, 0, 0), "1", None, "exposed"),
        ((1, 1, 0), "0.5", None, "exposed"),
        ((0, 1, 1), "0.5", None, "ranked"),
        ((0, 0, 1), "0.5", None, "matched"),
        ((0, 0, 0), "1", "no_stage", None),
        (("x", None, 0), "1", "no_stage", None),
        ((0, 1, 0), "0", "bad_sample_rate", "ranked"),
        ((0, 1, 0), "1.5", "bad_sample_rate", "ranked"),
        ((0, 1, 0), None, "bad_sample_rate", "ranked"),
    ],
)
def test_a_candidate_has_the_deepest_stage_it_reached(
    flags: tuple[Any, ...], rate: str | None, rule: str | None, stage: str | None
) -> None:
    reached = {name: [flag] for name, flag in zip(STAGES, flags, strict=True)}
    raw = rows().with_columns(place=pl.lit(3), rate=pl.lit(rate), **{k: pl.Series(v) for k, v in reached.items()})
    frame = normal(raw, position="place", stages=STAGES, sample_rate="rate")
    [row] = frame.to_dicts()
    assert (row["rule"], row["stage"]) == (rule, stage)
    if rule is None:
        assert (row["position"], row["click"]) == ((3, 1) if stage == "exposed" else (None, 0))


def test_what_was_not_shown_needs_no_label_no_click_time_no_place_and_no_propensity() -> None:
    raw = rows(y=[None, None], at=[None, "soon"], place=[None, None], p=[None, 7], shown=[0, 0], ranked=[1, 1])
    frame = normal(raw, label="y", position="place", propensity="p", stages=("shown", "ranked"))
    assert frame.select("rule", "propensity").rows() == [(None, 1.0)] * 2
    assert normal(raw, click_time="at", position="place", stages=("shown", "ranked"))["rule"].null_count() == 2
