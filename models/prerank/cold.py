"""COLD: every field of request and ad is weighed by a gate that sees all of them, and the weakest are dropped.

Owns the architecture. Must not know what its outputs mean. A control.

Source: arXiv:2007.16122 (squeeze-and-excitation gates choose fields; our reconstruction). Fields are dropped by the
mean of their gates so far; which share stays is that of the public code of arXiv:2310.08039, 11 of 22.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.prerank.trunk import Trunk, Widths, perceptron, products_of

KEPT_SHARE = 0.5
GATE_MOMENTUM = 0.01  # of the mean gate of each field, per batch; chosen by hand


class Cold(Trunk):
    """A gate per field, then a perceptron; both halves are the fields as they are, so all of it runs per candidate."""

    gates: Tensor

    def __init__(self, widths: Widths, hidden: Sequence[int], n_outputs: int) -> None:
        """Lay out the layers."""
        super().__init__()
        n_fields = widths.request_fields + widths.ad_fields
        self._n_kept = max(1, round(KEPT_SHARE * n_fields))
        self._n_field = widths.field
        self._gate = nn.Linear(n_fields * widths.field, n_fields)
        self._join = perceptron([n_fields * widths.field, *hidden, n_outputs])
        self.register_buffer("gates", torch.full((n_fields,), 0.5))

    def request_half(self, fields: Tensor) -> Tensor:
        """See `Trunk`."""
        return fields.flatten(1)

    def ad_half(self, fields: Tensor) -> Tensor:
        """See `Trunk`."""
        return fields.flatten(1)

    def join(self, request: Tensor, ad: Tensor) -> Tensor:
        """See `Trunk`."""
        both = torch.cat([request.expand(len(ad), -1), ad], dim=1)
        gates = torch.sigmoid(self._gate(both))  # (K, F)
        if self.training:
            with torch.no_grad():
                self.gates.lerp_(gates.mean(dim=0), GATE_MOMENTUM)
        dropped = self.gates.argsort(descending=True)[self._n_kept :]
        gates = gates.index_fill(1, dropped, 0.0)
        outputs: Tensor = self._join((both.unflatten(1, (-1, self._n_field)) * gates[:, :, None]).flatten(1))
        return outputs

    def join_products(self) -> int:
        """See `Trunk`: fields that are dropped cost nothing behind the gate."""
        n_fields = len(self.gates)
        first = self._join[0]
        assert isinstance(first, nn.Linear)
        dropped = (n_fields - self._n_kept) * self._n_field * first.out_features
        return products_of(self._gate) + products_of(self._join) - dropped
