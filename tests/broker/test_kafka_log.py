"""Readers of a range over a log that transactions, aborted ones too, have written."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient
from kafka.structs import TopicPartition

from infra.broker import BrokerInfo
from stream.kafka import OffsetGone, Record, read_last, read_range

N_ABORTED = 200  # more than the windows of 1, 8 and 64 with which the last record is looked for


@pytest.fixture
def topic(broker: BrokerInfo, topic_prefix: str) -> str:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.create_topics({topic_prefix: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    return topic_prefix


@pytest.fixture
async def producer(topic: str, kafka_options: dict[str, Any]) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(**kafka_options, transactional_id=topic) as opened:
        yield opened


async def send(producer: AIOKafkaProducer, topic: str, values: list[str]) -> None:
    for sent in [await producer.send(topic, value.encode(), partition=0) for value in values]:
        await sent


async def commit(producer: AIOKafkaProducer, topic: str, *values: str) -> None:
    async with producer.transaction():
        await send(producer, topic, list(values))


async def abort(producer: AIOKafkaProducer, topic: str, *values: str) -> None:
    await producer.begin_transaction()
    await send(producer, topic, list(values))
    await producer.abort_transaction()


async def values(topic: str, start: int | None, end: int | None, options: dict[str, Any]) -> list[tuple[int, str]]:
    return [(r.offset, (r.value or b"").decode()) async for r in read_range(topic, 0, start, end, options=options)]


async def test_a_range_yields_what_was_committed_and_ends_at_trailing_markers_and_aborted_records(
    topic: str, producer: AIOKafkaProducer, kafka_options: dict[str, Any]
) -> None:
    await commit(producer, topic, "a", "b")  # 0 1, marker 2
    await abort(producer, topic, "x", "y")  # 3 4, marker 5
    await commit(producer, topic, "c")  # 6, marker 7
    await abort(producer, topic, "z")  # 8, marker 9
    async with asyncio.timeout(20):
        assert await values(topic, 0, 10, kafka_options) == [(0, "a"), (1, "b"), (6, "c")]  # waits for the last marker
        assert await values(topic, None, None, kafka_options) == [(0, "a"), (1, "b"), (6, "c")]
        assert await values(topic, 1, 6, kafka_options) == [(1, "b")]
        assert await values(topic, 4, 10, kafka_options) == [(6, "c")]  # begins inside an aborted transaction
        assert await values(topic, 2, 3, kafka_options) == []  # a marker and nothing else
        assert await values(topic, 7, 10, kafka_options) == []
        assert await values(topic, 10, None, kafka_options) == []
        assert await values(topic, 5, 3, kafka_options) == []


async def test_a_range_without_an_end_stops_before_an_open_transaction_and_one_with_an_end_waits_for_it(
    topic: str, producer: AIOKafkaProducer, kafka_options: dict[str, Any]
) -> None:
    await commit(producer, topic, "a")  # 0, marker 1
    async with producer.transaction():  # begins when the first's marker is written
        await send(producer, topic, ["b"])  # 2
        async with asyncio.timeout(20):
            assert await values(topic, 0, None, kafka_options) == [(0, "a")]
        waiting = asyncio.create_task(values(topic, 0, 3, kafka_options))
    async with asyncio.timeout(20):
        assert await waiting == [(0, "a"), (2, "b")]


async def test_a_record_holds_append_time_key_and_value(
    topic: str, kafka_options: dict[str, Any], producer: AIOKafkaProducer
) -> None:
    async with producer.transaction():
        await producer.send_and_wait(topic, b"v", key=b"k", partition=0, timestamp_ms=1)
    [record] = [record async for record in read_range(topic, 0, 0, 1, options=kafka_options)]
    assert record == Record(0, record.timestamp_ms, b"k", b"v")
    assert record.timestamp_ms > 1_600_000_000_000  # the broker's clock, not the producer's


async def test_offsets_that_retention_took_are_an_error(
    broker: BrokerInfo, topic: str, producer: AIOKafkaProducer, kafka_options: dict[str, Any]
) -> None:
    await commit(producer, topic, "a", "b", "c")  # 0 1 2, marker 3
    assert len(await values(topic, 0, 4, kafka_options)) == 3
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.delete_records({TopicPartition(topic, 0): 2})
    admin.close()
    with pytest.raises(OffsetGone, match=r"must still hold offset 0, got 2 as its first offset"):
        await values(topic, 0, None, kafka_options)
    assert await values(topic, None, None, kafka_options) == [(2, "c")]
    assert await values(topic, 0, 0, kafka_options) == []


async def test_the_last_record_stands_before_any_number_of_markers_and_aborted_records(
    topic: str, producer: AIOKafkaProducer, kafka_options: dict[str, Any]
) -> None:
    assert await read_last(topic, 0, options=kafka_options) is None
    await abort(producer, topic, "x")  # 0, marker 1
    assert await values(topic, 0, 2, kafka_options) == []
    assert await read_last(topic, 0, options=kafka_options) is None
    await commit(producer, topic, "a", "b")  # 2 3, marker 4
    assert len(await values(topic, 2, 5, kafka_options)) == 2
    last = await read_last(topic, 0, options=kafka_options)
    assert last is not None
    assert (last.offset, last.value) == (3, b"b")
    await abort(producer, topic, *(f"x{number}" for number in range(N_ABORTED)))
    assert await values(topic, 5, 5 + N_ABORTED + 1, kafka_options) == []
    assert await read_last(topic, 0, options=kafka_options) == last
    async with producer.transaction():
        await send(producer, topic, ["open"])
        assert await read_last(topic, 0, options=kafka_options) == last


async def test_a_topic_or_partition_that_is_not_there_is_said(topic: str, kafka_options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"topic {topic}-none must exist, got none"):
        await read_last(f"{topic}-none", 0, options=kafka_options)
    with pytest.raises(ValueError, match=f"topic {topic} must have a partition 7, got 1 partitions"):
        await read_last(topic, 7, options=kafka_options)


async def test_an_end_beyond_the_log_is_an_error_and_no_hang(
    topic: str, producer: AIOKafkaProducer, kafka_options: dict[str, Any]
) -> None:
    await commit(producer, topic, "a")
    with pytest.raises(TimeoutError, match=r"must reach offset 99, got nothing after 2 for 0\.2 s"):
        [_ async for _ in read_range(topic, 0, 0, 99, options=kafka_options, wait_s=0.2)]
