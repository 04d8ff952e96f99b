"""The columns of the ads against a plain dictionary, whatever comes, changes and goes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode import field_key
from features.fields import Field
from models.serving.ad_table import BID_MICROS, NO_NUMBER, AdTable

AD = Field("ad", "item")
FIELDS = (Field("user", "user"), AD, Field("year", "item", "number"), Field("image", "creative"))
IDS = [f"ad{number}" for number in range(5)]
PUTS = st.tuples(
    st.sampled_from(IDS),
    st.none() | st.tuples(st.integers(0, 3), st.integers(0, 9), st.lists(st.sampled_from("xyz"), unique=True)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PUTS, max_size=25), st.sets(st.sampled_from(IDS), max_size=2))
def test_what_is_resolved_is_what_was_put_last(puts: list[tuple[str, Any]], named: set[str]) -> None:
    table, truth = AdTable(FIELDS), {}
    for ad_id, put in puts:
        truth.pop(ad_id, None)
        table.remove(ad_id)
        if put is not None:
            truth[ad_id] = put
            table.put(ad_id, {"year": float(put[0])}, put[1], {name: {} for name in put[2]})
    own = {ad_id: {"year": 7.0} for ad_id in sorted(named)}
    found = table.resolve(IDS, own)
    places = range(len(IDS))
    expected = []
    for ad_id in IDS:
        year, _, images = truth.get(ad_id, (None, 0, []))
        values = {} if year is None else {"year": float(year)}
        expected.append(values | ({"image": images[0]} if images else {}) | own.get(ad_id, {}) | {"ad": ad_id})
    assert len(table) == len(truth)
    assert [found.values(index) for index in places] == expected
    assert [ad.values for ad in found.ads(places)] == expected
    assert [json.loads(one + b"}") for one in found.ads_json(places)] == [
        {"ad_id": ad_id, "values": values} for ad_id, values in zip(IDS, expected, strict=True)
    ]
    np.testing.assert_array_equal(found.keys(places), [table.encoder.keys(values) for values in expected])
    np.testing.assert_array_equal(found.id_keys(), [field_key(AD, ad_id) for ad_id in IDS])
    np.testing.assert_array_equal(found.id_keys([3, 1]), [field_key(AD, "ad3"), field_key(AD, "ad1")])
    assert found.bids(places).tolist() == [float(truth[one][1] if one in truth else BID_MICROS) for one in IDS]
    assert [index for index, _ in found.with_choice(places)] == [
        index for index, ad_id in enumerate(IDS) if ad_id in truth and truth[ad_id][2]
    ]
    others = found.without([1, 3])
    assert [others.values(index) for index in range(3)] == [expected[index] for index in (0, 2, 4)]
    assert others.numbers.tolist() == found.numbers[[0, 2, 4]].tolist()
    is_numbered = [ad_id in truth and ad_id not in named for ad_id in IDS]
    assert (found.numbers != NO_NUMBER).tolist() == is_numbered
    assert len({*found.numbers[is_numbered].tolist()}) == sum(is_numbered)


def test_a_number_never_stands_for_anything_else() -> None:
    table, seen = AdTable(FIELDS), []
    for ad_id in ("a", "a", "b", "c"):
        table.put(ad_id, {}, 1, {"x": {}, "y": {}})
        held = table.get(ad_id)
        assert held is not None
        seen += [held.number, *held.creative_numbers.tolist()]
        table.remove("b")
    assert table.resolve(["a", "b", "c"], {}).rows.tolist() == [1, 0, 2], "the row of what is gone is used again"
    assert len({*seen}) == len(seen)


def test_there_is_room_for_more_than_at_first() -> None:
    table = AdTable(FIELDS)
    ids = [f"ad{number}" for number in range(3000)]
    for number, ad_id in enumerate(ids):
        table.put(ad_id, {"year": float(number)}, number, {})
    found = table.resolve(["new", *ids], {})
    assert found.bids(range(3001)).tolist() == [BID_MICROS, *range(3000)]
    assert [found.values(index)["year"] for index in (1, 1500, 3000)] == [0.0, 1499.0, 2999.0]
    np.testing.assert_array_equal(found.keys([3000])[0], table.encoder.keys(found.values(3000)))
