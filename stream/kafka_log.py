"""Plain readers of a range of a partition: what resume, catching up, audit and `topics cat` share.

Owns reading [start, end) of a log that transactions write. Must not know topics' rules, Faust, consumer groups or what
a record means.

Invariants: only committed records, in order, each once; a read ends although the last offsets of its range may hold no
record at all (commit and abort markers, aborted records, records that compaction took); what retention has taken is an
error, never a silent gap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

FETCH_BYTES_MAX = 16 * 1024 * 1024  # what a reader holds at a time: two of the largest blocks
PASS_MS = 20  # longest wait for records before looking whether the range has ended without any
FETCH_WAIT_MS = 20  # how long the broker holds a fetch at the log's end; a seek backwards waits for it
METADATA_S_MAX = 10.0  # until the client has heard of a topic that the broker knows; usually a few milliseconds
_T = TypeVar("_T")


class Record(NamedTuple):
    """A committed record.

    Attributes:
        offset: In its partition.
        timestamp_ms: When the broker appended it, milliseconds since 1970.
        key: As produced.
        value: As produced; None deletes a key of a compacted topic.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class OffsetGone(ValueError):
    """The range begins before what retention kept: what it held cannot be read any more."""


async def read_range(
    topic: str,
    partition: int,
    start: int | None,
    end: int | None,
    *,
    options: Mapping[str, Any],
    wait_s: float = 60.0,
) -> AsyncGenerator[Record, None]:
    """Yield the committed records of [start, end) in order, then end.

    A transaction that is open inside the range is waited for: the broker ends it after its time-out at the latest.
    Read it to its end or close it (`contextlib.aclosing`): it holds a connection. Without an `end`, a transaction
    whose producer has just returned from its commit may be missing: the broker writes the markers a moment later. A
    producer that has started under the same transactional id has waited for them.

    Args:
        topic: Its full name.
        partition: Of the topic.
        start: First offset; None: the first that retention kept.
        end: Offset after the last; None: all that is committed when this is called (the last stable offset).
        options: From `client_options`.
        wait_s: Longest wait without any progress.

    Raises:
        OffsetGone: If retention has taken the record at `start`.
        ValueError: If there is no such topic or partition.
        TimeoutError: If nothing came for `wait_s`: `end` lies beyond the log or the broker is gone.
    """
    async with _reader(topic, partition, options) as (consumer, tp):
        first, stable_end = await _ends(consumer, tp)
        start = first if start is None else start
        end = stable_end if end is None else end
        if start < first and start < end:
            raise OffsetGone(f"{topic}[{partition}] must still hold offset {start}, got {first} as its first offset")
        async for record in _read(consumer, tp, start, end, wait_s):
            yield record


async def read_last(topic: str, partition: int, *, options: Mapping[str, Any], wait_s: float = 60.0) -> Record | None:
    """Return the last committed record of a partition, or None if it holds none.

    Reads the last 1, 8, 64 ... offsets until one is a record: the very last are markers after a transaction. About a
    commit of just now, see `read_range`: start the transactional producer first, then ask for the last record.

    Raises:
        ValueError: If there is no such topic or partition.
        TimeoutError: If nothing came for `wait_s`.
    """
    async with _reader(topic, partition, options) as (consumer, tp):
        first, end = await _ends(consumer, tp)
        start, n_offsets, last = end, 1, None
        while start > first and last is None:
            start, n_offsets = max(first, end - n_offsets), n_offsets * 8
            async for record in _read(consumer, tp, start, end, wait_s):
                last = record
        return last


async def read_newest(topic: str, keep: Callable[[bytes], _T], *, options: Mapping[str, Any]) -> dict[str, _T]:
    """Return what `keep` makes of each key's newest value in a topic of one partition, the last written at the end.

    Keys whose newest record has no value are left out: they were removed. Raises what `read_range` does.
    """
    newest: dict[str, _T] = {}
    async with aclosing(read_range(topic, 0, None, None, options=options)) as records:
        async for record in records:
            key = (record.key or b"").decode(errors="replace")
            newest.pop(key, None)
            if record.value is not None:
                newest[key] = keep(record.value)
    return newest


def reader_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a consumer without a group takes to read committed records from where it is told to."""
    return {
        **options,
        "group_id": None,
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "max_partition_fetch_bytes": FETCH_BYTES_MAX,
    }


@asynccontextmanager
async def _reader(
    topic: str, partition: int, options: Mapping[str, Any]
) -> AsyncIterator[tuple[AIOKafkaConsumer, TopicPartition]]:
    tp = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(
        **reader_options(options),
        auto_offset_reset="none",
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
    await consumer.start()
    try:
        if topic not in await consumer.topics():
            raise ValueError(f"topic {topic} must exist, got none of that name; run `freshrank topics create`")
        consumer.assign([tp])
        async with asyncio.timeout(METADATA_S_MAX):
            while (partitions := consumer.partitions_for_topic(topic)) is None:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.005)
        if partition not in partitions:
            raise ValueError(f"topic {topic} must have a partition {partition}, got {len(partitions)} partitions")
        yield consumer, tp
    finally:
        await consumer.stop()


async def _ends(consumer: AIOKafkaConsumer, tp: TopicPartition) -> tuple[int, int]:
    """Return the first offset kept and the last stable offset (end_offsets follows the isolation level)."""
    first, end = await asyncio.gather(consumer.beginning_offsets([tp]), consumer.end_offsets([tp]))
    return first[tp], end[tp]


async def _read(
    consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int, wait_s: float
) -> AsyncIterator[Record]:
    if start >= end:
        return
    consumer.seek(tp, start)
    position, moved_s = start, time.monotonic()
    while position < end:  # the position also passes what is no record: markers, aborted records, compacted ones
        try:
            records = (await consumer.getmany(tp, timeout_ms=PASS_MS)).get(tp, [])
        except OffsetOutOfRangeError as error:
            raise OffsetGone(f"{tp.topic}[{tp.partition}] must still hold offset {position}, got {error}") from error
        for record in records:
            if record.offset >= end:
                return
            yield Record(record.offset, record.timestamp, record.key, record.value)
        if (reached := await consumer.position(tp)) > position:
            position, moved_s = reached, time.monotonic()
        elif time.monotonic() - moved_s > wait_s:
            raise TimeoutError(
                f"{tp.topic}[{tp.partition}] must reach offset {end}, got nothing after {position} for {wait_s:g} s;"
                " the range ends beyond the log, or the broker or a transaction hangs"
            )
