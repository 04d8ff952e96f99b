import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encode import ValueEncoder, encode, field_key, hash_strings, join_keys, slot_fields
from features.fields import Field

USER = Field("user", "user")
TAGS = Field("tags", "item", "categories", values_max=3)
PRICE = Field("price", "item", "number")
BOTH = Field("both", "cross", of=("user", "tags"))
FIELDS = (USER, TAGS, PRICE, BOTH)


def keys_of(values: pl.Series, field: Field) -> list[list[int]]:
    keys: list[list[int]] = encode(pl.DataFrame([values.alias(field.column)]), [field]).tolist()
    return keys


@given(st.lists(st.none() | st.text(), min_size=1, max_size=30))
def test_a_category_has_the_key_of_its_value_and_absence_has_none(values: list[str | None]) -> None:
    keys = keys_of(pl.Series(values, dtype=pl.String), USER)
    assert keys == [[0 if value is None else field_key(USER, value)] for value in values]
    assert all(key != 0 for value, [key] in zip(values, keys, strict=True) if value is not None)


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), min_size=2, max_size=10))
def test_keys_of_a_row_depend_on_that_row_alone(rows: list[list[str]]) -> None:
    frame = pl.DataFrame({"field.user": [str(r) for r in rows], "field.tags": rows}, schema=_SCHEMA)
    whole = encode(frame, (USER, TAGS, BOTH))
    alone = np.concatenate([encode(frame[i : i + 1], (USER, TAGS, BOTH)) for i in range(len(frame))])
    assert np.array_equal(whole, alone)


def test_one_value_in_two_fields_has_two_keys() -> None:
    assert field_key(USER, "7") != field_key(Field("item", "item"), "7")


def test_a_list_and_its_reordering_are_the_same_and_a_repeat_counts_once() -> None:
    rows = pl.Series([["a", "b"], ["b", "a"], ["a", "b", "a"]])
    first, *others = keys_of(rows, TAGS)
    assert first == others[0] == others[1]
    assert sorted(first, reverse=True) == sorted([field_key(TAGS, "a"), field_key(TAGS, "b"), 0], reverse=True)


def test_a_list_longer_than_the_field_keeps_its_first_values() -> None:
    [keys] = keys_of(pl.Series([["a", "b", "c", "d"]]), TAGS)
    assert set(keys) == {field_key(TAGS, value) for value in "abc"}


def test_missing_lists_missing_values_in_lists_and_empty_lists_are_absent() -> None:
    keys = keys_of(pl.Series([None, [], [None, "a"]], dtype=pl.List(pl.String)), TAGS)
    assert keys == [[0, 0, 0], [0, 0, 0], [field_key(TAGS, "a"), 0, 0]]


def test_one_value_in_a_field_of_several_is_a_list_of_one() -> None:
    assert keys_of(pl.Series(["a"]), TAGS) == keys_of(pl.Series([["a"]]), TAGS)


def test_numbers_that_differ_by_a_hundredth_mostly_share_a_bucket_and_doubles_never_do() -> None:
    numbers = np.geomspace(1e-9, 1e9, 500)
    keys, near, double = (np.array(keys_of(pl.Series(numbers * f), PRICE))[:, 0] for f in (1.0, 1.01, 2.0))
    assert (keys == near).mean() > 0.8
    assert not (keys == double).any()


def test_numbers_that_are_none_or_not_a_number_are_absent_and_infinities_are_values() -> None:
    keys = [key for [key] in keys_of(pl.Series([None, math.nan, math.inf, -math.inf, 1e300, 0.0, -0.0, -1.0]), PRICE)]
    assert keys[:2] == [0, 0]
    assert 0 not in keys[2:]
    assert keys[5] == keys[6]
    assert len(set(keys[2:])) == 5


def test_a_column_that_is_not_there_is_absent_and_so_is_its_cross() -> None:
    keys = encode(pl.DataFrame({"field.user": ["u"]}), FIELDS)
    assert keys.tolist() == [[field_key(USER, "u"), 0, 0, 0, 0, 0, 0, 0]]


def test_a_cross_depends_on_the_order_of_its_parts_and_not_on_the_position_of_its_slots() -> None:
    frame = pl.DataFrame({"field.user": ["x"], "field.item": ["y"]})
    fields = [
        USER,
        Field("item", "item"),
        Field("c", "cross", of=("user", "item")),
        Field("c2", "cross", of=("item", "user")),
    ]
    swapped = [fields[0], fields[1], Field("c", "cross", of=("item", "user")), fields[3]]
    assert encode(frame, fields)[0, 2] != encode(frame, swapped)[0, 2]


def test_crosses_of_many_pairs_do_not_collide() -> None:
    frame = pl.DataFrame(
        {"field.user": [str(i) for i in range(200)] * 200, "field.item": [str(i // 200) for i in range(40_000)]}
    )
    keys = encode(frame, [USER, Field("item", "item"), Field("c", "cross", of=("user", "item"))])[:, 2]
    assert len(np.unique(keys)) == 40_000


def test_an_integer_column_means_the_same_as_its_text() -> None:
    assert keys_of(pl.Series([12]), USER) == keys_of(pl.Series(["12"]), USER)


@pytest.mark.parametrize("field", [USER, PRICE])
def test_lists_where_one_value_belongs_are_refused(field: Field) -> None:
    with pytest.raises(ValueError, match=f'field "{field.name}" must hold one {field.kind} per row'):
        keys_of(pl.Series([["a"]]), field)


def test_no_rows_have_no_keys_but_all_slots() -> None:
    assert encode(pl.DataFrame(schema=_SCHEMA), FIELDS).shape == (0, 8)


def test_slots_know_their_field() -> None:
    assert slot_fields(FIELDS).tolist() == [0, 1, 1, 1, 2, 3, 3, 3]


def test_hashes_of_strings_are_the_same_everywhere() -> None:
    assert hash_strings(pl.Series(["a", None, "a"])).tolist() == [16629034431890738719, 0, 16629034431890738719]


_SCHEMA = {"field.user": pl.String, "field.tags": pl.List(pl.String)}


CONTEXT = Field("hour", "context", "number")
SERVED = (USER, CONTEXT, TAGS, PRICE, BOTH, Field("third", "cross", of=("hour", "price")))
_VALUES = st.fixed_dictionaries(
    {
        "user": st.none() | st.text(max_size=5),
        "hour": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    }
)
_AD_VALUES = st.fixed_dictionaries(
    {
        "tags": st.none() | st.lists(st.text(max_size=2), max_size=5),
        "price": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    }
)


@given(request=_VALUES, ads=st.lists(_AD_VALUES, min_size=1, max_size=5))
def test_values_of_a_request_and_its_ads_get_the_keys_that_a_frame_gets(
    request: dict[str, object], ads: list[dict[str, object]]
) -> None:
    schema = {"field.user": pl.String, "field.hour": pl.Float64, "field.tags": pl.List(pl.String)}
    rows = [{f"field.{name}": value for name, value in (request | ad).items()} for ad in ads]
    frame = pl.DataFrame(rows, schema=schema | {"field.price": pl.Float64})
    of_request, of_ads = ValueEncoder((USER, CONTEXT)), ValueEncoder((TAGS, PRICE))
    keys = np.stack([of_ads.keys(ad) for ad in ads])
    parts = [(of_request.fields, of_request.keys(request)), (of_ads.fields, keys)]
    assert np.array_equal(join_keys(SERVED, parts), encode(frame, SERVED))
