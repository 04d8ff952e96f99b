"""ECM: one perceptron over everything, its first layer split between request and ad.

Owns the architecture. Must not know what its outputs mean.

Source: arXiv:2310.08039 (a perceptron of 128-64-32; its public code). That the first layer is a sum of two halves
changes no value; the widths and the dense inputs are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.prerank.trunk import Trunk, Widths, perceptron, products_of


class Ecm(Trunk):
    """Layers of the given widths behind the sum of the halves."""

    def __init__(self, widths: Widths, hidden: Sequence[int], n_outputs: int) -> None:
        """Lay out the layers."""
        super().__init__()
        self._request = nn.Linear(widths.request_fields * widths.field, hidden[0])
        self._ad = nn.Linear(widths.ad_fields * widths.field, hidden[0], bias=False)
        self._join = perceptron([*hidden, n_outputs])

    def request_half(self, fields: Tensor) -> Tensor:
        """See `Trunk`."""
        half: Tensor = self._request(fields.flatten(1))
        return half

    def ad_half(self, fields: Tensor) -> Tensor:
        """See `Trunk`."""
        half: Tensor = self._ad(fields.flatten(1))
        return half

    def join(self, request: Tensor, ad: Tensor) -> Tensor:
        """See `Trunk`."""
        outputs: Tensor = self._join(torch.relu(request + ad))
        return outputs

    def join_products(self) -> int:
        """See `Trunk`."""
        return products_of(self._join)
