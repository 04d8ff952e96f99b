"""Roles of a deployment as real processes that can be killed, frozen, woken, stopped, and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.broker.deployment import Deployment

POLL_S = 0.05
STOP_S_MAX = 20.0
# Sets, before it becomes the command, that the kernel kills it when this process dies (Linux; elsewhere nothing does).
END_WITH_PARENT = """
import contextlib, ctypes, os, signal, sys
with contextlib.suppress(AttributeError):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.executable, [sys.executable, "-m", "stream.cli", *sys.argv[1:]])
"""


class Worker:
    """One process of a role."""

    def __init__(self, deployment: Deployment, role: str, log: Path) -> None:
        """Start it."""
        self.role = role
        self.log = log
        env = os.environ | {"FRESHRANK_HOME": str(deployment.home / "state"), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", END_WITH_PARENT, "worker", role, str(deployment.config)]
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def said(self, text: str) -> bool:
        """Tell whether it has logged this."""
        return self.times_said(text) > 0

    def times_said(self, text: str) -> int:
        """Return how often it has logged this."""
        return self.log.read_text(errors="replace").count(text)

    def last_words(self) -> str:
        """Return how it ended and what it logged last, warnings of asyncio about futures aside."""
        lines = self.log.read_text(errors="replace").splitlines()
        own = [line for line in lines if line[:2] == "20" and " asyncio: " not in line]
        said = " | ".join(line[-200:] for line in [*own[-2:], *lines[-1:]]) or "it said nothing"
        return f"exit code {self._process.poll()}: {said}"

    async def wait_said(self, text: str, timeout_s: float) -> bool:
        """Return True once it has logged this, False if it ends or takes longer."""
        deadline_s = time.monotonic() + timeout_s
        while self.is_alive and time.monotonic() < deadline_s:
            if self.said(text):
                return True
            await asyncio.sleep(POLL_S)
        return self.said(text)

    def signal(self, number: int) -> None:
        if self.is_alive:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it: SIGKILL."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    async def stop(self) -> int:
        """Stop it: SIGTERM; return its exit code, and kill it if that takes too long."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            return await asyncio.to_thread(self._process.wait, STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()


class Roles:
    """The processes of one deployment; counts those that end by themselves."""

    def __init__(self, deployment: Deployment) -> None:
        """Begin with none."""
        self.deployment = deployment
        self.deaths: list[str] = []
        self._workers: list[Worker] = []

    def start(self, role: str) -> Worker:
        """Start a process of a role."""
        log = self.deployment.home / f"{role}-{len(self._workers)}.log"
        worker = Worker(self.deployment, role, log)
        self._workers.append(worker)
        return worker

    def died(self, worker: Worker) -> bool:
        """Tell whether a process that should run has ended by itself, and remember it."""
        if worker.is_alive:
            return False
        self.deaths.append(f"{worker.role} ended by itself: {worker.last_words()}")
        return True

    @asynccontextmanager
    async def supervised(self, role: str) -> AsyncIterator[None]:
        """Keep one process of a role running; it is stopped at the end."""
        worker = self.start(role)

        async def watch() -> None:
            nonlocal worker
            while True:
                await asyncio.sleep(0.2)
                if self.died(worker):
                    await asyncio.sleep(0.5)
                    worker = self.start(role)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await worker.stop()

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self._workers:
            if worker.is_alive:
                worker.kill()
