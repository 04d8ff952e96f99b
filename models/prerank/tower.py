"""Two towers: what they say meets in products alone, the cheapest pre-ranker and the usual control.

Owns the architecture. Must not know what its outputs mean.

Source: the vector-product model that arXiv:2310.08039 compares with; one product per output is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.prerank.trunk import Trunk, Widths, perceptron


class TwoTower(Trunk):
    """A perceptron for each side; each output is the product of a part of both, and a constant."""

    def __init__(self, widths: Widths, hidden: Sequence[int], n_outputs: int) -> None:
        """Lay out the layers; the last of `hidden` is the width of what is multiplied, for each output."""
        super().__init__()
        self._n_outputs = n_outputs
        last = hidden[-1] * n_outputs
        self._request = perceptron([widths.request_fields * widths.field, *hidden[:-1], last])
        self._ad = perceptron([widths.ad_fields * widths.field, *hidden[:-1], last])
        self._level = nn.Parameter(torch.zeros(n_outputs))

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
        outputs: Tensor = (request * ad).unflatten(1, (self._n_outputs, -1)).sum(dim=2) + self._level
        return outputs

    def join_products(self) -> int:
        """See `Trunk`."""
        last = self._ad[-1]
        assert isinstance(last, nn.Linear)
        return last.out_features
