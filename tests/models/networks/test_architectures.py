from collections.abc import Sequence

import pytest
import torch

from models.networks.build import NETWORKS
from models.networks.mlp import Mlp
from models.networks.network import Network
from tests.checks import check_network, rows


@pytest.mark.parametrize("name", NETWORKS)
def test_each_architecture_passes_what_training_and_serving_rely_on(name: str) -> None:
    check_network(lambda slots, dim, dense, ways: NETWORKS[name](slots, dim, dense, ways, (16, 8)))


def test_a_network_that_does_not_start_as_the_overall_rate_is_found() -> None:
    class Shaky(Mlp):
        def interact(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
            return super().interact(parts) + parts[0].mean(dim=1)

    with pytest.raises(AssertionError):
        check_network(lambda slots, dim, dense, ways: Shaky(slots, dim, dense, ways, (8,)))


def test_without_hidden_layers_it_is_linear_in_values_and_counts() -> None:
    network = Mlp([0, 1, 1], 4, 6, ("dense", "wide"), ())
    network.initialise(torch.Generator().manual_seed(0))
    torch.nn.init.ones_(network.head.weight)
    embedded, share, dense, base = rows(4)
    zero = network(0.0 * embedded, share, dense, base)
    one, two = network(embedded, share, dense, base), network(2.0 * embedded, share, dense, base)
    torch.testing.assert_close(two - one, one - zero)


def test_only_the_ways_that_are_asked_for_read_the_counts() -> None:
    def reads(ways: tuple[str, ...]) -> bool:
        network: Network = Mlp([0, 1, 1], 4, 6, ways, (8,))  # type: ignore[arg-type]
        for parameter in network.parameters():
            torch.nn.init.constant_(parameter, 0.3)
        embedded, share, dense, base = rows(4)
        before = network(embedded, share, dense, base)
        dense = dense.clone()
        dense[:, 3] += 1.0
        return not torch.equal(network(embedded, share, dense, base), before)

    assert {ways: reads(ways) for ways in ((), ("initial",), ("dense",), ("wide",))} == {
        (): False,
        ("initial",): False,
        ("dense",): True,
        ("wide",): True,
    }
