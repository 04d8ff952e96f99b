"""The ledger beside what else could do its work: `python -m bench.ledger --runs 5 --json FILE`.

Every contestant is one process on one core; the broker has the other. They take turns over the same events of a real
log in one partition:

    ledger           `freshrank worker ledger`: join, label, account; blocks and chains in transactions
    confluent-kafka  the events consumed and produced again in batches, nothing else: the ceiling
    aiokafka         the same by aiokafka's batches
    faust            a plain Faust agent that decodes each event and sends it on
    quixstreams      the interval join of Quix Streams, at least once: impressions with clicks, from a topic each; no
                     row for what was not clicked, and no values of requests (which are left out of its rate)

Rates are events a second from the first events in hand until the last output is acknowledged; the start of a process
is not counted. cpu_us is processor time per event, which a busy machine changes least. `--part workers` measures one
worker against two instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bench.cluster import (
    ALL_CORES,
    BROKER_CORE,
    CLIENT_CORE,
    REPOSITORY,
    Deployment,
    Event,
    broker_on,
    create_topic,
    data_bases,
    load,
    mix,
    on_cores,
    read_events,
)
from bench.report import machine, write_report
from infra.settings import read_settings

BENCH_PYTHON = REPOSITORY / ".venv-bench" / "bin" / "python"  # made by `make bench`
PEERS = {
    "confluent-kafka": str(BENCH_PYTHON),
    "aiokafka": sys.executable,
    "faust": sys.executable,
    "quixstreams": str(BENCH_PYTHON),
}
SLOW = frozenset({"faust", "quixstreams"})
Result = dict[str, float]


@dataclass(frozen=True)
class Setup:
    """What is measured with what."""

    config: Path
    events: list[Event]
    slow_events: int
    runs: int
    peers: list[str]
    scratch: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=REPOSITORY / "configs" / "movielens-1m.toml")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=200_000, help="of the log; 200,000 make about 413,000 events")
    parser.add_argument("--slow-events", type=int, default=30_000, help="for faust and quixstreams")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, default="peers")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, with commas between")
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    settings = read_settings(arguments.config)
    events = read_events(settings, data_bases(arguments.config, arguments.data), arguments.rows)
    with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as scratch:
        peers = arguments.peers.split(",")
        setup = Setup(arguments.config, events, arguments.slow_events, arguments.runs, peers, Path(scratch))
        found = PARTS[arguments.part](setup)
    report = {"name": "ledger", "part": arguments.part, "log": settings.name, "machine": machine()}
    write_report(report | {"runs": arguments.runs} | mix(events) | found, arguments.json)


def compare_peers(setup: Setup) -> dict[str, Any]:
    """The contestants above, in turns."""
    names, numbers = ["ledger", *setup.peers], count()
    found: dict[str, list[Result]] = {name: [] for name in names}
    with broker_on(setup.scratch / "broker", BROKER_CORE) as servers, on_cores(BROKER_CORE):
        asyncio.run(load_sources(servers, setup.events))
        for run in range(setup.runs):
            for name in names:
                number = next(numbers)
                if name == "ledger":
                    result = asyncio.run(time_ledger(setup, servers, f"bench-{number}", [CLIENT_CORE]))
                else:
                    result = time_peer(setup, servers, name, number)
                found[name].append(result)
                print(f"run {run}: {name}: {rate(result):,.0f} events/s, {cpu_us(result):.1f} us", file=sys.stderr)
    medians = {name: summary(results) for name, results in found.items()}
    ledger = medians["ledger"]
    return {
        "contestants": medians,
        "ledger_ratio_to": {name: ledger["events_per_s"] / medians[name]["events_per_s"] for name in setup.peers},
        # The same from processor time alone.
        "ledger_cpu_ratio_to": {name: medians[name]["cpu_us"] / ledger["cpu_us"] for name in setup.peers},
    }


async def load_sources(servers: str, events: list[Event]) -> None:
    """Fill the topics that the peers read: all events, and for the join impressions and clicks by their own key."""
    kinds = {"impression": "source.impressions", "click": "source.clicks"}
    for topic in ("source", *kinds.values()):
        create_topic(servers, topic)
    await (await load(servers, "source", events)).stop()
    for kind, topic in kinds.items():
        await (await load(servers, topic, [keyed(event) for event in events if event.kind == kind])).stop()


def keyed(event: Event) -> Event:
    """Return the event under the key of its impression."""
    body = json.loads(event.value)
    return event._replace(key=f"{body['request_id']}:{body['position']}".encode())


async def time_ledger(setup: Setup, servers: str, name: str, cores: Sequence[set[int]]) -> Result:
    """Workers, one a set of cores, that are ready before the events can be read: until the last block is written."""
    deployment = Deployment(setup.scratch, servers, setup.config, name=name, n_partitions=len(cores))
    workers = [deployment.start_worker(one) for one in cores]
    try:
        await deployment.wait_owned(workers)
        producer = await deployment.open_load(setup.events)
        await asyncio.sleep(1.0)
        cpu_s = sum(worker.cpu_s() for worker in workers)
        begun_s = time.time()
        await producer.commit_transaction()
        ended_s, headers = await deployment.wait_done(workers, deployment.ends(setup.events))
        cpu_s = sum(worker.cpu_s() for worker in workers) - cpu_s
        await producer.stop()
    finally:
        for worker in workers:
            worker.end()
    rows = sum(header.counts.clicked + header.counts.expired_negative for header in headers)
    return {"seconds": ended_s - begun_s, "cpu_s": cpu_s, "events": len(setup.events), "rows": rows}


def time_peer(setup: Setup, servers: str, name: str, number: int) -> Result:
    """A peer's process, from the first events in hand until its last output is acknowledged."""
    target, directory = f"target-{number}", setup.scratch / f"peer-{number}"
    directory.mkdir()
    create_topic(servers, target)
    n_events = setup.slow_events if name in SLOW else len(setup.events)
    command = [PEERS[name], "-W", "ignore", "-m", "bench.peers", name, "--servers", servers]
    command += ["--source", "source", "--target", target, "--group", f"group-{number}", "--events", str(n_events)]
    command += ["--directory", str(directory), "--wait-s", str(read_settings(setup.config).ledger.wait_s)]
    with on_cores(CLIENT_CORE):
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, timeout=300)
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def compare_workers(setup: Setup) -> dict[str, Any]:
    """One worker against two on two cores; the broker shares both cores, in both cases."""
    both = sorted(ALL_CORES)[:2]
    found: dict[int, list[Result]] = {1: [], 2: []}
    with broker_on(setup.scratch / "broker", both) as servers:
        for run in range(setup.runs):
            for n_workers, results in found.items():
                cores = [{core} for core in both[:n_workers]]
                results.append(asyncio.run(time_ledger(setup, servers, f"workers-{run}-{n_workers}", cores)))
                print(f"run {run}: {n_workers} workers: {rate(results[-1]):,.0f} events/s", file=sys.stderr)
    medians = {n_workers: summary(results) for n_workers, results in found.items()}
    return {"workers": medians, "ratio": medians[2]["events_per_s"] / medians[1]["events_per_s"]}


def rate(result: Result) -> float:
    return result["events"] / result["seconds"]


def cpu_us(result: Result) -> float:
    return result["cpu_s"] / result["events"] * 1e6


def summary(results: list[Result]) -> dict[str, Any]:
    """Return the median rate and processor time, and what they come from."""
    return {
        "events_per_s": statistics.median(map(rate, results)),
        "cpu_us": statistics.median(map(cpu_us, results)),
        "events": results[0]["events"],
        "runs_events_per_s": [round(rate(result)) for result in results],
    }


PARTS: dict[str, Callable[[Setup], dict[str, Any]]] = {"peers": compare_peers, "workers": compare_workers}

if __name__ == "__main__":
    main()
