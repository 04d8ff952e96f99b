"""One pass over rows: an ad model alone, a creative ranker on given pCTRs, or both jointly.

Owns the steps. Must not know where rows come from.

Invariant: rows are learnt once, in their order, in batches.

Shape legend: `B` rows, `F` fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.creatives.ranker import CreativeRanker, ValuePerceptron, joint_loss
from models.losses import click_loss

LEARNING_RATE, EPSILON = 0.05, 1e-10  # the first as in arXiv:2312.12750, the second is Adagrad's usual guard
BATCH_ROWS = 128  # the paper's 512 are too few steps for 10^5 rows: in two simulated cascades AUC was 0.003 lower


@dataclass(frozen=True)
class Rows:
    """What was shown.

    Attributes:
        of_ad: Numbers of the values of request and ad, (B, F).
        of_creative: Those of the creative, (B, F').
        clicks: 0 or 1, (B,).
    """

    of_ad: Tensor
    of_creative: Tensor
    clicks: Tensor

    @property
    def fields(self) -> Tensor:
        """All that the ranker reads, (B, F + F')."""
        return torch.cat([self.of_ad, self.of_creative], dim=1)


class Adagrad:
    """Steps that shrink with the gradients so far.

    Source: Duchi, Hazan, Singer (2011). Not torch.optim's: making one loads torch's compiler, seconds.
    """

    def __init__(self, *modules: nn.Module) -> None:
        """Take the parameters of some modules."""
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of a loss."""
        gradients = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            for parameter, square, gradient in zip(self._parameters, self._squares, gradients, strict=True):
                square.addcmul_(gradient, gradient)
                parameter.addcdiv_(gradient, square.sqrt().add_(EPSILON), value=-LEARNING_RATE)


def learn_ad(model: ValuePerceptron, optimiser: Adagrad, rows: Rows) -> None:
    """Learn the click of (request, ad)."""
    _pass(optimiser, rows, lambda at: click_loss(model(rows.of_ad[at]), rows.clicks[at]))


def learn_creative(ranker: CreativeRanker, optimiser: Adagrad, rows: Rows, pctr: Tensor, start: Tensor) -> None:
    """Learn the click of (request, ad, creative), given the pCTR of each row's ad and logits to start from, (B,)."""
    fields = rows.fields
    _pass(optimiser, rows, lambda at: click_loss(ranker(fields[at], pctr[at], start[at]), rows.clicks[at]))


def learn_jointly(
    model: ValuePerceptron, ranker: CreativeRanker, optimiser: Adagrad, rows: Rows, *, mu: float = 1.0
) -> None:
    """Learn both: the ranker reads the model's pCTR as it stands, and its gradient goes on into the model."""
    fields = rows.fields

    def loss(at: slice) -> Tensor:
        ad_logits = model(rows.of_ad[at])
        creative_logits = ranker(fields[at], ad_logits.sigmoid(), torch.zeros_like(ad_logits))
        return joint_loss(ad_logits, creative_logits, rows.clicks[at], mu)

    _pass(optimiser, rows, loss)


def _pass(optimiser: Adagrad, rows: Rows, loss: Callable[[slice], Tensor]) -> None:
    for first in range(0, len(rows.clicks), BATCH_ROWS):
        optimiser.step(loss(slice(first, first + BATCH_ROWS)))
