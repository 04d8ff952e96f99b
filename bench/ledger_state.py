"""What the ledger holds in memory, and how it comes back: `python -m bench.ledger_state --json FILE`.

memory    a Ledger alone, fed a whole log whose impressions wait for ever: bytes (PSS) per million of them
recovery  the same through Kafka: the only worker is killed with SIGKILL and started again at once, while more events
          come; seconds from the kill until a block covers them all
day       a day of the simulated world replayed as fast as it goes, until the last block; every core for everything
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.cluster import (
    ALL_CORES,
    REPOSITORY,
    RETENTION_S,
    Deployment,
    Event,
    broker_on,
    data_bases,
    load,
    read_events,
    tick,
    without_section,
)
from bench.report import machine, write_report
from infra.settings import Settings, read_settings
from stream.events import decode_event
from stream.kafka import read_range
from stream.ledger import Ledger
from stream.logs.simulated import write_simulated
from stream.wiring import new_guarded_ledger, new_slides

SLIDE_S = 2_592_000.0
FOREVER_S = 1e9  # what waits for so long is pending for good
RULES = f"wait_s = {FOREVER_S}\ngrace_s = {FOREVER_S}\npending_max = 2_000_000\nknown_max = 4_000_000"
DAY_ROWS = 86_400  # of the simulated world: one a second
MEANWHILE = 10_000  # events that come while no worker is there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=REPOSITORY / "configs" / "movielens-1m.toml")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--runs", type=int, default=5, help="of recovery and day")
    parser.add_argument("--parts", default="memory,recovery,day", help="which, with commas between")
    parser.add_argument("--feed", type=Path, default=None, help=argparse.SUPPRESS)  # the process that is measured
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    settings = read_settings(arguments.config)
    if arguments.feed:
        write_report(feed(settings, arguments.feed), "-")
        return
    report: dict[str, Any] = {"name": "ledger_state", "log": settings.name, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as scratch:
        parts, directory = arguments.parts.split(","), Path(scratch)
        if "memory" in parts or "recovery" in parts:
            events = read_events(settings, data_bases(arguments.config, arguments.data), arguments.rows)
        if "memory" in parts:
            report["memory"] = weigh(directory, arguments.config, events)
        if "recovery" in parts:
            report["recovery"] = medians(
                [recover(directory, arguments.config, events, number) for number in range(arguments.runs)]
            )
        if "day" in parts:
            write_simulated(directory / "simulated" / "impressions.parquet", seed=0, rows=DAY_ROWS)
            report["day"] = medians([replay_day(directory, number) for number in range(arguments.runs)])
    write_report(report, arguments.json)


def medians(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return the median of each figure, and all of them."""
    for number, run in enumerate(runs):
        print(f"run {number}: {run}", file=sys.stderr)
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} | {"runs": runs}


def waiting(text: str) -> str:
    """Return a configuration under which nothing settles."""
    for name in ("ledger", "window", "kafka"):
        text = without_section(text, name)
    kafka = f"[kafka]\npartitions = 1\nretention_s = {RETENTION_S}\n"
    return f"{text}\n[ledger]\n{RULES}\n[window]\nslide_s = {SLIDE_S}\n{kafka}"


def weigh(scratch: Path, config: Path, events: list[Event]) -> dict[str, Any]:
    """Feed a ledger in a process that has never held anything else."""
    file, own_config = scratch / "events.bin", scratch / "waiting.toml"
    with file.open("wb") as out:
        for event in events[:-1]:  # the last tick would settle all
            out.write(len(event.value).to_bytes(4, "big") + event.value)
    own_config.write_text(waiting(config.read_text()))
    command = [sys.executable, "-m", "bench.ledger_state", str(own_config), "--feed", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, timeout=300)
    found: dict[str, Any] = json.loads(done.stdout)
    print(found, file=sys.stderr)
    return found


def feed(settings: Settings, file: Path) -> dict[str, Any]:
    """Step through the events of a file; what the process weighs before and after."""
    gc.set_threshold(50_000, 20, 100)  # as the worker
    ledger = new_guarded_ledger(0, settings, new_slides(settings))
    before, begun_s = pss(), time.perf_counter()
    n_bytes = step_through(ledger, file)
    seconds = time.perf_counter() - begun_s
    gc.collect()
    added, pending = pss() - before, ledger.counts.pending
    return {
        "pending": pending,
        "requests_known": ledger.known[0],
        "event_bytes": n_bytes,
        "empty_process_mb": before / 1e6,
        "added_mb": added / 1e6,
        "mb_per_million_pending": added / pending,
        "events_per_s": ledger.counts.records / seconds,
    }


def step_through(ledger: Ledger, file: Path) -> int:
    n_bytes = offset = 0
    with file.open("rb") as source:
        while head := source.read(4):
            value = source.read(int.from_bytes(head, "big"))
            n_bytes += len(value)
            ledger.step(offset, 0.0, decode_event(value), len(value))
            offset += 1
    return n_bytes


def pss() -> float:
    return float(psutil.Process().memory_full_info().pss)


def recover(scratch: Path, config: Path, events: list[Event], number: int) -> dict[str, float]:
    own_config = scratch / "waiting.toml"
    own_config.write_text(waiting(config.read_text()))
    with broker_on(scratch / f"broker-{number}", ALL_CORES) as servers:
        return asyncio.run(_recover(scratch, servers, own_config, events, f"recover-{number}"))


async def _recover(scratch: Path, servers: str, config: Path, events: list[Event], name: str) -> dict[str, float]:
    deployment = Deployment(scratch, servers, config, name=name, n_partitions=1)
    # A tick past the end of a slide closes a block, and nothing settles.
    newest_s = max(event.time_s for event in events[:-1])
    before = [*events[: -MEANWHILE - 1], tick(newest_s + 2 * SLIDE_S)]
    meanwhile = [*events[-MEANWHILE - 1 : -1], tick(newest_s + 4 * SLIDE_S)]
    topic = f"{deployment.prefix}.events"
    await (await load(servers, topic, before)).stop()
    worker = deployment.start_worker(ALL_CORES)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: worker.end(signal.SIGKILL))
        _, (header,) = await deployment.wait_done([worker], deployment.ends(before))
        memory_mb = worker.memory_mb()
        worker.end(signal.SIGKILL)
        killed_s = time.time()
        await (await load(servers, topic, meanwhile)).stop()
        worker = deployment.start_worker(ALL_CORES)
        await deployment.wait_owned([worker])
        owned_s = time.time()
        done_s, (after,) = await deployment.wait_done([worker], deployment.ends([*before, *meanwhile]))
    return {
        "pending": header.counts.pending,
        "pending_after": after.counts.pending,
        "records_read_again": header.through + 1 - header.resume_at,
        "kill_to_owned_s": owned_s - killed_s,
        "kill_to_no_lag_s": done_s - killed_s,
        "worker_memory_mb": memory_mb,
    }


def replay_day(scratch: Path, number: int) -> dict[str, float]:
    with broker_on(scratch / f"day-{number}", ALL_CORES) as servers:
        return asyncio.run(_replay_day(scratch, servers, f"day-{number}"))


async def _replay_day(scratch: Path, servers: str, name: str) -> dict[str, float]:
    config = REPOSITORY / "configs" / "simulated.toml"
    deployment = Deployment(scratch, servers, config, name=name, n_partitions=4)
    worker = deployment.start_worker(ALL_CORES)
    try:
        await deployment.wait_owned([worker])
        report = scratch / f"{name}.json"
        command = ["-m", "stream.cli", "replay", str(deployment.file), "--data", str(scratch), "--json", str(report)]
        replay = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=REPOSITORY)
        assert await replay.wait() == 0, "the replay must end well"
        ends, first_ms = [], []
        for partition in range(4):
            offsets = [
                (record.offset, record.timestamp_ms)
                async for record in read_range(
                    f"{deployment.prefix}.events", partition, None, None, options=deployment.options
                )
            ]
            ends.append(offsets[-1][0])
            first_ms.append(offsets[0][1])
        done_s, headers = await deployment.wait_done([worker], ends)
    finally:
        worker.end()
    seconds, n_events = done_s - min(first_ms) / 1000.0, sum(end + 1 for end in ends)
    return {
        "events": n_events,
        "impressions": sum(header.counts.impressions for header in headers),
        "seconds": seconds,
        "events_per_s": n_events / seconds,
        "times_as_fast_as_the_day": 86_400.0 / seconds,
    }


if __name__ == "__main__":
    main()
