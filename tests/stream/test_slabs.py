"""Slabs: what is taken is what was put in, however it was spread, and bad values are told before and after."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.fields import Field
from stream import slabs
from stream.events import EventError
from stream.slabs import SLAB_ROWS, Slab, Slabs

FIELDS = (
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="price", side="item", kind="number"),
)
COLUMNS = ["id", "field.ad", "field.tags", "field.price"]
GOOD = ("x", "a", ["t"], 1.5)
values = st.tuples(
    st.text(max_size=3),
    st.none() | st.text(max_size=3) | st.integers(-(2**63), 2**64 - 1),
    st.none() | st.lists(st.text(max_size=2) | st.integers(0, 9), max_size=3),
    st.none() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1),
)


def new_slabs() -> Slabs:
    return Slabs({"id": pa.string()}, FIELDS)


def take(found: Slabs, places: list[tuple[Slab, int]]) -> list[tuple[Any, ...]]:
    columns = found.take([slab for slab, _ in places], [place for _, place in places])
    assert list(columns) == COLUMNS
    return list(zip(*(pa.array(columns[name]).to_pylist() for name in COLUMNS), strict=True))


def in_columns(cells: tuple[Any, ...]) -> tuple[Any, ...]:
    name, ad, tags, price = cells
    return (
        name,
        None if ad is None else str(ad),
        None if tags is None else [str(tag) for tag in tags],
        None if price is None else float(price),
    )


@given(st.lists(st.lists(values, max_size=4), max_size=12), st.integers(1, 6), st.sampled_from([1, 32]), st.data())
def test_what_is_taken_does_not_depend_on_how_things_were_spread(
    batches: list[list[tuple[Any, ...]]], slab_rows: int, sparse: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "SLAB_ROWS", slab_rows)
        patch.setattr(slabs, "SPARSE", sparse)
        found, places, put = new_slabs(), [], []
        for batch in batches:
            slab, first = found.add(batch)
            places += [(slab, first + index) for index in range(len(batch))]
            put += batch
            if places and data.draw(st.booleans()):
                assert take(found, places[-1:]) == [in_columns(put[-1])]
        wanted = data.draw(st.lists(st.integers(0, len(put) - 1), max_size=20)) if put else []
        assert take(found, [places[index] for index in wanted]) == [in_columns(put[index]) for index in wanted]


@pytest.mark.parametrize(
    ("cells", "field"),
    [
        (("x", 1.5, None, None), "ad"),
        (("x", True, "t", None), "ad"),
        (("x", 2**64, None, None), "ad"),
        (("x", "a", "t", None), "tags"),
        (("x", "a", None, "1"), "price"),
        (("x", "a", None, False), "price"),
        (("x", "a", None, -(2**63) - 1), "price"),
    ],
)
def test_a_bad_value_is_refused_when_it_comes_and_whenever_it_is_asked_for(cells: tuple[Any, ...], field: str) -> None:
    found = new_slabs()
    found.check(GOOD)
    with pytest.raises(EventError, match="bad_value") as at_first:
        found.check(cells)
    slab, first = found.add([GOOD, cells])
    for _ in range(2):  # as cells, then in columns
        found.check_at(slab, first)
        with pytest.raises(EventError) as caught:
            found.check_at(slab, first + 1)
        assert (caught.value.field, caught.value.value) == (field, at_first.value.value)
        take(found, [(slab, first)])


def test_a_full_slab_holds_columns_and_no_objects() -> None:
    found = new_slabs()
    slab, _ = found.add([GOOD] * SLAB_ROWS)
    assert (slab.cells, slab.batch is not None) == ([], True)
    assert found.add([GOOD])[0] is not slab
