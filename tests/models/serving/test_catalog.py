"""The ads that can be named by id: whole or absent, the caller's values first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from features.fields import Field
from models.serving.ad_table import Resolved
from models.serving.catalog import Catalog
from models.serving.schema import NamedAd

FIELDS = (
    Field(name="user_id", side="user"),
    Field(name="ad", side="item"),
    Field(name="year", side="item", kind="number"),
    Field(name="tags", side="item", kind="categories"),
)


def resolve(catalog: Catalog, *asked: NamedAd) -> Resolved:
    return resolve_all(catalog, *asked)[0]


def resolve_all(catalog: Catalog, *asked: NamedAd) -> tuple[Resolved, list[str]]:
    return catalog.resolve([ad.ad_id for ad in asked], {ad.ad_id: ad.values for ad in asked if ad.values})


def all_of(found: Resolved) -> list[NamedAd]:
    return [NamedAd(ad.ad_id, ad.values) for ad in found.ads(range(len(found)))]


def record(ad_id: str, **changed: Any) -> bytes:
    return json.dumps({"v": 1, "ad_id": ad_id, "values": {}, "bid_micros": 5, "active": True, **changed}).encode()


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog(FIELDS, ads_max=2)
    catalog.put("a", record("a", values={"year": 1999, "tags": ["x"], "user_id": "u", "colour": "red"}))
    return catalog


def test_an_ad_named_by_id_gets_its_values_and_its_id(catalog: Catalog) -> None:
    found, inactive = resolve_all(catalog, NamedAd("a", {}))
    assert all_of(found) == [NamedAd("a", {"year": 1999.0, "tags": ["x"], "ad": "a"})]
    assert (found.held(0) is not None, inactive) == (True, [])


def test_an_unknown_ad_has_its_id_alone(catalog: Catalog) -> None:
    found = resolve(catalog, NamedAd("new", {}), NamedAd("other", {"year": 2001.0}))
    assert all_of(found) == [NamedAd("new", {"ad": "new"}), NamedAd("other", {"year": 2001.0, "ad": "other"})]
    assert [found.held(0), found.held(1)] == [None, None]


def test_the_callers_values_win_field_by_field_but_never_the_id(catalog: Catalog) -> None:
    found = resolve(catalog, NamedAd("a", {"year": None, "ad": "b"}))
    assert all_of(found) == [NamedAd("a", {"year": None, "tags": ["x"], "ad": "a"})]
    assert all_of(resolve(catalog, NamedAd("a", {})))[0].values["year"] == 1999.0


def test_an_inactive_ad_is_left_out_until_it_is_active_again(catalog: Catalog) -> None:
    catalog.put("a", record("a", active=False))
    found, inactive = resolve_all(catalog, NamedAd("a", {}), NamedAd("b", {}))
    assert ([ad.ad_id for ad in all_of(found)], inactive, len(catalog)) == (["b"], ["a"], 0)
    catalog.put("a", record("a"))
    assert resolve(catalog, NamedAd("a", {})).held(0) is not None


def test_a_removed_ad_is_unknown(catalog: Catalog) -> None:
    catalog.put("a", None)
    assert resolve(catalog, NamedAd("a", {})).held(0) is None


@pytest.mark.parametrize(
    ("ad_id", "value", "message"),
    [
        ("b", b"{", "must be an ad in JSON"),
        ("b", b"\xff", "must be an ad in JSON"),
        ("b", record("c"), 'must name its key, got "c"'),
        ("b", record("b", v=2), "must have version 1, got 2"),
        ("b", record("b", values={"year": "old"}), "values.year must be a finite number"),
    ],
)
def test_a_bad_record_changes_nothing_and_says_why(catalog: Catalog, ad_id: str, value: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.put(ad_id, value)
    assert len(catalog) == 1


def test_an_ad_holds_its_bid_and_its_creatives_each_with_its_own_values_over_the_shared_ones() -> None:
    fields = (*FIELDS, Field(name="image", side="creative"), Field(name="size", side="creative", kind="number"))
    catalog = Catalog(fields)
    creatives = [{"creative_id": "c1"}, {"creative_id": "c2", "values": {"size": 2, "image": "other"}}]
    catalog.put("a", record("a", values={"year": 1999, "size": 1}, creatives=creatives))
    found = resolve(catalog, NamedAd("a", {}))
    held = found.held(0)
    assert held is not None
    assert found.bids([0]).tolist() == [5.0]
    assert [one.creative_id for one in held.creatives] == ["c1", "c2"]
    assert [one.values for one in held.creatives] == [{"size": 1.0, "image": "c1"}, {"size": 2.0, "image": "c2"}]


@pytest.mark.parametrize(
    ("creatives", "message"),
    [
        ([{"creative_id": "c"}, {"creative_id": "d"}, {"creative_id": "c"}], 'each creative once, got "c" more often'),
        ([{"creative_id": ""}], "must be an ad in JSON"),
        ([{"creative_id": f"c{n}"} for n in range(101)], "must be an ad in JSON.*length <= 100"),
    ],
)
def test_creatives_that_cannot_be_told_apart_or_are_too_many_are_refused(
    catalog: Catalog, creatives: list[dict[str, str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.put("a", record("a", creatives=creatives))


def test_one_ad_too_many_is_refused_but_known_ones_still_change(catalog: Catalog) -> None:
    catalog.put("b", record("b"))
    with pytest.raises(ValueError, match="at most 2 ads"):
        catalog.put("c", record("c"))
    catalog.put("a", record("a", values={"year": 2000}))
    assert all_of(resolve(catalog, NamedAd("a", {})))[0].values["year"] == 2000.0
