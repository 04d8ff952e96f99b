"""A comparison from start to end: cut the log, run what is missing, report.

Owns the order of work and the processes. Must not know strategies or figures.

It can be stopped at any time: the slides and the runs that are there are kept, and the same call goes on from them.
"""

from __future__ import annotations

import fcntl
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from infra.settings import Settings
from models.strategies.build import check_strategy
from models.window import Slide
from stream.compare.report import to_report, write_report
from stream.compare.runs import Job, code_digest, load_run, perform
from stream.compare.store import SlideStore

POLL_S = 0.5  # how often the progress of runs is looked at


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        settings: Of the deployment.
        strategies: By name, in the order of the report.
        seeds: Each strategy runs with each.
        directory: Where everything is kept.
        fingerprint: Of the log; see `store.fingerprint`.
        jobs: Runs at the same time.
        tunes: Whether each of our strategies chooses its settings on the warm-up first.
    """

    settings: Settings
    strategies: Sequence[str]
    seeds: Sequence[int]
    directory: Path
    fingerprint: str
    jobs: int = 1
    tunes: bool = False

    def all_jobs(self) -> list[Job]:
        """Return the runs, seed by seed."""
        common = (self.tunes, self.directory, self.settings, self.fingerprint)
        codes = {name: code_digest(name) for name in self.strategies}
        return [Job(name, seed, *common, codes[name]) for seed in self.seeds for name in self.strategies]


def run_comparison(
    comparison: Comparison,
    slides: Callable[[], Iterable[Slide]],
    *,
    say: Callable[[str], None],
    status: Callable[[str], None],
) -> dict[str, Any]:
    """Do what is missing and return the report's JSON object.

    Args:
        comparison: What is compared.
        slides: Cuts the log, with the histories that it offers; called when its slides are not there yet.
        say: Called with a line when something is done.
        status: Called with what is going on.

    Raises:
        ValueError: If a strategy is unknown or cannot run on this log.
        RuntimeError: If another comparison works in the directory.
    """
    for name in comparison.strategies:
        check_strategy(name)
    with _alone(comparison.directory):
        return _run(comparison, slides, say, status)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep others out, who might cut another log under runs that read this one; a kill lets go."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(
                f"one comparison at a time in a directory, another one runs in {directory};"
                " wait for it, or give --out another directory"
            ) from None
        yield


def _run(
    comparison: Comparison,
    slides: Callable[[], Iterable[Slide]],
    say: Callable[[str], None],
    status: Callable[[str], None],
) -> dict[str, Any]:
    store = SlideStore(comparison.directory)
    if not store.holds(comparison.fingerprint):
        n_rows = 0

        def count(slide: Slide) -> None:
            nonlocal n_rows
            n_rows += len(slide.frame)
            status(f"cutting the log into slides: {n_rows:,} rows")

        store.write(slides(), comparison.settings, comparison.fingerprint, count)
    log = store.log
    n_warmup = sum(cut.is_warmup for cut in log.slides)
    say(f"{len(log.slides)} slides, {n_warmup} of them warm-up; {log.rows:,} rows are compared")
    jobs = comparison.all_jobs()
    _perform(jobs, comparison.jobs, say, status)
    runs = {name: [load_run(job) for job in jobs if job.name == name] for name in comparison.strategies}
    report = to_report(comparison.settings.name, store.rows, runs)
    write_report(report, comparison.directory)
    return report


def _perform(jobs: Sequence[Job], at_once: int, say: Callable[[str], None], status: Callable[[str], None]) -> None:
    todo = [job for job in jobs if not job.path.exists()]
    if len(todo) < len(jobs):
        say(f"{len(jobs) - len(todo)} of {len(jobs)} runs were done before")
    # A fresh process for each run: its memory is its own, and no library's state goes from one to the next.
    context = multiprocessing.get_context("spawn")
    waiting, n_done = deque(todo), 0
    running: dict[SpawnProcess, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                process = context.Process(target=perform, args=(job,))
                process.start()
                running[process] = job
            connection.wait([process.sentinel for process in running], timeout=POLL_S)
            for process in [process for process in running if process.exitcode is not None]:
                job = running.pop(process)
                _check_ended(process, job)
                n_done += 1
                say(f"{job.name}, seed {job.seed}: done ({n_done} of {len(todo)})")
            status("; ".join(_progress(job) for job in running.values()))
    finally:
        for process in running:
            process.terminate()
            process.join()


def _check_ended(process: SpawnProcess, job: Job) -> None:
    if process.exitcode == 0:
        return
    if job.error_path.exists():
        raise ValueError(f"strategy {job.name} failed: {job.error_path.read_text()}")
    raise RuntimeError(
        f"the process of strategy {job.name} must end by itself, got exit code {process.exitcode} (-9: killed, as when"
        " memory runs out); the same call goes on from the runs that are done, with fewer --jobs in less memory"
    )


def _progress(job: Job) -> str:
    try:
        return f"{job.name}, seed {job.seed}: {job.progress_path.read_text()}"
    except OSError:
        return f"{job.name}, seed {job.seed}"
