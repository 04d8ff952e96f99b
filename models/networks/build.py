"""From a name in the settings to a network.

Owns the list of architectures. Must not know how one is trained.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from features.encode import slot_fields
from features.fields import Field
from features.posteriors import dense_width
from models.networks.dcn import Dcn
from models.networks.logistic import base_width, initial_base, initial_calibration
from models.networks.mlp import Mlp
from models.networks.network import Network, Way

NETWORKS = {"dcn": Dcn, "mlp": Mlp}


def build_network(
    name: str, fields: Sequence[Field], *, dim: int, hidden: Sequence[int], ways: Collection[Way], n_half_lives: int
) -> Network:
    """Return the network of that name with undefined weights.

    Raises:
        ValueError: If there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f'[model] network must be one of {", ".join(sorted(NETWORKS))}, got "{name}"')
    return NETWORKS[name](slot_fields(fields).tolist(), dim, dense_width(fields, n_half_lives), ways, hidden)


def initial_tensors(network: Network, *, fields: Sequence[Field], n_half_lives: int, seed: int) -> dict[str, Tensor]:
    """Return the first weights of a network (`network.`), its base (`base.`) and its calibration (`calibration.`).

    Together they predict the overall click rate.
    """
    network.initialise(torch.Generator().manual_seed(seed))
    base = initial_base(base_width(dense_width(fields, n_half_lives), n_half_lives))
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"base.{name}": tensor for name, tensor in base.items()}
    return tensors | {f"calibration.{name}": tensor for name, tensor in initial_calibration().items()}
