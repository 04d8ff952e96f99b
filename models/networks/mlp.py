"""The first network: embeddings and counted priors into a multi-layer perceptron, beside a direct linear path.

Owns the architecture. Must not know keys, vocabularies, optimisers or where inputs come from.

Invariants: untrained it predicts the overall click rate, whatever the values are; it adds to the mean of the
base's logit (a logistic regression on the same dense inputs) and the overall rate's, so it starts as good as counting
and learns the rest: interactions and identities. It reads no input that sets the level alone: small steps on large,
constant inputs would shake the level of a log with few clicks. Without hidden layers it is a logistic regression on
values and counts.

Shape legend: `B` batch, `S` slots, `F` fields, `D` width of an embedding, `P` dense inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from features.posteriors import LEVEL_INPUTS, ROOT_INPUT

BASE_SHARE = 0.5  # best of {0, .5, 1} on the warm-up slides of MovieLens-1M and KuaiRand together


class Mlp(nn.Module):
    """Mean embedding per field and the dense inputs, joined, through ReLU layers to one logit."""

    def __init__(self, slot_field: Sequence[int], dim: int, dense_width: int, hidden: Sequence[int]) -> None:
        """Lay out the layers; `initialise` fills them.

        Args:
            slot_field: Which field each slot belongs to, (S,), ascending from 0.
            dim: Width of an embedding.
            dense_width: How many dense inputs a row has.
            hidden: Widths of the hidden layers.
        """
        super().__init__()
        n_fields = max(slot_field) + 1
        pooling = nn.functional.one_hot(torch.tensor(slot_field, dtype=torch.int64), n_fields).to(torch.float32)
        self.register_buffer("pooling", pooling, persistent=False)  # (S, F)
        widths = (n_fields * dim + dense_width - LEVEL_INPUTS, *hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], 1)
        self.direct = nn.Linear(dense_width - LEVEL_INPUTS, 1, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the hidden layers at random and the rest so that the prediction is the overall rate."""
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                bound = 1.0 / math.sqrt(layer.in_features)  # as torch's own default
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
            for parameter in (self.head.weight, self.head.bias, self.direct.weight):
                parameter.zero_()

    def forward(self, embedded: Tensor, share: Tensor, dense: Tensor, base: Tensor) -> Tensor:
        """Return logits, (B,).

        Args:
            embedded: (B, S, D).
            share: Each slot's share in its field's mean, 0 where absent, (B, S).
            dense: (B, P).
            base: Logits of the base, (B,).
        """
        pooled = torch.einsum("bsd,sf->bfd", embedded * share[:, :, None], self.pooling)  # (B, F, D)
        level, dense = dense[:, ROOT_INPUT], dense[:, LEVEL_INPUTS:]
        x = torch.cat([pooled.flatten(1), dense], dim=1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        prior = BASE_SHARE * base + (1.0 - BASE_SHARE) * level
        logits: Tensor = prior + (self.head(x) + self.direct(dense))[:, 0]  # (B,)
        return logits
