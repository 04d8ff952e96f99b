"""One run of a comparison: one strategy with one seed over the slides of a log, in a process of its own.

Owns the files of runs (`runs/NAME-SEED.npz`, written whole when a run has ended: what is there is done), the clock and
the memory figure. Must not know what is compared with what.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from infra.settings import Settings
from models.evaluate import log_losses
from models.strategies.build import build_strategy
from models.strategies.ours import LEARNERS
from models.strategies.tuning import Choices, neighbours, settings_of, with_choices
from models.train import use_threads
from models.update import Plan
from stream.compare.store import SlideStore, write_whole
from stream.plan import new_plan

MB = 1e6


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        name: The strategy.
        seed: Of the network and the order of rows.
        tunes: Whether the warm-up chooses first.
        directory: Of the comparison.
        settings: Of the deployment.
        fingerprint: Of the log.
    """

    name: str
    seed: int
    tunes: bool
    directory: Path
    settings: Settings
    fingerprint: str

    @property
    def path(self) -> Path:
        """Where the run's results are once it has ended: another setting is another file."""
        chosen = (self.fingerprint, self.tunes, self.settings.model, self.settings.update, self.settings.gate)
        digest = hashlib.sha256(msgspec.json.encode([self.name, self.seed, *chosen])).hexdigest()[:12]
        plain = "".join(c if c.isalnum() or c in "+-." else "_" for c in self.name)
        return self.directory / "runs" / f"{plain}-{self.seed}-{digest}.npz"

    @property
    def progress_path(self) -> Path:
        """Where the run says how far it is."""
        return self.path.with_suffix(".progress")

    @property
    def error_path(self) -> Path:
        """Where the run says why it failed."""
        return self.path.with_suffix(".error")


@dataclass(frozen=True)
class Run:
    """What a run found.

    Attributes:
        probabilities: Of the rows after the warm-up, (N,).
        train_s: Wall time spent learning.
        predict_s: Wall time spent predicting, over all slides.
        peak_mb: Largest resident memory of its process.
        choices: What the warm-up chose.
    """

    probabilities: npt.NDArray[np.float32]
    train_s: float
    predict_s: float
    peak_mb: float
    choices: Choices


def load_run(job: Job) -> Run:
    """Return the results of a run that has ended."""
    with np.load(job.path) as arrays:
        rest = msgspec.json.decode(arrays["rest"].tobytes())
        return Run(probabilities=arrays["probabilities"], **rest)


def perform(job: Job) -> None:
    """Do the run and write what it found, or why it failed; the main function of a process."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    job.error_path.unlink(missing_ok=True)
    try:
        _perform(job)
    except ValueError as error:
        job.error_path.write_text(str(error))
        raise SystemExit(1) from None
    finally:
        job.progress_path.unlink(missing_ok=True)


def _perform(job: Job) -> None:
    use_threads(job.settings.update.threads)
    store = SlideStore(job.directory)
    plan = dataclasses.replace(new_plan(job.settings), seed=job.seed)
    choices = tune(job, plan, store) if job.tunes and job.name in LEARNERS else {}
    run = _run(job, with_choices(plan, choices), store, choices)
    rest = {field.name: getattr(run, field.name) for field in dataclasses.fields(Run) if field.name != "probabilities"}
    data = io.BytesIO()
    np.savez(data, probabilities=run.probabilities, rest=np.frombuffer(msgspec.json.encode(rest), np.uint8))
    write_whole(job.path, data.getvalue())


def _run(job: Job, plan: Plan, store: SlideStore, choices: Choices) -> Run:
    probabilities: list[npt.NDArray[np.float32]] = []
    spent = {"predict": 0.0, "train": 0.0}
    n_slides = len(store.log.slides)
    for number, step in enumerate(_steps(job.name, plan, store, spent)):
        if not step["is_warmup"]:
            probabilities.append(step["probabilities"].astype(np.float32))
        job.progress_path.write_text(f"slide {number + 1} of {n_slides}")
    found = np.concatenate(probabilities)
    if len(found) != store.log.rows or not np.isfinite(found).all():
        raise ValueError(
            f"strategy {job.name} must predict a finite probability for each of the {store.log.rows} rows, got"
            f" {int(np.isfinite(found).sum())}"
        )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    return Run(found, spent["train"], spent["predict"], peak_mb, choices)


def _steps(
    name: str, plan: Plan, store: SlideStore, spent: dict[str, float], *, warmup_only: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield after each slide what was predicted before it was learnt."""
    strategy = build_strategy(name, plan)
    for cut, slide in store.read(warmup_only=warmup_only):
        begun_s = time.perf_counter()
        probabilities, examples = strategy.predict(slide)
        predicted_s = time.perf_counter()
        strategy.learn(slide)
        spent["predict"] += predicted_s - begun_s
        spent["train"] += time.perf_counter() - predicted_s
        yield {"is_warmup": cut.is_warmup, "probabilities": probabilities, "clicks": examples.clicks}


def tune(job: Job, plan: Plan, store: SlideStore) -> Choices:
    """Return what the warm-up chooses: one setting after the other, each pushed on in its direction while that gains.

    The slides after the warm-up are not even opened.
    """
    choices: Choices = {}
    best = _warmup_loss(job, with_choices(plan, choices), store)
    for name in settings_of(LEARNERS[job.name](plan)):
        for direction in (0, 1):
            gained = True
            while gained:
                at = LEARNERS[job.name](with_choices(plan, choices))
                tried = choices | list(neighbours(at, name))[direction]
                loss = _warmup_loss(job, with_choices(plan, tried), store)
                job.progress_path.write_text(f"tuning {name}: log loss {loss:.5f}, best {min(loss, best):.5f}")
                if gained := loss < best:
                    choices, best = tried, loss
            if name in choices:
                break  # smaller was better: larger is not
    gc.collect()
    return choices


def _warmup_loss(job: Job, plan: Plan, store: SlideStore) -> float:
    """Return the mean log loss on the later half of the warm-up's slides; the first ones teach what a start is like."""
    spent = {"predict": 0.0, "train": 0.0}
    steps = list(_steps(job.name, plan, store, spent, warmup_only=True))
    later = steps[len(steps) // 2 :]
    if not later:
        raise ValueError("tuning needs slides in the warm-up, got none; make [window] warmup_s longer")
    losses = [log_losses(step["probabilities"].astype(np.float64), step["clicks"]) for step in later]
    return float(np.concatenate(losses).mean())
