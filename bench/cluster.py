"""A broker, topics full of real events, and ledger workers, each on the cores that a measurement gives it.

Topics are written in one transaction that stays open until `Loaded.release`: so workers can be ready, with their
partitions, before the first event can be read, and the clock starts with the commit.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient

from infra import broker
from infra.settings import Settings, read_settings, state_dir
from stream.blocks import Header, decode_header
from stream.events import Tick, encode_event
from stream.kafka import Record, client_options, create_topics, murmur2_partition, read_last
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals

REPOSITORY = Path(__file__).parents[1]
ALL_CORES = frozenset(os.sched_getaffinity(0))
CLIENT_CORE, BROKER_CORE = {min(ALL_CORES)}, {max(ALL_CORES)}  # what is measured, and what it talks to
RETENTION_S = 1e10  # longer than whatever a measurement lets wait
BATCH_BYTES = 128 * 1024
OWNED = re.compile(r"ledger: partition (\d+) from offset (\d+)")


class Event(NamedTuple):
    """An event on its way to Kafka; no key: to every partition."""

    kind: str
    key: bytes | None
    value: bytes
    time_s: float


def read_events(settings: Settings, bases: Sequence[Path], rows: int | None) -> list[Event]:
    """Return a log's events as the replay sends them."""
    return [
        Event(type(event).__name__.lower(), key.encode() if key else None, encode_event(event), event.time_s)
        for key, event in read_arrivals(settings, bases, RowCounts(), limit=rows)
    ]


def mix(events: Sequence[Event]) -> dict[str, Any]:
    """Return what the events are."""
    mean = sum(len(event.value) for event in events) / len(events)
    return {"events": len(events), "bytes_mean": round(mean, 1), **Counter(event.kind for event in events)}


@contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """Let what is started inside run on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def broker_on(directory: Path, cores: Collection[int]) -> Iterator[str]:
    """Run a broker on these cores; its address."""
    with on_cores(cores):
        info = broker.start(directory, owned=True, timeout_s=60.0)
    try:
        yield info.bootstrap_servers
    finally:
        broker.stop(directory)


def create_topic(servers: str, name: str) -> None:
    """Make a topic of one partition with Kafka's own rules."""
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        admin.create_topics({name: {"num_partitions": 1, "configs": {}}})
        admin.wait_for_topics([name])
    finally:
        admin.close()


async def load(
    servers: str, topic: str, events: Sequence[Event], n_partitions: int = 1, *, transactional_id: str | None = None
) -> AIOKafkaProducer:
    """Write the events to a topic; with a transactional id, into a transaction that is still open."""
    producer = AIOKafkaProducer(
        **client_options(servers, {}),
        enable_idempotence=True,
        max_batch_size=BATCH_BYTES,
        transactional_id=transactional_id,
        transaction_timeout_ms=600_000,
    )
    await producer.start()
    if transactional_id:
        await producer.begin_transaction()
    batches = [producer.create_batch() for _ in range(n_partitions)]
    sent = []
    for event in events:
        everywhere = range(n_partitions)
        for partition in everywhere if event.key is None else [murmur2_partition(event.key, n_partitions)]:
            while batches[partition].append(timestamp=None, key=event.key, value=event.value) is None:
                sent.append(await producer.send_batch(batches[partition], topic, partition=partition))
                batches[partition] = producer.create_batch()
    for partition, batch in enumerate(batches):
        if batch.record_count():
            sent.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sent)
    return producer


@dataclass
class Worker:
    """A `freshrank worker` process and what it says."""

    process: subprocess.Popen[str]
    log: Path
    owned: list[tuple[int, int]] = field(default_factory=list)  # partition and offset, as it took them

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def memory_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_full_info().pss / 1e6

    def check(self) -> None:
        """Raise if it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"a worker must run, got exit code {self.process.returncode}: {self.log.read_text()}")

    def partitions(self) -> set[int]:
        """Return the partitions that it has taken so far."""
        self.check()
        return {int(found[0]) for found in OWNED.findall(self.log.read_text())}

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(by)
        self.process.wait(30.0)


class Deployment:
    """One prefix on the broker: its topics, its configuration and its workers."""

    def __init__(self, directory: Path, servers: str, config: Path, *, name: str, n_partitions: int) -> None:
        """Make the topics."""
        self.directory, self.servers, self.n_partitions = directory, servers, n_partitions
        self.file = directory / f"{name}.toml"
        text = without_section(config.read_text(), "kafka")
        text += f'\n[kafka]\nbootstrap_servers = "{servers}"\nprefix = "{name}"\npartitions = {n_partitions}\n'
        text += f"retention_s = {RETENTION_S}\n"
        self.file.write_text(text)
        self.settings = read_settings(self.file)
        self.prefix = self.settings.prefix
        self.options = client_options(servers, {})
        self._workers = 0
        create_topics(
            servers,
            prefix=self.prefix,
            partitions=n_partitions,
            security={},
            retention_s=self.settings.kafka.retention_s,
        )

    def start_worker(self, cores: Collection[int], role: str = "ledger") -> Worker:
        """Start a worker on these cores."""
        self._workers += 1
        log = self.directory / f"{self.prefix}-{self._workers}.log"
        command = [sys.executable, "-m", "stream.cli", "worker", role, str(self.file)]
        env = os.environ | {"FRESHRANK_HOME": str(self.directory / "state")}
        with on_cores(cores), log.open("w") as out:
            process = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=out, stderr=out, text=True)
        return Worker(process, log)

    async def open_load(self, events: Sequence[Event]) -> AIOKafkaProducer:
        """Write events that nobody can read before the transaction is committed."""
        topic = f"{self.prefix}.events"
        return await load(self.servers, topic, events, self.n_partitions, transactional_id=f"{self.prefix}.load")

    async def wait_owned(self, workers: Sequence[Worker]) -> None:
        """Return once each worker has its share of the partitions, and nobody more than that."""
        share = self.n_partitions // len(workers)
        while any(len(worker.partitions()) < share for worker in workers):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)

    async def last_blocks(self) -> list[tuple[Record, Header] | None]:
        """Return the last committed block of each partition of `examples`."""
        topic, blocks = f"{self.prefix}.examples", []
        for partition in range(self.n_partitions):
            record = await read_last(topic, partition, options=self.options)
            blocks.append((record, decode_header(record.value)) if record and record.value else None)
        return blocks

    async def wait_done(
        self, workers: Sequence[Worker], ends: Sequence[int], timeout_s: float = 300.0
    ) -> tuple[float, list[Header]]:
        """Return when the last block was appended (the broker's clock), and the last headers, once all is covered."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for worker in workers:
                worker.check()
            blocks = [block for block in await self.last_blocks() if block is not None]
            if len(blocks) == self.n_partitions and all(
                header.through >= end - 1 for (_, header), end in zip(blocks, ends, strict=True)
            ):
                return max(record.timestamp_ms for record, _ in blocks) / 1000.0, [header for _, header in blocks]
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the ledger must reach offsets {list(ends)}, got {blocks} in {timeout_s:g} s")
            await asyncio.sleep(0.25)

    def ends(self, events: Sequence[Event], first: Sequence[int] | None = None) -> list[int]:
        """Return the offset of the last event of each partition: a tick, whose block covers what is before it."""
        counts = list(first or [0] * self.n_partitions)
        for event in events:
            if event.key is None:
                counts = [count + 1 for count in counts]
            else:
                counts[murmur2_partition(event.key, self.n_partitions)] += 1
        return [count - 1 for count in counts]


def without_section(text: str, name: str) -> str:
    """Return TOML without one of its sections."""
    kept, is_inside = [], False
    for line in text.splitlines():
        if line.startswith("["):
            is_inside = line.split("]")[0] == f"[{name}"
        if not is_inside:
            kept.append(line)
    return "\n".join(kept)


def tick(time_s: float) -> Event:
    """Return a tick for every partition."""
    return Event("tick", None, encode_event(Tick(time_s)), time_s)


def data_bases(config: Path, data: Path | None) -> list[Path]:
    """Return where a configuration's log is looked for."""
    return [data or state_dir() / "data", config.parent]
