"""The control `prior-only`: a logistic regression on the live priors, with no embeddings and no network.

Owns nothing but its state. Must not know slides or gates.
"""

from __future__ import annotations

import torch

from features.priors import Floats
from models.batch import minibatches
from models.networks.logistic import base_logits, initial_base, newton_step
from models.plan import Plan
from models.strategies.strategy import Probabilities, Rows


class PriorOnly:
    """Each rate and each amount of evidence has one weight: the plain form of what is under every network of ours."""

    learns_late = True

    def __init__(self, plan: Plan) -> None:
        """Begin as the overall click rate."""
        self._plan = plan
        self._state: dict[str, torch.Tensor] | None = None

    def predict(self, rows: Rows) -> Probabilities:
        """Return the posterior rates, weighed."""
        if self._state is None:
            self._state = initial_base(rows.dense.shape[1])
        logits = base_logits(self._state["weight"], torch.from_numpy(rows.dense))
        return torch.sigmoid(logits).numpy()

    def learn(self, rows: Rows, clicks: Floats) -> None:
        """Take one Newton step a batch."""
        assert self._state is not None
        dense, y, corrects = torch.from_numpy(rows.dense), torch.from_numpy(clicks), torch.from_numpy(rows.corrects)
        for batch in minibatches(len(rows), self._plan.batch_rows, seed=self._plan.seed, slide=rows.slide):
            which = torch.from_numpy(batch)
            newton_step(self._state["weight"], self._state["curvature"], dense[which], y[which], corrects[which])
