"""What every pre-ranker shares: a half that depends on the request, a half that depends on the ad, and what joins them.

Owns the seam that makes thousands of candidates cheap: the halves of ads are computed once per snapshot, that of a
request once, and only `join` runs for each candidate. Must not know labels, optimisers or where inputs come from.

Invariant: `join` is the only place where a request meets an ad, and reads nothing of either but its half.

Shape legend: `B` rows, `K` candidates, `W` width of a half, `O` outputs, `F` fields of a half, `D` width of an
embedding.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Widths:
    """What a trunk reads of each half: per field one embedding and some dense inputs.

    Attributes:
        request_fields: User's and context's fields.
        ad_fields: The item's.
        dim: Width of an embedding, D.
        dense: Dense inputs of a field.
    """

    request_fields: int
    ad_fields: int
    dim: int
    dense: int

    @property
    def field(self) -> int:
        """Numbers that stand for one field."""
        return self.dim + self.dense


class Trunk(nn.Module, ABC):
    """From the inputs of a request and an ad to what a head reads (models/prerank/heads.py)."""

    @abstractmethod
    def request_half(self, fields: Tensor) -> Tensor:
        """Return what the request adds, (B, W), from its fields, (B, F, field)."""

    @abstractmethod
    def ad_half(self, fields: Tensor) -> Tensor:
        """Return what the ad adds, (B, W), from its fields, (B, F, field)."""

    @abstractmethod
    def join(self, request: Tensor, ad: Tensor) -> Tensor:
        """Return the outputs of each pair of halves, (K, O); a request's half may be (1, W) and stand for all."""

    def open_share(self) -> Tensor:
        """Return the expected share of the gates that are open, a scalar; 0 where there are none."""
        return torch.zeros(())

    @abstractmethod
    def join_products(self) -> int:
        """Return how many multiply-adds one candidate costs in `join`."""

    def forward(self, request_fields: Tensor, ad_fields: Tensor) -> Tensor:
        """Return the outputs of rows, (B, O)."""
        return self.join(self.request_half(request_fields), self.ad_half(ad_fields))


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers with ReLU between them, none behind the last."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def products_of(module: nn.Module) -> int:
    """Return the multiply-adds of the linear layers of a module, for one row."""
    return sum(one.in_features * one.out_features for one in module.modules() if isinstance(one, nn.Linear))
