"""What a deployment is doing, read from its topics alone: ledger counts, priors, and what the trainer announced.

Owns the reading of headers of `examples`, of `prior-updates` and of `snapshots`. Must not know processes or screens.

Invariants: rows of blocks are not decoded as they come, so watching costs next to nothing; all that is kept is
cumulative, so reading from the beginning once more, after Kafka failed, changes nothing.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from stream.announcement import Announcement, decode_announcement
from stream.blocks import Counts, Header, add_counts, decode_block, decode_header, decode_prior_update
from stream.kafka import BLOCK_BYTES_MAX
from stream.roles import Cluster

RATE_S = 4.0  # over how long "now" is
RECORDS_MAX = 500  # taken at a time


@dataclass(frozen=True)
class Announced:
    """An announcement, and when the broker got it."""

    announcement: Announcement
    append_s: float


class Watcher:
    """Follows one family of one deployment.

    Attributes:
        announced: Of the family, in order.
        prior_values: How many values have had their counts published.
        prior_as_of_s: Event time of the newest published counts; None: none yet.
    """

    def __init__(self, cluster: Cluster, family: str) -> None:
        """Begin with nothing seen; call `poll` again and again, `close` at the end."""
        self.announced: list[Announced] = []
        self.prior_as_of_s: float | None = None
        self._cluster = cluster
        self._family = family
        self._headers: dict[int, Header] = {}
        self._last_rows: dict[int, bytes] = {}  # the newest block of each partition that holds rows
        self._prior_keys: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._seen = 0  # offset on `snapshots` after the last announcement taken
        self._consumer: AIOKafkaConsumer | None = None
        self._marks: deque[tuple[float, int]] = deque()  # (wall clock, records) of the last RATE_S
        self._first_s = self._last_s = 0.0  # when the first and the newest counts came

    @property
    def counts(self) -> Counts:
        """What the ledger has done, over all partitions."""
        return add_counts([header.counts for header in self._headers.values()])

    @property
    def watermark_s(self) -> float | None:
        """Up to which event time every partition is complete; None: not every one has begun."""
        if len(self._headers) < self._cluster.partitions:
            return None
        return min(header.watermark_s for header in self._headers.values())

    @property
    def prior_values(self) -> int:
        """How many values have had their counts published."""
        return len(self._prior_keys)

    @property
    def events_per_s(self) -> float:
        """How many events a second the ledger has taken lately."""
        if len(self._marks) < 2:
            return 0.0
        (from_s, before), (_, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(time.monotonic() - from_s, 1e-9)

    @property
    def events_per_s_mean(self) -> float:
        """How many events a second the ledger has taken since its first."""
        taken_s = self._last_s - self._first_s
        return self.counts.records / taken_s if taken_s > 0.0 else 0.0

    def newest_settled_s(self) -> list[float]:
        """Return when the newest rows of each partition that has any settled; decodes one block of each."""
        return [_newest_s(decode_block(value)[1]) for value in self._last_rows.values()]

    async def poll(self, wait_s: float) -> list[str]:
        """Take what there is, waiting at most about `wait_s` for it; return a line if Kafka failed."""
        try:
            consumer = self._consumer or await self._connect()
            batches = await consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=RECORDS_MAX)
        except (KafkaError, OSError) as error:
            await self.close()
            return [f"the topics cannot be read, trying again: {error}"]
        for tp, records in batches.items():
            self._take(tp, records)
        self._mark()
        return []

    async def close(self) -> None:
        """Let go of Kafka."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def _connect(self) -> AIOKafkaConsumer:
        topic, partitions = self._cluster.topic, self._cluster.partitions
        consumer = AIOKafkaConsumer(
            **self._cluster.options,
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_partition_fetch_bytes=BLOCK_BYTES_MAX,
        )
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        watched = [TopicPartition(topic("examples"), partition) for partition in range(partitions)]
        watched += [TopicPartition(topic(name), 0) for name in ("snapshots", "prior-updates")]
        consumer.assign(watched)
        self._consumer = consumer
        return consumer

    def _take(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        if tp.topic == self._cluster.topic("examples"):
            for record in records:
                header, before = decode_header(record.value), self._headers.get(tp.partition)
                if before is None or _settled(header) > _settled(before):
                    self._last_rows[tp.partition] = record.value
                self._headers[tp.partition] = header
        elif tp.topic == self._cluster.topic("snapshots"):
            for record in records:
                if record.offset >= self._seen and record.key == self._family.encode() and record.value is not None:
                    self._seen = record.offset + 1
                    self.announced.append(Announced(decode_announcement(record.value), record.timestamp / 1000.0))
        else:
            updates = [decode_prior_update(record.value) for record in records]
            self._prior_keys = np.unique(np.concatenate([self._prior_keys, *(update.keys for update in updates)]))
            self.prior_as_of_s = updates[-1].at_s

    def _mark(self) -> None:
        now_s, records = time.monotonic(), self.counts.records
        if records and not self._first_s:
            self._first_s = self._last_s = now_s
        if self._marks and records > self._marks[-1][1]:
            self._last_s = now_s
        self._marks.append((now_s, records))
        while now_s - self._marks[0][0] > RATE_S:
            self._marks.popleft()


def _settled(header: Header) -> int:
    return header.counts.clicked + header.counts.expired_negative


def _newest_s(frame: pl.DataFrame) -> float:
    return float(frame["settled_s"].to_numpy().max(initial=-np.inf))
