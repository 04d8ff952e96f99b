"""The bridge on Kafka: two topics of the user's own in, `events` and `dead-letters` out, exactly once.

Owns reading with pauses, the transactions with the offsets in them, and who is idle. Must not map or order records:
stream/bridge.py does.

Invariants: one transaction holds the events and dead letters of a batch, the ticks and the offsets read, so what is
committed is neither lost nor doubled whatever dies when; the transactional id `<prefix>.bridge` fences the bridge
before, because the order of records is decided in one place; memory is bounded by the records that wait.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from logging.config import dictConfig

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, ProducerFenced
from aiokafka.structs import ConsumerRecord
from prometheus_client import CollectorRegistry

from features.fields import id_field
from infra.metrics import BridgeMetrics
from infra.settings import BridgeClicks, BridgeImpressions, Settings, SettingsError
from stream.bridge import Bridged, FieldPath, Merger, Signer, Source, bridge_record, is_of_kind, parse_path
from stream.dead_letters import DeadLetterRecord, encode_dead_letter
from stream.events import Click, EventError, Impression, Tick, encode_event
from stream.kafka import TOPICS
from stream.outbox import Outbox
from stream.partitioner import request_partition
from stream.roles import LOGGING, Cluster, RoleError, find_cluster, log
from stream.transactions import fenced_producer
from stream.wiring import new_tokens

BATCH_RECORDS_MAX = 2000  # of one transaction at most; chosen by hand, near what the ledger takes at once
WAITING_MAX = 4000  # records of a partition that may wait before it is paused
POLL_MS = 100
TICK_S = 1.0  # wall time between ticks at least, live clock
PARTITIONS_S = 30.0  # how often new partitions are looked for
TOPIC_S = 4.0  # how long a topic that is not there is looked for
RAW_BYTES_MAX = 5_000_000  # of a record that a dead letter can hold as base64


def run_bridge_worker(settings: Settings, *, registry: CollectorRegistry | None = None) -> None:
    """Bridge a deployment's own topics until the process is told to stop.

    Args:
        settings: Of the deployment.
        registry: Where the metrics go.

    Raises:
        RoleError: If it cannot go on.
        ValueError: If the settings hold no bridge or the topics are not as they say.
    """
    sources = new_sources(settings)
    if not sources:
        raise SettingsError("[bridge] must say which topics are read, got none; see docs/bridge.md")
    dictConfig(LOGGING)
    asyncio.run(_run_until_told(Bridge(settings, find_cluster(settings), sources, registry)))


async def _run_until_told(bridge: Bridge) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await bridge.run(stop)


def new_sources(settings: Settings) -> dict[str, Source]:
    """Return how each of the bridge's topics is read; empty without a bridge.

    Raises:
        SettingsError: If a default is none of its field's kind.
    """
    bridge = settings.bridge
    if bridge is None:
        return {}
    return {
        bridge.impressions.topic: _new_source(bridge.impressions, settings),
        bridge.clicks.topic: _new_source(bridge.clicks, settings),
    }


def _new_source(read: BridgeClicks, settings: Settings) -> Source:
    is_click = not isinstance(read, BridgeImpressions)
    fields = {field.name: field for field in settings.fields}
    mapped = read.values if isinstance(read, BridgeImpressions) else {}
    values = [FieldPath(name, fields[name].side, fields[name].kind, parse_path(path)) for name, path in mapped.items()]
    propensity = read.propensity if isinstance(read, BridgeImpressions) else ""
    item = id_field(settings.fields, "item")
    for name, default in read.defaults.items():
        if name in fields and not is_of_kind(default, fields[name].kind):
            raise SettingsError(f"[bridge.impressions] defaults.{name} must be a {fields[name].kind}, got {default!r}")
    return Source(
        is_click=is_click,
        time=parse_path(read.time),
        key=tuple(parse_path(path) for path in read.keys),
        ad_id=parse_path(read.ad_id),
        time_unit=read.time_unit,
        position=parse_path(read.position) if read.position else None,
        propensity=parse_path(propensity) if propensity else None,
        values=tuple(values),
        ad_field=item.name if item is not None and item.name not in mapped and not is_click else "",
        defaults=read.defaults,
    )


def new_signer(settings: Settings) -> Signer | None:
    """Return what gives events their token, None where the ledger demands none: the user's own topics are trusted."""
    tokens = new_tokens(settings)
    if tokens is None:
        return None

    def sign(event: Impression | Click) -> str:
        propensity = event.propensity if isinstance(event, Impression) else 1.0
        return tokens.sign(event.request_id, event.ad_id, event.position, time_s=event.time_s, propensity=propensity)

    return sign


@dataclass(frozen=True)
class _Read:
    """A record that was read: where it stands and what it becomes, events or a dead letter."""

    offset: int
    bridged: Bridged | None
    letter: bytes = b""
    outcome: str = "written"  # or the rule of the dead letter


class Bridge:
    """The reader of both topics and the transactional producer."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        sources: Mapping[str, Source],
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Prepare; nothing connects before it runs."""
        assert settings.bridge is not None
        for topic in sources:
            if topic in {cluster.topic(name) for name in TOPICS}:
                raise SettingsError(f'[bridge] topic must be one of your own, got "{topic}", which freshrank writes')
        self._bridge = settings.bridge
        self._cluster = cluster
        self._sources = sources
        self._sign = new_signer(settings)
        self._group = f"{cluster.prefix}.bridge"
        self._is_live = settings.kafka.clock == "live"
        self._ahead_s = settings.kafka.max_ahead_s if self._is_live else float("inf")
        self._ticked_s = (-TICK_S, 0.0)  # of the last tick: wall clock and event time
        self._metrics = BridgeMetrics(registry or CollectorRegistry())
        self._labels = {topic: "clicks" if source.is_click else "impressions" for topic, source in sources.items()}

    async def run(self, stop: asyncio.Event) -> None:
        """Bridge until `stop` is set.

        Raises:
            RoleError: If another bridge has begun, retention took records that were not read, or Kafka fails.
        """
        try:
            async with fenced_producer(self._cluster, self._group) as producer:
                while not stop.is_set():
                    async with self._session(await self._partitions(producer)) as session:
                        await self._run_session(session, producer, stop)
        except ProducerFenced:
            raise RoleError(f"one bridge per deployment: another one of {self._group} has begun") from None
        except OffsetOutOfRangeError as error:
            raise RoleError(self._gone(error)) from None
        except KafkaError as error:
            raise RoleError(f"Kafka must take what the bridge sends, got {error!r}; start it again") from error

    async def _run_session(self, session: _Session, producer: AIOKafkaProducer, stop: asyncio.Event) -> None:
        """Read and write until `stop` is set or a topic has new partitions."""
        checked_s = time.monotonic()
        while not stop.is_set():
            for tp, records in (await session.poll()).items():
                for record in records:
                    session.add(tp, self._read(record))
            idle = await session.idle(self._bridge.idle_s)
            released = session.merger.release(idle, BATCH_RECORDS_MAX)
            if released:
                await self._commit(producer, session, released, session.merger.time_s(idle))
            session.pause()
            self._show(session, idle)
            if time.monotonic() - checked_s > PARTITIONS_S:
                checked_s = time.monotonic()
                if await self._partitions(producer) != session.tps:
                    log.info("bridge: a topic has other partitions than before")
                    return

    def _read(self, record: ConsumerRecord) -> _Read:
        source = self._sources[record.topic]
        latest_s = record.timestamp / 1000.0 + self._ahead_s
        try:
            return _Read(record.offset, bridge_record(record.value, source, self._sign, latest_s=latest_s))
        except EventError as error:
            is_whole = len(record.value or b"") <= RAW_BYTES_MAX
            letter = DeadLetterRecord(
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                rule=error.rule,
                field=error.field,
                value=error.value,
                key=record.key,
                record=record.value if is_whole else None,
                appended_s=record.timestamp / 1000.0,
            )
            return _Read(record.offset, None, encode_dead_letter(letter), error.rule)

    async def _commit(
        self,
        producer: AIOKafkaProducer,
        session: _Session,
        released: list[tuple[TopicPartition, _Read]],
        time_s: float,
    ) -> None:
        n_partitions, events = self._cluster.partitions, self._cluster.topic("events")
        letters, is_tick_due = self._cluster.topic("dead-letters"), self._is_tick_due(time_s)
        async with producer.transaction():
            outbox = Outbox(producer, events, n_partitions)
            for tp, read in released:
                if read.bridged is None:
                    await producer.send(letters, read.letter, partition=tp.partition % n_partitions)
                    continue
                request_id = read.bridged.request_id
                partition = request_partition(request_id, n_partitions)
                for value in read.bridged.values:
                    await outbox.put(partition, request_id.encode(), value)
            if is_tick_due:
                self._ticked_s = (time.monotonic(), time_s)
                await outbox.put_everywhere(encode_event(Tick(time_s)))
            await outbox.finish()
            session.offsets |= {tp: read.offset + 1 for tp, read in released}  # the last of each partition stays
            await producer.send_offsets_to_transaction(session.offsets, self._group)
        for (topic, outcome), records in Counter((tp.topic, read.outcome) for tp, read in released).items():
            self._metrics.records.labels(self._labels[topic], outcome).inc(records)
        self._metrics.events.inc(sum(len(read.bridged.values) for _, read in released if read.bridged))
        self._metrics.ticks.inc(is_tick_due)

    def _show(self, session: _Session, idle: set[TopicPartition]) -> None:
        """Export where both topics stand."""
        for topic, label in self._labels.items():
            tps = [tp for tp in session.tps if tp.topic == topic]
            read_s = session.merger.read_s(tps, idle)
            if read_s > float("-inf"):
                self._metrics.watermark_s.labels(label).set(read_s)
            self._metrics.ahead_s.labels(label).set(session.merger.ahead_s(tps, idle))
            self._metrics.paused.labels(label).set(session.n_paused(topic))

    def _is_tick_due(self, time_s: float) -> bool:
        wall_s, last_s = self._ticked_s
        return time_s > max(last_s, 0.0) and (not self._is_live or time.monotonic() - wall_s >= TICK_S)

    @asynccontextmanager
    async def _session(self, tps: list[TopicPartition]) -> AsyncGenerator[_Session, None]:
        consumer = AIOKafkaConsumer(
            **self._cluster.options,
            group_id=self._group,
            isolation_level="read_committed",
            auto_offset_reset="none",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            starts = await self._starts(consumer, tps)
            consumer.assign(tps)
            for tp, offset in starts.items():
                consumer.seek(tp, offset)
            log.info("bridge: reads %s", ", ".join(f"{tp.topic}[{tp.partition}] from {o}" for tp, o in starts.items()))
            yield _Session(consumer, starts, self._bridge.align_s)
        finally:
            await consumer.stop()

    async def _partitions(self, producer: AIOKafkaProducer) -> list[TopicPartition]:
        """Return the partitions of both topics, those of the impressions first."""
        tps: list[TopicPartition] = []
        deadline_s = time.monotonic() + TOPIC_S
        for topic in self._sources:
            found = (await producer.client.fetch_all_metadata()).partitions_for_topic(topic)
            while found is None:  # a broker may not have heard of a topic that was made just now
                if time.monotonic() > deadline_s:
                    raise SettingsError(f"[bridge] topic {topic} must exist, got none of that name; make it first")
                await asyncio.sleep(0.2)
                found = (await producer.client.fetch_all_metadata()).partitions_for_topic(topic)
            tps += [TopicPartition(topic, partition) for partition in sorted(found)]
        return tps

    async def _starts(self, consumer: AIOKafkaConsumer, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where each partition is read from: behind what was committed, else its beginning."""
        first = await consumer.beginning_offsets(tps)
        starts = {}
        for tp in tps:
            committed = await consumer.committed(tp)
            if committed is not None and committed < first[tp]:
                raise RoleError(self._gone(f"{tp.topic}[{tp.partition}] begins at {first[tp]}, {committed} was next"))
            starts[tp] = first[tp] if committed is None else committed
        return starts

    def _gone(self, got: object) -> str:
        return (
            f"the bridge must find what it has not read yet, got {got}: retention was shorter than it was away, or the"
            f" topic was made anew; set the offsets of the group {self._group} to where it may go on"
        )


class _Session:
    """One consumer with the records that wait in it.

    Attributes:
        tps: The partitions that are read.
        offsets: From where each goes on. All are committed with every transaction, because brokers forget what was
            committed for a partition too long ago, and what is forgotten would be read again.
    """

    def __init__(self, consumer: AIOKafkaConsumer, starts: dict[TopicPartition, int], align_s: float) -> None:
        tps = list(starts)
        self.merger: Merger[TopicPartition, _Read] = Merger(tps, align_s)
        self._consumer = consumer
        self.tps = tps
        self.offsets = dict(starts)
        self._open = list(tps)  # not paused
        self._heard_s = dict.fromkeys(tps, time.time())

    async def poll(self) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Return what came for partitions that are not paused."""
        if not self._open:
            return {}
        batches: dict[TopicPartition, list[ConsumerRecord]] = await self._consumer.getmany(
            *self._open, timeout_ms=POLL_MS, max_records=BATCH_RECORDS_MAX
        )
        for tp in batches:
            self._heard_s[tp] = time.time()
        return batches

    def add(self, tp: TopicPartition, read: _Read) -> None:
        """Let a record wait for its turn."""
        self.merger.add(tp, read.bridged.time_s if read.bridged else None, read)

    async def idle(self, idle_s: float) -> set[TopicPartition]:
        """Return the partitions at whose end the broker has confirmed, `idle_s` after the last record, that it is so.

        Where a transaction is open that is not the end, and a broker that does not answer confirms nothing.
        """
        idle = set()
        for tp in self.tps:
            confirmed_ms = self._consumer.last_poll_timestamp(tp)
            if self.merger.waiting(tp) or confirmed_ms is None or confirmed_ms / 1000.0 - self._heard_s[tp] < idle_s:
                continue
            if await self._consumer.position(tp) >= self._consumer.highwater(tp):
                idle.add(tp)
        return idle

    def n_paused(self, topic: str) -> int:
        """Return how many partitions of a topic are not fetched now."""
        return sum(tp.topic == topic and tp not in self._open for tp in self.tps)

    def pause(self) -> None:
        """Stop fetching for partitions of which enough waits, and go on with those that have room again."""
        full = [tp for tp in self._open if self.merger.waiting(tp) >= WAITING_MAX]
        room = [tp for tp in self.tps if tp not in self._open and self.merger.waiting(tp) <= WAITING_MAX // 2]
        if full or room:
            self._consumer.pause(*full)
            self._consumer.resume(*room)
            self._open = [tp for tp in self.tps if tp in room or (tp in self._open and tp not in full)]
