"""The bridge beside a client that only moves the same bytes: `python -m bench.bridge --runs 3 --json FILE`.

Both are one process on one core; the broker has the other. They take turns over the same records, made of a real log: a
JSON record per impression, with the values of its request and of its ad, and one per click.

    bridge       `freshrank worker bridge`: two topics of a partition each, mapped, ordered, written in transactions
    aiokafka     the records of both, in one topic, consumed and produced again in batches, nothing else

Rates are records a second from the first records in hand until the last output is acknowledged; the start of a process
is not counted. cpu_us is processor time per record, which a busy machine changes least. The bridge writes two events
for an impression: `events_per_record` says how many on average.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.cluster import (
    BROKER_CORE,
    CLIENT_CORE,
    REPOSITORY,
    Deployment,
    Event,
    Worker,
    broker_on,
    create_topic,
    data_bases,
    load,
    mix,
    on_cores,
    read_events,
)
from bench.ledger import Result, Setup, rate, summary, time_peer
from bench.report import machine, write_report
from features.fields import raw_fields
from infra.settings import read_settings
from stream.events import Click, Impression, Request, decode_event
from stream.kafka import read_last

KINDS = ("impression", "click")
BRIDGE = """
[bridge]
align_s = 1.0
[bridge.impressions]
topic = "{impression}"
time = "at"
key = ["request", "position"]
ad_id = "ad"
position = "position"
values = {{ {values} }}
[bridge.clicks]
topic = "{click}"
time = "at"
key = ["request", "position"]
ad_id = "ad"
position = "position"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=REPOSITORY / "configs" / "movielens-1m.toml")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=50_000, help="of the log; 50,000 make about 79,000 records")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    settings = read_settings(arguments.config)
    events = read_events(settings, data_bases(arguments.config, arguments.data), arguments.rows)
    records = ended_together(list(to_records(events)))
    with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as scratch:
        found = compare(Setup(arguments.config, records, 0, arguments.runs, ["aiokafka"], Path(scratch)))
    report = {"name": "bridge", "log": settings.name, "machine": machine(), "runs": arguments.runs}
    mixed = mix(records)
    write_report(report | {"records": mixed.pop("events")} | mixed | found, arguments.json)


def to_records(events: Sequence[Event]) -> Iterator[Event]:
    """Yield what the user's own system would have written: a record per impression with its values, and per click."""
    requests: dict[str, Request] = {}
    for event in events:
        decoded = decode_event(event.value)
        if isinstance(decoded, Request):
            requests[decoded.request_id] = decoded
        elif isinstance(decoded, Impression | Click):
            values = {}
            if isinstance(decoded, Impression):
                request = requests[decoded.request_id]
                ad = next(ad for ad in request.candidates if ad.ad_id == decoded.ad_id)
                values = {"values": {**request.values, **ad.values}}
            yield record_of(event.kind, decoded, values)


def record_of(kind: str, shown: Impression | Click, values: dict[str, Any]) -> Event:
    place = {"request": shown.request_id, "position": shown.position, "ad": shown.ad_id, "at": shown.time_s}
    return Event(kind, shown.request_id.encode(), json.dumps(place | values).encode(), shown.time_s)


def ended_together(records: list[Event]) -> list[Event]:
    """Return the records and one more of each kind, both at the last time of all: so no topic is waited for as idle."""
    end_s = max(record.time_s for record in records)
    last = [max((one for one in records if one.kind == kind), key=lambda one: one.time_s) for kind in KINDS]
    return records + [one._replace(value=later(one.value, end_s), time_s=end_s) for one in last]


def later(value: bytes, time_s: float) -> bytes:
    return json.dumps(json.loads(value) | {"at": time_s}).encode()


def with_bridge(config: Path, topics: dict[str, str], target: Path) -> Path:
    """Write a configuration with a bridge over these topics."""
    fields = raw_fields(read_settings(config).fields)
    values = ", ".join(f'{field.name} = "values.{field.name}"' for field in fields)
    target.write_text(config.read_text() + BRIDGE.format(values=values, **topics))
    return target


def compare(setup: Setup) -> dict[str, Any]:
    """Both in turns."""
    found: dict[str, list[Result]] = {"bridge": [], "aiokafka": []}
    with broker_on(setup.scratch / "broker", BROKER_CORE) as servers, on_cores(BROKER_CORE):
        create_topic(servers, "source")
        asyncio.run(load_source(servers, setup.events))
        for run in range(setup.runs):
            for name, results in found.items():
                if name == "bridge":
                    results.append(asyncio.run(time_bridge(setup, servers, f"bench-{run}")))
                else:
                    results.append(time_peer(setup, servers, name, run))
                print(f"run {run}: {name}: {rate(results[-1]):,.0f} records/s", file=sys.stderr)
    medians = {name: summary(results) for name, results in found.items()}
    bridge, client = medians["bridge"], medians["aiokafka"]
    return {
        "contestants": {name: as_records(one) for name, one in medians.items()},
        "events_per_record": 1.0 + sum(one.kind == "impression" for one in setup.events) / len(setup.events),
        "bridge_ratio_to_aiokafka": bridge["events_per_s"] / client["events_per_s"],
        # The same from processor time alone.
        "bridge_cpu_ratio_to_aiokafka": client["cpu_us"] / bridge["cpu_us"],
    }


def as_records(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures under the names of what was read here."""
    return {name.replace("events", "records"): value for name, value in figures.items()}


async def load_source(servers: str, records: Sequence[Event]) -> None:
    await (await load(servers, "source", records)).stop()


async def time_bridge(setup: Setup, servers: str, name: str) -> Result:
    """A bridge that is ready before the records can be read: until all that they become is written."""
    topics = {kind: f"{name}-{kind}s" for kind in KINDS}
    config = with_bridge(setup.config, topics, setup.scratch / f"{name}-bridge.toml")
    deployment = Deployment(setup.scratch, servers, config, name=name, n_partitions=1)
    by_topic = {topics[kind]: [one for one in setup.events if one.kind == kind] for kind in KINDS}
    producers = []
    for topic, records in by_topic.items():
        create_topic(servers, topic)
        producers.append(await load(servers, topic, records, transactional_id=f"{topic}.load"))
    worker = deployment.start_worker(CLIENT_CORE, "bridge")
    try:
        await wait_ready(worker)
        cpu_s, begun_s = worker.cpu_s(), time.time()
        for producer in producers:
            await producer.commit_transaction()
        await wait_read(deployment, worker, {topic: len(records) for topic, records in by_topic.items()})
        cpu_s = worker.cpu_s() - cpu_s
        last = await read_last(f"{deployment.prefix}.events", 0, options=deployment.options)
        for producer in producers:
            await producer.stop()
    finally:
        worker.end()
    assert last is not None
    seconds = last.timestamp_ms / 1000.0 - begun_s
    return {"seconds": seconds, "cpu_s": cpu_s, "events": len(setup.events)}


async def wait_ready(worker: Worker) -> None:
    while "bridge: reads" not in worker.log.read_text():
        worker.check()
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)


async def wait_read(
    deployment: Deployment, worker: Worker, n_records: dict[str, int], timeout_s: float = 300.0
) -> None:
    """Return once the bridge has committed all records of each topic."""
    deadline_s = time.monotonic() + timeout_s
    async with AIOKafkaConsumer(
        **deployment.options, group_id=f"{deployment.prefix}.bridge", enable_auto_commit=False
    ) as consumer:
        ends = {TopicPartition(topic, 0): n for topic, n in n_records.items()}
        while (done := {tp: await consumer.committed(tp) for tp in ends}) != ends:
            worker.check()
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the bridge must have read {n_records}, got {done} in {timeout_s:g} s")
            await asyncio.sleep(0.25)


if __name__ == "__main__":
    main()
