"""A small deployment on the session's broker: the simulated world, its topics, and roles as real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.settings import Settings, read_settings
from stream.blocks import Header, decode_header
from stream.cascade import Cascade, Funnel
from stream.kafka import Record, create_topics, read_last, read_range
from stream.logs.simulated import write_cascade, write_simulated
from stream.replay import ReplayCounts, replay
from stream.roles import Cluster, find_cluster

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Deployment:
    """Settings, cluster and directory of one test."""

    config: Path
    settings: Settings
    cluster: Cluster
    home: Path
    data_dir: Path

    async def replay(
        self, *, speed: float | None = None, limit: int | None = None, append: bool = False
    ) -> ReplayCounts:
        options = self.cluster.options
        return await replay(self.settings, [self.data_dir], options, speed=speed, limit=limit, append=append)

    async def read(self, topic: str, partition: int) -> list[Record]:
        records = read_range(self.cluster.topic(topic), partition, None, None, options=self.cluster.options)
        async with aclosing(records):
            return [record async for record in records]

    async def headers(self) -> list[Header | None]:
        """The last committed header of each partition of `examples`."""
        topic, options = self.cluster.topic("examples"), self.cluster.options
        last = [await read_last(topic, p, options=options) for p in range(self.cluster.partitions)]
        return [decode_header(record.value) if record and record.value else None for record in last]

    async def wait_settled(self, timeout_s: float = 60.0) -> None:
        """Return once the ledger has accounted for every event."""
        topic, options = self.cluster.topic("events"), self.cluster.options
        last = [await read_last(topic, p, options=options) for p in range(self.cluster.partitions)]
        await until(self._covers([record.offset if record else 0 for record in last]), timeout_s)

    async def _covers(self, ends: list[int]) -> AsyncIterator[bool]:
        while True:
            headers = await self.headers()
            # The last record is the tick that closes the last block, so it stands just after what that accounts for.
            yield all(header and header.through >= end - 1 for header, end in zip(headers, ends, strict=True))

    async def announced(self, n_announcements: int, family: str = "ctr") -> AsyncIterator[bool]:
        """Tell again and again whether so many decisions of a family stand in `snapshots` (compaction aside)."""
        while True:
            yield len([one for one in await self.read("snapshots", 0) if one.key == family.encode()]) >= n_announcements

    @contextmanager
    def role(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a role as a process of its own; at the end it is told to stop."""
        env = os.environ | {"FRESHRANK_HOME": str(self.home / "state")}
        with (self.home / f"{command[-1]}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "stream.cli", *command, str(self.config)], env=env, stderr=log, stdout=log
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(30.0)

    def log(self, role: str) -> str:
        return (self.home / f"{role}.log").read_text()


def deploy(
    directory: Path,
    bootstrap_servers: str,
    prefix: str,
    *,
    config: Path = CONFIGS / "simulated.toml",
    data_dir: Path | None = None,
    rows: int = 0,
    slide_s: float = 0.0,
    kafka: str = "",
    ledger: str = "",
    update: str = "",
    creatives: str = "",
) -> Deployment:
    """Return a deployment with its topics and its log, nothing running yet.

    Without `data_dir` its log is `rows` rows of the simulated world; with `slide_s` its slides are that long; `kafka`,
    `ledger`, `update` and `creatives` are further lines of those sections.
    """
    if data_dir is None and rows:
        write_simulated(directory / "simulated" / "impressions.parquet", seed=3, rows=rows)
    text = config.read_text()
    for name in ("kafka", "registry", *(["window"] if slide_s else []), *(["ledger"] if ledger else [])):
        text = without_section(text, name)
    if slide_s:
        text += f"\n[window]\nslide_s = {slide_s}\nwarmup_s = {2 * slide_s}\n"
    own_config = directory / "deployment.toml"
    own_config.write_text(
        f'''{text}
[kafka]
bootstrap_servers = "{bootstrap_servers}"
prefix = "{prefix}"
partitions = 3
{kafka}
{"[ledger]" if ledger else ""}
{ledger}
{"[update]" if update else ""}
{update}
{"[creatives]" if creatives else ""}
{creatives}
[registry]
url = "{directory / "registry"}"
keep = 100
'''
    )
    settings = read_settings(own_config)
    create_topics(bootstrap_servers, prefix=prefix, partitions=3, security={})
    return Deployment(own_config, settings, find_cluster(settings), directory, data_dir or directory)


def deploy_cascade(
    directory: Path, bootstrap_servers: str, prefix: str, *, hours: int, slide_s: float, creatives: str = ""
) -> Deployment:
    """Return a deployment whose log is some hours of a small cascade."""
    funnel = Funnel(matched=100, preranked=30, exposed=5, sample_rate=0.5)
    write_cascade(directory / "cascade", Cascade(3, hours=hours, funnel=funnel, n_ads=300, requests_per_hour=60.0))
    config = CONFIGS / "cascade.toml"
    return deploy(directory, bootstrap_servers, prefix, config=config, slide_s=slide_s, creatives=creatives)


def without_section(text: str, name: str) -> str:
    """Return TOML without one of its sections."""
    kept, is_inside = [], False
    for line in text.splitlines():
        if line.startswith("["):
            is_inside = line.strip() == f"[{name}]"
        if not is_inside:
            kept.append(line)
    return "\n".join(kept)


async def until(checks: AsyncIterator[bool], timeout_s: float) -> None:
    """Return once a check is true; fail after a while."""
    deadline_s = time.monotonic() + timeout_s
    async for is_true in checks:
        if is_true:
            return
        assert time.monotonic() < deadline_s, f"not so within {timeout_s:g} s"
        await asyncio.sleep(0.1)
