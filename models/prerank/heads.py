"""What a pre-ranker's outputs mean, what it learns from which candidates, and the score that it ranks by.

Owns the four ways to read the outputs. Must not know trunks or optimisers.

The labels of a cascade are nested: a candidate was clicked, or only exposed, or neither. `etr` is the probability that
a matched candidate is exposed, `etctr` that it is exposed and clicked.

Source: arXiv:2310.08039: `chain` is its ECM (softmax over three classes), `tasks` its ECMM's (exposure, and click over
the entire space), `nested` the ESMM-style control, `exposed` the usual training on exposed samples alone. That a
sampled candidate weighs 1 / its sample rate is ours.

Shape legend: `B` rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Head = Literal["chain", "tasks", "nested", "exposed"]
HEADS: dict[Head, int] = {"chain": 3, "tasks": 2, "nested": 2, "exposed": 1}
"""How many outputs each reads."""

CLICKED, EXPOSED, UNEXPOSED = 0, 1, 2


def head_loss(head: Head, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the loss of a batch in nats per candidate, a scalar.

    Args:
        head: How to read the outputs.
        outputs: (B, what the head reads).
        labels: `CLICKED`, `EXPOSED` or `UNEXPOSED`, (B,).
        weights: 1 over the probability with which a candidate is there, (B,).
    """
    losses, counted = head_losses(head, outputs, labels), weights
    if head == "exposed":
        counted = weights * (labels != UNEXPOSED)
    return (losses * counted).sum() / counted.sum().clamp(min=1.0)


def head_losses(head: Head, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each row, (B,); with the head `exposed` it means something for exposed rows alone."""
    if head == "chain":
        return functional.cross_entropy(outputs, labels, reduction="none")
    clicked = (labels == CLICKED).to(outputs.dtype)
    if head == "exposed":
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], clicked, reduction="none")
    exposed = (labels != UNEXPOSED).to(outputs.dtype)
    of_exposure = functional.binary_cross_entropy_with_logits(outputs[:, 0], exposed, reduction="none")
    if head == "tasks":
        return of_exposure + functional.binary_cross_entropy_with_logits(outputs[:, 1], clicked, reduction="none")
    log_etctr = functional.logsigmoid(outputs).sum(dim=1)
    log_rest = torch.log1p(-log_etctr.exp().clamp(max=1.0 - 1e-6))
    return of_exposure - torch.where(labels == CLICKED, log_etctr, log_rest)


def head_probability(head: Head, outputs: Tensor) -> Tensor:
    """Return etr, (B,); with the head `exposed` the probability of a click once exposed."""
    if head == "chain":
        return 1.0 - functional.softmax(outputs, dim=1)[:, UNEXPOSED]
    return torch.sigmoid(outputs[:, 0])


def head_scores(head: Head, outputs: Tensor) -> Tensor:
    """Return the score that candidates are ranked by, (B,).

    It is log etctr; where nothing is known of exposure, the logit of a click.
    """
    if head == "chain":
        return functional.log_softmax(outputs, dim=1)[:, CLICKED]
    if head == "tasks":
        return functional.logsigmoid(outputs[:, 1])
    if head == "nested":
        return functional.logsigmoid(outputs).sum(dim=1)
    return outputs[:, 0]
