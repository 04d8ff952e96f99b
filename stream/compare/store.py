"""The slides of a log on disk: cut once by the ledger, read one at a time by every run.

Owns the files of a comparison's directory but for the report. Must not learn anything.

Layout: `slides/000007.arrow` a slide's frame; `log.json` what was cut from what, written last; `rows.npz` what the
comparison needs to know of the rows after the warm-up.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import polars as pl

import features
import stream
from features.encode import hash_strings
from features.priors import CORRECTION
from infra.settings import Settings
from models.click_task import initial_snapshot
from models.comparison import Scored
from models.examples import read_examples, user_ids
from models.update import count_slide
from models.window import IMPRESSION, Slide, impression_ids
from stream.plan import new_plan


class Cut(msgspec.Struct, frozen=True):
    """One slide on disk."""

    index: int
    start_s: float
    end_s: float
    is_warmup: bool


class Log(msgspec.Struct, frozen=True):
    """What a directory holds.

    Attributes:
        fingerprint: Of everything that the slides follow from.
        slides: In order.
        rows: Of `Scored`.
    """

    fingerprint: str
    slides: list[Cut]
    rows: int


class SlideStore:
    """The slides of one log under a directory."""

    def __init__(self, directory: Path) -> None:
        """Name the directory; nothing is read yet."""
        self._directory = directory

    @property
    def log(self) -> Log:
        """What was cut."""
        return msgspec.json.decode((self._directory / "log.json").read_bytes(), type=Log)

    def holds(self, fingerprint: str) -> bool:
        """Tell whether the slides of just this log, cut just this way, are here."""
        try:
            return self.log.fingerprint == fingerprint
        except (OSError, msgspec.MsgspecError):
            return False

    def read(self, *, warmup_only: bool = False) -> Iterator[tuple[Cut, Slide]]:
        """Yield the slides in order, one in memory at a time; `warmup_only` opens no file of a later one."""
        for cut in self.log.slides:
            if warmup_only and not cut.is_warmup:
                return
            yield cut, Slide(cut.index, cut.start_s, cut.end_s, pl.read_ipc(self._path(cut.index)))

    @property
    def rows(self) -> Scored:
        """The rows that are compared."""
        with np.load(self._directory / "rows.npz") as arrays:
            return Scored(**{field.name: arrays[field.name] for field in dataclasses.fields(Scored)})

    def write_warmup(self, slides: Iterable[Slide], settings: Settings, on_slide: Callable[[Slide], None]) -> None:
        """Write the slides of the warm-up alone; nothing of a later one is kept."""
        self._directory.joinpath("slides").mkdir(parents=True, exist_ok=True)
        cuts: list[Cut] = []
        for cut, slide in _cut(slides, settings.window.warmup_s):
            if not cut.is_warmup:
                break
            slide.frame.write_ipc(self._path(slide.index), compression="lz4")
            cuts.append(cut)
            on_slide(slide)
        if not cuts:
            raise ValueError("a choice needs slides in the warm-up, got none; make [window] warmup_s longer")
        write_whole(self._directory / "log.json", msgspec.json.format(msgspec.json.encode(Log("", cuts, 0))))

    def write(
        self, slides: Iterable[Slide], settings: Settings, fingerprint: str, on_slide: Callable[[Slide], None]
    ) -> None:
        """Cut a log: write its slides and what is compared on them; what was here before goes."""
        (self._directory / "slides").mkdir(parents=True, exist_ok=True)
        (self._directory / "log.json").unlink(missing_ok=True)
        plan = dataclasses.replace(new_plan(settings), prior="live")
        counted = initial_snapshot(plan)
        cuts: list[Cut] = []
        corrections: list[pl.DataFrame] = []
        parts: list[dict[str, np.ndarray]] = []
        for cut, slide in _cut(slides, plan.warmup_s):
            slide.frame.write_ipc(self._path(slide.index), compression="lz4")
            examples = read_examples(slide, counted, plan.buckets, plan.rows_max)
            counted, _ = count_slide(counted, slide, examples.settled, plan)
            if not cut.is_warmup:
                parts.append(
                    {
                        "clicks": examples.clicks,
                        "requests": hash_strings(examples.frame["request_id"]).view(np.int64),
                        "users": user_ids(examples.frame, examples.keys, plan.fields).view(np.int64),
                        "item_evidence": examples.item_evidence,
                        "source": impression_ids(examples.frame),
                    }
                )
            corrections.append(slide.frame.filter(pl.col("kind") == CORRECTION).select(IMPRESSION))
            cuts.append(cut)
            on_slide(slide)
        if not parts:
            raise ValueError(
                f"a log must go on after the warm-up to be compared on, got {len(cuts)} slides of warm-up alone;"
                " make [window] warmup_s shorter"
            )
        late = impression_ids(pl.concat(corrections))
        tested = [cut for cut in cuts if not cut.is_warmup]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        is_late = np.isin(columns.pop("source"), late)
        columns["clicks"] = np.where(is_late, 1.0, columns["clicks"])  # what the log says in the end
        columns["window"] = np.repeat(np.arange(len(parts)), [len(part["clicks"]) for part in parts])
        columns |= {name: np.array([getattr(cut, name) for cut in tested]) for name in ("start_s", "end_s")}
        np.savez(self._directory / "rows.npz", **columns)  # type: ignore[arg-type]  # numpy's stub wants a bool first
        log = Log(fingerprint, cuts, len(columns["clicks"]))
        write_whole(self._directory / "log.json", msgspec.json.format(msgspec.json.encode(log)))

    def _path(self, index: int) -> Path:
        return self._directory / "slides" / f"{index:06d}.arrow"


def _cut(slides: Iterable[Slide], warmup_s: float) -> Iterator[tuple[Cut, Slide]]:
    """Yield each slide with whether it is warm-up, as models/update.py has it."""
    origin_s: float | None = None
    for slide in slides:
        if origin_s is None:
            origin_s = slide.first_s
        yield Cut(slide.index, slide.start_s, slide.end_s, slide.is_warmup(origin_s, warmup_s)), slide


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)


def code_of(*packages: ModuleType) -> bytes:
    """Return what all Python files of packages hold, in order of their names."""
    files = (path for package in packages for root in package.__path__ for path in sorted(Path(root).rglob("*.py")))
    return b"".join(path.read_bytes() for path in files)


def fingerprint(settings: Settings, files: Iterable[Path], limit: int | None) -> str:
    """Return a digest of everything that the slides of a log follow from: sections, files, how many rows, our code."""
    relevant = (settings.log, settings.fields, settings.ledger, settings.window, settings.priors, settings.kafka.clock)
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = msgspec.json.encode([relevant, settings.kafka.partitions, settings.update.rows_max, found, limit])
    return hashlib.sha256(text + code_of(features, stream)).hexdigest()
