"""A creative ranker that reads the ad's pCTR, and an ad model that can learn beside it.

Owns the two networks, the quantisation between them and their joint loss. Must not know optimisers, logs or policies.

The ranker predicts the click of (request, ad, creative) from their values and from an embedding of the ad's quantised
pCTR. Ranked serially it is given the ad model's; in parallel that is not there yet, and it is given the ad's feature
prior. What it is given is its caller's business.

Invariants: a value that was never learnt adds nothing; an untrained network adds nothing to what it starts from.

Shape legend: `B` rows, `F` fields, `D` width of a value's embedding, `K` quantiles, `W` width of theirs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.losses import click_loss

# Smaller than the paper's (K = 8192, W = 128, hidden layers 128-64-32), which had billions of rows; chosen by hand.
QUANTILES, QUANTILE_WIDTH, HIDDEN = 64, 8, (64, 32)
DIM = 4  # the paper's
STRETCH = 100.0  # r: pCTRs of a few per cent lie in the middle of the quantiles; the paper's value is not open to us


class ValuePerceptron(nn.Module):
    """A perceptron on the embeddings of a row's values and further inputs: one logit."""

    first: Tensor  # of each field, the place of its first value among all

    def __init__(self, sizes: Sequence[int], n_inputs: int, generator: torch.Generator) -> None:
        """Lay out and fill the layers.

        Args:
            sizes: How many values each field can have, (F,).
            n_inputs: How many further inputs there are.
            generator: Fills the hidden layers; embeddings and the last layer start at zero.
        """
        super().__init__()
        self.register_buffer("first", torch.tensor([0, *itertools.accumulate(sizes)][:-1]))
        self.values = nn.Parameter(torch.zeros(sum(sizes), DIM))
        widths = (len(sizes) * DIM + n_inputs, *HIDDEN)
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(widths[-1], 1)
        with torch.no_grad():
            for layer in layers:
                bound = 1.0 / math.sqrt(layer.in_features)  # as torch's own default
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, fields: Tensor, *inputs: Tensor) -> Tensor:
        """Return logits, (B,), from the values' numbers, (B, F), and further inputs, (B, X) in all."""
        hidden = torch.cat([self.values[fields + self.first].flatten(1), *inputs], dim=1)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        logits: Tensor = self.head(hidden)[:, 0]
        return logits


class CreativeRanker(nn.Module):
    """The click of a creative, given the pCTR of its ad."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        """Lay out the layers; arguments as for `ValuePerceptron`."""
        super().__init__()
        self.quantiles = nn.Parameter(torch.zeros(QUANTILES, QUANTILE_WIDTH))
        self.perceptron = ValuePerceptron(sizes, QUANTILE_WIDTH, generator)

    def forward(self, fields: Tensor, pctr: Tensor, start: Tensor) -> Tensor:
        """Return logits, (B,).

        Args:
            fields: Numbers of the values of request, ad and creative, (B, F).
            pctr: Of the ad, in [0, 1], (B,).
            start: Logits that the network's are added to, (B,): zeros as in the paper, or the creative's prior.
        """
        logits: Tensor = start + self.perceptron(fields, quantised(pctr, self.quantiles))
        return logits


def quantised(pctr: Tensor, table: Tensor) -> Tensor:
    """Return the row of each pCTR's quantile, (B, W); its gradient reaches the pCTR as if rows were joined by lines.

    Args:
        pctr: In [0, 1], (B,).
        table: (K, W).

    Source: arXiv:2312.12750, as we know it second-hand: idx = floor(K log_(r+1)(1 + r pctr)), at most K - 1, and a
    straight-through gradient. That its slope is the difference to the next row is our reconstruction.
    """
    last = len(table) - 1
    place = len(table) * torch.log1p(STRETCH * pctr) / math.log1p(STRETCH)
    index = place.detach().floor().long().clamp(0, last)
    low = index.clamp(max=last - 1)
    slope = table[low + 1] - table[low]
    return table[index] + (place - place.detach())[:, None] * slope


def joint_loss(ad_logits: Tensor, creative_logits: Tensor, clicks: Tensor, mu: float) -> Tensor:
    """Return BCE(y, pctr_ad) + mu BCE(y, pctr_c), a scalar; arguments but `mu` are (B,).

    Source: our reconstruction of JAC, arXiv:2312.12750.
    """
    return click_loss(ad_logits, clicks) + mu * click_loss(creative_logits, clicks)
