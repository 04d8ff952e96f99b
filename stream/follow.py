"""Following a topic from its beginning, for ever: for state that is held in memory and built anew at each start.

Owns reading one unpartitioned topic and starting over when Kafka fails. Must not know what a record means.

Invariants: records come in order; after a failure all of them come again, so taking one twice must change nothing;
only committed records come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.kafka_log import Record, reader_options

RETRY_S = 1.0
RECORDS_MAX = 10_000  # chosen by hand: what is taken at once, so that requests come through in between

Take = Callable[[list[Record]], Awaitable[None]]

log = logging.getLogger("freshrank.follow")


async def follow(
    topic: str, take: Take, *, options: Mapping[str, Any], at_end: Callable[[], None], failed: Callable[[], None]
) -> NoReturn:
    """Hand over what stands in a topic and then what comes.

    Args:
        topic: Its full name; it has one partition.
        take: Takes records, at most `RECORDS_MAX` at a time.
        options: From `client_options`.
        at_end: Is called once all that was there at the start has been taken.
        failed: Is called each time that Kafka fails and reading starts over.
    """
    tp = TopicPartition(topic, 0)
    while True:
        consumer = AIOKafkaConsumer(**reader_options(options), auto_offset_reset="earliest")
        try:
            await consumer.start()
            consumer.assign([tp])
            await _read_on(consumer, tp, take, at_end)
        except (KafkaError, OSError) as error:
            failed()
            log.warning("[follow] %s cannot be read, trying again in %g s: %s", topic, RETRY_S, error)
            await asyncio.sleep(RETRY_S)
        finally:
            await consumer.stop()


async def _read_on(consumer: AIOKafkaConsumer, tp: TopicPartition, take: Take, at_end: Callable[[], None]) -> NoReturn:
    end: int | None = (await consumer.end_offsets([tp]))[tp]
    await consumer.seek_to_beginning(tp)
    while True:
        batch = (await consumer.getmany(tp, timeout_ms=200, max_records=RECORDS_MAX)).get(tp, [])
        if batch:
            await take([Record(record.offset, record.timestamp, record.key, record.value) for record in batch])
        if end is not None and await consumer.position(tp) >= end:
            at_end()
            end = None
