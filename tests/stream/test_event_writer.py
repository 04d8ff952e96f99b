"""Events of the service become events of the log, or the caller hears within seconds that they have not."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaConnectionError
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from infra.metrics import ServeMetrics
from models.serving.bodies import read_events
from models.serving.pipeline import Unavailable
from models.serving.schema import Ad, Click, Impression, Rejected, Served
from stream import event_writer, events
from stream.event_writer import EventWriter, to_event
from stream.partitioner import murmur2_partition

CLICK = Click("r1", "a1", 3, 7.5)
SERVED = Served("r1", 7.0, {"user": "u1", "age": 30.0}, [Ad("a1", {"ad": "a1", "tags": ["x"]})], "ctr-000001-abc")


class Producer:
    """Stands in for Kafka's: takes records, fails, or never answers."""

    def __init__(self, failure: BaseException | None = None, *, is_hanging: bool = False) -> None:
        self.records: list[tuple[str, bytes, bytes, int]] = []
        self._failure = failure
        self._is_hanging = is_hanging

    async def send(self, topic: str, value: bytes, *, key: bytes, partition: int) -> asyncio.Future[None]:
        self.records.append((topic, value, key, partition))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            written.set_exception(self._failure)
        elif not self._is_hanging:
            written.set_result(None)
        return written


def writer(producer: Producer) -> tuple[EventWriter, ServeMetrics]:
    metrics = ServeMetrics(CollectorRegistry())
    return EventWriter(producer, "x.events", 4, metrics), metrics


def count(metrics: ServeMetrics, kind: str, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("freshrank_served_events_total", {"type": kind, "outcome": outcome})


def test_what_was_served_becomes_the_request_of_the_log() -> None:
    assert to_event(SERVED) == events.Request(
        "r1",
        7.0,
        [events.Candidate("a1", {"ad": "a1", "tags": ["x"]})],
        {"user": "u1", "age": 30.0},
        "ctr-000001-abc",
    )


def test_the_arm_that_answered_is_in_the_request_of_the_log() -> None:
    event = to_event(msgspec.structs.replace(SERVED, split="fresh", arm="latest"))
    assert isinstance(event, events.Request)
    assert (event.split, event.arm, event.snapshot) == ("fresh", "latest", "ctr-000001-abc")
    assert b"arm" not in events.encode_event(to_event(SERVED))


def test_the_request_of_the_log_says_what_was_served_and_on_which_counts() -> None:
    both = [*SERVED.ads, Ad("a2", {"ad": "a2"})]
    others = [b'{"ad_id":"a3","values":{}']
    served = msgspec.structs.replace(SERVED, ads=both, ranked=others, pctrs=[0.25, None], counts_s=6.5)
    event = events.decode_event(events.encode_event(to_event(served)))
    assert isinstance(event, events.Request)
    assert [one.pctr for one in event.candidates] == [0.25, None, None]
    assert event.counts_s == 6.5
    written = events.encode_event(to_event(SERVED))
    assert b"pctr" not in written
    assert b"counts_s" not in written


def test_impressions_and_clicks_keep_their_ids_time_and_propensity() -> None:
    assert to_event(Impression("r1", "a1", 3, 7.5, 0.25)) == events.Impression("r1", "a1", 3, 7.5, 0.25)
    assert to_event(CLICK) == events.Click("r1", "a1", 3, 7.5)


@given(
    ids=st.tuples(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300)),
    position=st.integers(-2, 2_000_000),
    time_s=st.none() | st.floats(-10.0, 2e9),
    propensity=st.floats(-0.5, 1.5),
)
def test_what_the_service_accepts_is_a_valid_event_of_the_log(
    ids: tuple[str, str], position: int, time_s: float | None, propensity: float
) -> None:
    body = {"type": "impression", "request_id": ids[0], "ad_id": ids[1], "position": position, "time_s": time_s}
    raw = events._encoder.encode({**body, "propensity": propensity})
    try:
        (event,) = read_events(raw, events_max=1, now_s=1e9, ahead_max_s=60.0)
    except Rejected:
        return
    assert isinstance(event, Impression)
    written = to_event(event)
    assert events.decode_event(events.encode_event(written)) == written


async def test_an_event_goes_to_the_partition_of_its_request() -> None:
    producer = Producer()
    write, metrics = writer(producer)
    for request_id in ("r1", "r2", "r3", "r4"):
        await write.publish(Click(request_id, "a1", 3, 7.5))
    assert [record[3] for record in producer.records] == [murmur2_partition(f"r{i}".encode(), 4) for i in range(1, 5)]
    assert len({record[3] for record in producer.records}) > 1
    assert producer.records[0][:3] == ("x.events", events.encode_event(events.Click("r1", "a1", 3, 7.5)), b"r1")
    assert count(metrics, "click", "written") == 4.0


async def test_a_kafka_that_does_not_answer_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_writer, "PUBLISH_WAIT_S", 0.01)
    write, metrics = writer(Producer(is_hanging=True))
    async with asyncio.timeout(2.0):
        with pytest.raises(Unavailable, match="Kafka has not taken the event within"):
            await write.publish(CLICK)
    assert count(metrics, "click", "unavailable") == 1.0


async def test_a_kafka_that_refuses_is_unavailable() -> None:
    write, _ = writer(Producer(KafkaConnectionError("gone")))
    with pytest.raises(Unavailable, match="Kafka refused the event"):
        await write.publish(CLICK)


async def test_too_many_waiting_events_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_writer, "IN_FLIGHT_MAX", 1)
    write, _ = writer(Producer(is_hanging=True))
    waiting = asyncio.create_task(write.publish(CLICK))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="1 events wait for it already"):
        await write.publish(CLICK)
    waiting.cancel()


async def test_an_event_larger_than_the_log_takes_is_refused() -> None:
    write, metrics = writer(Producer())
    values: dict[str, Any] = {"user": "x" * events.EVENT_BYTES_MAX}
    with pytest.raises(Rejected, match="must fit into an event of 1000000 bytes") as caught:
        await write.publish(Served("r1", 7.0, values, [Ad("a1", {})], "s"))
    assert caught.value.is_too_large
    assert count(metrics, "request", "refused") == 1.0


def test_what_was_not_shown_says_what_became_of_it() -> None:
    served = msgspec.structs.replace(
        SERVED, ranked=[b'{"ad_id":"a2","values":{"ad":"a2"}'], sampled=[b'{"ad_id":"a3","values":{}'], sample_rate=0.25
    )
    event = events.decode_event(events.encode_event(to_event(served)))
    assert isinstance(event, events.Request)
    assert event.candidates[1:] == [
        events.Candidate("a2", {"ad": "a2"}, "rank_neg"),
        events.Candidate("a3", {}, "prerank_neg", 0.25),
    ]
