"""From a name to a pre-ranker, and from a snapshot to one that is ready to score.

Owns the list of pre-rankers. Must not know how one is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from features.fields import Field
from models.prerank.cold import Cold
from models.prerank.ecm import Ecm
from models.prerank.ecmm import Ecmm
from models.prerank.heads import HEADS, Head
from models.prerank.inputs import DENSE, is_of_ad
from models.prerank.tower import TwoTower
from models.prerank.trunk import Trunk, Widths
from models.snapshot import Snapshot


class Kind(NamedTuple):
    """An architecture, how its outputs are read, and what it is."""

    trunk: type[Trunk]
    head: Head
    what: str


PRERANKERS: dict[str, Kind] = {
    "ecm": Kind(Ecm, "chain", "one perceptron, softmax over clicked, exposed, unexposed (arXiv:2310.08039)"),
    "ecmm": Kind(Ecmm, "tasks", "gated routing between blocks, a tower for exposure and one for clicks (the same)"),
    "two-tower": Kind(TwoTower, "tasks", "two towers on the entire chain"),
    "esmm": Kind(Ecm, "nested", "control: exposure times click, as ESMM does"),
    "cold": Kind(Cold, "tasks", "control: gated fields on the entire chain"),
    "exposed-only": Kind(Ecm, "exposed", "control: ECM's perceptron trained on exposed candidates alone"),
    "two-tower-exposed": Kind(TwoTower, "exposed", "control: two towers trained on exposed candidates alone"),
    "cold-exposed": Kind(Cold, "exposed", "control: COLD trained on exposed candidates alone"),
}


def new_trunk(name: str, fields: Sequence[Field], *, dim: int, hidden: Sequence[int], seed: int) -> Trunk:
    """Return a trunk with nothing learnt; the same seed gives the same one.

    Raises:
        ValueError: If there is no such pre-ranker.
    """
    if name not in PRERANKERS:
        raise ValueError(f'[prerank] network must be one of {", ".join(PRERANKERS)}, got "{name}"')
    kind = PRERANKERS[name]
    of_ads = [is_of_ad(field) for field in fields]
    widths = Widths(of_ads.count(False), of_ads.count(True), dim, DENSE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.trunk(widths, hidden, HEADS[kind.head]).eval()


def trunk_of(snapshot: Snapshot) -> Trunk:
    """Return the trunk with a snapshot's weights, ready to score."""
    trunk = new_trunk(snapshot.network, snapshot.fields, dim=snapshot.dim, hidden=snapshot.hidden, seed=0)
    prefix = "network."
    weights = {name: tensor for name, tensor in snapshot.tensors.items() if name.startswith(prefix)}
    trunk.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
    return trunk
