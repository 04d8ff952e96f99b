"""What a network is asked to minimise.

Owns the losses, one function each, over logits. Must not know networks or optimisers.

Shape legend: `B` batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def click_loss(logits: Tensor, clicks: Tensor) -> Tensor:
    """Return the mean log loss of a batch in nats, a scalar.

    Args:
        logits: (B,).
        clicks: 0 or 1, (B,).
    """
    return functional.binary_cross_entropy_with_logits(logits, clicks.to(torch.float32))
