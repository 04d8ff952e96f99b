"""Logistic regressions learnt by Newton steps: the base of every network, and the calibration behind it.

Owns their arithmetic: what they read, what they predict and how one batch moves them. The base reads the dense inputs,
what each rate says times the evidence behind it, and the evidence beyond some amounts: so it can believe a rate the
more the more was counted, as trees on the same inputs learn to. The calibration weighs the logits of base and network
and puts their level right (stacking and Platt scaling, followed over time). Must not know embeddings or networks.

Invariants: there is no learning rate to choose: each step solves for the optimum of a quadratic model of everything
seen, so its size follows from the data; the curvature halves with `MEMORY_ROWS`, so it never stops learning; the ridge
stays whole, so an input that is constant or missing cannot make a step large. What is kept and solved is in doubles;
what one batch says is computed in the precision of its inputs.

Shape legend: `B` batch, `P` dense inputs, `H` half-lives, `Q` inputs of the base.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from features.posteriors import ROOT_INPUT

RIDGE = 10.0  # doubt about each weight at the start, in curvature; best of 1, 10, 30, 100 on two logs' first slides
KNOTS = (0.5, 1.0)  # evidence beyond which its slope may change, as log1p(n) is scaled: 11 and 147 impressions; by hand
STEP_MAX = 2.0  # by which a batch may move the logit of a row of its own: the quadratic model holds near by; by hand
CALIBRATION_START = (1.0, 1.0, 0.0)  # weights of the base, of what the network says beyond it, of the level
CALIBRATION_RIDGE = (30.0, 30.0, 300.0)  # doubt about them: few rows must not turn them, the level least; by hand
BASE_SHARE = 0.5  # of what the base says of values, in the network's start; best of 0, 0.25, 0.5 and 1 on two logs
CURVATURE_ROWS = 1024  # of a larger batch about so many say how curved the loss is: it changes slowly; by hand
MEMORY_ROWS = 350_000.0  # rows after which the curvature has halved; as good as no forgetting on two logs' warm-up


def base_inputs(dense: Tensor, n_half_lives: int) -> Tensor:
    """Return what the base reads of dense inputs (B, P), in their precision: those and more, (B, Q)."""
    rates, evidence = dense[:, 1 + n_half_lives :].chunk(2, dim=1)
    return torch.cat([dense, rates * evidence, *((evidence - knot).clamp_min(0.0) for knot in KNOTS)], dim=1)


def base_width(dense_width: int, n_half_lives: int) -> int:
    """Return Q for P dense inputs."""
    return dense_width + (1 + len(KNOTS)) * ((dense_width - 1 - n_half_lives) // 2)


def initial_base(width: int) -> dict[str, Tensor]:
    """Return weights (Q,) and curvature (Q, Q) of a base that predicts the overall rate from `width` inputs."""
    weight = torch.zeros(width, dtype=torch.float64)
    weight[ROOT_INPUT] = 1.0
    return {"weight": weight, "curvature": torch.eye(width, dtype=torch.float64) * RIDGE}


def initial_calibration() -> dict[str, Tensor]:
    """Return weights (3,) and curvature (3, 3) of a calibration that has seen nothing."""
    return {
        "weight": torch.tensor(CALIBRATION_START, dtype=torch.float64),
        "curvature": torch.diag(torch.tensor(CALIBRATION_RIDGE, dtype=torch.float64)),
    }


def calibration_inputs(logits: Tensor) -> Tensor:
    """Return what a calibration reads of the logits of base and network, (B, 2): (B, 3)."""
    base, network = logits.unbind(1)
    return torch.stack([base, network - base, torch.ones_like(base)], dim=1)


def base_logits(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the logits of the base, (B,), from its inputs (B, Q), in their precision."""
    return inputs @ weight.to(inputs.dtype)


def network_start(weight: Tensor, inputs: Tensor, base: Tensor, n_half_lives: int) -> Tensor:
    """Return the logits that a network starts from, (B,): the base's level and half of what it says beyond it.

    The level is what the base makes of the overall rate in all memories. A network that had half of that too would be
    late, with half of the distance, whenever the level shifts.

    Args:
        weight: Of the base, (Q,).
        inputs: What it reads, (B, Q).
        base: Its logits, (B,).
        n_half_lives: H.
    """
    told = slice(ROOT_INPUT, ROOT_INPUT + n_half_lives)
    level = base_logits(weight[told], inputs[:, told])
    return torch.lerp(level, base, BASE_SHARE)


def run_base(weight: Tensor, dense: Tensor, n_half_lives: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the base reads of dense inputs (B, P), its logits and those that a network starts from.

    The shapes are (B, Q), (B,) and (B,).
    """
    inputs = base_inputs(dense, n_half_lives)
    base = base_logits(weight, inputs)
    return inputs, base, network_start(weight, inputs, base, n_half_lives)


def newton_step(
    weight: Tensor,
    curvature: Tensor,
    inputs: Tensor,
    clicks: Tensor,
    corrects: Tensor | None = None,
    *,
    ridge: float | Sequence[float] = RIDGE,
) -> None:
    """Move weight (Q,) and curvature (Q, Q) in place by one batch.

    Args:
        weight: Weights.
        curvature: Ridge plus decayed second derivatives of the log loss of all batches so far.
        inputs: (B, Q).
        clicks: 0 or 1, (B,).
        corrects: Which rows take back a non-click learnt before, (B,); see models/losses.py. Their loss is linear.
        ridge: Doubt about each weight, what the curvature began with.

    Source: online Newton / recursive iteratively re-weighted least squares with forgetting; ours in its details.
    """
    p = torch.sigmoid(base_logits(weight, inputs))
    error, curved = clicks.to(p.dtype) - p, p * (1.0 - p)
    if corrects is not None:
        error, curved = torch.where(corrects, 1.0, error), torch.where(corrects, 0.0, curved)
    keep = 0.5 ** (len(inputs) / MEMORY_ROWS)
    curvature.mul_(keep)
    curvature.diagonal().add_(torch.as_tensor(ridge, dtype=torch.float64, device=inputs.device) * (1.0 - keep))
    some = slice(None, None, max(1, len(inputs) // CURVATURE_ROWS))
    part, curved = inputs[some], curved[some] * (len(inputs) / len(inputs[some]))
    curvature.add_((part * curved[:, None]).T @ part)
    gradient = (inputs.T @ error).to(torch.float64)
    step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(curvature))[:, 0]
    furthest = float(base_logits(step, inputs).abs().max())
    weight.add_(step if furthest <= STEP_MAX else step * (STEP_MAX / furthest))
