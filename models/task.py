"""What is learnt and how it is judged: the seam between the step of learning and the kinds of models that take it.

Owns the protocol. Must not know pointers, gates or where slides come from (models/update.py does).

Shape legend: `N` rows that are scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from features.priors import Floats, Ints, SettledRows
from models.evaluate import Evaluation
from models.plan import Plan
from models.snapshot import Snapshot
from models.window import Slide


class Rows(Protocol):
    """What is scored and learnt of a slide; each task adds what it needs."""

    @property
    def settled(self) -> SettledRows:
        """Everything that is counted from now on, rows that are not scored included."""

    @property
    def clicks(self) -> Floats:
        """0 or 1, (N,): what the task's first probability is about."""

    @property
    def buckets(self) -> Ints:
        """The gate's bucket of each row's user, (N,)."""

    @property
    def slices(self) -> Ints:
        """The gate's slice of each row's item, (N,)."""

    @property
    def left_out(self) -> int:
        """How many rows of the slide are counted alone, being more than can be learnt."""


@dataclass(frozen=True)
class Scored:
    """What one model says of rows.

    Attributes:
        probabilities: Of `clicks` being 1, (N,).
        losses: What the gate compares, nats, (N,).
        evaluation: How good they were.
    """

    probabilities: npt.NDArray[np.float32]
    losses: Floats
    evaluation: Evaluation


R = TypeVar("R", bound=Rows)
S = TypeVar("S", bound=Scored)


class Task(Protocol, Generic[R, S]):
    """A kind of model, with the plan that it follows."""

    @property
    def plan(self) -> Plan:
        """What it follows."""

    def initial(self) -> Snapshot:
        """Return the state before the first slide."""

    def read(self, slide: Slide, before: Snapshot) -> R:
        """Return the rows of a slide for models that go on from a snapshot."""

    def score(self, rows: R, snapshot: Snapshot) -> S:
        """Return what a model that has not seen them says of rows."""

    def learn(self, start: Snapshot, after: Snapshot, rows: R, scored: S) -> tuple[Snapshot, int]:
        """Return the state that has learnt the rows, and how many values `values_max` left without an embedding row.

        Args:
            start: Whose weights are moved.
            after: Those weights, with the rows counted.
            rows: Of the slide.
            scored: What `start` said of them.
        """
