import numpy as np
import torch

from models.networks.mlp import Mlp


def make(hidden: tuple[int, ...] = (8,), seed: int = 0) -> Mlp:
    network = Mlp(slot_field=[0, 1, 1], dim=4, dense_width=5, hidden=hidden)
    network.initialise(torch.Generator().manual_seed(seed))
    return network


def rows(n_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    embedded = torch.randn(n_rows, 3, 4, generator=generator)
    dense = torch.randn(n_rows, 5, generator=generator)
    return embedded, torch.tensor([[1.0, 0.5, 0.5]]).repeat(n_rows, 1), dense, dense[:, 1]


def test_untrained_it_predicts_the_overall_rate_whatever_the_values() -> None:
    embedded, share, dense, base = rows(6)
    np.testing.assert_allclose(make()(embedded, share, dense, base).detach(), dense[:, 1], atol=1e-6)


def test_a_slot_without_share_changes_nothing() -> None:
    network = make()
    torch.nn.init.ones_(network.head.weight)
    embedded, share, dense, base = rows(3)
    share[:, 2] = 0.0
    before = network(embedded, share, dense, base)
    embedded[:, 2] = 100.0
    np.testing.assert_allclose(network(embedded, share, dense, base).detach(), before.detach())


def test_one_seed_gives_one_network() -> None:
    for one, other in zip(make(seed=3).parameters(), make(seed=3).parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(make(seed=3).layers[0].weight, make(seed=4).layers[0].weight)  # type: ignore[arg-type]


def test_without_hidden_layers_it_is_linear_in_values_and_counts() -> None:
    network = make(hidden=())
    torch.nn.init.normal_(network.head.weight)
    embedded, share, dense, base = rows(2)
    sums = network(embedded.sum(0, keepdim=True), share[:1], dense.sum(0, keepdim=True), base.sum(0, keepdim=True))
    apart = network(embedded, share, dense, base).sum()
    np.testing.assert_allclose(sums.detach(), apart.detach(), atol=1e-4)
