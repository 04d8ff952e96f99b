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
import base64
import gc
import time
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

import faust
import mode
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.structs import ConsumerRecord

from infra.settings import Settings
from stream.blocks import Header, decode_block, decode_header, encode_block, row_schema
from stream.events import Event, EventError, Tick, decode_event, encode_event
from stream.kafka import BLOCK_BYTES_MAX, OffsetGone, read_last, read_range
from stream.ledger import Closed, DeadLetter, Ledger
from stream.partitioner import request_partition
from stream.roles import SESSION_S, Cluster, delivered, find_cluster, log, make_app, run_app
from stream.wiring import new_ledger, new_slides

BATCH_RECORDS_MAX = 4000  # records of one transaction at most; larger ones gain little (measured: 1,000 → 4,000 +20 %)
SILENCE_S = 1.0  # live clock: a partition without an event for this long gets a tick
TRANSACTION_TIMEOUT_MS = 10_000


def run_ledger_worker(settings: Settings) -> None:
    """Run the ledger of a deployment until the process is told to stop."""
    cluster = find_cluster(settings)
    gc.set_threshold(50_000, 20, 100)  # pending records are many, small and free of cycles; by default each costs scans
    app = make_app(cluster, "ledger-control")

    @app.agent(app.topic(cluster.topic("commands")))
    async def follow_commands(stream: faust.StreamT[bytes]) -> None:
        async for _, record in delivered(stream):
            log.info("command: %r", record.value)

    run_app(app, LedgerService(settings, cluster))


@dataclass
class _Owned:
    """A partition that this worker owns."""

    ledger: Ledger
    producer: AIOKafkaProducer
    next_offset: int
    heard_s: float  # wall clock, for ticks only
    sought: int = -1  # the offset that was sought again after a gap
    raw_letters: dict[int, ConsumerRecord] = field(default_factory=dict)  # by offset, until their block closes


class LedgerService(mode.Service):
    """The ledger's own consumer and one transactional producer per partition."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        """Prepare; nothing connects before the service starts."""
        super().__init__()
        self._settings = settings
        self._cluster = cluster
        self._slides = new_slides(settings)
        self._schema = row_schema(settings.fields)
        self._owned: dict[int, _Owned] = {}
        self._clients: list[AIOKafkaConsumer | AIOKafkaProducer] = []
        self._lock = asyncio.Lock()
        self._is_live = settings.kafka.clock == "live"
        self._ahead_s = settings.kafka.max_ahead_s if self._is_live else float("inf")

    async def on_start(self) -> None:
        """Join the group; partitions come through the listener."""
        self._consumer = AIOKafkaConsumer(
            **self._cluster.options,
            group_id=f"{self._cluster.prefix}.ledger",
            isolation_level="read_committed",
            auto_offset_reset="earliest",  # the fetcher may begin before our seek; `_take` sorts that out
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
        for client in self._clients:
            await client.stop()
        await self.release(list(self._owned))

    @mode.Service.task
    async def _run(self) -> None:
        while not self.should_stop:
            batches = await self._consumer.getmany(timeout_ms=200)
            async with self._lock:
                for tp, records in batches.items():
                    if tp.partition in self._owned:
                        await self._take(tp, records)
                if self._is_live:
                    await self._tick_silent()

    async def assign(self, partitions: Iterable[int]) -> None:
        """Rebuild each partition's state and seek to the first event that its blocks do not cover."""
        async with self._lock:
            for partition in sorted(partitions):
                try:
                    await self._own(partition)
                except Exception as error:  # aiokafka would only log it
                    await self.crash(error)
                    raise

    async def release(self, partitions: Iterable[int]) -> None:
        """Forget partitions that went to another owner."""
        async with self._lock:
            for partition in partitions:
                owned = self._owned.pop(partition, None)
                if owned is not None:
                    await owned.producer.stop()

    async def _own(self, partition: int) -> None:
        producer = AIOKafkaProducer(
            **self._cluster.options,
            transactional_id=f"{self._cluster.prefix}.ledger-{partition}",
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_request_size=BLOCK_BYTES_MAX,
            linger_ms=0,
        )
        await producer.start()  # fences the owner before: from here on nobody else adds to the output
        tp = TopicPartition(self._cluster.topic("events"), partition)
        try:
            ledger, next_offset = await self._resume(partition)
            if next_offset == 0:
                next_offset = (await self._consumer.beginning_offsets([tp]))[tp]
        except BaseException:
            await producer.stop()
            raise
        self._consumer.seek(tp, next_offset)
        self._owned[partition] = _Owned(ledger, producer, next_offset, time.monotonic())
        log.info("ledger: partition %d from offset %d", partition, next_offset)

    async def _resume(self, partition: int) -> tuple[Ledger, int]:
        """Return the ledger as its last block left it, and the offset of the next event."""
        ledger = new_ledger(partition, self._settings, self._slides)
        examples, options = self._cluster.topic("examples"), self._cluster.options
        last = await read_last(examples, partition, options=options)
        if last is None:
            return ledger, 0
        assert last.value is not None
        header = decode_header(last.value)
        try:
            settled = await self._settled_since(examples, partition, last.offset, header)
            ledger.rewind(header, settled)
            events = self._cluster.topic("events")
            records = read_range(events, partition, header.resume_at, header.through + 1, options=options)
            async with aclosing(records):
                async for record in records:
                    append_s = record.timestamp_ms / 1000.0
                    ledger.step(record.offset, append_s, self._decode(partition, append_s, record.value))
        except OffsetGone as error:
            raise OffsetGone(
                f"the ledger of partition {partition} cannot resume: {error}. Retention took events or blocks that are"
                " still needed; keep both longer than 2 x (wait_s + grace_s), and start again under a new"
                " [kafka] prefix"
            ) from None
        ledger.seal(header)
        return ledger, header.through + 1

    async def _settled_since(
        self, topic: str, partition: int, last_offset: int, header: Header
    ) -> list[tuple[str, int, float, int]]:
        """Return (request_id, position, until_s, click) of the rows that a resume has to know, oldest block first.

        Blocks are read backwards in growing steps until one lies before everything that is still known.
        """
        end, n_offsets = last_offset + 1, 8
        settled: list[tuple[str, int, float, int]] = []
        while end > 0:
            start = max(0, end - n_offsets)
            is_enough = False
            older: list[tuple[str, int, float, int]] = []
            records = read_range(topic, partition, start, end, options=self._cluster.options)
            async with aclosing(records):
                async for record in records:
                    assert record.value is not None
                    block, frame = decode_block(record.value)
                    if block.watermark_s + block.rules.grace_s <= header.resume_watermark_s:
                        is_enough, older = True, []
                        continue
                    ids = frame.select("request_id", "position", "settled_s", "click").iter_rows()
                    older += [(name, place, s + block.rules.grace_s, click) for name, place, s, click in ids]
            settled = older + settled
            if is_enough:
                break
            end, n_offsets = start, n_offsets * 8
        return settled

    async def _take(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        """Step through a batch of one partition and commit what it closed."""
        owned = self._owned[tp.partition]
        if records[0].offset > owned.next_offset and not await self._is_gap_true(tp, owned):
            return
        owned.heard_s = time.monotonic()
        closed: list[Closed] = []
        ledger = owned.ledger
        for record in records:
            if record.offset < owned.next_offset:
                continue
            append_s = record.timestamp / 1000.0
            event = self._decode(tp.partition, append_s, record.value)
            n_letters = ledger.counts.dead_letters
            closed += ledger.step(record.offset, append_s, event)
            if ledger.counts.dead_letters > n_letters:
                owned.raw_letters[record.offset] = record
            owned.next_offset = record.offset + 1
        if closed:
            await self._commit(tp.partition, owned, closed)

    async def _is_gap_true(self, tp: TopicPartition, owned: _Owned) -> bool:
        """Tell whether offsets are missing in the log itself (markers of transactions); else seek to them again."""
        first = (await self._consumer.beginning_offsets([tp]))[tp]
        if first > owned.next_offset:
            raise OffsetGone(
                f"{tp.topic}[{tp.partition}] must still hold offset {owned.next_offset}, got {first} as its first:"
                " retention took events that were not read; make it longer, and start again under a new [kafka] prefix"
            )
        if owned.sought == owned.next_offset:
            return True
        owned.sought = owned.next_offset
        self._consumer.seek(tp, owned.next_offset)
        return False

    async def _commit(self, partition: int, owned: _Owned, closed: list[Closed]) -> None:
        producer, topic = owned.producer, self._cluster.topic
        async with producer.transaction():
            for block in closed:
                value = encode_block(block.header, block.columns, self._schema)
                await producer.send(topic("examples"), value, partition=partition)
                for letter in block.dead_letters:
                    raw = owned.raw_letters.pop(letter.offset)
                    await producer.send(
                        topic("dead-letters"), dead_letter_bytes(partition, letter, raw), partition=partition
                    )

    def _decode(self, partition: int, append_s: float, value: bytes | None) -> Event | EventError:
        try:
            event = decode_event(value)
            if event.time_s > append_s + self._ahead_s:
                raise EventError("future", "time_s", event.time_s)
            if (
                not isinstance(event, Tick)
                and request_partition(event.request_id, self._cluster.partitions) != partition
            ):
                raise EventError("wrong_partition", "request_id", event.request_id)
        except EventError as error:
            return error
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


def dead_letter_bytes(partition: int, letter: DeadLetter, raw: ConsumerRecord) -> bytes:
    """Return the JSON of a dead letter: where it stood, what it broke, and the raw record (base64)."""
    return msgspec.json.encode(
        {
            "v": 1,
            "topic": raw.topic,
            "partition": partition,
            "offset": letter.offset,
            "rule": letter.rule,
            "field": letter.field,
            "value": letter.value,
            "key": base64.b64encode(raw.key or b"").decode(),
            "record": base64.b64encode(raw.value or b"").decode(),
        }
    )
