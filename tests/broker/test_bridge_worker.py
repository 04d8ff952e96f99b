"""The bridge on a real broker: killed, fenced or ahead, each record of the user's topics becomes events once."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from infra.broker import BrokerInfo
from infra.settings import Settings, SettingsError, parse_settings
from stream import bridge_worker
from stream.bridge_worker import Bridge, new_signer, new_sources
from stream.cli import app
from stream.dead_letters import DeadLetterRecord, decode_dead_letter
from stream.events import Click, Event, EventError, Impression, Request, Tick, decode_event
from stream.kafka import murmur2_partition
from stream.roles import RoleError
from stream.wiring import new_tokens
from tests.broker.deployment import Deployment, deploy, until

PARTITIONS = {"views": 2, "clicks": 3}
CONFIG = """
name = "shop"
[[fields]]
name = "age"
side = "user"
kind = "number"
[[fields]]
name = "ad"
side = "item"
[window]
slide_s = 1000.0
[bridge]
align_s = 1.0
idle_s = IDLE_S
[bridge.impressions]
topic = "PREFIX-views"
time = "at"
key = "view.id"
ad_id = "ad"
values = { age = "user.age" }
[bridge.clicks]
topic = "PREFIX-clicks"
time = "at"
time_unit = "ms"
key = "view_id"
ad_id = "ad"
"""


class Shop:
    """A deployment with two topics of the user's own."""

    def __init__(self, deployment: Deployment, prefix: str) -> None:
        self.deployment = deployment
        self.prefix = prefix

    async def make_topics(self) -> None:
        admin = AIOKafkaAdminClient(**self.deployment.cluster.options)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(f"{self.prefix}-{t}", n, 1) for t, n in PARTITIONS.items()])
        finally:
            await admin.close()

    async def add_partition(self, topic: str) -> int:
        """Give a topic one more partition; return its number."""
        admin = AIOKafkaAdminClient(**self.deployment.cluster.options)
        await admin.start()
        try:
            await admin.create_partitions({f"{self.prefix}-{topic}": NewPartitions(PARTITIONS[topic] + 1)})
        finally:
            await admin.close()
        return PARTITIONS[topic]

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Do to a partition what its retention does."""
        admin = AIOKafkaAdminClient(**self.deployment.cluster.options)
        await admin.start()
        try:
            tp = TopicPartition(f"{self.prefix}-{topic}", partition)
            await admin.delete_records({tp: RecordsToDelete(offset)})
        finally:
            await admin.close()

    async def send_to(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        """Send JSON to one partition of a topic, in order."""
        async with AIOKafkaProducer(**self.deployment.cluster.options) as producer:
            for record in records:
                await producer.send(f"{self.prefix}-{topic}", json.dumps(record).encode(), partition=partition)

    async def send(self, topic: str, records: list[tuple[str, Any]]) -> None:
        """Send JSON (or bytes) to a topic; the partition by a key of their own, in order."""
        async with AIOKafkaProducer(**self.deployment.cluster.options) as producer:
            for key, record in records:
                value = record if isinstance(record, bytes) else json.dumps(record).encode()
                partition = murmur2_partition(key.encode(), PARTITIONS[topic])
                await producer.send(f"{self.prefix}-{topic}", value, key=key.encode(), partition=partition)

    async def events(self) -> list[list[Event]]:
        read = [await self.deployment.read("events", partition) for partition in range(3)]
        return [[decode_event(record.value) for record in records] for records in read]

    async def letters(self) -> list[DeadLetterRecord]:
        read = [await self.deployment.read("dead-letters", partition) for partition in range(3)]
        return [decode_dead_letter(record.value) for records in read for record in records]

    async def wrote(self, n_events: int, kind: type[Event]) -> AsyncIterator[bool]:
        while True:
            yield sum(isinstance(event, kind) for events in await self.events() for event in events) >= n_events

    @asynccontextmanager
    async def bridge(self, registry: CollectorRegistry | None = None) -> AsyncIterator[asyncio.Task[None]]:
        settings = self.deployment.settings
        stop = asyncio.Event()
        bridge = Bridge(settings, self.deployment.cluster, new_sources(settings), registry)
        running = asyncio.create_task(bridge.run(stop))
        try:
            yield running
        finally:
            stop.set()
            await asyncio.wait([running])


async def open_shop(tmp_path: Path, broker: BrokerInfo, prefix: str, *, idle_s: float, kafka: str = "") -> Shop:
    config = tmp_path / "shop.toml"
    config.write_text(CONFIG.replace("PREFIX", prefix).replace("IDLE_S", str(idle_s)))
    ledger = "wait_s = 10.0\ngrace_s = 100.0\ndisorder_s = 1.0\nblock_s = 0.1"
    shop = Shop(deploy(tmp_path, broker.bootstrap_servers, prefix, config=config, ledger=ledger, kafka=kafka), prefix)
    await shop.make_topics()
    return shop


def view(number: int, time_s: float) -> tuple[str, dict[str, Any]]:
    return f"k{number}", {"at": time_s, "view": {"id": f"v{number}"}, "ad": f"a{number % 7}", "user": {"age": number}}


def click(number: int, time_s: float) -> tuple[str, dict[str, Any]]:
    return f"other{number}", {"at": int(time_s * 1000), "view_id": f"v{number}", "ad": f"a{number % 7}"}


def records(registry: CollectorRegistry, topic: str, outcome: str) -> float | None:
    return registry.get_sample_value("freshrank_bridge_records_total", {"topic": topic, "outcome": outcome})


def gauge(registry: CollectorRegistry, name: str, topic: str) -> float:
    value = registry.get_sample_value(f"freshrank_bridge_{name}", {"topic": topic})
    assert value is not None
    return value


async def test_records_become_events_under_their_key_and_ticks_follow(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    await shop.send("views", [view(n, 100.0 + n) for n in range(20)])
    await shop.send("clicks", [click(n, 100.5 + n) for n in range(0, 20, 2)])
    async with shop.bridge():
        await until(shop.wrote(10, Click), 20.0)
        await until(shop.wrote(20, Impression), 20.0)
    by_partition = await shop.events()
    for partition, events in enumerate(by_partition):
        told = [event for event in events if not isinstance(event, Tick)]
        assert {murmur2_partition(event.request_id.encode(), 3) for event in told} <= {partition}
        times_s = [event.time_s for event in told]
        assert all(later >= max(times_s[:n], default=0.0) - 1.0 for n, later in enumerate(times_s))
        ticks = [event.time_s for event in events if isinstance(event, Tick)]
        assert ticks == sorted(set(ticks))
        assert ticks
    all_events = [event for events in by_partition for event in events]
    requests = {event.request_id: event for event in all_events if isinstance(event, Request)}
    assert requests["v3"].values == {"age": 3}
    assert requests["v3"].candidates[0].values == {"ad": "a3"}


async def test_what_cannot_be_mapped_is_a_dead_letter_that_a_mended_mapping_sends_again(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    bad = {"at": 101.0, "view": {"number": "v1"}, "ad": "a"}
    await shop.send("views", [view(0, 100.0), ("k1", bad), ("k2", b"{"), view(3, 102.0)])
    registry = CollectorRegistry()
    async with shop.bridge(registry):
        await until(shop.wrote(2, Impression), 20.0)
    counted = {outcome: records(registry, "impressions", outcome) for outcome in ("written", "bridge_path", "not_json")}
    assert counted == {"written": 2.0, "bridge_path": 1.0, "not_json": 1.0}
    assert registry.get_sample_value("freshrank_bridge_events_total") == 4.0
    letters = await shop.letters()
    assert Counter((letter.rule, letter.field) for letter in letters) == {
        ("bridge_path", "key"): 1,
        ("not_json", ""): 1,
    }
    (mapped,) = [letter for letter in letters if letter.rule == "bridge_path"]
    assert (mapped.topic, mapped.key) == (f"{topic_prefix}-views", b"k1")
    assert mapped.partition == murmur2_partition(b"k1", 2)
    assert json.loads(mapped.record or b"") == bad

    config = shop.deployment.config
    config.write_text(config.read_text().replace('key = "view.id"', 'key = "view.number"'))
    result = await asyncio.to_thread(CliRunner().invoke, app, ["dlq", "requeue", str(config), "--yes", "--json", "-"])
    assert json.loads(result.stdout)["letters"] == {"bridge_path": 1}, result.stderr
    assert json.loads(result.stdout)["kept"] == {"unmapped": 1}
    await until(shop.wrote(3, Impression), 20.0)
    assert [e.request_id for events in await shop.events() for e in events if isinstance(e, Request)].count("v1") == 1


async def test_the_topic_that_is_ahead_waits_until_the_other_has_come_as_far(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=3600.0)
    await shop.send("views", [view(n, 100.0 + n) for n in range(40)])
    every_partition = {murmur2_partition(f"other{n}".encode(), 3): n for n in range(30)}
    await shop.send("clicks", [click(n, 110.0) for n in every_partition.values()])
    registry = CollectorRegistry()
    async with shop.bridge(registry):
        await until(shop.wrote(3, Click), 20.0)
        await asyncio.sleep(1.0)
        assert gauge(registry, "watermark_timestamp_seconds", "clicks") == 110.0
        assert gauge(registry, "watermark_timestamp_seconds", "impressions") > 130.0
        assert gauge(registry, "ahead_seconds", "impressions") == 2.0  # of 112, the first beyond align_s
        assert gauge(registry, "ahead_seconds", "clicks") == 0.0
        seen = [e.time_s for events in await shop.events() for e in events if isinstance(e, Impression)]
        assert 108.0 < max(seen) <= 111.0
        await shop.send("clicks", [click(n, 139.0) for n in every_partition.values()])
        await until(shop.wrote(38, Impression), 20.0)


async def test_an_idle_topic_at_its_end_holds_the_other_back_for_idle_s_only(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=1.5, kafka='clock = "live"')
    now_s = time.time()
    await shop.send("views", [view(n, now_s + 0.1 * n) for n in range(20)])
    async with shop.bridge():
        begun_s = time.monotonic()
        await until(shop.wrote(20, Impression), 20.0)
        assert time.monotonic() - begun_s > 1.5


async def test_a_record_of_the_future_is_a_dead_letter_and_holds_nothing_back(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3, kafka='clock = "live"\nmax_ahead_s = 30.0')
    now_s = time.time()
    await shop.send("views", [("k1", view(1, now_s + 1000.0)[1]), ("k1", view(2, now_s)[1])])
    async with shop.bridge():
        await until(shop.wrote(1, Impression), 20.0)
    assert [letter.rule for letter in await shop.letters()] == ["future"]


async def test_a_second_bridge_takes_over_and_the_first_says_so(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    async with shop.bridge() as first:
        await shop.send("views", [view(n, 100.0) for n in range(10)])
        await until(shop.wrote(10, Impression), 20.0)
        async with shop.bridge():
            await shop.send("views", [view(n, 101.0) for n in range(10, 20)])
            await until(shop.wrote(20, Impression), 20.0)
            await asyncio.wait([first], timeout=10.0)
    with pytest.raises(RoleError, match=r"one bridge per deployment: another one of .*bridge has begun"):
        first.result()
    ids = [e.request_id for events in await shop.events() for e in events if isinstance(e, Impression)]
    assert sorted(ids) == sorted(f"v{n}" for n in range(20))


@pytest.mark.slow
async def test_new_partitions_are_read_while_it_runs_and_what_waited_is_not_doubled(
    tmp_path: Path,
    broker: BrokerInfo,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(bridge_worker, "PARTITIONS_S", 0.3)
    caplog.set_level(logging.INFO, "freshrank")
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=3600.0)  # every partition is waited for
    await shop.send("views", [view(n, 100.0 + n) for n in range(40)])
    for partition in range(3):
        await shop.send_to("clicks", partition, [click(partition, 110.0)[1]])
    async with shop.bridge():
        await until(shop.wrote(3, Click), 20.0)
        added = await shop.add_partition("clicks")
        await until(said(caplog, f"{topic_prefix}-clicks[{added}] from 0"), 20.0)
        await shop.send_to("clicks", added, [click(3, 109.0)[1], click(4, 150.0)[1]])
        for partition in range(3):
            await shop.send_to("clicks", partition, [click(5 + partition, 150.0)[1]])
        await until(shop.wrote(38, Impression), 20.0)
        await until(shop.wrote(4, Click), 20.0)
    told = [event for events in await shop.events() for event in events if not isinstance(event, Tick)]
    assert set(Counter((type(event), event.request_id) for event in told).values()) == {1}
    assert {event.request_id for event in told if isinstance(event, Click)} >= {f"v{n}" for n in range(4)}


async def said(caplog: pytest.LogCaptureFixture, text: str) -> AsyncIterator[bool]:
    while True:
        yield text in caplog.text


@pytest.mark.slow
async def test_what_retention_took_while_it_was_away_is_said(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    await shop.send_to("views", 1, [view(n, 100.0 + n)[1] for n in range(10)])
    async with shop.bridge():
        await until(shop.wrote(10, Impression), 20.0)
    await shop.send_to("views", 1, [view(n, 100.0 + n)[1] for n in range(10, 20)])
    await shop.delete_before("views", 1, 10)  # all of it was read
    async with shop.bridge():
        await until(shop.wrote(20, Impression), 20.0)
    await shop.send_to("views", 1, [view(n, 100.0 + n)[1] for n in range(20, 30)])
    await shop.delete_before("views", 1, 23)
    async with shop.bridge() as running:
        await asyncio.wait([running], timeout=20.0)
    got = rf"must find what it has not read yet, got {topic_prefix}-views\[1\] begins at 23, 20 was next"
    with pytest.raises(RoleError, match=got):
        running.result()
    assert await count(shop, Impression) == 20


async def test_what_retention_takes_from_a_partition_that_waits_is_said(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_worker, "WAITING_MAX", 10)
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=3600.0)
    padding = {"padding": "x" * 50_000}  # so that a fetch, a megabyte, holds a fraction of them
    await shop.send_to("views", 1, [view(n, 100.0 + n)[1] | padding for n in range(100)])
    for partition in range(3):
        await shop.send_to("clicks", partition, [click(partition, 102.0)[1]])
    await shop.send_to("views", 0, [view(200, 102.0)[1]])
    registry = CollectorRegistry()
    async with shop.bridge(registry) as running:
        await until(shop.wrote(3, Click), 20.0)
        await until(paused(registry), 20.0)
        await shop.delete_before("views", 1, 99)
        for partition in range(3):
            await shop.send_to("clicks", partition, [click(3 + partition, 300.0)[1]])
        await shop.send_to("views", 0, [view(201, 300.0)[1]])
        await asyncio.wait([running], timeout=20.0)
    with pytest.raises(RoleError, match=r"must find what it has not read yet, got .*-views.*retention was shorter"):
        running.result()


async def paused(registry: CollectorRegistry) -> AsyncIterator[bool]:
    while True:
        yield gauge(registry, "paused_count", "impressions") == 1.0


async def test_a_transaction_commits_where_every_partition_is_read_from(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    await shop.send_to("views", 1, [view(n, 100.0 + n)[1] for n in range(10)])
    async with shop.bridge():
        await until(shop.wrote(10, Impression), 20.0)
    group = f"{shop.deployment.cluster.prefix}.bridge"
    tps = [TopicPartition(f"{topic_prefix}-{topic}", part) for topic, n in PARTITIONS.items() for part in range(n)]
    async with AIOKafkaConsumer(**shop.deployment.cluster.options, group_id=group) as consumer:
        committed = [await consumer.committed(tp) for tp in tps]
    assert committed == [0, 10, 0, 0, 0]


async def test_a_topic_that_is_not_there_is_said(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    settings = shop.deployment.settings
    assert settings.bridge is not None
    clicks = msgspec.structs.replace(settings.bridge.clicks, topic=f"{topic_prefix}-none")
    settings = msgspec.structs.replace(settings, bridge=msgspec.structs.replace(settings.bridge, clicks=clicks))
    bridge = Bridge(settings, shop.deployment.cluster, new_sources(settings))
    with pytest.raises(SettingsError, match=r"\[bridge\] topic .*-none must exist, got none of that name"):
        await bridge.run(asyncio.Event())


@pytest.mark.slow
async def test_kill_9_of_the_bridge_loses_nothing_and_doubles_nothing(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    enough = asyncio.Event()
    sending = asyncio.create_task(send_until(shop, enough))  # so that every kill hits a bridge with work to do
    for number in range(4):
        before = await count(shop, Impression)
        with shop.deployment.role("worker", "bridge") as process:
            await until(shop.wrote(before + 1, Impression), 40.0)
            await asyncio.sleep(0.05 * number)
            process.kill()
            process.wait()
    enough.set()
    n_views = await sending
    with shop.deployment.role("worker", "bridge"):
        await until(shop.wrote(n_views, Impression), 90.0)
        await until(shop.wrote(n_views // 10, Click), 40.0)
    found = Counter(
        (type(event), event.request_id)
        for events in await shop.events()
        for event in events
        if not isinstance(event, Tick)
    )
    assert set(found.values()) == {1}
    assert Counter(kind for kind, _ in found) == {Request: n_views, Impression: n_views, Click: n_views // 10}
    assert Counter(letter.rule for letter in await shop.letters()) == {"not_json": n_views // 100}


async def send_until(shop: Shop, enough: asyncio.Event) -> int:
    """Send lots of views, a click on every tenth and a broken record for every hundredth; return the views sent."""
    n_views, lot = 0, 500
    while not enough.is_set():
        numbers = range(n_views, n_views + lot)
        views: list[tuple[str, Any]] = [view(n, 100.0 + n / 100.0) for n in numbers]
        views += [(f"bad{n}", b"{") for n in numbers[::100]]
        await shop.send("views", views)
        await shop.send("clicks", [click(n, 100.2 + n / 100.0) for n in numbers[::10]])
        n_views += lot
        await asyncio.sleep(0.1)
    return n_views


async def count(shop: Shop, kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for events in await shop.events() for event in events)


@pytest.mark.slow
async def test_the_ledger_joins_what_the_bridge_writes(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> None:
    shop = await open_shop(tmp_path, broker, topic_prefix, idle_s=0.3)
    await shop.send("views", [view(n, 100.0 + n) for n in range(60)])
    await shop.send("clicks", [click(n, 104.0 + n) for n in range(0, 30, 3)])

    async def joined() -> AsyncIterator[bool]:
        for number in itertools.count(1000):  # a block closes at the next record
            await shop.send("views", [view(number + n, 200.0 + number) for n in (0, 1000, 2000, 3000)])
            headers = await shop.deployment.headers()
            yield sum(header.counts.clicked for header in headers if header) == 10

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with (
        shop.deployment.role("worker", "--metrics-port", port, "bridge"),
        shop.deployment.role("worker", "ledger"),
    ):
        await until(joined(), 40.0)
        async with httpx.AsyncClient() as client:
            exported = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(exported)}
    (clicks,) = [
        sample.value
        for sample in families["freshrank_bridge_records"].samples
        if sample.name.endswith("_total") and sample.labels == {"topic": "clicks", "outcome": "written"}
    ]
    assert clicks == 10.0
    assert families["freshrank_bridge_ticks"].samples[0].value > 0.0
    for header in await shop.deployment.headers():
        assert header is not None
        assert header.counts.dead_letters == 0


def settings_of(more: str = "", **changed: str) -> Settings:
    text = CONFIG.replace("PREFIX", "p").replace("IDLE_S", "1.0") + more
    for old, new in changed.items():
        text = text.replace(old, new)
    return parse_settings(tomllib.loads(text))


def test_a_default_of_another_kind_than_its_field_is_said() -> None:
    settings = settings_of(values="defaults = { age = 'old' }\nvalues")
    with pytest.raises(SettingsError, match=r"\[bridge.impressions\] defaults.age must be a number, got 'old'"):
        new_sources(settings)


def test_the_ad_field_takes_the_ads_id_unless_a_path_gives_it() -> None:
    assert new_sources(settings_of())["p-views"].ad_field == "ad"
    mapped = settings_of(values='values = { ad = "ad" } #')
    assert new_sources(mapped)["p-views"].ad_field == ""


def test_the_bridge_signs_what_the_ledger_demands_a_token_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_signer(settings_of()) is None
    monkeypatch.setenv("SHOP_KEYS", "k" * 32)
    settings = settings_of('[ledger]\ntoken_key_env = "SHOP_KEYS"\n')
    sign, tokens = new_signer(settings), new_tokens(settings)
    assert sign is not None
    assert tokens is not None
    for event in (Impression("r", "a", 2, 100.0, 0.5), Click("r", "a", 2, 101.0)):
        tokens.check(msgspec.structs.replace(event, token=sign(event)), 101.0)
        with pytest.raises(EventError, match="bad_token"):
            tokens.check(msgspec.structs.replace(event, ad_id="b", token=sign(event)), 101.0)
