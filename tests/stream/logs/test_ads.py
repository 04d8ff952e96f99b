"""The ads of joined files: all of them, read as rows are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features.fields import Field
from infra.settings import Join, LogSettings, SettingsError, parse_settings
from models.serving.catalog import CatalogAd, CatalogCreative
from stream.logs.ads import read_ads
from stream.logs.files import LogError
from stream.logs.reader import check_log

FIELDS = (
    Field("user", "user"),
    Field("ad", "item"),
    Field("year", "item", "number"),
    Field("image", "creative"),
    Field("size", "creative", "number"),
)
ITEMS = Join("items.csv", on="ad")
IMAGES = Join("images.csv", on="image")
LOG = LogSettings(files=("log.csv",), time="t", label="y", joins=(ITEMS, IMAGES), bid_micros="bid")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text("t,y,user,ad,image\n50,1,u,1,i1\n")
    (tmp_path / "items.csv").write_text("ad,year,bid,other\n1,1999,250000,x\n2,soon,,x\n3,2001,-5,x\n,2002,1,x\n")
    (tmp_path / "images.csv").write_text("image,ad,size\ni1,1,2\ni2,1,3\ni3,3,\ni4,,1\n")
    return tmp_path


def test_every_ad_has_its_values_its_bid_and_its_creatives(directory: Path) -> None:
    found = read_ads(LOG, FIELDS, [directory])
    assert found.is_complete
    images = [CatalogCreative("i1", {"image": "i1", "size": 2.0}), CatalogCreative("i2", {"image": "i2", "size": 3.0})]
    assert found.ads == {
        "1": CatalogAd("1", {"ad": "1", "year": 1999.0}, 250_000, creatives=images),
        "2": CatalogAd("2", {"ad": "2", "year": None}, 0),
        "3": CatalogAd(
            "3", {"ad": "3", "year": 2001.0}, 0, creatives=[CatalogCreative("i3", {"image": "i3", "size": None})]
        ),
    }


@pytest.mark.parametrize(
    ("log", "fields", "is_complete"),
    [
        (LogSettings(files=(), time="t", joins=(ITEMS,)), FIELDS, False),  # no file says which creatives there are
        (LogSettings(files=(), time="t", joins=(ITEMS,)), FIELDS[:3], True),
        (LogSettings(files=(), time="t", joins=(ITEMS,)), (*FIELDS[:3], Field("brand", "item")), False),
    ],
)
def test_whether_rows_have_something_to_add_is_said(
    directory: Path, log: LogSettings, fields: tuple[Field, ...], *, is_complete: bool
) -> None:
    found = read_ads(log, fields, [directory])
    assert list(found.ads) == ["1", "2", "3"]
    assert found.ads["1"].bid_micros == 1_000_000
    assert found.is_complete is is_complete


def test_without_a_file_of_ads_there_are_none(directory: Path) -> None:
    assert read_ads(LogSettings(files=(), time="t", joins=(IMAGES,)), FIELDS, [directory]).ads == {}


def test_a_bid_that_is_nowhere_is_refused(directory: Path) -> None:
    (directory / "items.csv").write_text("ad,year\n1,1999\n")
    with pytest.raises(LogError, match=r'items\.csv must have the column "bid"'):
        check_log(LOG, FIELDS, [directory])
    raw: dict[str, Any] = {"name": "shop", "fields": [{"name": "ad", "side": "item"}]}
    raw["log"] = {"files": ["log.csv"], "time": "t", "bid_micros": "bid"}
    with pytest.raises(SettingsError, match=r'\[log\] bid_micros must be empty unless one of the joins is on = "ad"'):
        parse_settings(raw)
