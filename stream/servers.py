"""Several processes of the ranking service on one port, and the process that started them.

Owns their start, their restarts, their end, and when one of them may answer. Must not know what is answered: each is a
whole service that follows the topics by itself (serve.py).

Each process listens on a socket of its own (SO_REUSEPORT), so the kernel shares new connections out evenly, and one
that is killed takes only its own connections with it.

Invariants: once one process can rank, only those that can are asked; one that dies is started again, unless it dies
`DEATHS_MAX` times within `DEATHS_S`; after the end, however it comes, none is left (child.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging.config import dictConfig
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory

from prometheus_client.multiprocess import mark_process_dead

from infra.settings import Settings
from stream.child import end_with_parent
from stream.roles import LOGGING

log = logging.getLogger("freshrank.servers")

DEATHS_MAX = 5  # chosen by hand, as are the next: a fault that comes back this often is not the world's
DEATHS_S = 300.0  # a start takes seconds, on a loaded machine a minute
PAUSE_S = 1.0  # between a second death and the next start
LOOK_S = 0.2  # how late a signal may be noticed
STOP_S_MAX = 15.0  # a service takes up to 5 s for open requests and as much for its events
UNUSABLE = 2  # exit code: the configuration is wrong, so another start would change nothing
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client shares the figures of several processes


@dataclass
class _Server:
    """One process, and what it has said."""

    process: SpawnProcess
    pipe: Connection
    may_answer: bool = False  # it answers, or was told to though it cannot rank yet
    can_rank: bool = False


class ServersFailed(RuntimeError):
    """The processes cannot go on; they have said why."""


def serve_together(
    settings: Settings, bootstrap: str, *, port: int | None = None, announce: Callable[[str], None]
) -> None:
    """Serve with `[serve] processes` processes until SIGTERM or SIGINT.

    Args:
        settings: Of the deployment.
        bootstrap: host:port of the broker.
        port: Instead of the settings' one; 0 lets the system choose.
        announce: Is told the line with the address, once requests are taken.

    Raises:
        ValueError: If the address cannot be had, or the processes say that the configuration is wrong.
        ServersFailed: If one of them dies again and again.
    """
    with (
        _reserved(settings.serve.host, settings.serve.port if port is None else port) as address,
        TemporaryDirectory(prefix="freshrank-metrics-") as metrics_dir,
        _ending() as is_over,
    ):
        os.environ[METRICS_DIR] = metrics_dir  # a process reads it when it first imports prometheus_client
        servers = Servers(settings, bootstrap, address, announce)
        try:
            while not is_over():
                servers.look()
        finally:
            servers.stop()


class Servers:
    """The processes."""

    def __init__(
        self, settings: Settings, bootstrap: str, address: tuple[str, int], announce: Callable[[str], None]
    ) -> None:
        """Begin with none."""
        self._settings = settings
        self._bootstrap = bootstrap
        self._address = address
        self._announce: Callable[[str], None] | None = announce
        self._context = multiprocessing.get_context("spawn")  # a fork would inherit half a program's threads
        self._servers: list[_Server] = []
        self._deaths_s: deque[float] = deque(maxlen=DEATHS_MAX)

    def look(self) -> None:
        """Take what the processes say, start those that are missing, and return after `LOOK_S` at the latest.

        Raises:
            ValueError: If one says that the configuration is wrong.
            ServersFailed: If one has died for the last time.
        """
        self._start_missing()
        if not any(server.may_answer for server in self._servers):
            self._let_answer()
        wait([part for one in self._servers for part in (one.pipe, one.process.sentinel)], LOOK_S)
        for server in list(self._servers):
            self._listen(server)
            if not server.process.is_alive():
                self._bury(server)

    def stop(self) -> None:
        """End all processes: SIGTERM, and SIGKILL after `STOP_S_MAX`."""
        for server in self._servers:
            server.process.terminate()
        deadline_s = time.monotonic() + STOP_S_MAX
        for server in self._servers:
            server.process.join(max(0.0, deadline_s - time.monotonic()))
            if server.process.is_alive():
                log.warning("[servers] process %d is killed: it does not end", server.process.pid)
                server.process.kill()
                server.process.join()
            server.pipe.close()
        self._servers = []

    def _start_missing(self) -> None:
        """Start one process, and the others once one can rank: until then one is enough to say what is missing."""
        is_pausing = len(self._deaths_s) > 1 and time.monotonic() - self._deaths_s[-1] < PAUSE_S
        wanted = self._settings.serve.processes if any(one.can_rank for one in self._servers) else 1
        while len(self._servers) < wanted and not is_pausing:
            ours, theirs = self._context.Pipe()
            arguments = (self._settings, self._bootstrap, self._address, theirs)
            process = self._context.Process(target=_work, args=arguments, name="freshrank-server")
            process.start()
            theirs.close()
            self._servers.append(_Server(process, ours))

    def _let_answer(self) -> None:
        """Let the oldest process answer, though it cannot rank: nobody else would."""
        for server in self._servers[:1]:
            server.may_answer = True
            with contextlib.suppress(OSError):
                server.pipe.send("answer")

    def _listen(self, server: _Server) -> None:
        with contextlib.suppress(EOFError, OSError):
            while server.pipe.poll():
                said = server.pipe.recv()
                server.may_answer = True
                server.can_rank = server.can_rank or said == "ranks"
                if self._announce is not None:
                    self._announce(f"freshrank serves on http://{self._address[0]}:{self._address[1]}")
                    self._announce = None

    def _bury(self, server: _Server) -> None:
        code, now_s = server.process.exitcode, time.monotonic()
        self._servers.remove(server)
        server.pipe.close()
        mark_process_dead(server.process.pid)  # type: ignore[no-untyped-call]  # theirs
        if code == UNUSABLE:
            raise ValueError("the configuration must be one that a service can start with; see what it said above")
        self._deaths_s.append(now_s)
        if len(self._deaths_s) == DEATHS_MAX and now_s - self._deaths_s[0] < DEATHS_S:
            raise ServersFailed(
                f"the processes of the service must go on, but {DEATHS_MAX} died within {DEATHS_S:g} s, the last with"
                f" code {code}; see what they said above"
            )
        log.warning("[servers] process %d died with code %s and is started again", server.process.pid, code)


def _work(settings: Settings, bootstrap: str, address: tuple[str, int], pipe: Connection) -> None:
    """Be one of the processes."""
    end_with_parent()
    dictConfig(LOGGING)
    from stream.serve import serve_beside  # only here: torch takes seconds and memory that the parent does not need

    try:
        asyncio.run(serve_beside(settings, bootstrap, address, is_let=pipe.poll, tell=pipe.send))
    except ValueError as error:
        log.error("[servers] %s", error)
        sys.exit(UNUSABLE)


@contextmanager
def _reserved(host: str, port: int) -> Iterator[tuple[str, int]]:
    """Hold an address that others of ours can listen on, and nobody else; yield it with its port.

    Raises:
        ValueError: If somebody listens there.
    """
    try:
        with socket.create_server((host, port)) as alone:  # without SO_REUSEPORT: another service would share it
            port = alone.getsockname()[1]
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        raise ValueError(f"[serve] host and port must be free to listen on, got {host}:{port}: {error}") from None
    with held:
        yield held.getsockname()[:2]


@contextmanager
def _ending() -> Iterator[Callable[[], bool]]:
    """Take SIGTERM and SIGINT; yield what says whether one has come."""
    seen: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: seen.append(got)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
