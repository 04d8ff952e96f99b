"""Events that the service writes: into Kafka, each under its request's id.

Owns the way of one event from the service's own types to an acknowledged record. Must not know HTTP or scoring.

Invariants: `publish` returns when Kafka has the event and refuses within `PUBLISH_WAIT_S` when it has not; what the
service accepts from outside is a valid event of the log; how many events wait has a limit.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn, cast

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from infra.metrics import ServeMetrics
from models.serving.pipeline import Unavailable
from models.serving.schema import Ad, Click, ClientEvent, Impression, Rejected, Served
from stream import events
from stream.partitioner import murmur2_partition

RANKED, MATCHED = "rank_neg", "prerank_neg"  # stages of what was not shown, as RecFlow calls them
PUBLISH_WAIT_S = 3.0  # chosen by hand: longer than a broker's change of leaders, shorter than a caller's patience
IN_FLIGHT_MAX = 20_000  # chosen by hand: twenty full bodies of events; what comes while they wait is refused at once


class EventWriter:
    """Writes events to Kafka, each under its request's id; a `Publish` of the pipeline."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int, metrics: ServeMetrics) -> None:
        """Keep a started producer."""
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._metrics = metrics
        self._in_flight = 0

    async def publish(self, event: Served | ClientEvent) -> None:
        """Return once Kafka has the event.

        Raises:
            Rejected: If it is larger than an event may be.
            Unavailable: If Kafka does not have it within `PUBLISH_WAIT_S`; it may still get it later, which the
                ledger counts as a duplicate when the caller sends it again.
        """
        record = to_event(event)
        kind = type(record).__name__.lower()
        try:
            await self._write(record)
        except Rejected:
            self._metrics.events.labels(kind, "refused").inc()
            raise
        except Unavailable:
            self._metrics.events.labels(kind, "unavailable").inc()
            raise
        self._metrics.events.labels(kind, "written").inc()

    async def _write(self, event: events.Request | events.Impression | events.Click) -> None:
        value = events.encode_event(event)
        if len(value) > events.EVENT_BYTES_MAX:
            _refuse_size(len(value))
        if self._in_flight >= IN_FLIGHT_MAX:
            raise Unavailable("log", f"{IN_FLIGHT_MAX} events wait for it already")
        self._in_flight += 1
        try:
            await self._send(event.request_id.encode(), value)
        finally:
            self._in_flight -= 1

    async def _send(self, key: bytes, value: bytes) -> None:
        partition = murmur2_partition(key, self._partitions)
        try:
            async with asyncio.timeout(PUBLISH_WAIT_S):
                written = await self._producer.send(self._topic, value, key=key, partition=partition)
                await asyncio.shield(written)  # the producer goes on trying; cancelling it would lose its order
        except MessageSizeTooLargeError:
            _refuse_size(len(value))
        except TimeoutError:
            raise Unavailable("log", f"Kafka has not taken the event within {PUBLISH_WAIT_S:g} s") from None
        except KafkaError as error:
            raise Unavailable("log", f"Kafka refused the event: {error}") from None


def to_event(event: Served | ClientEvent) -> events.Request | events.Impression | events.Click:
    """Return what was served or sent as an event of the log."""
    if isinstance(event, Served):
        pctrs = event.pctrs or [None] * len(event.ads)
        candidates = [_shown(ad, pctr) for ad, pctr in zip(event.ads, pctrs, strict=True)]
        candidates += _others(event.ranked, RANKED, 1.0)
        candidates += _others(event.sampled, MATCHED, event.sample_rate)
        values = cast(dict[str, events.Value], event.values)
        served = (event.snapshot, event.split, event.arm, event.counts_s)
        return events.Request(event.request_id, event.time_s, candidates, values, *served)
    assert event.time_s is not None, "the reader of bodies fills in the time"
    ids = (event.request_id, event.ad_id, event.position, event.time_s)
    if isinstance(event, Impression):
        return events.Impression(*ids, propensity=event.propensity, token=event.token)
    assert isinstance(event, Click)
    return events.Click(*ids, token=event.token)


def _shown(ad: Ad, pctr: float | None) -> events.Candidate:
    return events.Candidate(ad.ad_id, cast(dict[str, events.Value], ad.values), pctr=pctr)


def _others(ads: list[bytes], stage: str, sample_rate: float) -> list[events.Candidate]:
    """Return what was not shown as candidates: they are JSON already, and are written as they are."""
    became = {"stage": stage} | ({"sample_rate": sample_rate} if sample_rate < 1.0 else {})
    end = b"," + msgspec.json.encode(became)[1:]
    return cast(list[events.Candidate], [msgspec.Raw(ad + end) for ad in ads])


def _refuse_size(size: int) -> NoReturn:
    rule = f"must fit into an event of {events.EVENT_BYTES_MAX} bytes; ask for fewer ads or shorter values"
    raise Rejected("values", rule, f"{size} bytes", is_too_large=True)
