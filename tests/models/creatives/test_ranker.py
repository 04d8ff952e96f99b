"""The creative ranker, its quantised pCTR, and the two ways to learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.creatives.learn import BATCH_ROWS, LEARNING_RATE, Adagrad, Rows, learn_ad, learn_creative, learn_jointly
from models.creatives.ranker import STRETCH, CreativeRanker, ValuePerceptron, joint_loss, quantised
from models.losses import click_loss

TABLE = torch.arange(8.0)[:, None] ** 2  # (K, 1): the row of quantile k is k squared


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at_place(place: float) -> float:
    """Return the pCTR that lies at a place among the quantiles of `TABLE`."""
    return ((1.0 + STRETCH) ** (place / len(TABLE)) - 1.0) / STRETCH


def test_a_pctr_reads_the_row_of_its_quantile() -> None:
    pctr = torch.tensor([0.0, at_place(2.5), at_place(6.99), at_place(7.5), 1.0], dtype=torch.float64)
    assert quantised(pctr, TABLE)[:, 0].tolist() == [0.0, 4.0, 36.0, 49.0, 49.0]


def test_the_gradient_passes_the_quantiles_with_the_slope_of_the_table() -> None:
    pctr = torch.tensor([at_place(2.5), at_place(7.5)], dtype=torch.float64, requires_grad=True)
    quantised(pctr, TABLE).sum().backward()
    assert pctr.grad is not None
    places = len(TABLE) * STRETCH / (1.0 + STRETCH * pctr.detach()) / math.log1p(STRETCH)  # quantiles per unit of pCTR
    torch.testing.assert_close(pctr.grad, torch.tensor([9.0 - 4.0, 49.0 - 36.0]) * places)


def test_the_table_learns_from_the_rows_that_were_read_alone() -> None:
    table = TABLE.clone().requires_grad_()
    quantised(torch.tensor([at_place(2.5), at_place(2.6)]), table).sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [0, 0, 2, 0, 0, 0, 0, 0]


def test_the_joint_loss_by_hand() -> None:
    clicks = torch.tensor([1.0, 0.0])
    loss = joint_loss(torch.zeros(2), torch.tensor([math.log(3.0)] * 2), clicks, 0.5)
    assert float(loss) == pytest.approx(math.log(2.0) + 0.5 * (-math.log(0.75) - math.log(0.25)) / 2.0)


def rows(n_rows: int = 20_000, seed: int = 0) -> Rows:
    """Return rows whose click depends on whether the request's group and the creative's style are the same."""
    of_ad = torch.randint(3, (n_rows, 2), generator=generator(seed))
    style = torch.randint(3, (n_rows, 1), generator=generator(seed + 1))
    rate = torch.where(of_ad[:, 0] == style[:, 0], 0.6, 0.2) + 0.1 * (of_ad[:, 1] == 0)
    return Rows(of_ad, style, (torch.rand(n_rows, generator=generator(seed + 2)) < rate).float())


def both() -> tuple[ValuePerceptron, CreativeRanker]:
    return ValuePerceptron([3, 3], 0, generator()), CreativeRanker([3, 3, 3], generator(1))


def loss_of(ranker: CreativeRanker, of: Rows, pctr: Tensor) -> float:
    with torch.no_grad():
        return float(click_loss(ranker(of.fields, pctr, torch.zeros_like(pctr)), of.clicks))


def test_fields_do_not_share_their_values() -> None:
    model = ValuePerceptron([3, 3], 0, generator())
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        model.values[1] = 1.0  # the second value of the first field
    told = model(torch.tensor([[0, 0], [1, 0], [0, 1]]))
    assert told[0] == told[2] != told[1]


def test_an_untrained_network_adds_nothing() -> None:
    model, ranker = both()
    of = rows(10)
    assert not model(of.of_ad).any()
    start = torch.arange(10.0)
    assert torch.equal(ranker(of.fields, torch.full((10,), 0.3), start), start)


def test_a_ranker_finds_the_style_that_each_group_likes() -> None:
    _, ranker = both()
    of = rows()
    pctr = torch.full((len(of.clicks),), 0.1)
    learn_creative(ranker, Adagrad(ranker), of, pctr, torch.zeros_like(pctr))
    groups, styles = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    fields = torch.stack([groups.flatten(), torch.ones(9, dtype=torch.long), styles.flatten()], dim=1)
    with torch.no_grad():
        scores = ranker(fields, torch.full((9,), 0.1), torch.zeros(9)).reshape(3, 3)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2]


def test_a_ranker_reads_the_pctr() -> None:
    _, ranker = both()
    of = rows()
    pctr = torch.rand(len(of.clicks), generator=generator(9)) * 0.5
    of = Rows(of.of_ad, of.of_creative, (torch.rand(len(pctr), generator=generator(10)) < pctr).float())
    learn_creative(ranker, Adagrad(ranker), of, pctr, torch.zeros_like(pctr))
    assert loss_of(ranker, of, pctr) < loss_of(ranker, of, pctr.flip(0)) - 0.02


def test_jointly_the_ranker_moves_the_ad_model_too() -> None:
    alone, jointly, of = both(), both(), rows()
    learn_ad(alone[0], Adagrad(alone[0]), of)
    learn_jointly(*jointly, Adagrad(*jointly), of)
    assert not torch.equal(alone[0].values, jointly[0].values)
    unweighted = both()
    learn_jointly(*unweighted, Adagrad(*unweighted), of, mu=0.0)
    torch.testing.assert_close(unweighted[0].values, alone[0].values)


def test_learning_alone_leaves_the_other_as_it_was() -> None:
    model, ranker = both()
    of = rows(2 * BATCH_ROWS)
    before = model.values.detach().clone()
    learn_creative(ranker, Adagrad(ranker), of, model(of.of_ad).sigmoid().detach(), torch.zeros(len(of.clicks)))
    assert torch.equal(model.values, before)


def test_adagrad_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    start, optimiser = float(module.weight.detach()), Adagrad(module)
    optimiser.step(3.0 * module.weight.sum())
    optimiser.step(4.0 * module.weight.sum())
    assert float(module.weight.detach()) == pytest.approx(start - LEARNING_RATE * (1.0 + 4.0 / 5.0))
