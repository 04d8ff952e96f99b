"""Several copies of a control with a learning rate each, of which the warm-up chooses one.

Owns the choice. Must not know what learns.

Invariants: the choice rests on predictions that were made before the rows were learnt, held against their clicks as
they first settled, and on the warm-up alone; after it one copy is left, so what is judged is one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from features.priors import Floats
from models.evaluate import log_losses
from models.strategies.strategy import Control, Probabilities, Rows


class BestRate:
    """Controls that learn side by side during the warm-up; then only the one of least log loss goes on."""

    learns_late = True

    def __init__(self, make: Callable[[float], Control], rates: Sequence[float]) -> None:
        """Begin with one copy a rate.

        Args:
            make: From a rate to a control that has learnt nothing and learns late clicks.
            rates: To choose from; where nothing decides, as without a warm-up, the middle one is taken.
        """
        self._controls = {rate: make(rate) for rate in rates}
        self._best = rates[len(rates) // 2]
        self._losses = dict.fromkeys(rates, 0.0)
        self._predicted: dict[float, Floats] = {}

    @property
    def rate(self) -> float:
        """The best rate so far."""
        return self._best

    def predict(self, rows: Rows) -> Probabilities:
        """Return what the best copy so far says."""
        if not rows.is_warmup:
            self._controls = {self._best: self._controls[self._best]}
        self._predicted = {rate: np.asarray(one.predict(rows)) for rate, one in self._controls.items()}
        return self._predicted[self._best]

    def learn(self, rows: Rows, clicks: Floats) -> None:
        """Let every copy learn; in the warm-up, judge them first."""
        for rate, control in self._controls.items():
            self._losses[rate] += float(log_losses(self._predicted[rate], clicks[~rows.corrects]).sum())
            control.learn(rows, clicks)
        self._best = min(self._controls, key=lambda rate: (self._losses[rate], rate != self._best))
