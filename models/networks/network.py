"""What every network shares: embeddings and counted priors in, one logit out, added to what counting alone says.

Owns the parts around an architecture. Must not know keys, vocabularies, optimisers or where inputs come from.

Invariants: untrained it predicts the overall click rate, whatever the values are; it starts from the level of the base
(a logistic regression on the same dense inputs) and half of what that says of values, and learns the rest:
interactions, identities and, in its own way, the other half. So the two err differently, and the calibration behind
them weighs them as the log goes on. It reads no input that sets the level alone: small steps on large, constant inputs
would shake the level of a log with few clicks.

Shape legend: `B` batch, `S` slots, `F` fields, `D` width of an embedding, `P` dense inputs, `X` what is interacted.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from features.posteriors import LEVEL_INPUTS, ROOT_INPUT

Way = Literal["dense", "wide", "initial"]
"""How the feature prior gets in: as inputs of the network, as terms added to its logit, as the start of embeddings."""


class Network(nn.Module, ABC):
    """Mean embedding per field and the dense inputs, beside a direct linear path; `interact` is the architecture's."""

    def __init__(self, slot_field: Sequence[int], dim: int, dense_width: int, ways: Collection[Way]) -> None:
        """Lay out the shared parts; `initialise` fills them.

        Args:
            slot_field: Which field each slot belongs to, (S,), ascending from 0.
            dim: Width of an embedding.
            dense_width: How many dense inputs a row has.
            ways: How the feature prior gets in.
        """
        super().__init__()
        widths = [len(list(slots)) for _, slots in itertools.groupby(slot_field)]
        self._pieces = _pieces(widths)
        self.n_half_lives = (dense_width - 1) // (1 + 2 * len(widths))  # as features/posteriors.py lays inputs out
        self.is_dense, self.is_wide = "dense" in ways, "wide" in ways
        n_dense = dense_width - LEVEL_INPUTS
        self.width = len(widths) * dim + (n_dense if self.is_dense else 0)  # X
        if self.is_wide:
            self.direct = nn.Linear(n_dense, 1, bias=False)

    @abstractmethod
    def interact(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what the architecture adds to the logit, (B,); 0 before it has learnt anything.

        Args:
            parts: What is interacted, side by side: (B, X) in all.
        """

    def forward(self, embedded: Tensor, share: Tensor, dense: Tensor, start: Tensor) -> Tensor:
        """Return logits, (B,).

        Args:
            embedded: (B, S, D).
            share: Each slot's share in its field's mean, 0 where absent, (B, S). Fields of one slot do not read it: an
                absent value has the row of unknown ones, which is zeros.
            dense: (B, P).
            start: Logits to start from, as models/networks/logistic.py makes them of the base, (B,).
        """
        pooled = self._pool(embedded, share)  # (B, F * D)
        level, dense = dense[:, ROOT_INPUT], dense[:, LEVEL_INPUTS:]
        logits = self.interact([pooled, dense] if self.is_dense else [pooled])
        if self.is_wide:
            level = start + self.direct(dense)[:, 0]
        return level + logits

    def _pool(self, embedded: Tensor, share: Tensor) -> Tensor:
        if len(self._pieces) == 1 and self._pieces[0][0] == 1:
            return embedded.flatten(1)  # as it lies there
        slots = [width * fields for width, fields in self._pieces]
        parts = zip(self._pieces, embedded.split(slots, dim=1), share.split(slots, dim=1), strict=True)
        means = (
            part.flatten(1) if width == 1 else (part * of_slot[:, :, None]).sum(dim=1)
            for (width, _), part, of_slot in parts
        )
        return torch.cat([*means], dim=1)

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the hidden layers at random and the rest so that the prediction is the overall rate."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                layer, _, _ = name.partition(".")
                if layer in ("head", "direct"):
                    parameter.zero_()
                    continue
                owner = self.get_submodule(name.rpartition(".")[0])
                assert isinstance(owner, nn.Linear)
                bound = 1.0 / math.sqrt(owner.in_features)  # as torch's own default
                parameter.uniform_(-bound, bound, generator=generator)


def linear_of_parts(layer: nn.Linear, parts: Sequence[Tensor]) -> Tensor:
    """Return what a layer makes of inputs that lie side by side, (B, its width).

    They are never put together: no copy, and no gradient for a part that wants none.
    """
    first, *others = zip(parts, layer.weight.split([part.shape[1] for part in parts], dim=1), strict=True)
    out = functional.linear(*first, layer.bias)
    for part, weight in others:
        out = torch.addmm(out, part, weight.T)
    return out


def _pieces(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Return what is pooled at once, as (slots of a field, fields): neighbours of one slot each, or one field alone."""
    pieces: list[tuple[int, int]] = []
    for width, fields in itertools.groupby(widths):
        n_fields = len(list(fields))
        pieces += [(1, n_fields)] if width == 1 else [(width, 1)] * n_fields
    return pieces
