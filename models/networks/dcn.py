"""DCN-v2: crosses of bounded degree, learnt explicitly, beside a multi-layer perceptron.

Owns the architecture. Must not know what models/networks/network.py does around it.

Source: Wang et al., DCN V2, arXiv:2008.13535, the parallel structure with full-rank cross layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from models.networks.network import Network, Way

CROSS_LAYERS = 2  # crosses of up to three inputs; the source finds little beyond two or three layers


class Dcn(Network):
    """Cross layers and ReLU layers side by side, joined into one logit."""

    def __init__(
        self, slot_field: Sequence[int], dim: int, dense_width: int, ways: Collection[Way], hidden: Sequence[int]
    ) -> None:
        """Lay out the layers; `hidden` are the widths of the ReLU ones, the rest as in `Network`."""
        super().__init__(slot_field, dim, dense_width, ways)
        self.crosses = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(CROSS_LAYERS))
        widths = (self.width, *hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.head = nn.Linear(self.width + widths[-1], 1)

    def interact(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what is added to the logit, (B,), from parts, (B, X) in all."""
        x = torch.cat([*parts], dim=1)
        crossed, deep = x, x
        for layer in self.crosses:
            crossed = x * layer(crossed) + crossed
        for layer in self.layers:
            deep = torch.relu(layer(deep))
        return self.head(torch.cat([crossed, deep], dim=1))[:, 0]  # type: ignore[no-any-return]
