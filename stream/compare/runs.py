"""One run of a comparison: one strategy with one seed over the slides of a log, in a process of its own.

Owns the files of runs (`runs/NAME-SEED.npz`, written whole when a run has ended: what is there is done), the clock and
the memory figure. Must not know what is compared with what.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import resource
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

import features
import models
from infra.settings import Settings
from models.plan import Plan
from models.strategies.tuning import Choices, with_choices
from models.train import use_threads
from stream.child import end_with_parent
from stream.compare.choose import choose
from stream.compare.steps import run_steps
from stream.compare.store import SlideStore, code_of, write_whole
from stream.logs.source import offered_histories
from stream.plan import new_plan

MB = 1e6
PROC_STATUS = Path("/proc/self/status")


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
        code: Of what does it; see `code_digest`.
    """

    name: str
    seed: int
    tunes: bool
    directory: Path
    settings: Settings
    fingerprint: str
    code: str

    @property
    def path(self) -> Path:
        """Where the run's results are once it has ended: another setting or other code is another file."""
        settings = self.settings
        chosen = (self.fingerprint, self.tunes, settings.model, settings.update, settings.gate, settings.priors)
        digest = hashlib.sha256(msgspec.json.encode([self.name, self.seed, self.code, *chosen])).hexdigest()[:12]
        plain = "".join(c if c.isalnum() or c in "+-." else "_" for c in self.name)
        return self.directory / "runs" / f"{plain}-{self.seed}-{digest}.npz"

    @property
    def progress_path(self) -> Path:
        """Where the run says how far it is."""
        return self.path.with_suffix(".progress")

    def report(self, text: str) -> None:
        """Say how far the run is."""
        self.progress_path.write_text(text)

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


def code_digest(name: str) -> str:
    """Return a digest of everything that learns: our files and, of a strategy of the user's own, its file."""
    parts = [code_of(features, models)]
    spec = importlib.util.find_spec(name.partition(":")[0]) if ":" in name else None
    if spec is not None and spec.origin is not None and spec.has_location:
        parts.append(Path(spec.origin).read_bytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def load_run(job: Job) -> Run:
    """Return the results of a run that has ended."""
    with np.load(job.path) as arrays:
        rest = msgspec.json.decode(arrays["rest"].tobytes())
        return Run(probabilities=arrays["probabilities"], **rest)


def perform(job: Job) -> None:
    """Do the run and write what it found, or why it failed; the main function of a process."""
    end_with_parent()
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
    choices = choose(
        job.name,
        plan,
        store,
        tunes=job.tunes,
        budget=job.settings.priors,
        offered=offered_histories(job.settings),
        say=job.report,
    )
    run = _run(job, with_choices(plan, choices), store, choices)
    rest = {field.name: getattr(run, field.name) for field in dataclasses.fields(Run) if field.name != "probabilities"}
    data = io.BytesIO()
    np.savez(data, probabilities=run.probabilities, rest=np.frombuffer(msgspec.json.encode(rest), np.uint8))
    write_whole(job.path, data.getvalue())


def _run(job: Job, plan: Plan, store: SlideStore, choices: Choices) -> Run:
    probabilities: list[npt.NDArray[np.float32]] = []
    predict_s = train_s = 0.0
    n_slides = len(store.log.slides)
    for number, step in enumerate(run_steps(job.name, plan, store)):
        predict_s, train_s = predict_s + step.predict_s, train_s + step.train_s
        if not step.is_warmup:
            probabilities.append(step.probabilities.astype(np.float32))
        job.report(f"slide {number + 1} of {n_slides}")
    found = np.concatenate(probabilities)
    if len(found) != store.log.rows or not np.isfinite(found).all():
        raise ValueError(
            f"strategy {job.name} must predict a finite probability for each of the {store.log.rows} rows, got"
            f" {int(np.isfinite(found).sum())}"
        )
    return Run(found, train_s, predict_s, _peak_mb(), choices)


def _peak_mb() -> float:
    """Return the largest resident memory of this process.

    Linux: not from getrusage, which goes on from the parent's memory at the start and so never shows less than that.
    """
    if PROC_STATUS.exists():
        (line,) = (line for line in PROC_STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB  # elsewhere, as on macOS, in bytes
