"""The service on a real broker: follows what is announced, and what it answers is in the log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import polars as pl
import pytest
from aiokafka import AIOKafkaProducer

from infra import broker as embedded
from infra.broker import BrokerInfo
from infra.settings import Settings, StoreSettings, parse_settings
from models.registry import Registry
from stream import event_writer
from stream.blocks import encode_prior_update
from stream.events import Click, Event, Impression, Request, decode_event
from stream.kafka import client_options, create_topics
from stream.kafka_log import read_range
from stream.partitioner import murmur2_partition
from stream.serve import serve
from stream.user_push import open_users, users_directory
from tests.models.serving.test_rank import counted, update_from
from tests.models.serving.trained import FIELDS, slide, two_snapshots

BODY = {"request_id": "q1", "user": {"user_id": "u1", "age": 30}, "candidates": ["ad0", "ad1", "ad77"]}
PARTITIONS = 3


def settings_for(prefix: str, registry_dir: Path) -> Settings:
    fields = [
        {"name": f.name, "side": f.side, "kind": f.kind, "of": list(f.of), "values_max": f.values_max} for f in FIELDS
    ]
    return parse_settings(
        {
            "name": "test",
            "fields": fields,
            "priors": {"half_lives_s": [600.0, 6000.0]},
            "kafka": {"prefix": prefix, "partitions": PARTITIONS},
            "registry": {"url": str(registry_dir)},
        }
    )


async def send(options: dict[str, Any], topic: str, key: str, value: bytes) -> None:
    producer = AIOKafkaProducer(**options)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, key=key.encode())
    finally:
        await producer.stop()


def announcement(index: int) -> bytes:
    version = two_snapshots()[index].version
    return json.dumps(
        {
            "v": 1,
            "family": "ctr",
            "slide": index + 1,
            "champion": version,
            "latest": version,
            "decision": "warmup",
            "reason": "",
            "evaluation": {},
            "evidence": {},
            "start_s": 0.0,
            "end_s": 1.0,
        }
    ).encode()


@asynccontextmanager
async def serving(settings: Settings, broker: BrokerInfo) -> AsyncIterator[httpx.AsyncClient]:
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(serve(settings, broker.bootstrap_servers, port=0, announce=said.set_result))
    try:
        await asyncio.wait([said, running], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        url = said.result().removeprefix("freshrank serves on ")
        async with httpx.AsyncClient(base_url=url, timeout=20.0, trust_env=False) as client:
            yield client
    finally:
        running.cancel()
        await asyncio.wait([running])


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15.0):
        while not await is_so():  # noqa: ASYNC110  # what Kafka brings can only be asked for again
            await asyncio.sleep(0.02)


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def exports(client: httpx.AsyncClient, line: str) -> bool:
    return line in (await client.get("/metrics")).text


async def logged(options: dict[str, Any], topic: str) -> list[Event]:
    partition = murmur2_partition(b"q1", PARTITIONS)
    return [decode_event(record.value) async for record in read_range(topic, partition, None, None, options=options)]


@pytest.fixture
def settings(broker: BrokerInfo, topic_prefix: str, tmp_path: Path) -> Settings:
    create_topics(broker.bootstrap_servers, prefix=topic_prefix, partitions=PARTITIONS, security={})
    for snapshot in two_snapshots():
        Registry(str(tmp_path)).save(snapshot, {})
    return settings_for(topic_prefix, tmp_path)


async def test_from_an_announced_snapshot_to_logged_events_to_the_next_snapshot(
    settings: Settings, broker: BrokerInfo, kafka_options: dict[str, Any]
) -> None:
    prefix = settings.prefix
    for i in range(2):
        ad = {"v": 1, "ad_id": f"ad{i}", "values": {"tags": [f"t{i}"]}, "bid_micros": 1, "active": True}
        await send(kafka_options, f"{prefix}.catalog", f"ad{i}", json.dumps(ad).encode())
    async with serving(settings, broker) as client:
        assert (await client.get("/readyz")).json()["snapshot"] is None
        await send(kafka_options, f"{prefix}.snapshots", "other", announcement(1).replace(b'"ctr"', b'"other"'))
        taken = 'freshrank_followed_records_total{outcome="applied",topic="snapshots"} 1.0'
        await eventually(lambda: exports(client, taken))
        await send(kafka_options, f"{prefix}.snapshots", "ctr", announcement(0))
        await eventually(lambda: is_ready(client))
        assert await exports(client, 'freshrank_snapshot_swaps_total{outcome="swapped",task="click"} 1.0')

        answer = (await client.post("/v1/rank", json=BODY)).json()
        assert answer["snapshot"] == two_snapshots()[0].version
        assert {ad["ad_id"]: ad["known"] for ad in answer["ads"]} == {"ad0": True, "ad1": True, "ad77": False}
        (request,) = await logged(kafka_options, f"{prefix}.events")
        assert isinstance(request, Request)
        assert request.request_id == "q1"
        assert request.snapshot == answer["snapshot"]
        assert request.time_s == two_snapshots()[0].priors.as_of_s
        assert [ad.ad_id for ad in request.candidates] == [ad["ad_id"] for ad in answer["ads"]]
        assert {ad.ad_id: ad.values for ad in request.candidates}["ad0"] == {"ad": "ad0", "tags": ["t0"]}

        shown = {"request_id": "q1", "ad_id": answer["ads"][0]["ad_id"], "position": 0}
        sent = await client.post("/v1/events", json=[{"type": "impression", **shown}, {"type": "click", **shown}])
        assert sent.json()["accepted"] == 2
        _, impression, click = await logged(kafka_options, f"{prefix}.events")
        assert isinstance(impression, Impression)
        assert isinstance(click, Click)

        live = counted(slide(1), slide(2), slide(3))
        await send(kafka_options, f"{prefix}.prior-updates", "", encode_prior_update(update_from(live)))
        await eventually(lambda: exports(client, f"freshrank_prior_counts_timestamp_seconds {live.as_of_s}"))
        await eventually(lambda: exports(client, 'freshrank_prior_counts_delay_seconds_count{since="published"} 1.0'))
        await send(kafka_options, f"{prefix}.snapshots", "ctr", announcement(1))

        async def has_swapped() -> bool:
            return (await client.get("/readyz")).json()["snapshot"] == two_snapshots()[1].version

        await eventually(has_swapped)
        answer = (await client.post("/v1/rank", json=BODY)).json()
        assert answer["snapshot"] == two_snapshots()[1].version


async def test_in_a_replay_a_request_brings_its_own_time_and_events_may_follow_it(
    settings: Settings, broker: BrokerInfo, kafka_options: dict[str, Any]
) -> None:
    time_s = two_snapshots()[0].priors.as_of_s + 7200.0
    await send(kafka_options, f"{settings.prefix}.snapshots", "ctr", announcement(0))
    async with serving(settings, broker) as client:
        await eventually(lambda: is_ready(client))
        answer = (await client.post("/v1/rank", json={**BODY, "time_s": time_s})).json()
        shown = {"type": "impression", "request_id": "q1", "ad_id": answer["ads"][0]["ad_id"], "position": 0}
        sent = await client.post("/v1/events", json={**shown, "time_s": time_s + 1.0})
        assert sent.json()["accepted"] == 1
        found = await logged(kafka_options, f"{settings.prefix}.events")
        assert [event.time_s for event in found] == [time_s, time_s + 1.0]


async def test_records_that_are_none_are_left_out_and_counted(
    settings: Settings, broker: BrokerInfo, kafka_options: dict[str, Any]
) -> None:
    for topic in ("snapshots", "catalog", "prior-updates"):
        await send(kafka_options, f"{settings.prefix}.{topic}", "ctr", b"\xffnone")
    await send(kafka_options, f"{settings.prefix}.snapshots", "ctr", announcement(0))
    async with serving(settings, broker) as client:
        await eventually(lambda: is_ready(client))
        for topic in ("snapshots", "catalog", "prior-updates"):
            assert await exports(client, f'freshrank_followed_records_total{{outcome="refused",topic="{topic}"}} 1.0')


async def test_a_prefix_without_topics_is_said_at_the_start(
    broker: BrokerInfo, topic_prefix: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"topic {topic_prefix}.events must exist"):
        await serve(settings_for(topic_prefix, tmp_path), broker.bootstrap_servers, port=0)


async def test_another_partition_count_than_the_topics_is_said_at_the_start(
    settings: Settings, broker: BrokerInfo
) -> None:
    changed = parse_settings(
        {
            "name": "test",
            "fields": [{"name": "ad", "side": "item"}],
            "kafka": {"prefix": settings.prefix, "partitions": PARTITIONS + 1},
        }
    )
    with pytest.raises(ValueError, match="partitions must be what topic"):
        await serve(changed, broker.bootstrap_servers, port=0)


async def test_a_port_that_is_taken_is_said_at_the_start(settings: Settings, broker: BrokerInfo) -> None:
    taken = int(broker.bootstrap_servers.rpartition(":")[2])
    with pytest.raises(ValueError, match=f"must be free to listen on, got 127.0.0.1:{taken}"):
        await serve(settings, broker.bootstrap_servers, port=taken)


@pytest.mark.slow
async def test_while_the_broker_is_down_it_says_503_and_comes_back_by_itself(
    tmp_path: Path, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_writer, "PUBLISH_WAIT_S", 0.5)
    broker = embedded.start(tmp_path / "broker", owned=True, timeout_s=60.0)
    try:
        create_topics(broker.bootstrap_servers, prefix=topic_prefix, partitions=PARTITIONS, security={})
        options = client_options(broker.bootstrap_servers, {})
        Registry(str(tmp_path / "registry")).save(two_snapshots()[0], {})
        await send(options, f"{topic_prefix}.snapshots", "ctr", announcement(0))
        async with serving(settings_for(topic_prefix, tmp_path / "registry"), broker) as client:
            await eventually(lambda: is_ready(client))
            embedded.stop(tmp_path / "broker")
            async with asyncio.timeout(3.0):
                answer = await client.post("/v1/rank", json=BODY)
            assert (answer.status_code, answer.json()["error"]["what"]) == (503, "log")
            embedded.start(tmp_path / "broker", owned=True, timeout_s=60.0)

            async def answers() -> bool:
                return (await client.post("/v1/rank", json=BODY)).status_code == 200

            await eventually(answers)
    finally:
        embedded.stop(tmp_path / "broker")


async def test_it_prints_its_address_and_ends_with_the_signal(
    settings: Settings, broker: BrokerInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))  # if it were not taken: no end
    try:
        running = asyncio.create_task(serve(settings, broker.bootstrap_servers, port=0))
        printed = ""

        async def has_printed() -> bool:
            nonlocal printed
            printed += capsys.readouterr().out
            return printed.endswith("\n")

        await eventually(has_printed)
        address = printed.strip().removeprefix("freshrank serves on ")
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10.0):
            await running
        assert signals == []
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_what_the_store_holds_of_a_user_is_in_the_record_of_the_request(
    settings: Settings,
    broker: BrokerInfo,
    kafka_options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path / "state"))
    settings = msgspec.structs.replace(settings, store=StoreSettings(kind="feast", read_s=5.0))
    row = {"user_id": ["u1"], "as_of_s": [two_snapshots()[0].priors.as_of_s]}
    row |= {"impressions": [[1.0, 2.0]], "clicks": [[0.0, 1.0]], "value.age": [55.0]}
    store = await asyncio.to_thread(open_users, settings, users_directory(settings))
    await asyncio.to_thread(store.push, pl.DataFrame(row))
    await send(kafka_options, f"{settings.prefix}.snapshots", "ctr", announcement(0))
    async with serving(settings, broker) as client:
        await eventually(lambda: is_ready(client))

        async def is_found() -> bool:
            await client.post("/v1/rank", json=BODY | {"user": {"user_id": "u1"}})
            return await exports(client, 'freshrank_user_reads_total{outcome="found"} 1.0')

        await eventually(is_found)
    *_, last = await logged(kafka_options, f"{settings.prefix}.events")
    assert isinstance(last, Request)
    assert last.values["age"] == 55.0
