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
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import Keys
from features.fields import COLUMN_PREFIX
from features.posteriors import dense_inputs, estimate_strength
from features.priors import Floats
from models.examples import Examples, read_examples
from models.update import Learner, Plan, count_slide, initial_snapshot, origin_s
from models.window import Slide

Probabilities = npt.NDArray[np.floating]


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
        frame: The raw values by the column of their field, `field.NAME`; with `request_id`, `position`, `time_s`.
        keys: (N, S), as features/encode.py gives them, crosses included.
        dense: The live priors as inputs, as features/posteriors.py gives them, (N, P).
        shown_s: When each was shown, (N,).
        is_warmup: Whether the slide belongs to the warm-up, in which nothing is judged yet.
    """

    slide: int
    frame: pl.DataFrame
    keys: Keys
    dense: npt.NDArray[np.float32]
    shown_s: Floats
    is_warmup: bool

    def __len__(self) -> int:
        """Return N."""
        return len(self.keys)


class Control(Protocol):
    """A model of any kind to be compared with; it keeps whatever it needs between the calls."""

    def predict(self, rows: Rows) -> Probabilities:
        """Return click probabilities, (N,); before anything was learnt any constant will do."""

    def learn(self, rows: Rows, clicks: Floats) -> None:
        """Learn rows, predicted before, with their clicks, (N,)."""


class OwnStrategy:
    """A learner with a plan."""

    def __init__(self, plan: Plan) -> None:
        """Begin with nothing learnt."""
        self._learner = Learner(plan)
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
        counted = self._counted
        examples = read_examples(slide, counted, self._plan.buckets)
        dense = dense_inputs(examples.counts, examples.keys, counted.base, counted.fields, counted.levels)
        columns = [name for name in examples.frame.columns if name.startswith(COLUMN_PREFIX)]
        frame = examples.frame.select("request_id", "position", "time_s", *columns)
        is_warmup = slide.is_warmup(origin_s(counted, slide), self._plan.warmup_s)
        rows = Rows(slide.index, frame, examples.keys, dense, examples.shown_s, is_warmup)
        self._last = examples, rows
        return self._control.predict(rows), examples

    def learn(self, slide: Slide) -> None:
        """Show the clicks to the control and count the slide."""
        assert self._last is not None, "a slide is predicted before it is learnt"
        examples, rows = self._last
        if len(rows):
            self._control.learn(rows, examples.clicks)
        after = count_slide(self._counted, slide, examples.settled, self._plan)
        base = dataclasses.replace(after.base, strength=estimate_strength(after.priors).strength)
        self._counted = dataclasses.replace(after, base=base)
        self._last = None
