import pytest
import torch

from models.networks.build import build_network, initial_tensors
from tests.frames import FIELDS


def test_an_unknown_network_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r'\[model\] network must be one of dcn, mlp, got "transformer"'):
        build_network("transformer", FIELDS, dim=4, hidden=(8,), ways=(), n_half_lives=2)


def test_first_weights_name_the_network_and_its_base() -> None:
    network = build_network("mlp", FIELDS, dim=4, hidden=(8,), ways=(), n_half_lives=2)
    tensors = initial_tensors(network, fields=FIELDS, n_half_lives=2, seed=0)
    assert {name.split(".")[0] for name in tensors} == {"network", "base", "calibration"}
    assert tensors["base.weight"].dtype == torch.float64
