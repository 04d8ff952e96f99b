"""Several processes of the ranking service on one port, on a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infra.broker import BrokerInfo
from models.registry import Registry
from stream.kafka import create_topics
from tests.broker.deployment import until
from tests.broker.test_serve import BODY, PARTITIONS, announcement, send
from tests.models.serving.trained import FIELDS, two_snapshots

START_S = 90.0  # of a process: mostly importing torch, on a machine that others use, too


class Running:
    """The command `freshrank serve`, and the processes that it started."""

    def __init__(self, command: subprocess.Popen[str], said: Path) -> None:
        self.command = command
        self.said = said
        self.address = ("127.0.0.1", 0)

    def servers(self) -> list[psutil.Process]:
        """Return the processes, those that have just begun included."""
        children = psutil.Process(self.command.pid).children()
        return [one for one in children if "spawn_main" in " ".join(_command(one))]

    def connections(self, status: str) -> dict[int, int]:
        """Return how many connections of this status on the port each process has."""
        found = {}
        for one in self.servers():
            try:
                connections = one.net_connections("tcp")
            except psutil.Error:
                continue
            found[one.pid] = sum(c.status == status and c.laddr.port == self.address[1] for c in connections)
        return found

    async def listening(self, count: int) -> AsyncIterator[bool]:
        while True:
            yield list(self.connections(psutil.CONN_LISTEN).values()).count(1) == count

    async def announced(self) -> AsyncIterator[bool]:
        while True:
            if found := re.search(r"serves on http://([\d.]+):(\d+)\n", self.said.read_text()):
                self.address = found[1], int(found[2])
            assert self.command.poll() is None, self.said.read_text()
            yield bool(found)

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def config_for(prefix: str, directory: Path, broker: BrokerInfo, *, partitions: int = PARTITIONS) -> Path:
    """Write the configuration of a deployment with two processes."""
    fields = [
        {"name": f.name, "side": f.side, "kind": f.kind, "of": list(f.of), "values_max": f.values_max} for f in FIELDS
    ]
    tables = ",\n".join(
        "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in one.items()) + "}" for one in fields
    )
    path = directory / "deployment.toml"
    path.write_text(
        f"""name = "test"
fields = [{tables}]
priors = {{ half_lives_s = [600.0, 6000.0] }}
kafka = {{ prefix = "{prefix}", partitions = {partitions}, bootstrap_servers = "{broker.bootstrap_servers}" }}
registry = {{ url = "{directory / "registry"}" }}
serve = {{ processes = 2 }}
"""
    )
    return path


@contextmanager
def running(config: Path) -> Iterator[Running]:
    """Run the command; whatever it leaves behind is found, and then ended."""
    said = config.with_suffix(".log")
    with said.open("w") as file:
        command = subprocess.Popen(
            [sys.executable, "-m", "stream.cli", "serve", str(config), "--port", "0"],
            stdout=file,
            stderr=file,
            text=True,
            env=os.environ | {"FRESHRANK_HOME": str(config.parent / "state")},
        )
    one = Running(command, said)
    try:
        yield one
    finally:
        if command.poll() is None:
            command.terminate()
            command.wait(30.0)


@pytest.fixture
def config(broker: BrokerInfo, topic_prefix: str, tmp_path: Path) -> Path:
    create_topics(broker.bootstrap_servers, prefix=topic_prefix, partitions=PARTITIONS, security={})
    for snapshot in two_snapshots():
        Registry(str(tmp_path / "registry")).save(snapshot, {})
    return config_for(topic_prefix, tmp_path, broker)


class Traffic:
    """Callers who ask again and again, each time on a new connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.n_good = 0
        self.bad: list[tuple[float, str]] = []  # when it began, and what came
        self._is_over = False

    async def run(self, count: int) -> None:
        await asyncio.gather(*(self._ask() for _ in range(count)))

    def end(self) -> None:
        self._is_over = True

    async def _ask(self) -> None:
        body = {key: value for key, value in BODY.items() if key != "request_id"}
        while not self._is_over:
            begun_s = time.monotonic()
            try:
                async with httpx.AsyncClient(base_url=self.url, timeout=20.0, trust_env=False) as client:
                    answer = await client.post("/v1/rank", json=body)
                    is_good, got = answer.status_code == 200, answer.text
            except httpx.HTTPError as error:
                is_good, got = False, repr(error)
            self.n_good += is_good
            if not is_good:
                self.bad.append((begun_s, got))
            await asyncio.sleep(0.01)


async def kill_one(one: Running) -> float:
    """Kill a process that answers; return when it was gone."""
    victim = psutil.Process(next(pid for pid, count in one.connections(psutil.CONN_LISTEN).items() if count))
    victim.kill()
    while victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.001)
    return time.monotonic()


async def all_serve(clients: list[httpx.AsyncClient], version: str) -> AsyncIterator[bool]:
    while True:
        yield all([(await one.get("/readyz")).json()["snapshot"] == version for one in clients])


async def exported(client: httpx.AsyncClient, name: str) -> float:
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    return float(value)


@pytest.mark.slow
async def test_two_processes_answer_on_one_port_and_one_that_is_killed_comes_back(
    config: Path, topic_prefix: str, kafka_options: dict[str, Any]
) -> None:
    await send(kafka_options, f"{topic_prefix}.snapshots", "ctr", announcement(0))
    with running(config) as one:
        await until(one.announced(), START_S)
        await until(one.listening(2), START_S)
        traffic = Traffic(one.url)
        asking = asyncio.create_task(traffic.run(4))
        await asyncio.sleep(1.0)
        gone_s = await kill_one(one)
        await until(one.listening(1), START_S)
        await until(one.listening(2), START_S)
        await asyncio.sleep(1.0)
        traffic.end()
        await asking
        assert len(traffic.bad) <= 4, traffic.bad
        assert traffic.n_good > 20
        assert all(begun_s < gone_s for begun_s, _ in traffic.bad), "only what was under way may fail"

        clients = [httpx.AsyncClient(base_url=one.url, timeout=20.0, trust_env=False) for _ in range(24)]
        await until(all_serve(clients, two_snapshots()[0].version), 5.0)
        shares = one.connections(psutil.CONN_ESTABLISHED)
        assert len(shares) == 2
        assert all(shares.values()), "each holds some of the connections"
        for client in clients:
            name = 'freshrank_answers_total{route="rank",status="200"}'
            assert traffic.n_good <= await exported(client, name) <= traffic.n_good + len(traffic.bad)
            assert await exported(client, "freshrank_snapshot_slide_count") == 1.0
        for index in (1, 0):  # forward, and back again
            await send(kafka_options, f"{topic_prefix}.snapshots", "ctr", announcement(index))
            await until(all_serve(clients, two_snapshots()[index].version), 5.0)
        for client in clients:
            await client.aclose()

        pids = [process.pid for process in one.servers()]
        one.command.send_signal(signal.SIGTERM)
        assert one.command.wait(30.0) == 0, one.said.read_text()
        assert not any(psutil.pid_exists(pid) for pid in pids)
    assert one.said.read_text().count("serves on") == 1


@pytest.mark.slow
async def test_before_there_is_a_model_one_process_says_so_and_then_both_rank(
    config: Path, topic_prefix: str, kafka_options: dict[str, Any]
) -> None:
    with running(config) as one:
        await until(one.announced(), START_S)
        async with httpx.AsyncClient(base_url=one.url, timeout=20.0, trust_env=False) as client:
            assert (await client.get("/readyz")).status_code == 503
            assert len(one.servers()) == 1
            await send(kafka_options, f"{topic_prefix}.snapshots", "ctr", announcement(0))
            await until(one.listening(2), START_S)
            assert (await client.get("/readyz")).status_code == 200


@pytest.mark.slow
async def test_none_outlives_the_command_when_that_is_killed(
    config: Path, topic_prefix: str, kafka_options: dict[str, Any]
) -> None:
    await send(kafka_options, f"{topic_prefix}.snapshots", "ctr", announcement(0))
    with running(config) as one:
        await until(one.announced(), START_S)
        await until(one.listening(2), START_S)
        processes = one.servers()
        one.command.kill()
        one.command.wait(10.0)
        assert psutil.wait_procs(processes, 10.0)[1] == []


@pytest.mark.slow
async def test_processes_that_die_again_and_again_are_given_up(config: Path) -> None:
    with running(config) as one:
        deadline_s = time.monotonic() + START_S
        while one.command.poll() is None:
            assert time.monotonic() < deadline_s, one.said.read_text()
            for process in one.servers():
                process.kill()
            await asyncio.sleep(0.05)
    assert one.command.returncode == 1
    assert "5 died within 300 s, the last with code -9" in one.said.read_text()


@pytest.mark.slow
async def test_a_configuration_that_cannot_be_used_is_said_and_not_tried_again(
    config: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    changed = config_for(topic_prefix, config.parent, broker, partitions=PARTITIONS + 1)
    with running(changed) as one:
        assert one.command.wait(START_S) == 2
    assert one.said.read_text().count("[kafka] partitions must be what topic") == 1
