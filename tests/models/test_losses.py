import math

import pytest
import torch

from models.losses import click_loss


def test_the_loss_of_a_batch_is_its_mean_log_loss() -> None:
    loss = click_loss(torch.tensor([0.0, math.log(3.0)]), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert loss.item() == pytest.approx((math.log(2.0) + math.log(4.0)) / 2)


def test_a_sure_mistake_has_a_finite_loss() -> None:
    assert click_loss(torch.tensor([200.0]), torch.tensor([0.0])).item() == pytest.approx(200.0)
