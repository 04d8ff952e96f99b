"""The ledger worker: killed, frozen out or resumed, what is committed equals the pure function over the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaPartition

from infra.broker import BrokerInfo
from stream.blocks import chain_schema, decode_block, encode_block, encode_chains, row_schema
from stream.events import Candidate, Click, EventError, Impression, Request, decode_event, encode_event
from stream.kafka import murmur2_partition
from stream.ledger import Closed
from stream.wiring import new_guarded_ledger, new_slides
from tests.broker.deployment import Deployment, deploy, until


async def expected_blocks(deployment: Deployment, partition: int) -> tuple[list[bytes], list[bytes]]:
    """What the ledger writes when nothing goes wrong, by its definition: a pure function of the events."""
    settings = deployment.settings
    ledger = new_guarded_ledger(partition, settings, new_slides(settings))
    blocks: list[Closed] = []
    for record in await deployment.read("events", partition):
        value = record.value or b""
        try:
            event: Any = decode_event(value)
        except EventError as error:
            event = error
        blocks += ledger.step(record.offset, record.timestamp_ms / 1000.0, event, len(value))
    schema, chains = row_schema(settings.fields), chain_schema(settings.fields)
    return (
        [encode_block(block.header, block.rows, schema) for block in blocks],
        [encode_chains(block.header, block.chains, chains) for block in blocks],
    )


@pytest.mark.slow
async def test_kill_9_of_the_ledger_leaves_the_blocks_of_a_quiet_run(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    deployment = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=7_000, slide_s=1800.0)
    sending = asyncio.create_task(deployment.replay(speed=800.0))
    n_kills = 0
    while not sending.done() and n_kills < 1:
        with deployment.role("worker", "ledger") as process:
            await wrote_more(deployment)
            process.kill()
            process.wait()
            n_kills += 1
    await sending
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()
    assert n_kills == 1
    for partition in range(deployment.cluster.partitions):
        written = [record.value or b"" for record in await deployment.read("examples", partition)]
        chains = [record.value or b"" for record in await deployment.read("chains", partition)]
        assert (written, chains) == await expected_blocks(deployment, partition)
        header, _ = decode_block(written[-1])
        assert header.counts.violations() == {"impressions": 0, "clicks": 0, "records": 0}
        assert header.counts.pending == 0


async def wrote_more(deployment: Deployment) -> None:
    before = sum(header.number for header in await deployment.headers() if header)

    async def checks() -> AsyncIterator[bool]:
        while True:
            yield sum(header.number for header in await deployment.headers() if header) > before + 2

    await until(checks(), 40.0)


async def test_sigterm_ends_the_ledger_with_0(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> None:
    deployment = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=2_000)
    await deployment.replay()
    with deployment.role("worker", "ledger") as process:
        await deployment.wait_settled()
        process.terminate()
        await asyncio.to_thread(process.wait, 20.0)
    assert process.returncode == 0


async def test_bad_events_become_dead_letters_with_their_rule_and_raw_bytes(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    deployment = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=500)
    own = murmur2_partition(b"somebody", 3)
    bad = {
        "empty": b"",
        "not_json": b"{",
        "not_utf8": b'{"type":"\xff"}',
        "too_big": b" " * 1_000_001,
        "schema": b'{"type":"click","request_id":"r","ad_id":"a","position":0,"time_s":NaN}'.replace(b"NaN", b'"x"'),
        "bad_time": b'{"type":"tick","time_s":-1}',
        "version": b'{"type":"tick","time_s":1,"v":9}',
        "no_request": b'{"type":"impression","request_id":"somebody","ad_id":"a","position":0,"time_s":1}',
        "wrong_partition": b'{"type":"click","request_id":"somebody","ad_id":"a","position":0,"time_s":1}',
    }
    async with AIOKafkaProducer(**deployment.cluster.options, max_request_size=2_000_000) as producer:
        for rule, value in bad.items():
            partition = own if rule != "wrong_partition" else (own + 1) % 3
            await producer.send_and_wait(deployment.cluster.topic("events"), value, partition=partition)
    await deployment.replay(append=True)
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()
    letters = [
        msgspec.json.decode(record.value or b"")
        for partition in range(3)
        for record in await deployment.read("dead-letters", partition)
    ]
    assert sorted(letter["rule"] for letter in letters) == sorted(bad)
    for header in await deployment.headers():
        assert header is not None
        assert header.counts.violations() == {"impressions": 0, "clicks": 0, "records": 0}


async def test_live_clock_settles_silent_partitions_and_refuses_events_from_the_future(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    deployment = deploy(
        tmp_path,
        broker.bootstrap_servers,
        topic_prefix,
        kafka='clock = "live"\nmax_delay_s = 1.0\nmax_ahead_s = 30.0',
        ledger="wait_s = 1.0\ngrace_s = 1.0\ndisorder_s = 0.0\nblock_s = 0.2",
    )
    now_s = time.time()
    partition = murmur2_partition(b"r", 3)
    ad = Candidate("a", {"ad_id": "a"})
    events = [
        Request("r", now_s, [ad]),
        Impression("r", "a", 0, now_s),
        Click("r", "a", 0, now_s + 0.5),
        Click("r", "a", 0, now_s + 1000.0),
    ]
    with deployment.role("worker", "ledger"):
        async with AIOKafkaProducer(**deployment.cluster.options) as producer:
            for event in events:
                await producer.send_and_wait(
                    deployment.cluster.topic("events"), encode_event(event), partition=partition
                )
        await until(settled_rows(deployment, partition, 1), 40.0)
    header = (await deployment.headers())[partition]
    assert header is not None
    assert (header.counts.clicked, header.counts.dead_letters) == (1, 1)
    assert header.watermark_s < now_s + 500.0
    (letter,) = await deployment.read("dead-letters", partition)
    assert msgspec.json.decode(letter.value or b"")["rule"] == "future"


async def settled_rows(deployment: Deployment, partition: int, n_rows: int) -> AsyncIterator[bool]:
    while True:
        header = (await deployment.headers())[partition]
        yield header is not None and header.counts.clicked + header.counts.expired_negative >= n_rows


@pytest.mark.slow
@pytest.mark.parametrize("eaten", ["events", "examples"])
async def test_retention_that_took_what_a_resume_needs_is_a_stop_that_says_so(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str, eaten: str
) -> None:
    deployment = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=2_000, slide_s=60.0)
    await deployment.replay(limit=2_000)
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()
    written = [len(await deployment.read("examples", partition)) for partition in range(3)]
    end = max(record.offset for record in await deployment.read(eaten, 0)) + 1
    await asyncio.to_thread(delete_before, broker, f"{topic_prefix}.{eaten}", end)
    with deployment.role("worker", "ledger") as process:
        assert await asyncio.to_thread(process.wait, 40.0) == 1
    assert "the ledger of partition 0 cannot resume" in deployment.log("ledger")
    assert "Retention took events or blocks that are still needed" in deployment.log("ledger")
    if eaten == "events":
        assert [len(await deployment.read("examples", partition)) for partition in range(3)] == written


def delete_before(broker: BrokerInfo, topic: str, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_records({KafkaPartition(topic, 0): offset})
    admin.close()
