"""The ledger on Kafka: `events` in, `examples` and `dead-letters` out, exactly once.

Owns the consumer group of the ledger, the transactions and the resume from the ledger's own output. Must not decide a
label: stream/ledger.py does. It is the one hot path per event, so it is a service beside Faust's agents, with batches
of its own (Faust's loop per event costs about ten times as much).

Invariants: one transaction holds the blocks that one batch of one partition closed, with the dead letters before
them, and nothing else; the transactional id `<prefix>.ledger-<partition>` fences whoever held the partition before; a
partition's state is rebuilt from its last block whenever the partition is assigned, so no state outlives an owner.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import faust
import mode
import msgspec
import pyarrow as pa
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalOperation,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    ProducerFenced,
)
from aiokafka.structs import ConsumerRecord
from prometheus_client import CollectorRegistry

from infra.metrics import LedgerMetrics
from infra.settings import Settings
from stream.blocks import Header, chain_schema, decode_header, encode_block, encode_chains, row_schema
from stream.dead_letters import dead_letter_bytes, decode_dead_letter
from stream.events import Event, EventError, Tick, decode_event, encode_event
from stream.kafka import BLOCK_BYTES_MAX, OffsetGone, read_last, read_range
from stream.ledger import Closed, Ledger
from stream.roles import SESSION_S, Cluster, delivered, find_cluster, log, make_app, run_app
from stream.transactions import new_fenced_producer
from stream.wiring import new_guarded_ledger, new_slides

# Records of one transaction at most. They go through the processor's cache (measured: 4,000 take 4 % more time each).
BATCH_RECORDS_MAX = 1000
SILENCE_S = 1.0  # live clock: a partition without an event for this long gets a tick
# What a client says when the broker, or this process itself, was away: for a moment or past its session.
AWAY = (KafkaError, IllegalOperation, TimeoutError)
RETRY_S = 1.0  # until a partition is owned again whose transaction failed
STOP_S_MAX = 5.0  # for a producer to leave


def run_ledger_worker(settings: Settings, *, registry: CollectorRegistry | None = None) -> None:
    """Run the ledger of a deployment until the process is told to stop."""
    cluster = find_cluster(settings)
    pa.array([])  # the first array imports pandas: not while events wait
    gc.freeze()  # what was imported stays
    gc.set_threshold(50_000, 20, 100)  # pending records are many, small and free of cycles; by default each costs scans
    app = make_app(cluster, "ledger-control")

    @app.agent(app.topic(cluster.topic("commands")))
    async def follow_commands(stream: faust.StreamT[bytes]) -> None:
        async for _, record in delivered(stream):
            log.info("command: %r", record.value)

    service = LedgerService(settings, cluster)
    if registry is not None:
        LedgerMetrics(registry, service.states)
    run_app(app, service)


@dataclass
class _Owned:
    """A partition that this worker owns."""

    ledger: Ledger
    producer: AIOKafkaProducer
    next_offset: int
    heard_s: float  # wall clock, for ticks only
    sought: int  # the how-manieth seek of the worker brought its consumer there
    raw_letters: dict[int, ConsumerRecord] = field(default_factory=dict)  # by offset, until their block closes


class LedgerService(mode.Service):
    """The ledger's own consumer and one transactional producer per partition."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        """Prepare; nothing connects before the service starts."""
        super().__init__()
        self._settings = settings
        self._cluster = cluster
        self._slides = new_slides(settings)
        self._schema, self._chain_schema = row_schema(settings.fields), chain_schema(settings.fields)
        self._owned: dict[int, _Owned] = {}
        self._clients: list[AIOKafkaConsumer | AIOKafkaProducer] = []
        self._n_seeks = 0
        self._is_leaving = False
        self._lost: dict[int, float] = {}  # partitions that were given up, and when to own them again
        self._lock = asyncio.Lock()
        self._is_live = settings.kafka.clock == "live"
        self._ahead_s = settings.kafka.max_ahead_s if self._is_live else float("inf")

    def states(self) -> dict[int, dict[str, float]]:
        """Return the numbers of each owned partition, by the keys that infra/metrics.py names."""
        states: dict[int, dict[str, float]] = {}
        for partition, owned in list(self._owned.items()):
            ledger = owned.ledger
            n_requests, n_bytes = ledger.known
            states[partition] = {
                **msgspec.to_builtins(ledger.counts),
                **{f"{law}_law": error for law, error in ledger.counts.violations().items()},
                "requests_known": n_requests,
                "bytes_known": n_bytes,
                "watermark_s": ledger.watermark_s,
                "horizon_s": ledger.horizon_s,
            }
        return states

    async def on_start(self) -> None:
        """Join the group; partitions come through the listener."""
        self._consumer = AIOKafkaConsumer(
            **self._cluster.options,
            group_id=f"{self._cluster.prefix}.ledger",
            isolation_level="read_committed",
            auto_offset_reset="none",  # what retention took must be an error; we seek ourselves
            enable_auto_commit=False,
            session_timeout_ms=int(SESSION_S * 1000),
            heartbeat_interval_ms=1000,
            max_poll_interval_ms=600_000,
            max_poll_records=BATCH_RECORDS_MAX,
            max_partition_fetch_bytes=BLOCK_BYTES_MAX,
        )
        self._ticks = AIOKafkaProducer(**self._cluster.options, enable_idempotence=True)
        for client in (self._consumer, self._ticks):
            await client.start()
            self._clients.append(client)
        self._consumer.subscribe([self._cluster.topic("events")], listener=_Listener(self))

    async def on_stop(self) -> None:
        """Leave the group; what was not closed in a block is derived again by the next owner."""
        async with self._lock:  # not in the middle of a batch
            self._is_leaving = True
        for client in self._clients:
            await client.stop()
        await self.release(list(self._owned))

    @mode.Service.task
    async def _run(self) -> None:
        while not self.should_stop:
            n_seeks = self._n_seeks
            batches = await self._fetch()
            async with self._lock:
                if self._is_leaving:
                    return
                for tp, records in batches.items():
                    owned = self._owned.get(tp.partition)
                    if owned is not None and owned.sought > n_seeks:
                        self._consumer.seek(tp, owned.next_offset)  # fetched before it was owned: from somewhere else
                    elif owned is not None:
                        await self._take(tp, records)
                await self._own_lost()
                if self._is_live:
                    await self._tick_silent()

    async def _fetch(self) -> dict[TopicPartition, list[ConsumerRecord]]:
        try:
            batches: dict[TopicPartition, list[ConsumerRecord]] = await self._consumer.getmany(timeout_ms=200)
            return batches
        except NoOffsetForPartitionError:  # assigned, but not owned yet: the seek is to come
            await self.sleep(0.05)
        except ConsumerStoppedError:
            pass
        except OffsetOutOfRangeError as error:
            raise OffsetGone(
                f"{self._cluster.topic('events')} must still hold what was not read yet, got {error}: retention took"
                " it; make it longer, and start again under a new [kafka] prefix"
            ) from None
        return {}

    async def assign(self, partitions: Iterable[int]) -> None:
        """Rebuild each partition's state and seek to the first event that its blocks do not cover."""
        async with self._lock:
            for partition in sorted(partitions):
                await self._own_or_try_later(partition)

    async def _own_or_try_later(self, partition: int) -> None:
        try:
            self._lost.pop(partition, None)
            await self._own(partition)
        except AWAY as error:
            self._lose(partition, error, RETRY_S)
        except Exception as error:  # aiokafka would only log it
            await self.crash(error)
            raise

    def _lose(self, partition: int, error: Exception, wait_s: float) -> None:
        log.warning("ledger: partition %d is given up for %g s: %s", partition, wait_s, error)
        self._lost[partition] = time.monotonic() + wait_s

    async def _own_lost(self) -> None:
        """Own partitions again that were given up and that the group still gives to this worker."""
        assigned = self._consumer.assignment()
        for partition in [p for p, retry_s in self._lost.items() if time.monotonic() >= retry_s]:
            if TopicPartition(self._cluster.topic("events"), partition) in assigned:
                await self._own_or_try_later(partition)
            else:
                del self._lost[partition]

    async def release(self, partitions: Iterable[int]) -> None:
        """Forget partitions that went to another owner."""
        async with self._lock:
            for partition in partitions:
                self._lost.pop(partition, None)
                await self._drop(partition)

    async def _own(self, partition: int) -> None:
        producer = new_fenced_producer(self._cluster, f"{self._cluster.prefix}.ledger-{partition}")
        await producer.start()  # fences the owner before: from here on nobody else adds to the output
        tp = TopicPartition(self._cluster.topic("events"), partition)
        try:
            ledger, next_offset = await self._resume(partition)
        except BaseException:
            await producer.stop()
            raise
        self._consumer.seek(tp, next_offset)
        self._n_seeks += 1
        self._owned[partition] = _Owned(ledger, producer, next_offset, time.monotonic(), self._n_seeks)
        log.info("ledger: partition %d from offset %d", partition, next_offset)

    async def _resume(self, partition: int) -> tuple[Ledger, int]:
        """Return the ledger as its last block left it, and the offset of the next event."""
        ledger = new_guarded_ledger(partition, self._settings, self._slides)
        topic, options = self._cluster.topic, self._cluster.options
        last = await read_last(topic("examples"), partition, options=options)
        try:
            if last is None:
                if (first := await self._first_offset("examples", partition)) > 0:
                    raise OffsetGone(f"examples[{partition}] must still hold its last block, got none before {first}")
                return ledger, await self._first_offset("events", partition)
            assert last.value is not None
            header = decode_header(last.value)
            ledger.rewind(header, await self._refused_since(partition, header))
            records = read_range(topic("events"), partition, header.resume_at, header.through + 1, options=options)
            async with aclosing(records):
                async for record in records:
                    append_s, value = record.timestamp_ms / 1000.0, record.value
                    ledger.step(record.offset, append_s, self._decode(append_s, value), len(value or b""))
            next_offset = header.through + 1
            if (first := await self._first_offset("events", partition)) > next_offset:
                raise OffsetGone(f"events[{partition}] must still hold offset {next_offset}, got {first} as its first")
        except OffsetGone as error:
            raise OffsetGone(
                f"the ledger of partition {partition} cannot resume: {error}. Retention took events or blocks that are"
                " still needed; keep both longer than 2 x (wait_s + grace_s), and start again under a new"
                " [kafka] prefix"
            ) from None
        ledger.seal(header)
        return ledger, next_offset

    async def _first_offset(self, topic: str, partition: int) -> int:
        tp = TopicPartition(self._cluster.topic(topic), partition)
        first: int = (await self._consumer.beginning_offsets([tp]))[tp]
        return first

    async def _refused_since(self, partition: int, header: Header) -> dict[int, str]:
        """Return the rule of each dead letter between `resume_at` and `through`, by the event's offset.

        The partition of `dead-letters` is read backwards in growing steps, until all have been found.
        """
        wanted = header.counts.dead_letters - header.resume_letters
        topic, options = self._cluster.topic("dead-letters"), self._cluster.options
        last = await read_last(topic, partition, options=options) if wanted else None
        first = await self._first_offset("dead-letters", partition) if wanted else 0
        end, n_offsets = last.offset + 1 if last else 0, 2 * wanted
        refused: dict[int, str] = {}
        while end > first and len(refused) < wanted:
            start = max(first, end - n_offsets)
            records = read_range(topic, partition, start, end, options=options)
            async with aclosing(records):
                async for record in records:
                    letter = decode_dead_letter(record.value)
                    is_own = letter.topic == self._cluster.topic("events")
                    if is_own and header.resume_at <= letter.offset <= header.through:
                        refused[letter.offset] = letter.rule
            end, n_offsets = start, n_offsets * 8
        if len(refused) < wanted:
            raise OffsetGone(f"{topic}[{partition}] must still hold {wanted} dead letters, got {len(refused)}")
        return refused

    async def _take(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        """Step through a batch of one partition and commit what it closed."""
        owned = self._owned[tp.partition]
        owned.heard_s = time.monotonic()
        closed: list[Closed] = []
        ledger, decode = owned.ledger, self._decode
        n_letters = ledger.counts.dead_letters
        for record in records:
            offset, value = record.offset, record.value
            if offset < owned.next_offset:
                continue
            append_s = record.timestamp / 1000.0
            closed += ledger.step(offset, append_s, decode(append_s, value), len(value or b""))
            if ledger.counts.dead_letters != n_letters:
                n_letters = ledger.counts.dead_letters
                owned.raw_letters[offset] = record
            owned.next_offset = offset + 1
        if closed:
            try:
                await self._commit(tp.partition, owned, closed)
            except AWAY as error:
                # What was written is in the log, what was not is derived again: whoever owns it next resumes there.
                await self._drop(tp.partition)
                is_fenced = isinstance(error, ProducerFenced)
                self._lose(tp.partition, error, 2 * SESSION_S if is_fenced else RETRY_S)

    async def _drop(self, partition: int) -> None:
        owned = self._owned.pop(partition, None)
        if owned is not None:
            with suppress(*AWAY):  # a broker that is away will not take the rest either
                await asyncio.wait_for(owned.producer.stop(), STOP_S_MAX)

    async def _commit(self, partition: int, owned: _Owned, closed: list[Closed]) -> None:
        producer, topic = owned.producer, self._cluster.topic
        async with producer.transaction():
            for block in closed:
                rows = encode_block(block.header, block.rows, self._schema)
                chains = encode_chains(block.header, block.chains, self._chain_schema)
                await producer.send(topic("examples"), rows, partition=partition)
                await producer.send(topic("chains"), chains, partition=partition)
                for letter in block.dead_letters:
                    raw = owned.raw_letters.pop(letter.offset)
                    await producer.send(
                        topic("dead-letters"), dead_letter_bytes(partition, letter, raw), partition=partition
                    )

    def _decode(self, append_s: float, value: bytes | None) -> Event | EventError:
        try:
            event = decode_event(value)
        except EventError as error:
            return error
        if event.time_s > append_s + self._ahead_s:
            return EventError("future", "time_s", event.time_s)
        return event

    async def _tick_silent(self) -> None:
        """Move the watermark of partitions that nothing comes to, so that their impressions settle."""
        now_s = time.monotonic()
        for partition, owned in self._owned.items():
            if now_s - owned.heard_s >= SILENCE_S:
                owned.heard_s = now_s
                tick = encode_event(Tick(time.time() - self._settings.kafka.max_delay_s))
                await self._ticks.send(self._cluster.topic("events"), tick, partition=partition)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    def __init__(self, service: LedgerService) -> None:
        self._service = service

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        await self._service.assign([tp.partition for tp in assigned])

    async def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:
        await self._service.release([tp.partition for tp in revoked])
