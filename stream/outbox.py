"""The outbox: records on their way to one topic in batches, which costs a fraction of sending one by one.

Owns the open batches and how many of them may be on their way. Must not know what the records are.

Invariants: order within a partition is kept; memory is bounded by the batches on their way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from aiokafka import AIOKafkaProducer

from stream.kafka import murmur2_partition

BATCH_BYTES = 128 * 1024  # by measurement: larger batches are no quicker
BATCHES_WAITING_MAX = 8  # per topic and partition; beyond it the oldest is waited for


class Outbox:
    """Batches on their way to one topic, one open batch a partition; order within a partition is kept."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, n_partitions: int) -> None:
        """Begin with empty batches."""
        self.n_partitions = n_partitions
        self._producer = producer
        self._topic = topic
        self._open = [producer.create_batch() for _ in range(n_partitions)]
        self._sent: deque[asyncio.Future[Any]] = deque()

    def place(self, request_id: str) -> tuple[int, bytes]:
        """Return the partition of a request's records, and their key."""
        key = request_id.encode()
        return murmur2_partition(key, self.n_partitions), key

    def put_now(self, partition: int, key: bytes | None, value: bytes | None) -> bool:
        """Put a record into the open batch; False if it is full."""
        return self._open[partition].append(timestamp=None, key=key, value=value) is not None

    async def put(self, partition: int, key: bytes | None, value: bytes | None) -> None:
        """Put a record into the open batch; a full one leaves first."""
        if not self.put_now(partition, key, value):
            await self._leave(partition)
            assert self.put_now(partition, key, value), "an empty batch takes any record"

    async def put_everywhere(self, value: bytes) -> None:
        """Put a record without a key into every partition."""
        for partition in range(self.n_partitions):
            await self.put(partition, None, value)

    async def flush(self) -> None:
        """Let everything leave that has been put."""
        for partition in range(self.n_partitions):
            if self._open[partition].record_count():
                await self._leave(partition)

    async def finish(self) -> None:
        """Return when Kafka has everything."""
        await self.flush()
        while self._sent:
            await self._sent.popleft()

    async def _leave(self, partition: int) -> None:
        # Waits while the partition's last batch is still in the queue: that bounds memory and keeps the order.
        self._sent.append(await self._producer.send_batch(self._open[partition], self._topic, partition=partition))
        self._open[partition] = self._producer.create_batch()
        while self._sent and (self._sent[0].done() or len(self._sent) > BATCHES_WAITING_MAX * self.n_partitions):
            await self._sent.popleft()
