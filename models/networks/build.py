"""From a name in the settings to a network.

Owns the list of architectures. Must not know how one is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from features.encode import slot_fields
from features.fields import Field
from features.posteriors import dense_width
from models.networks.logistic import initial_base
from models.networks.mlp import Mlp

NETWORKS = {"mlp": Mlp}


def build_network(name: str, fields: Sequence[Field], *, dim: int, hidden: Sequence[int], n_half_lives: int) -> Mlp:
    """Return the network of that name with undefined weights.

    Raises:
        ValueError: If there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f'[model] network must be one of {", ".join(sorted(NETWORKS))}, got "{name}"')
    return NETWORKS[name](slot_fields(fields).tolist(), dim, dense_width(fields, n_half_lives), hidden)


def initial_tensors(network: Mlp, *, fields: Sequence[Field], n_half_lives: int, seed: int) -> dict[str, Tensor]:
    """Return the first weights of a network (`network.`) and of its base (`base.`); together they predict the prior."""
    network.initialise(torch.Generator().manual_seed(seed))
    base = initial_base(dense_width(fields, n_half_lives))
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    return tensors | {f"base.{name}": tensor for name, tensor in base.items()}
