"""Child processes that are watched, started again when they die, and never outlive the process that started them.

Owns their start, their log files, their restarts and their end. Must not know what a child does.

Invariants: each child runs under the guard of infra/broker_guard.py: when this process ends, however it ends, the guard
sees it and ends the child; a child that is to run for ever and dies is started again, at most `DEATHS_MAX - 1` times;
after `stop` none is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from infra import broker_guard

DEATHS_MAX = 5  # chosen by hand: a fault that comes back this often is not the world's
PAUSE_S = 1.0  # between the second death and the next start, so that five deaths are not over in a second
STOP_S_MAX = 8.0  # the guard gives a child 5 s between SIGTERM and SIGKILL
TAIL_BYTES = 64 * 1024


class ChildFailed(RuntimeError):
    """A child died for good; says what it said last."""


@dataclass
class _Child:
    """One child: what is run, and under which guard it runs now."""

    command: list[str]
    log_path: Path
    is_service: bool
    guard: subprocess.Popen[bytes]
    pid: int
    log_start: int
    deaths: int = 0
    died_s: float = 0.0  # wall clock of the last death; 0: it runs, or has ended as it should
    has_ended: bool = False


@dataclass(frozen=True)
class Usage:
    """What the processes took so far.

    Attributes:
        memory_bytes: Of all together, just now.
        memory_bytes_max: The largest of these sums.
        measure: How memory is counted: `pss` counts a page that several share once, `rss` as often as it is shared.
        sizes: The largest size of each by name, bytes.
        cpu_s: Processor time by name, seconds, those that died included.
        cpu_by_pid_s: The same by pid.
    """

    memory_bytes: int = 0
    memory_bytes_max: int = 0
    measure: str = "pss"
    sizes: Mapping[str, int] = field(default_factory=dict)
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    cpu_by_pid_s: Mapping[int, float] = field(default_factory=dict)


class Children:
    """The children of this process by name; leaving the `with` block ends them all."""

    def __init__(self, logs_dir: Path, env: Mapping[str, str]) -> None:
        """Begin with none.

        Args:
            logs_dir: Gets a file `NAME.log` for each; made when it is not there.
            env: Added to this process's own environment.
        """
        logs_dir.mkdir(parents=True, exist_ok=True)
        self._logs_dir = logs_dir
        self._env = {**os.environ, **env, "PYTHONUNBUFFERED": "1"}
        self._children: dict[str, _Child] = {}
        self._others: dict[int, str] = {}
        self.usage = Usage()

    def __enter__(self) -> Self:
        """Return the children."""
        return self

    def __exit__(self, *_: object) -> None:
        """End them all."""
        self.stop()

    def start(self, name: str, command: Sequence[str], *, is_service: bool) -> None:
        """Start a child.

        Args:
            name: Its own, and its log file's.
            command: Program and arguments.
            is_service: It is to run until it is stopped; else it does its work and ends.
        """
        assert name not in self._children, name
        log_path = self._logs_dir / f"{name}.log"
        guard, pid, log_start = self._spawn(list(command), log_path)
        self._children[name] = _Child(list(command), log_path, is_service, guard, pid, log_start)

    def check(self) -> list[str]:
        """Start services again that have died; return a line for each death and each new start.

        Raises:
            ChildFailed: If one has died for the last time.
        """
        lines: list[str] = []
        for name, child in self._children.items():
            if child.died_s:
                if time.monotonic() - child.died_s >= (PAUSE_S if child.deaths > 1 else 0.0):
                    child.guard, child.pid, child.log_start = self._spawn(child.command, child.log_path)
                    child.died_s = 0.0
            elif not child.has_ended and child.guard.poll() is not None:
                _let_go(child.guard)
                if not child.is_service:
                    child.has_ended = True
                    continue
                child.deaths += 1
                child.died_s = time.monotonic()
                if child.deaths >= DEATHS_MAX:
                    raise ChildFailed(self.last_words(name, f"it died {child.deaths} times"))
                lines.append(f"{name} died and is started again ({self._last_line(child)})")
        return lines

    def names(self) -> list[str]:
        """Return the children in the order of their first start."""
        return list(self._children)

    def has_ended(self, name: str) -> bool:
        """Return whether a child that was to do its work and end has ended."""
        return self._children[name].has_ended

    def is_running(self, name: str) -> bool:
        """Return whether a child runs right now."""
        child = self._children[name]
        return not child.has_ended and not child.died_s

    def deaths(self, name: str) -> int:
        """Return how often a service has died."""
        return self._children[name].deaths

    def log_of(self, name: str) -> str:
        """Return what a child has said since it was started last."""
        child = self._children[name]
        with child.log_path.open("rb") as file:
            file.seek(child.log_start)
            return file.read().decode(errors="replace")

    def last_words(self, name: str, what: str) -> str:
        """Return an error's text: what happened to a child, and its last lines."""
        child = self._children[name]
        said = [line for line in _tail(child.log_path).splitlines() if line.strip()][-5:]
        words = "".join(f"\n    {line[:300]}" for line in said) or "\n    (nothing)"
        return f"{name} must go on, but {what}; the end of {child.log_path}:{words}"

    def measure(self, others: Mapping[int, str]) -> Usage:
        """Measure this process, named `demo`, and all below it: the children, others by pid, and the guards.

        Args:
            others: Names of processes that are no children of ours; they are remembered.
        """
        self._others |= others
        names = {child.pid: name for name, child in self._children.items()} | self._others | {os.getpid(): "demo"}
        found: dict[int, tuple[str, int, float]] = {}
        measure = "pss"
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            name = names.get(process.pid, "guards")
            with contextlib.suppress(psutil.Error):
                full, times = process.memory_full_info(), process.cpu_times()
                measure = measure if hasattr(full, "pss") else "rss"
                found[process.pid] = (name, int(getattr(full, "pss", full.rss)), times.user + times.system)
        self.usage = _add(self.usage, found, measure)
        return self.usage

    def report(self) -> dict[str, Any]:
        """Return what the object of a run holds about its processes: memory and how it was measured, and each one."""
        usage = self.usage
        return {
            "memory_bytes_max": usage.memory_bytes_max,
            "memory_measure": usage.measure,
            "processes": {
                name: {
                    "cpu_s": cpu_s,
                    "memory_bytes_max": usage.sizes[name],
                    "deaths": self.deaths(name) if name in self._children else 0,
                }
                for name, cpu_s in usage.cpu_s.items()
            },
        }

    def stop(self, *names: str) -> None:
        """End some of the children, or all: SIGTERM, and SIGKILL after 5 s."""
        chosen = [self._children[name] for name in names or list(self._children)]
        for child in chosen:
            child.has_ended = True
            _let_go(child.guard)
        deadline_s = time.monotonic() + STOP_S_MAX
        for child in chosen:
            try:
                child.guard.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.guard.kill()  # and the kernel its child with it
                child.guard.wait()

    def _spawn(self, command: list[str], log_path: Path) -> tuple[subprocess.Popen[bytes], int, int]:
        with log_path.open("ab") as log:
            log_start = log.tell()
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", broker_guard.__file__, str(os.getpid()), "owned", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )
        assert guard.stdout is not None
        with guard.stdout:
            pid = int(guard.stdout.readline() or 0)
        if not pid:
            _let_go(guard)
            guard.wait()
            raise ChildFailed(f"{command[0]} must be a program that runs, got: {_tail(log_path)[-300:]}")
        return guard, pid, log_start

    def _last_line(self, child: _Child) -> str:
        lines = [line.strip() for line in _tail(child.log_path).splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"


def _let_go(guard: subprocess.Popen[bytes]) -> None:
    """Close the pipe to a guard, which takes it for our end."""
    assert guard.stdin is not None
    with contextlib.suppress(OSError):
        guard.stdin.close()


def _add(usage: Usage, found: Mapping[int, tuple[str, int, float]], measure: str) -> Usage:
    """Return the usage with what was found: name, bytes and processor seconds so far, by pid."""
    now: dict[str, int] = {}
    cpu_s = dict(usage.cpu_s)
    for pid, (name, size, used_s) in found.items():
        now[name] = now.get(name, 0) + size
        cpu_s[name] = cpu_s.get(name, 0.0) + used_s - usage.cpu_by_pid_s.get(pid, 0.0)
    return Usage(
        memory_bytes=sum(now.values()),
        memory_bytes_max=max(sum(now.values()), usage.memory_bytes_max),
        measure=measure,
        sizes=dict(usage.sizes) | {name: max(size, usage.sizes.get(name, 0)) for name, size in now.items()},
        cpu_s=cpu_s,
        cpu_by_pid_s=dict(usage.cpu_by_pid_s) | {pid: used_s for pid, (_, _, used_s) in found.items()},
    )


def find_line(text: str, pattern: str) -> str | None:
    """Return the first group of the last line that a pattern matches, or None."""
    found = re.findall(pattern, text)
    return str(found[-1]) if found else None


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
