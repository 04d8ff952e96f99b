"""ECMM: blocks shared between the stages of the cascade, with gates that decide which block each stage's blocks read.

Owns the architecture and its gates. Must not know what its outputs mean.

A gate is a hard-concrete variable: while learning it is drawn, and its expected number of open gates is the penalty
(L0); once learnt it is what is most likely, and a closed one costs nothing. Outputs have a tower each.

Source: arXiv:2310.08039 (multi-tower, gated routing, "trans"); the gate is that of Louizos, Welling, Kingma
(arXiv:1712.01312) with its own gamma = -0.1, zeta = 1.1, beta = 2/3: with the released configuration (gamma = 1.1,
zeta = 2, no penalty) every gate is exactly 1 and nothing is routed. Ours: widths, the first blocks as a sum of two
halves, the penalty as a share of all gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.prerank.trunk import Trunk, Widths, perceptron, products_of

GAMMA, ZETA, BETA = -0.1, 1.1, 2.0 / 3.0
OPEN_AT_FIRST = 0.9  # probability with which a gate is not closed before anything is learnt; chosen by hand
N_BLOCKS = 8  # as in the paper's code
SPEED = 10.0  # a gate has further to go than a weight, and Adam takes equal steps; chosen by hand


class HardConcrete(nn.Module):
    """Gates in [0, 1], many of them exactly 0 or 1."""

    def __init__(self, shape: Sequence[int]) -> None:
        """Begin with nearly all of them open."""
        super().__init__()
        start = math.log(OPEN_AT_FIRST / (1.0 - OPEN_AT_FIRST)) + BETA * math.log(-GAMMA / ZETA)
        self._slow = nn.Parameter(torch.full(tuple(shape), start / SPEED))

    @property
    def log_alpha(self) -> Tensor:
        """Logit of each gate before it is stretched; moves `SPEED` times as fast as a weight."""
        return SPEED * self._slow

    def forward(self) -> Tensor:
        """Return the gates: drawn while learning, else the most likely."""
        if self.training:
            u = torch.rand_like(self.log_alpha).clamp(1e-6, 1.0 - 1e-6)
            s = torch.sigmoid((u.log() - (1.0 - u).log() + self.log_alpha) / BETA)
        else:
            s = torch.sigmoid(self.log_alpha)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)

    def open_probability(self) -> Tensor:
        """Return the probability with which each gate is not closed."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-GAMMA / ZETA))


class Routing(nn.Module):
    """Blocks v_j = ReLU(sum_i z_ij T_ij u_i), as many and as wide as those they read."""

    def __init__(self, width: int) -> None:
        """Lay out the transforms, and a gate for each."""
        super().__init__()
        self.gate = HardConcrete((N_BLOCKS, N_BLOCKS))
        bound = 1.0 / math.sqrt(N_BLOCKS * width)
        self.transform = nn.Parameter(torch.empty(N_BLOCKS, N_BLOCKS, width, width).uniform_(-bound, bound))

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the blocks behind, (K, blocks * width), of blocks laid out likewise."""
        gated = self.gate()[:, :, None, None] * self.transform  # (from, to, width, width)
        weight = gated.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (from * width, to * width)
        return torch.relu(blocks @ weight)


class Ecmm(Trunk):
    """Two routings over blocks, then a tower per output."""

    def __init__(self, widths: Widths, hidden: Sequence[int], n_outputs: int) -> None:
        """Lay out the layers; the blocks together are as wide as the first of `hidden`, the rest is each tower's."""
        super().__init__()
        width = max(1, hidden[0] // N_BLOCKS)
        total = width * N_BLOCKS
        self._block = width
        self._request = nn.Linear(widths.request_fields * widths.field, total)
        self._ad = nn.Linear(widths.ad_fields * widths.field, total, bias=False)
        self.routings = nn.ModuleList([Routing(width), Routing(width)])
        self._towers = nn.ModuleList([perceptron([total, *hidden[1:], 1]) for _ in range(n_outputs)])

    def request_half(self, fields: Tensor) -> Tensor:
        """See `Trunk`."""
        half: Tensor = self._request(fields.flatten(1))
        return half

    def ad_half(self, fields: Tensor) -> Tensor:
        """See `Trunk`."""
        half: Tensor = self._ad(fields.flatten(1))
        return half

    def join(self, request: Tensor, ad: Tensor) -> Tensor:
        """See `Trunk`."""
        blocks = torch.relu(request + ad)
        for routing in self.routings:
            blocks = routing(blocks)
        return torch.cat([tower(blocks) for tower in self._towers], dim=1)

    def open_share(self) -> Tensor:
        """See `Trunk`."""
        gates = self._gates()
        return torch.cat([gate.open_probability().flatten() for gate in gates]).mean()

    def join_products(self) -> int:
        """See `Trunk`: closed gates cost nothing."""
        return self.open_gates()[0] * self._block**2 + products_of(self._towers)

    def open_gates(self) -> tuple[int, int]:
        """Return how many gates are open, and how many there are."""
        gates = [gate.log_alpha for gate in self._gates()]
        is_open = torch.sigmoid(torch.cat([gate.flatten() for gate in gates])) * (ZETA - GAMMA) + GAMMA > 0.0
        return int(is_open.sum()), is_open.numel()

    def _gates(self) -> list[HardConcrete]:
        return [routing.gate for routing in self.routings if isinstance(routing, Routing)]
