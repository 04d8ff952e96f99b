"""Candidates to click probabilities to an order, with one snapshot and the live counts on top of it.

Owns the `Scorer`. Must not know requests, the catalog or where counts come from.

Invariants: a scorer never changes: new counts make a new one, so whoever holds it sees one snapshot and one moment of
the counts; equal scores keep the order in which they were asked.

Shape legend: `K` candidates, `S` slots.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from features.encode import Keys
from features.live_priors import PublishedCounts
from features.priors import Counts, PriorTable, lookup
from models.batch import Predictor, make_inputs
from models.snapshot import Snapshot

Scores = npt.NDArray[np.float32]


class Scorer:
    """Click probabilities by one snapshot.

    Attributes:
        version: The snapshot's.
        slide: The last slide that it has seen; None: none.
        table: The counts in use: the snapshot's, with newer ones on top.
        counts_s: Event time of the newer ones; None: there are none, the snapshot's own are in use.
        snapshot: What it scores with.
    """

    def __init__(self, snapshot: Snapshot, predictor: Predictor, table: PriorTable) -> None:
        """Put the parts together; `from_snapshot` is the way in."""
        self.version = snapshot.version
        self.slide = snapshot.slide
        self.table = table
        is_own = table is snapshot.priors or not math.isfinite(table.as_of_s)
        self.counts_s = None if is_own else table.as_of_s
        self.snapshot = snapshot
        self._predictor = predictor

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> Scorer:
        """Return a scorer with the snapshot's own counts."""
        return cls(snapshot, Predictor(snapshot), snapshot.priors)

    def with_live_counts(self, live: PublishedCounts) -> Scorer:
        """Return a scorer with the live counts over the snapshot's; ones older than the snapshot tell it nothing.

        A model that learnt on counts as of its slide's start is served on the same.
        """
        if self.snapshot.prior == "frozen":
            return self
        return Scorer(self.snapshot, self._predictor, live.over(self.snapshot.priors))

    def score(self, keys: Keys, time_s: float) -> Scores:
        """Return the click probability of each row, (K,).

        Args:
            keys: (K, S).
            time_s: Event time of the request; counts decay to it.
        """
        if not len(keys):
            return np.zeros(0, np.float32)
        return self._predictor(keys, self.counts(keys, time_s))

    def counts(self, keys: Keys, time_s: float) -> Counts:
        """Return the counts that rows are scored on; the arguments are those of `score`."""
        return lookup(self.table, keys, max(time_s, self.table.as_of_s))

    def logits(self, keys: Keys, time_s: float) -> Scores:
        """Return what base and network say of rows, before calibration, (K, 2); the arguments are those of `score`."""
        return self._predictor.logits(make_inputs(keys, self.counts(keys, time_s), self.snapshot, "cpu"))


def best_first(scores: npt.NDArray[np.floating], top: int) -> npt.NDArray[np.int64]:
    """Return the indices of the `top` highest scores, highest first; ties in the order given."""
    order: npt.NDArray[np.int64] = np.argsort(-scores, kind="stable")
    return order[:top]
