"""The first network: a multi-layer perceptron. Without hidden layers it is a logistic regression on values and counts.

Owns the architecture. Must not know what models/networks/network.py does around it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from models.networks.network import Network, Way, linear_of_parts


class Mlp(Network):
    """ReLU layers, then one logit."""

    def __init__(
        self, slot_field: Sequence[int], dim: int, dense_width: int, ways: Collection[Way], hidden: Sequence[int]
    ) -> None:
        """Lay out the layers; `hidden` are the widths of the hidden ones, the rest as in `Network`."""
        super().__init__(slot_field, dim, dense_width, ways)
        widths = (self.width, *hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], 1)

    def interact(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what is added to the logit, (B,), from parts, (B, X) in all."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            parts = [linear_of_parts(layer, parts).relu_()]
        return linear_of_parts(self.head, parts)[:, 0]
