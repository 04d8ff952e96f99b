"""Replay: a log into Kafka, as fast as it goes or at a multiple of its own pace.

Owns the way of a log's events to their partitions and of its ads to the catalog. Must not know how rows are read or
what the ledger makes of them.

Invariants: each partition gets its events in order of arrival, each once (idempotent producer); which partition is
decided by the request_id alone; every partition gets every tick; memory is bounded by two batches a partition.
A replay that is interrupted leaves a log that ends early, never one with a hole.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from features.fields import Field, id_field, raw_fields
from infra.settings import Settings
from models.serving.catalog import ADS_MAX, CREATIVES_MAX, CatalogAd, CatalogCreative
from stream.events import Candidate, Click, Event, Impression, Request, Tick, Value
from stream.kafka import topic_name
from stream.logs.ads import JoinedAds, read_ads
from stream.logs.arrivals import Arrival
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.outbox import BATCH_BYTES, Outbox
from stream.wiring import new_tokens

BROKER_S_MAX = 120.0  # how long a broker may be gone before the replay gives up
STOP_S_MAX = 10.0
TURN_EVENTS = 2000  # how often other tasks get their turn, about every 20 ms
PROGRESS_S = 0.25
KEYS_MAX = 65_536  # requests whose partition is remembered until their clicks come


class ReplayCounts(msgspec.Struct):
    """What a replay has sent so far.

    Attributes:
        ticks: Boundaries and the end; each went to every partition.
        records: Records on `events`.
        ads: Records on `catalog`.
        event_time_s: Of the event sent last, ticks aside.
        seconds: Since the replay began.
        rows: What became of the rows of the log.
    """

    requests: int = 0
    impressions: int = 0
    clicks: int = 0
    ticks: int = 0
    records: int = 0
    ads: int = 0
    event_time_s: float = 0.0
    seconds: float = 0.0
    rows: RowCounts = msgspec.field(default_factory=RowCounts)


async def replay(
    settings: Settings,
    bases: Sequence[Path],
    options: Mapping[str, Any],
    *,
    speed: float | None = None,
    limit: int | None = None,
    append: bool = False,
    on_progress: Callable[[ReplayCounts], None] | None = None,
) -> ReplayCounts:
    """Send a deployment's log to its topics `events` and `catalog` and return when Kafka has all of it.

    Args:
        settings: With a [log] section.
        bases: Where the log's files are looked for.
        options: How aiokafka's clients reach the cluster.
        speed: Seconds of event time a second; None: as fast as it goes.
        limit: Stop after this many rows.
        append: Send although there are events of this prefix already.
        on_progress: Called a few times a second, and at the end.

    Raises:
        ValueError: If there are events already, the topic is not as the settings say, or `speed` is not positive.
        LogError: If the log cannot be read or used.
        RuntimeError: If the broker takes no more events.
    """
    pace = Pace(speed)
    topic, n_partitions = topic_name(settings.prefix, "events"), settings.kafka.partitions
    counts = ReplayCounts()
    arrivals, tokens = read_arrivals(settings, bases, counts.rows, limit=limit), new_tokens(settings)
    producer = AIOKafkaProducer(
        **options, enable_idempotence=True, max_batch_size=BATCH_BYTES, request_timeout_ms=int(BROKER_S_MAX * 1000)
    )
    await producer.start()
    try:
        await _check_topic(topic, n_partitions, producer, options, append=append)
        ads = Catalog(
            Outbox(producer, topic_name(settings.prefix, "catalog"), 1), settings.fields, _joined(settings, bases)
        )
        await ads.publish_joined()
        if tokens is not None:
            arrivals = ((name, tokens.signed(event)) for name, event in arrivals)
        await _Replay(Outbox(producer, topic, n_partitions), ads, counts, on_progress).send(arrivals, pace)
    except KafkaError as error:
        raise RuntimeError(
            f"{topic} must take events, got from the broker: {error}; replay under a new prefix"
        ) from error
    finally:
        with contextlib.suppress(TimeoutError):  # a broker that is gone will not take the rest either
            await asyncio.wait_for(producer.stop(), STOP_S_MAX)
    return counts


def _joined(settings: Settings, bases: Sequence[Path]) -> JoinedAds:
    assert settings.log is not None, "read_arrivals asks for it"
    return read_ads(settings.log, settings.fields, bases)


async def _check_topic(
    topic: str, n_partitions: int, producer: AIOKafkaProducer, options: Mapping[str, Any], *, append: bool
) -> None:
    consumer = AIOKafkaConsumer(**options)
    await consumer.start()
    try:
        if topic not in await consumer.topics():
            raise ValueError(f"topic {topic} must exist, got none of that name; run `freshrank topics create`")
        found = await producer.partitions_for(topic)
        if len(found) != n_partitions:
            raise ValueError(
                f"[kafka] partitions must be what {topic} has, {len(found)}, got {n_partitions}; set it back"
            )
        ends = await consumer.end_offsets([TopicPartition(topic, partition) for partition in found])
    finally:
        await consumer.stop()
    if any(ends.values()) and not append:
        raise ValueError(
            f"{topic} must be empty, got {sum(ends.values())} events: the ledger would count a second replay as"
            " duplicates; choose another [kafka] prefix, or append on purpose"
        )


class _Replay:
    """One run over the events."""

    def __init__(
        self,
        events: Outbox,
        ads: Catalog,
        counts: ReplayCounts,
        on_progress: Callable[[ReplayCounts], None] | None,
    ) -> None:
        self._events = events
        self._ads = ads
        self._counts = counts
        self._on_progress = on_progress
        self._kinds: dict[type[Event], int] = {Request: 0, Impression: 0, Click: 0, Tick: 0}
        self._started_s = self._told_s = time.monotonic()

    async def send(self, arrivals: Iterable[Arrival], pace: Pace) -> None:
        """Send all events and return when Kafka has them; the hot loop of the replay."""
        outbox, kinds, encode = self._events, self._kinds, msgspec.json.Encoder().encode
        place = lru_cache(KEYS_MAX)(outbox.place)
        for number, (request_id, event) in enumerate(arrivals):
            if event.time_s > pace.until_s:
                await self._keep(pace, event.time_s)
            if number % TURN_EVENTS == 0:
                await self._take_turns()
            kinds[event.__class__] += 1
            if request_id is None:
                await outbox.put_everywhere(encode(event))
                continue
            self._counts.event_time_s = event.time_s
            partition, key = place(request_id)
            if not outbox.put_now(partition, key, value := encode(event)):
                await outbox.put(partition, key, value)
            if isinstance(event, Request):
                await self._ads.publish_new(event)
        await outbox.finish()
        await self._ads.outbox.finish()
        self._tell()

    async def _keep(self, pace: Pace, time_s: float) -> None:
        wait_s = pace.wait_s(time_s, time.monotonic())
        if wait_s > 0.0:
            await self._events.flush()
            await self._ads.outbox.flush()
            await asyncio.sleep(wait_s)

    async def _take_turns(self) -> None:
        await asyncio.sleep(0.0)
        if time.monotonic() - self._told_s >= PROGRESS_S:
            self._tell()

    def _tell(self) -> None:
        counts, kinds = self._counts, self._kinds
        counts.requests, counts.impressions = kinds[Request], kinds[Impression]
        counts.clicks, counts.ticks = kinds[Click], kinds[Tick]
        counts.ads = self._ads.n_published
        counts.records = sum(kinds.values()) + kinds[Tick] * (self._events.n_partitions - 1)
        self._told_s = time.monotonic()
        counts.seconds = self._told_s - self._started_s
        if self._on_progress is not None:
            self._on_progress(counts)


class Pace:
    """When an event may leave: event time runs `speed` times as fast as the wall clock, from the first event on."""

    def __init__(self, speed: float | None) -> None:
        """Set the pace; None: everything may leave at once.

        Raises:
            ValueError: If the speed is not positive.
        """
        if speed is not None and not 0.0 < speed < math.inf:
            raise ValueError(f"speed must be > 0 seconds of event time a second, got {speed}")
        self._speed = speed
        self._start: tuple[float, float] | None = None  # of the first event: its time and the clock
        self.until_s = math.inf if speed is None else -math.inf  # events up to this time need not ask

    def wait_s(self, time_s: float, now_s: float) -> float:
        """Return how long an event has to wait, seconds, <= 0 if not at all."""
        if self._speed is None:
            return 0.0
        if self._start is None:
            self._start = (time_s, now_s)
        start_s, started_s = self._start
        self.until_s = max(time_s, start_s + (now_s - started_s) * self._speed)
        return started_s + (time_s - start_s) / self._speed - now_s


class Catalog:
    """The ads of a log: those of its joined files before its first event, others when they are first shown.

    Each is published with the values it was first shown with, and again with each creative that it is first shown with.
    """

    def __init__(self, outbox: Outbox, fields: Sequence[Field], joined: JoinedAds) -> None:
        """Begin with no ad published."""
        self.outbox = outbox
        self.n_published = 0
        creative = id_field(fields, "creative")
        self._creative_name = creative.name if creative else ""
        self._of_creatives = {field.name for field in raw_fields(fields) if field.side == "creative"}
        self._joined = joined
        self._known: set[tuple[str, Value]] = set()  # ads with a creative that are published
        self._growing: dict[str, CatalogAd] = {}  # ads with creatives, as published last
        self._encode = msgspec.json.Encoder().encode

    async def publish_joined(self) -> None:
        """Publish the ads of the joined files; where those say all of an ad, it is not published again."""
        for ad in self._joined.ads.values():
            await self._publish(ad)
            if self._joined.is_complete:
                self._known.update((ad.ad_id, one.creative_id) for one in ad.creatives)
                self._known.add((ad.ad_id, None))

    async def publish_new(self, request: Request) -> None:
        """Publish what is new of the ads of a request."""
        for shown in request.candidates:
            key = shown.ad_id, shown.values.get(self._creative_name)
            if key in self._known:
                continue
            if len(self._known) >= ADS_MAX:  # what is published again changes nothing
                self._known.clear()
                self._growing.clear()
            self._known.add(key)
            await self._publish(self._record(shown))

    async def _publish(self, ad: CatalogAd) -> None:
        await self.outbox.put(0, ad.ad_id.encode(), self._encode(ad))
        self.n_published += 1

    def _record(self, shown: Candidate) -> CatalogAd:
        """Return what is known of an ad, what it was shown with now included."""
        known = self._growing.get(shown.ad_id) or self._joined.ads.get(shown.ad_id)
        known = known or CatalogAd(shown.ad_id)
        own = {name: value for name, value in shown.values.items() if name not in self._of_creatives}
        ad = msgspec.structs.replace(known, values=known.values | own)
        creative_id = shown.values.get(self._creative_name)
        if not isinstance(creative_id, str) or len(known.creatives) >= CREATIVES_MAX:
            return ad
        values = {name: value for name, value in shown.values.items() if name in self._of_creatives}
        others = [one for one in known.creatives if one.creative_id != creative_id]
        ad = msgspec.structs.replace(ad, creatives=[*others, CatalogCreative(creative_id, values)])
        self._growing[shown.ad_id] = ad
        return ad
