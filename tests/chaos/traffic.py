"""Events on their way while faults happen: paced, with repeats, delays and broken records, all from a seed."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from stream.events import Event, Tick, encode_event
from stream.logs.arrivals import Arrival
from stream.partitioner import request_partition
from stream.roles import Cluster

REPEATED = 0.03  # share of events that come twice
DELAYED = 0.05  # share of events that come later than others
DELAY_EVENTS = 150  # mean delay, in events of the stream: about a minute of event time
BROKEN = 0.002  # share of records that are no event at all, or stand in a foreign partition
TURN_S = 0.05
BROKER_AWAY_S = 120.0
RUBBISH = (b"", b"{", b'{"type":"click"}', b'{"type":"tick","time_s":-1}', b"\xff\xfe")


class Sent(NamedTuple):
    """A record on its way; `event` is None if it is rubbish, `partition` None if every partition gets it."""

    partition: int | None
    key: bytes | None
    value: bytes
    event: Event | None
    request_id: str | None


def disturbed(
    arrivals: Iterable[Arrival], rng: random.Random, n_partitions: int, *, has_rubbish: bool
) -> Iterator[Sent]:
    """Yield the events of a log with repeats, delays and, perhaps, rubbish between them."""
    later: list[tuple[int, int, Sent]] = []
    for number, (request_id, event) in enumerate(arrivals):
        while later and later[0][0] <= number:
            yield heapq.heappop(later)[2]
        value = encode_event(event)
        if request_id is None:
            yield Sent(None, None, value, event, None)
            continue
        sent = Sent(request_partition(request_id, n_partitions), request_id.encode(), value, event, request_id)
        behind = number + 1 + int(rng.expovariate(1 / DELAY_EVENTS))
        if rng.random() < REPEATED:
            heapq.heappush(later, (behind, 2 * number, sent))
        if rng.random() < DELAYED:
            heapq.heappush(later, (behind, 2 * number + 1, sent))
        else:
            yield sent
        if has_rubbish and rng.random() < BROKEN:
            partition = rng.randrange(n_partitions)
            yield Sent(partition, b"x", rng.choice([*RUBBISH, value]), None, None)
    while later:
        yield heapq.heappop(later)[2]


class Traffic:
    """A producer that sends at a pace of its own until it is told to stop, then lets everything settle."""

    def __init__(self, cluster: Cluster, stream: Iterator[Sent], *, events_per_s: float, end_s: float) -> None:
        """Prepare.

        Args:
            cluster: Where to.
            stream: What.
            events_per_s: How fast.
            end_s: How much event time passes at the end, so that all that waits is settled.
        """
        self.sent: list[Sent] = []
        self._cluster = cluster
        self._stream = stream
        self._events_per_s = events_per_s
        self._end_s = end_s
        self._is_over = False
        self._newest_s = 0.0

    def stop(self) -> None:
        """Send no more but the end."""
        self._is_over = True

    async def run(self) -> None:
        """Send until told to stop; return when Kafka has everything."""
        producer = AIOKafkaProducer(
            **self._cluster.options, enable_idempotence=True, request_timeout_ms=int(BROKER_AWAY_S * 1000)
        )
        await producer.start()
        try:
            written: list[asyncio.Future[object]] = []
            started_s = time.monotonic()
            for number, sent in enumerate(self._stream):
                if (ahead_s := number / self._events_per_s - (time.monotonic() - started_s)) > 0.0:
                    await asyncio.sleep(max(ahead_s, TURN_S))
                written += await self._send(producer, sent)
                if self._is_over:
                    break
            for passed_s in (self._end_s, 2 * self._end_s):
                tick = Tick(self._newest_s + passed_s)
                written += await self._send(producer, Sent(None, None, encode_event(tick), tick, None))
            await producer.flush()
            await asyncio.gather(*written)
        finally:
            await producer.stop()

    async def _send(self, producer: AIOKafkaProducer, sent: Sent) -> list[asyncio.Future[object]]:
        self.sent.append(sent)
        if sent.event is not None:
            self._newest_s = max(self._newest_s, sent.event.time_s) if sent.request_id else self._newest_s
        partitions = range(self._cluster.partitions) if sent.partition is None else [sent.partition]
        topic = self._cluster.topic("events")
        return [await producer.send(topic, sent.value, key=sent.key, partition=one) for one in partitions]

    def values(self, partition: int) -> list[bytes]:
        """Return what a partition of `events` must hold."""
        return [one.value for one in self.sent if one.partition in {None, partition}]

    def events(self) -> Iterator[Arrival]:
        """Yield all events as a backtest takes them."""
        for one in self.sent:
            if one.event is not None:
                yield one.request_id, one.event
