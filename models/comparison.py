"""How strategies compare on the same rows: figures by window and by slice, and differences with intervals.

Owns what the figures of a comparison mean. Must not know strategies, files or how predictions came about.

Invariants: all strategies are compared on the same rows; a figure over seeds is the mean of each seed's figure, and a
paired difference is taken row by row, then averaged over seeds; intervals come from whole blocks of time, as rows of
one moment are alike.

Shape legend: `N` rows, `K` windows, `B` blocks of time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift import DriftWatch
from models.evaluate import Evaluation, Floats, Ints, evaluate, log_losses
from models.gate import SLICES, slice_items

BLOCKS_MIN = 40  # of time, for a bootstrap: windows are cut into parts until there are about so many
RESAMPLES = 2000
SEED = 0  # of the bootstrap: the same rows give the same interval


@dataclass(frozen=True)
class Scored:
    """The rows that strategies are compared on, in the order of their windows.

    Attributes:
        window: Which window each row belongs to, ascending from 0, (N,).
        start_s: Where each window begins, (K,).
        end_s: Where each window ends, (K,).
        clicks: 0 or 1, (N,).
        requests: A number that names each row's request, (N,).
        users: A number that names its user, (N,).
        item_evidence: Impressions behind its item when it was shown, longest memory, (N,).
    """

    window: Ints
    start_s: Floats
    end_s: Floats
    clicks: Floats
    requests: Ints
    users: Ints
    item_evidence: Floats

    @property
    def groups(self) -> Ints:
        """Whose rows are compared with each other: a request's when it has two on average, else a user's, (N,)."""
        return self.users if len(self.clicks) < 2 * len(np.unique(self.requests)) else self.requests

    @property
    def slices(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which rows show an item without evidence, with little and with much, (N,) each."""
        place = slice_items(self.item_evidence)
        return {name: place == index for index, name in enumerate(SLICES)}


@dataclass(frozen=True)
class Figures:
    """How good one run was.

    Attributes:
        overall: On all rows.
        windows: By window.
        slices: By slice.
        drift: By window, the detectors that raised an alarm over its predictions; they begin after the warm-up.
    """

    overall: Evaluation
    windows: tuple[Evaluation, ...]
    slices: dict[str, Evaluation]
    drift: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Difference:
    """Log loss of one strategy minus another's, nats per row: negative where the first is better.

    Attributes:
        delta_logloss: The mean over rows and seeds.
        ci95: The interval that a bootstrap over blocks of time gives.
        blocks: How many.
    """

    delta_logloss: float
    ci95: tuple[float, float]
    blocks: int


def measure(rows: Scored, probabilities: npt.NDArray[np.floating]) -> Figures:
    """Return how good predictions, (N,), were."""
    groups = rows.groups
    edges = np.searchsorted(rows.window, np.arange(len(rows.start_s) + 1))
    parts = [slice(*edge) for edge in itertools.pairwise(edges.tolist())]
    watch = DriftWatch()
    return Figures(
        overall=evaluate(probabilities, rows.clicks, groups),
        windows=tuple(evaluate(probabilities[part], rows.clicks[part]) for part in parts),
        slices={
            name: evaluate(probabilities[which], rows.clicks[which], groups[which])
            for name, which in rows.slices.items()
        },
        drift=tuple(watch.look(probabilities[part], rows.clicks[part]) for part in parts),
    )


def compare(
    rows: Scored, one: Sequence[npt.NDArray[np.floating]], other: Sequence[npt.NDArray[np.floating]]
) -> Difference:
    """Return how two strategies differ.

    Args:
        rows: What both predicted.
        one: Predictions of the first by seed, (N,) each.
        other: Predictions of the second likewise; as many seeds are not needed.
    """
    delta = _mean_losses(rows, one) - _mean_losses(rows, other)
    block = blocks_of_time(rows.window)
    sums, sizes = np.bincount(block, delta), np.bincount(block)
    drawn = np.random.default_rng(SEED).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(delta.mean()), (float(low), float(high)), len(sums))


def blocks_of_time(window: Ints) -> Ints:
    """Return which block each row, in order of time, belongs to, (N,): windows, cut into equal parts where few."""
    _, first, size = np.unique(window, return_index=True, return_counts=True)
    parts = max(1, -(-BLOCKS_MIN // len(first)))
    within = np.arange(len(window)) - np.repeat(first, size)
    place = np.repeat(np.arange(len(first)), size) * parts + within * parts // np.repeat(size, size)
    block: Ints = np.unique(place, return_inverse=True)[1].astype(np.int64)
    return block


def _mean_losses(rows: Scored, by_seed: Sequence[npt.NDArray[np.floating]]) -> Floats:
    losses: Floats = np.mean([log_losses(p.astype(np.float64), rows.clicks) for p in by_seed], axis=0)
    return losses
