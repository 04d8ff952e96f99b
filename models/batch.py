"""From keys and counts to what a network reads, to mini-batches and to predictions.

Owns the tensors of a set of rows (`Inputs`) and scoring (`Predictor`), one way for training and serving. Must not know
labels, optimisers or where keys and counts come from.

Invariants: a prediction depends on its row alone, never on the rows beside it; the same seed and slide give the same
mini-batches.

Shape legend: `N` rows, `B` batch, `S` slots, `D` width of an embedding, `P` dense inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from features.encode import Keys
from features.posteriors import dense_inputs, dense_width, level_inputs, shares
from features.priors import Counts
from models.networks.logistic import calibration_inputs, run_base
from models.snapshot import Snapshot

ROWS_MAX = 32_768  # rows that a network scores at a time: bounds the temporaries, changes no value


@dataclass(frozen=True)
class Inputs:
    """What a network reads of some rows.

    Attributes:
        rows: Embedding row of each slot, (N, S), int64.
        share: Each slot's share in its field's mean, 0 where absent, (N, S).
        dense: (N, P).
    """

    rows: Tensor
    share: Tensor
    dense: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    def followed_by(self, more: Inputs) -> Inputs:
        """Return these rows and then more."""
        parts = zip((self.rows, self.share, self.dense), (more.rows, more.share, more.dense), strict=True)
        return Inputs(*(torch.cat(part) for part in parts))

    def take(self, which: Tensor | slice) -> Inputs:
        """Return some of the rows."""
        return Inputs(self.rows[which], self.share[which], self.dense[which])


def make_inputs(keys: Keys, counts: Counts, snapshot: Snapshot, device: str) -> Inputs:
    """Return what the network of a snapshot reads of rows with these keys, (N, S), and counts."""
    if snapshot.prior == "none":
        dense = level_inputs(counts, snapshot.base, dense_width(snapshot.fields, len(snapshot.base.half_lives_s)))
    else:
        dense = dense_inputs(counts, keys, snapshot.base, snapshot.fields, snapshot.levels)
    return Inputs(
        rows=torch.from_numpy(snapshot.vocabulary.rows(keys)).to(device),
        share=torch.from_numpy(shares(keys, snapshot.fields).astype(np.float32)).to(device),
        dense=torch.from_numpy(dense).to(device),
    )


def minibatches(n_rows: int, batch_rows: int, *, seed: int, slide: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the row numbers of each mini-batch: all rows once, shuffled, as neighbours in time are alike."""
    order = np.random.default_rng([seed, slide]).permutation(n_rows)
    for first in range(0, n_rows, batch_rows):
        yield order[first : first + batch_rows]


class Predictor:
    """A snapshot made ready to score rows; reads only, so threads may share it."""

    def __init__(self, snapshot: Snapshot, device: str = "cpu") -> None:
        """Build the network.

        Args:
            snapshot: What to predict with.
            device: Where to compute.
        """
        self._snapshot = snapshot
        self._device = device
        self._network = snapshot.build(device)
        self._embedding = snapshot.tensors["embedding.rows"].to(device)
        self._base = snapshot.tensors["base.weight"].to(device)

    def __call__(self, keys: Keys, counts: Counts) -> npt.NDArray[np.float32]:
        """Return click probabilities, (N,)."""
        return self.score(make_inputs(keys, counts, self._snapshot, self._device))

    def score(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Return the click probabilities of rows whose inputs were made for this snapshot, (N,)."""
        return self.calibrate(self.logits(inputs))

    def calibrate(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the click probabilities that logits of this snapshot, (N, 2), stand for, (N,)."""
        read = calibration_inputs(torch.from_numpy(logits).to(torch.float64))
        return torch.sigmoid(read @ self._snapshot.tensors["calibration.weight"]).numpy().astype(np.float32)

    def logits(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Return the logits of base and network of such rows before they are calibrated, (N, 2)."""
        found, n_half_lives = np.empty((len(inputs), 2), np.float32), self._network.n_half_lives
        with torch.inference_mode():
            for first in range(0, len(inputs), ROWS_MAX):
                part = inputs.take(slice(first, first + ROWS_MAX))
                _, base, start = run_base(self._base, part.dense, n_half_lives)
                embedded = functional.embedding(part.rows, self._embedding)
                logits = self._network(embedded, part.share, part.dense, start)
                found[first : first + ROWS_MAX] = torch.stack([base, logits], dim=1).cpu().numpy()
        return found
