"""What a strategy is: it predicts the rows of a slide, and only then learns them.

Owns the interface, and the two ways to fill it: a learner of ours with some plan, or a control, which is any model that
can predict and learn rows. Must not know files, processes or time spent.

Invariants: a control is given the values of the rows and what had been counted when each was shown, and their clicks
only after it has predicted them; every strategy of one log predicts the same rows in the same order.

Shape legend: `N` rows, `S` slots, `P` dense inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import Keys
from features.fields import COLUMN_PREFIX
from features.posteriors import dense_inputs
from features.priors import Floats, Ints
from models.click_task import ClickTask, initial_snapshot, learn_strength
from models.examples import Examples, LateRows, read_examples
from models.plan import Plan
from models.update import Learner, count_slide, origin_s
from models.window import IMPRESSION, Slide

Probabilities = npt.NDArray[np.floating]


_COLUMNS = ("keys", "dense", "shown_s", "corrects")  # of `Rows`, beside the frame


class Strategy(Protocol):
    """A way to keep a click model up to date."""

    def predict(self, slide: Slide) -> tuple[Probabilities, Examples]:
        """Return the click probabilities of a slide's examples, (N,), and those; nothing of the slide is learnt."""

    def learn(self, slide: Slide) -> None:
        """Learn the slide that was predicted last."""


@dataclass(frozen=True)
class Rows:
    """The examples of a slide as a control sees them.

    Attributes:
        slide: Number of the slide.
        frame: The raw values by the column of their field, `field.NAME`; with `request_id`, `position`, `time_s`,
            `settled_s` and what names the impression (models/window.py).
        keys: (N, S), as features/encode.py gives them, crosses included.
        dense: The live priors as inputs, as features/posteriors.py gives them, (N, P).
        shown_s: When each was shown, (N,).
        is_warmup: Whether the slide belongs to the warm-up, in which nothing is judged yet.
        corrects: Which were learnt as not clicked before and were clicked after all, (N,); see `Control`.
    """

    slide: int
    frame: pl.DataFrame
    keys: Keys
    dense: npt.NDArray[np.float32]
    shown_s: Floats
    is_warmup: bool
    corrects: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return N."""
        return len(self.keys)

    def take(self, which: npt.NDArray[np.bool_] | Ints) -> Rows:
        """Return some of the rows."""
        columns: dict[str, Any] = {name: getattr(self, name)[which] for name in _COLUMNS}
        return dataclasses.replace(self, frame=self.frame[np.arange(len(self))[which]], **columns)

    def with_late(self, late: Rows) -> Rows:
        """Return these rows and later ones in the order in which they settled."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(late, name)]) for name in _COLUMNS
        }
        rows = dataclasses.replace(self, frame=pl.concat([self.frame, late.frame]), **columns)
        return rows.take(np.argsort(rows.frame["settled_s"].to_numpy(), kind="stable"))


class Control(Protocol):
    """A model of any kind to be compared with; it keeps whatever it needs between the calls.

    One with an attribute `learns_late = True` is also given, to learn, rows that correct earlier ones; any other goes
    by labels as they first settled.
    """

    def predict(self, rows: Rows) -> Probabilities:
        """Return click probabilities, (N,); before anything was learnt any constant will do."""

    def learn(self, rows: Rows, clicks: Floats) -> None:
        """Learn rows, predicted before but for those that correct, with their clicks, (N,)."""


class OwnStrategy:
    """A learner with a plan."""

    def __init__(self, plan: Plan) -> None:
        """Begin with nothing learnt."""
        self._learner = Learner(ClickTask(plan))
        self._serves = "champion" if plan.is_gated else "latest"

    def predict(self, slide: Slide) -> tuple[Probabilities, Examples]:
        """Return what would have served."""
        examples = self._learner.score(slide)
        return self._learner.scores[self._serves], examples

    def learn(self, slide: Slide) -> None:
        """Learn, behind the gate if the plan has one."""
        self._learner.learn(slide)


class ControlStrategy:
    """A control with the live priors that it may read."""

    def __init__(self, plan: Plan, control: Control) -> None:
        """Begin with nothing counted; whichever counts the deployment's own strategy sees, a control's are live."""
        self._plan = dataclasses.replace(plan, prior="live")
        self._control = control
        self._counted = initial_snapshot(self._plan)
        self._last: tuple[Examples, Rows] | None = None

    def predict(self, slide: Slide) -> tuple[Probabilities, Examples]:
        """Return the control's predictions."""
        examples = read_examples(slide, self._counted, self._plan.buckets, self._plan.rows_max)
        rows = self._rows(slide, examples)
        self._last = examples, rows
        return self._control.predict(rows), examples

    def learn(self, slide: Slide) -> None:
        """Show the clicks to the control and count the slide."""
        assert self._last is not None, "a slide is predicted before it is learnt"
        examples, rows = self._last
        clicks = examples.clicks
        if len(examples.late.keys) and getattr(self._control, "learns_late", False):
            rows = rows.with_late(self._rows(slide, examples.late))
            clicks = np.ones(len(rows))
            clicks[~rows.corrects] = examples.clicks
        if len(rows):
            self._control.learn(rows, clicks)
        after, _ = count_slide(self._counted, slide, examples.settled, self._plan)
        self._counted = learn_strength(after, examples)
        self._last = None

    def _rows(self, slide: Slide, read: Examples | LateRows) -> Rows:
        counted = self._counted
        columns = [name for name in read.frame.columns if name.startswith(COLUMN_PREFIX)]
        return Rows(
            slide=slide.index,
            frame=read.frame.select("request_id", "position", "time_s", "settled_s", *IMPRESSION, *columns),
            keys=read.keys,
            dense=dense_inputs(read.counts, read.keys, counted.base, counted.fields, counted.levels),
            shown_s=read.shown_s,
            is_warmup=slide.is_warmup(origin_s(counted, slide), self._plan.warmup_s),
            corrects=np.full(len(read.keys), isinstance(read, LateRows)),
        )
