import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.losses import (
    Objective,
    Targets,
    accuracy_surrogate,
    auc_surrogate,
    click_loss,
    model_prior_loss,
    objective_loss,
)


def phi(u: float) -> float:
    return math.log1p(math.exp(-u))


def test_the_loss_of_a_batch_is_its_mean_log_loss() -> None:
    loss = click_loss(torch.tensor([0.0, math.log(3.0)]), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert loss.item() == pytest.approx((math.log(2.0) + math.log(4.0)) / 2)


def test_a_sure_mistake_has_a_finite_loss() -> None:
    assert click_loss(torch.tensor([200.0]), torch.tensor([0.0])).item() == pytest.approx(200.0)


def test_the_model_prior_is_the_clicks_loss_plus_beta_times_the_loss_to_the_earlier_prediction() -> None:
    logits, teacher = torch.tensor([0.3, -1.0]), torch.tensor([1.0, -2.0])
    clicks, trust = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 3.0])
    expected = [phi(0.3) + 0.5 * (q * phi(0.3) + (1 - q) * phi(-0.3)) for q in [1 / (1 + math.exp(-1.0))]] + [
        phi(1.0) + 3.0 * (q * phi(-1.0) + (1 - q) * phi(1.0)) for q in [1 / (1 + math.exp(2.0))]
    ]
    assert model_prior_loss(logits, clicks, teacher, trust).item() == pytest.approx(np.mean(expected))


def test_trust_without_evidence_is_none_and_grows_to_one() -> None:
    evidence = torch.tensor([0.0, 100.0, 1e9])
    by_evidence = Objective(model_prior="evidence", n0=100.0)
    assert by_evidence.trust(evidence).tolist() == pytest.approx([0.0, 0.5, 1.0])
    constant = replace(by_evidence, model_prior="constant", beta=0.2)
    assert constant.trust(evidence).tolist() == pytest.approx([0.2] * 3)
    assert Objective().trust(evidence).tolist() == [0.0] * 3


def test_the_surrogate_of_accuracy_pushes_past_the_earlier_model_up_to_the_margin() -> None:
    logits, teacher = torch.tensor([0.5, -0.5, 4.0]), torch.tensor([0.0, 0.0, 0.0])
    clicks = torch.tensor([1.0, 1.0, 1.0])
    assert accuracy_surrogate(logits, clicks, teacher, math.inf).item() == pytest.approx(
        (phi(0.5) + phi(-0.5) + phi(4.0)) / 3
    )
    assert accuracy_surrogate(logits, clicks, teacher, 1.0).item() == pytest.approx(
        (phi(0.5) + phi(-0.5) + phi(1.0)) / 3
    )
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(accuracy_surrogate(logits, clicks, teacher, 1.0), logits)
    assert gradient[2] == 0.0  # far enough ahead
    assert (gradient[:2] < 0.0).all()


def test_the_surrogate_of_auc_is_the_mean_over_pairs() -> None:
    logits, teacher = torch.tensor([0.5, -0.5, 0.2]), torch.tensor([0.1, 0.4, 0.0])
    clicks = torch.tensor([1.0, 0.0, 0.0])
    expected = (phi((0.5 + 0.5) - (0.1 - 0.4)) + phi((0.5 - 0.2) - (0.1 - 0.0))) / 2
    assert auc_surrogate(logits, clicks, teacher, math.inf).item() == pytest.approx(expected)
    assert auc_surrogate(logits, torch.zeros(3), teacher, math.inf).item() == 0.0


@pytest.mark.parametrize("confidence", ["accuracy", "auc"])
def test_the_surrogates_gradient_has_the_share_that_is_asked_for(confidence: str) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, noise = torch.randn(200, generator=generator), torch.randn(200, generator=generator)
    clicks = (torch.rand(200, generator=generator) < 0.3).to(torch.float32)
    targets = Targets(clicks, teacher, torch.zeros(200))
    plain = Objective(confidence=confidence, confidence_share=0.0)  # type: ignore[arg-type]

    def gradient(objective: Objective) -> Tensor:
        logits = (teacher + 0.1 * noise).requires_grad_()
        return torch.autograd.grad(objective_loss(objective, logits, targets), logits)[0]

    extra = gradient(replace(plain, confidence_share=0.05)) - gradient(plain)
    assert (extra.norm() / gradient(plain).norm()).item() == pytest.approx(0.05, rel=1e-3)


def test_a_correction_turns_a_non_click_that_was_learnt_into_a_click() -> None:
    logits = torch.tensor([0.7, -0.4], requires_grad=True)

    def gradient(targets: Targets) -> Tensor:
        parts = logits[: len(targets.clicks)]
        return torch.autograd.grad(len(parts) * objective_loss(Objective(), parts, targets), logits)[0]

    corrected = gradient(Targets(torch.zeros(2))) + gradient(Targets(torch.zeros(0)).followed_by_late(2))
    torch.testing.assert_close(corrected, gradient(Targets(torch.ones(2))))
    mixed = torch.cat([logits, logits])
    both = Targets(torch.zeros(2)).followed_by_late(2)
    (together,) = torch.autograd.grad(4 * objective_loss(Objective(), mixed, both), logits)
    torch.testing.assert_close(together, gradient(Targets(torch.ones(2))))


def settle(weight: float, n_windows: int, rate: float = 0.03) -> float:
    """The prediction for one value of that click rate after windows that each copy the model and train it to rest."""
    n_clicks = round(1000 * rate)
    clicks = torch.cat([torch.ones(n_clicks), torch.zeros(1000 - n_clicks)])
    logit = torch.full((), math.log(rate / (1.0 - rate)))
    for _ in range(n_windows):
        teacher = logit.expand(1000).clone()
        for _ in range(40):
            moving = logit.clone().requires_grad_()
            logits = moving.expand(1000)
            loss = click_loss(logits, clicks) + weight * accuracy_surrogate(logits, clicks, teacher, math.inf)
            (gradient,) = torch.autograd.grad(loss, moving)
            p = torch.sigmoid(logit)
            logit = logit - 0.5 * gradient / (p * (1.0 - p)).clamp(min=1e-3)
    return float(torch.sigmoid(logit))


def test_without_guards_confidence_ranking_moves_the_level_and_collapses_as_foretold() -> None:
    """At rest sigma(f) = p + lambda (p - 1/2), by our arithmetic; nothing is left from lambda = p / (1/2 - p) on."""
    assert settle(0.03, 60) == pytest.approx(0.0159, abs=0.001)
    assert settle(0.1, 60) < 0.003
