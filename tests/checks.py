"""What every network has to pass, whatever its architecture: `check_network` is called with each."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from features.posteriors import LEVEL_INPUTS, ROOT_INPUT
from models.networks.network import Network

SLOT_FIELD = [0, 1, 1]
DIM, DENSE = 4, 6

MakeNetwork = Callable[[list[int], int, int, tuple[str, ...]], Network]
Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def check_network(make: MakeNetwork) -> None:
    """Raise AssertionError if networks of an architecture break what training and serving rely on."""
    for ways in ((), ("dense",), ("wide",), ("dense", "wide")):
        _starts_as_the_overall_rate(make, ways)
        _is_one_network_per_seed(make, ways)
        _comes_back_from_its_weights(make, ways)
        _ignores_absent_slots(make, ways)
        _scores_each_row_alone(make, ways)
    _learns_an_interaction(make)
    _bears_another_order_of_fields(make)


def new(make: MakeNetwork, ways: tuple[str, ...], seed: int = 0) -> Network:
    network = make(SLOT_FIELD, DIM, DENSE, ways)
    network.initialise(torch.Generator().manual_seed(seed))
    return network


def rows(n_rows: int, seed: int = 1) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.randn(n_rows, len(SLOT_FIELD), DIM, generator=generator)
    dense = torch.randn(n_rows, DENSE, generator=generator)
    return embedded, torch.tensor([[1.0, 0.5, 0.5]]).repeat(n_rows, 1), dense, dense[:, ROOT_INPUT]


def _stir(network: Network) -> Network:
    """Give every weight something to say."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return network


def _starts_as_the_overall_rate(make: MakeNetwork, ways: tuple[str, ...]) -> None:
    inputs = rows(6)
    logits = new(make, ways)(*inputs)
    assert logits.shape == (6,)
    np.testing.assert_allclose(logits.detach(), inputs[2][:, ROOT_INPUT], atol=1e-6)


def _is_one_network_per_seed(make: MakeNetwork, ways: tuple[str, ...]) -> None:
    one, same, other = (_weights(new(make, ways, seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def _weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def _comes_back_from_its_weights(make: MakeNetwork, ways: tuple[str, ...]) -> None:
    network, copy = _stir(new(make, ways)), make(SLOT_FIELD, DIM, DENSE, ways)
    copy.load_state_dict(network.state_dict())
    assert torch.equal(network(*rows(5)), copy(*rows(5)))


def _ignores_absent_slots(make: MakeNetwork, ways: tuple[str, ...]) -> None:
    network = _stir(new(make, ways))
    embedded, share, dense, base = rows(3)
    share[:, 2] = 0.0
    before = network(embedded, share, dense, base)
    embedded[:, 2] = 100.0
    np.testing.assert_allclose(network(embedded, share, dense, base).detach(), before.detach())
    share[:, 2] = 0.5
    assert not torch.allclose(network(embedded, share, dense, base), before)


def _scores_each_row_alone(make: MakeNetwork, ways: tuple[str, ...]) -> None:
    network, inputs = _stir(new(make, ways)), rows(8)
    alone = torch.cat([network(*(part[i : i + 1] for part in inputs)) for i in range(8)])
    np.testing.assert_allclose(network(*inputs).detach(), alone.detach(), atol=1e-5)


def _learns_an_interaction(make: MakeNetwork) -> None:
    """Two signs whose product decides: neither says anything alone."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (4000, 2), generator=generator).to(torch.float32) * 2.0 - 1.0
    embedded = torch.zeros(4000, 3, DIM)
    embedded[:, 0, 0], embedded[:, 1, 0] = signs[:, 0], signs[:, 1]
    share, dense = torch.tensor([[1.0, 1.0, 0.0]]).repeat(4000, 1), torch.zeros(4000, DENSE)
    clicks = (signs.prod(dim=1) > 0).to(torch.float32)
    network = new(make, ("dense", "wide"))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for first in itertools.islice(itertools.cycle(range(0, 4000, 200)), 300):
        part = slice(first, first + 200)
        logits = network(embedded[part], share[part], dense[part], dense[part, 0])
        optimiser.zero_grad()
        functional.binary_cross_entropy_with_logits(logits, clicks[part]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    loss = functional.binary_cross_entropy_with_logits(network(embedded, share, dense, dense[:, 0]), clicks)
    assert loss.item() < 0.35  # 0.69 without the interaction


def _bears_another_order_of_fields(make: MakeNetwork) -> None:
    """The same learning, but for chance, whichever field comes first."""
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(3000, 2, DIM, generator=generator)
    clicks = (embedded[:, 0, 0] + 0.5 * embedded[:, 1, 1] > 0).to(torch.float32)
    share, dense = torch.ones(3000, 2), torch.zeros(3000, LEVEL_INPUTS + 1)
    losses = []
    for order in ([0, 1], [1, 0]):
        network = make([0, 1], DIM, LEVEL_INPUTS + 1, ("dense", "wide"))
        network.initialise(torch.Generator().manual_seed(0))
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
        for first in range(0, 3000, 100):
            part = slice(first, first + 100)
            logits = network(embedded[part][:, order], share[part], dense[part], dense[part, 0])
            loss = functional.binary_cross_entropy_with_logits(logits, clicks[part])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses[0], losses[1], atol=0.1)
    assert max(losses) < 0.5
