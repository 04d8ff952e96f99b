"""A log through a real broker: every event once, in its partition, in order; and ways to stop half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from features.fields import Field
from infra.broker import BrokerInfo
from infra.settings import Join, LogSettings, Settings, parse_settings
from models.serving.catalog import CatalogAd
from stream.events import Event, Request, decode_event
from stream.kafka import create_topics, murmur2_partition, read_range
from stream.kafka_log import read_newest
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.replay import ReplayCounts, replay
from stream.simulate import simulate

PARTITIONS = 3
LOG = {"files": ["log.parquet"], "time": "time_s", "click_time": "click_time_s", "request": ["request_id"]}
FIELDS = [
    {"name": "user_id", "side": "user"},
    {"name": "ad_id", "side": "item"},
    {"name": "category", "side": "item"},
]


@pytest.fixture
def settings(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> Settings:
    """A deployment with its topics and a log of some hours: several batches for each partition."""
    pl.concat(simulate(5, 4000)).write_parquet(tmp_path / "log.parquet")
    create_topics(broker.bootstrap_servers, prefix=topic_prefix, partitions=PARTITIONS, security={})
    return parse_settings(
        {"name": topic_prefix, "log": LOG, "fields": FIELDS, "window": {"slide_s": 600.0}}
        | {"kafka": {"partitions": PARTITIONS}}
    )


async def events_of(settings: Settings, options: Mapping[str, Any], partition: int) -> list[Event]:
    records = read_range(f"{settings.prefix}.events", partition, None, None, options=options)
    return [decode_event(record.value) async for record in records]


def expected(settings: Settings, directory: Path, partition: int, limit: int | None = None) -> list[Event]:
    arrivals = read_arrivals(settings, [directory], RowCounts(), limit=limit)
    return [
        event
        for request_id, event in arrivals
        if request_id is None or murmur2_partition(request_id.encode(), PARTITIONS) == partition
    ]


async def test_every_event_reaches_its_partition_once_and_in_order(
    settings: Settings, tmp_path: Path, kafka_options: dict[str, Any]
) -> None:
    told: list[ReplayCounts] = []
    counts = await replay(settings, [tmp_path], kafka_options, on_progress=told.append)
    sent = [await events_of(settings, kafka_options, partition) for partition in range(PARTITIONS)]
    assert sent == [expected(settings, tmp_path, partition) for partition in range(PARTITIONS)]
    assert counts.records == sum(map(len, sent))
    assert counts.impressions == counts.rows.used == 4000
    assert counts.ticks > 3
    assert told[-1] is counts


async def test_every_ad_is_in_the_catalog_once(
    settings: Settings, tmp_path: Path, kafka_options: dict[str, Any]
) -> None:
    counts = await replay(settings, [tmp_path], kafka_options)
    records = [
        record async for record in read_range(f"{settings.prefix}.catalog", 0, None, None, options=kafka_options)
    ]
    ads = [msgspec.json.decode(record.value or b"", type=CatalogAd) for record in records]
    shown = {
        candidate.ad_id: candidate.values
        for _, event in read_arrivals(settings, [tmp_path], RowCounts())
        if isinstance(event, Request)
        for candidate in event.candidates
    }
    assert {ad.ad_id: ad.values for ad in ads} == shown
    assert len(ads) == counts.ads == len(shown)
    assert [record.key for record in records] == [ad.ad_id.encode() for ad in ads]
    assert {(ad.bid_micros, ad.active) for ad in ads} == {(1_000_000, True)}


async def test_ads_of_joined_files_come_first_and_grow_by_the_creatives_they_are_shown_with(
    settings: Settings, tmp_path: Path, kafka_options: dict[str, Any]
) -> None:
    assert settings.log is not None
    (tmp_path / "items.csv").write_text("ad,year\n1,1999\n2,2000\n3,2001\n")
    rows = "\n".join(f"{50 + n},0,{shown}" for n, shown in enumerate(["1,a", "1,b", "2,a", "1,a", "4,b"]))
    (tmp_path / "shown.csv").write_text(f"t,y,ad,image\n{rows}\n")
    log = LogSettings(files=("shown.csv",), time="t", label="y", joins=(Join("items.csv", on="ad"),))
    fields = (Field("ad", "item"), Field("year", "item", "number"), Field("image", "creative"))
    shop = msgspec.structs.replace(settings, log=log, fields=fields)
    counts = await replay(shop, [tmp_path], kafka_options)
    newest = await read_newest(f"{shop.prefix}.catalog", bytes, options=kafka_options)
    ads = {ad_id: msgspec.json.decode(value, type=CatalogAd) for ad_id, value in newest.items()}
    assert counts.ads == 3 + 4  # those of the file, then 1 with a, 1 with b, 2 with a, 4 with b
    assert {ad_id: [one.creative_id for one in ad.creatives] for ad_id, ad in ads.items()} == {
        "1": ["a", "b"],
        "2": ["a"],
        "3": [],
        "4": ["b"],
    }
    assert ads["1"].values == {"ad": "1", "year": 1999.0}
    assert ads["1"].creatives[0].values == {"image": "a"}


async def test_a_second_replay_is_refused_unless_it_is_meant(
    settings: Settings, tmp_path: Path, kafka_options: dict[str, Any]
) -> None:
    first = await replay(settings, [tmp_path], kafka_options, limit=10)
    with pytest.raises(ValueError, match=rf"{settings.prefix}\.events must be empty, got {first.records} events: the"):
        await replay(settings, [tmp_path], kafka_options, limit=10)
    await replay(settings, [tmp_path], kafka_options, limit=10, append=True)
    once = expected(settings, tmp_path, 0, limit=10)
    assert await events_of(settings, kafka_options, 0) == once + once


async def test_a_replay_that_is_stopped_leaves_a_log_that_ends_early(
    settings: Settings, tmp_path: Path, kafka_options: dict[str, Any]
) -> None:
    sending = asyncio.create_task(replay(settings, [tmp_path], kafka_options, speed=30.0))
    sent: list[list[Event]] = []
    async with asyncio.timeout(20.0):
        while sum(map(len, sent)) < 20:  # half a minute of the log at this pace: sent before its time is through
            sent = [await events_of(settings, kafka_options, partition) for partition in range(PARTITIONS)]
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sending, 5.0)
    for partition in range(PARTITIONS):
        events = await events_of(settings, kafka_options, partition)
        whole = expected(settings, tmp_path, partition)
        assert events == whole[: len(events)]
        assert len(sent[partition]) <= len(events) < len(whole)


async def test_topics_that_are_not_as_the_settings_say_are_an_error(
    settings: Settings, tmp_path: Path, kafka_options: dict[str, Any]
) -> None:
    other = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, partitions=5))
    with pytest.raises(
        ValueError, match=rf"partitions must be what {settings.prefix}\.events has, 3, got 5; set it back"
    ):
        await replay(other, [tmp_path], kafka_options)
    missing = msgspec.structs.replace(settings, name="test-none")
    with pytest.raises(ValueError, match=r"topic test-none\.events must exist, got none .*`freshrank topics create`"):
        await replay(missing, [tmp_path], kafka_options)
