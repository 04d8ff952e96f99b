"""A transactional producer that fences the one before.

Owns the options of such a producer. Must not know what is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stream.kafka import BLOCK_BYTES_MAX
from stream.outbox import BATCH_BYTES
from stream.roles import Cluster

TRANSACTION_TIMEOUT_MS = 10_000  # how long what a dead producer left open holds readers back


def new_fenced_producer(cluster: Cluster, transactional_id: str) -> AIOKafkaProducer:
    """Return a producer that fences the one before when it starts."""
    return AIOKafkaProducer(
        **cluster.options,
        transactional_id=transactional_id,
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        max_request_size=BLOCK_BYTES_MAX,
        max_batch_size=BATCH_BYTES,
    )


@asynccontextmanager
async def fenced_producer(cluster: Cluster, transactional_id: str) -> AsyncGenerator[AIOKafkaProducer, None]:
    """Yield a started producer; what another one of this id had open is ended, and that one can write no more.

    From here on the event loop does not print errors of Kafka that nobody looked at: a transaction that fails raises
    one of them, and aiokafka leaves as many unseen as it holds records.
    """
    asyncio.get_running_loop().set_exception_handler(_skip_unseen)
    producer = new_fenced_producer(cluster, transactional_id)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def _skip_unseen(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), KafkaError):
        loop.default_exception_handler(context)
