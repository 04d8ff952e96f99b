"""`freshrank demo`: everything at once, on one screen, from a log to served rankings and what the learning was worth.

With `--closed-loop`: from what is served to who clicks, and back.

Owns the order of things, the state directory of the demo (`demo/` in the state directory, emptied at each start) and
the JSON of a run. Must not compute or draw: the roles do the work, each in a process of its own started by the real
command line, and all that is shown is read from the topics.

Invariants: however the demo ends (done, Ctrl-C, SIGTERM, kill -9), no process stays behind; a role or the broker that
dies is started again and that is shown; one demo at a time in one state directory.

The object that `--json` writes (that of a closed loop stands in loop_report.py):

| key | value |
|---|---|
| name, config | of the deployment; the file that it was derived from |
| rows | what became of the rows of the log, as in `freshrank replay` |
| seconds, stages | wall time of all; of `start`, `replay`, `loop` (first event sent to last slide learnt), `compare` |
| events, events_per_s | records that the ledger has taken; over the seconds of the loop |
| ledger, violations | counts over all partitions; by how much each conservation law is broken |
| priors | `values` known, `as_of_s` |
| slides | every announcement of the trainer, with `frozen`: the score of the frozen model, null up to its own slide |
| champion, latest | versions at the end |
| frozen | `version` and `slide` of the snapshot that was left as it was; null when the log ended in the warm-up |
| summary | `frozen`, `champion`, `latest`: rows, clicks, logloss, auc, calibration over the later slides; or null |
| requests | three answers of the ranking service: user, snapshot, latency_s, clicked, clicked_place, ranked |
| memory_bytes_max, memory_measure | of all processes together; pss counts shared pages once, rss as often as shared |
| processes | by name: cpu_s, memory_bytes_max, deaths |
| plot, notes | the picture's path; what went wrong on the way and was mended |
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from infra import broker
from infra.settings import state_dir
from stream.demo.closed_loop import HOURS, HOURS_MIN, WARMUP_H, ClosedLoop, new_world
from stream.demo.loop_report import LoopReport
from stream.demo.processes import Children
from stream.demo.report import Report
from stream.demo.run import DemoRun
from stream.demo.screen import open_screen, save_panel
from stream.demo.setup import Say, Setup, set_up, set_up_closed_loop
from stream.kafka import client_options, create_topics
from stream.roles import Cluster

_T = TypeVar("_T")
Result = dict[str, Any]
PLAIN_COLUMNS = 120  # where no terminal says how wide it is
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    """Somebody asked us to end; not an `Exception`, so that nobody takes it for a fault."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


@dataclass(frozen=True)
class _Stage:
    """What a run has to itself once everything is up."""

    setup: Setup
    cluster: Cluster
    children: Children
    console: Console
    demo_dir: Path
    begun_s: float


Perform = Callable[[_Stage], Result]


def run_demo(
    *,
    config: Path | None = None,
    data_dir: Path | None = None,
    rows: int | None = None,
    json_path: str | None = None,
    plot_path: Path | None = None,
    panel_path: Path | None = None,
) -> int:
    """Run the demo and return the exit code: 0, or 128 + the number of the signal that ended it.

    Args:
        config: None: MovieLens-1M, or the simulated world where it cannot be had.
        data_dir: Where logs are kept; None: `data` in the state directory.
        rows: Stop after this many rows of the log.
        json_path: Where the object goes, `-` for standard output.
        plot_path: Where the picture goes; None: the demo's state directory.
        panel_path: Where the panel goes as an SVG, as it stood when the last event had been sent; None: nowhere.

    Raises:
        ValueError: If the configuration or the log cannot be used, or the object could not be written.
        RuntimeError: If another demo runs, or a part of this one cannot go on.
    """

    def prepare(demo_dir: Path, say: Say) -> Setup:
        return set_up(config, (data_dir or state_dir() / "data").absolute(), demo_dir, rows, say)

    def perform(stage: _Stage) -> Result:
        with open_screen(stage.console) as screen:
            run = DemoRun(stage.setup, stage.cluster, stage.children, screen, begun_s=stage.begun_s)
            outcome = _interruptible(run.watch(rows))
        stage.children.stop()  # before the comparison, which wants the cores and the memory
        report = Report(stage.setup, stage.cluster, outcome, stage.children)
        plot = plot_path or stage.demo_dir / "learning.png"
        result = _interruptible(report.make(stage.console, plot, begun_s=stage.begun_s))
        if panel_path is not None:
            save_panel(run.picture, panel_path)
        return result

    code, _ = _play(prepare, perform, json_path)
    return code


def run_closed_loop(
    *,
    hours: int | None = None,
    seed: int = 0,
    is_gated: bool = False,
    json_path: str | None = None,
    plot_path: Path | None = None,
) -> int:
    """Run the closed loop and return the exit code: as `run_demo`, or 1 if not every event is accounted for.

    Args:
        hours: How long the loop lasts; None: as long as it takes to see it all.
        seed: Which world.
        is_gated: From the first visitor on the gate decides; else every model serves once it was judged on an hour.
        json_path: Where the object goes, `-` for standard output.
        plot_path: Where the picture goes; None: the demo's state directory.

    Raises:
        ValueError: If the loop is too short, or the object could not be written.
        RuntimeError: If another demo runs, or a part of this one cannot go on.
    """
    n_hours = HOURS if hours is None else hours
    if n_hours < HOURS_MIN:
        raise ValueError(f"--hours must be >= {HOURS_MIN}, to have some before the drift and after, got {n_hours}")
    cascade = new_world(seed, n_hours)

    def prepare(demo_dir: Path, say: Say) -> Setup:
        # What has learnt the log serves from the hour after it on: a model is judged on an hour before it serves.
        ungated_hours = WARMUP_H + 1 if is_gated else cascade.n_hours + 1
        return set_up_closed_loop(demo_dir, cascade, WARMUP_H, ungated_hours, say)

    def perform(stage: _Stage) -> Result:
        with open_screen(stage.console) as screen:
            loop = ClosedLoop(
                stage.setup, stage.cluster, stage.children, screen, cascade=cascade, begun_s=stage.begun_s
            )
            outcome = _interruptible(loop.watch())
        stage.children.stop()
        report = LoopReport(stage.setup, cascade, outcome, stage.children)
        return report.make(stage.console, plot_path or stage.demo_dir / "loop.png", begun_s=stage.begun_s)

    code, result = _play(prepare, perform, json_path)
    if code:
        return code
    return int(any(result["violations"].values()) or any(result["missing"].values()))


def _play(prepare: Callable[[Path, Say], Setup], perform: Perform, json_path: str | None) -> tuple[int, Result]:
    """Have something performed on a broker of its own; return the exit code and its object, empty if it was ended."""
    console = Console(stderr=True)  # standard output is for programs
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_COLUMNS)
    home, begun_s = state_dir(), time.monotonic()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def leave(_: object, error: BaseException | None, __: object) -> None:
        _ignore_signals()  # what follows must not be interrupted
        if isinstance(error, _Ended):
            say("stopping the roles and the broker")

    _check_writable(json_path)
    try:
        with ExitStack() as stack:
            stack.enter_context(_ended_by_signals())
            stack.enter_context(_alone(home))
            demo_dir = _emptied(home / "demo")
            setup = prepare(demo_dir, say)
            cluster = stack.enter_context(_running_broker(demo_dir, setup, say))
            children = stack.enter_context(Children(demo_dir / "logs", {"FRESHRANK_HOME": str(demo_dir)}))
            stack.push(leave)  # comes first on the way out
            result = perform(_Stage(setup, cluster, children, console, demo_dir, begun_s))
    except _Ended as ended:
        say("stopped; no process is left behind")
        return 128 + ended.number, {}
    if json_path is not None:
        _write_json(json_path, result)
    return 0, result


def _interruptible(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end, or raise `_Ended` after the tasks were cancelled in good order."""
    numbers: list[int] = []

    async def main() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            numbers.append(number)
            task.cancel()

        for number in SIGNALS:
            loop.add_signal_handler(number, end, number)
        try:
            return await work
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, _raise_ended)

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise _Ended(numbers[0]) from None
    except ValueError as error:  # not the caller's: what was given has been checked by now
        raise RuntimeError(str(error)) from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn signals into `_Ended`; leave them as they were."""
    before = {number: signal.signal(number, _raise_ended) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_ended(number: int, _: FrameType | None) -> None:
    raise _Ended(number)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / "demo.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(
                f"one demo at a time in a state directory, another one runs in {home};"
                " wait for it, or set FRESHRANK_HOME to another directory"
            ) from None
        yield


def _emptied(demo_dir: Path) -> Path:
    """Return the demo's directory without anything of an earlier run, not even its broker."""
    broker.stop(demo_dir / "broker")
    shutil.rmtree(demo_dir, ignore_errors=True)
    demo_dir.mkdir(parents=True)
    return demo_dir


@contextmanager
def _running_broker(demo_dir: Path, setup: Setup, say: Say) -> Iterator[Cluster]:
    """Give the cluster of an embedded broker with the deployment's topics; it ends with the block."""
    data_dir, settings = demo_dir / "broker", setup.settings
    info = broker.start(data_dir, owned=True, on_progress=say)
    try:
        partitions, prefix = settings.kafka.partitions, settings.prefix
        retention_s = settings.kafka.retention_s
        create_topics(
            info.bootstrap_servers, prefix=prefix, partitions=partitions, security={}, retention_s=retention_s
        )
        options = client_options(info.bootstrap_servers, {})
        yield Cluster(info.bootstrap_servers, prefix, partitions, options, {})
    finally:
        _ignore_signals()
        broker.stop(data_dir)


def _check_writable(json_path: str | None) -> None:
    """Say now, not after minutes, that the object cannot be written."""
    if json_path not in (None, "-") and not Path(str(json_path)).absolute().parent.is_dir():
        raise ValueError(f"--json must name a file in a directory that is there, got {json_path}; make the directory")


def _write_json(target: str, result: dict[str, Any]) -> None:
    data = msgspec.json.format(msgspec.json.encode(result, enc_hook=str), indent=2) + b"\n"
    if target == "-":
        sys.stdout.write(data.decode())
        return
    path = Path(target)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
