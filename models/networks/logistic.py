"""Logistic regressions learnt by Newton steps: the base of every network, and the calibration behind it.

Owns their arithmetic: what they predict and how one batch moves them. The base reads the dense inputs; the calibration
reads the network's logit alone and puts its slope and level right (Platt scaling, followed over time). Must not know
embeddings or networks.

Invariants: there is no learning rate to choose: each step solves for the optimum of a quadratic model of everything
seen, so its size follows from the data; the curvature halves with `MEMORY_ROWS`, so it never stops learning; the ridge
stays whole, so an input that is constant or missing cannot make a step large. All in doubles, but for the product that
one batch adds to the curvature.

Shape legend: `B` batch, `P` dense inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from features.posteriors import ROOT_INPUT

RIDGE = 1.0  # rows' worth of doubt about each weight at the start; chosen by hand
STEP_MAX = 2.0  # by which a batch may move the logit of a row of its own: the quadratic model holds near by; by hand
CALIBRATION_RIDGE = 100.0  # likewise: a few hundred rows must not turn slope and level; chosen by hand
MEMORY_ROWS = 350_000.0  # rows after which the curvature has halved; as good as no forgetting on two logs' warm-up


def initial_base(width: int) -> dict[str, Tensor]:
    """Return weights (P,) and curvature (P, P) of a base that predicts the overall rate from `width` dense inputs."""
    weight = torch.zeros(width, dtype=torch.float64)
    weight[ROOT_INPUT] = 1.0
    return {"weight": weight, "curvature": torch.eye(width, dtype=torch.float64) * RIDGE}


def initial_calibration() -> dict[str, Tensor]:
    """Return slope and shift (2,) and curvature (2, 2) of a calibration that changes nothing."""
    return {
        "weight": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "curvature": torch.eye(2, dtype=torch.float64) * CALIBRATION_RIDGE,
    }


def calibration_inputs(logits: Tensor) -> Tensor:
    """Return what a calibration reads of logits (B,): itself and 1, (B, 2)."""
    return torch.stack([logits, torch.ones_like(logits)], dim=1)


def base_logits(weight: Tensor, dense: Tensor) -> Tensor:
    """Return the logits of the base, (B,), float32, from dense inputs of either precision."""
    return (dense.to(torch.float64) @ weight).to(torch.float32)


def newton_step(
    weight: Tensor, curvature: Tensor, dense: Tensor, clicks: Tensor, corrects: Tensor | None = None
) -> None:
    """Move weight (P,) and curvature (P, P) in place by one batch.

    Args:
        weight: Weights.
        curvature: Ridge plus decayed second derivatives of the log loss of all batches so far.
        dense: (B, P).
        clicks: 0 or 1, (B,).
        corrects: Which rows take back a non-click learnt before, (B,); see models/losses.py. Their loss is linear.

    Source: online Newton / recursive iteratively re-weighted least squares with forgetting; ours in its details.
    """
    x = dense.to(torch.float64)
    p = torch.sigmoid(x @ weight)
    error, curved = clicks.to(torch.float64) - p, p * (1.0 - p)
    if corrects is not None:
        error, curved = torch.where(corrects, 1.0, error), torch.where(corrects, 0.0, curved)
    keep = 0.5 ** (len(x) / MEMORY_ROWS)
    curvature.mul_(keep)
    curvature.diagonal().add_((1.0 - keep) * RIDGE)
    single = dense.to(torch.float32)  # a batch's part of the curvature needs no more, and takes half the time
    curvature.add_((single * curved.to(torch.float32)[:, None]).T @ single)
    gradient = x.T @ error
    step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(curvature))[:, 0]
    furthest = float((x @ step).abs().max())
    weight.add_(step if furthest <= STEP_MAX else step * (STEP_MAX / furthest))
