"""What a network is asked to minimise: clicks, what the model before it said, and where it must do better than that.

Owns the losses, over logits, and how much each weighs. Must not know networks or optimisers.

In the formulas f is the logit of the model that learns, g the logit of the one that it goes on from (a constant), y the
click, q = sigmoid(g), and phi(u) = log(1 + exp(-u)).

Shape legend: `B` batch, `N` rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

PAIRS_SIDE_MAX = 256  # clicks and non-clicks of a batch that are paired: 65,536 pairs cost less than the network
SHARE_MAX = 50.0  # lambda's bound: once the surrogate's gradient vanishes, its weight must not grow without end


@dataclass(frozen=True)
class Objective:
    """What is minimised beside the log loss of clicks.

    Attributes:
        model_prior: How much the earlier model's prediction weighs: not at all, the same for each row (`constant`), or
            as much as the evidence behind the row (`evidence`).
        beta: `constant`: the weight of q beside the click's 1.
        n0: `evidence`: the impressions at which q weighs one half, beta(x) = n(x) / (n(x) + n0).
        confidence: Which surrogate of "better than the earlier model" is added: none, accuracy or AUC.
        confidence_share: Its gradient's size relative to the log loss's, on the logits of each batch.
        confidence_margin: A row (accuracy) or pair (AUC) is no longer pushed once f is ahead of g by this much; inf
            takes the guard off.
    """

    model_prior: Literal["none", "constant", "evidence"] = "none"
    beta: float = 0.15 / (1.0 - 0.15)
    n0: float = 1000.0
    confidence: Literal["none", "accuracy", "auc"] = "none"
    confidence_share: float = 0.03
    confidence_margin: float = 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether the earlier model has to score what is learnt."""
        return self.model_prior != "none" or self.confidence != "none"

    def trust(self, evidence: Tensor) -> Tensor:
        """Return beta of each row, (N,), from the impressions behind it, (N,).

        Source: our reconstruction of arXiv:2312.15903 (the Bayes step; beta from the evidence is ours).
        """
        if self.model_prior == "evidence":
            return evidence / (evidence + self.n0)
        return torch.full_like(evidence, self.beta if self.model_prior == "constant" else 0.0)


@dataclass(frozen=True)
class Targets:
    """What the rows of a batch are learnt from.

    Attributes:
        clicks: 0 or 1, (B,).
        teacher: Logits g of the earlier model, (B,); None where the objective needs none.
        trust: beta of each row, (B,); None likewise.
        corrects: Which rows were learnt as not clicked before and were clicked after all, (B,); None: none of them.
    """

    clicks: Tensor
    teacher: Tensor | None = None
    trust: Tensor | None = None
    corrects: Tensor | None = None

    def take(self, which: Tensor) -> Targets:
        """Return some of the rows."""
        return Targets(
            self.clicks[which],
            None if self.teacher is None else self.teacher[which],
            None if self.trust is None else self.trust[which],
            None if self.corrects is None else self.corrects[which],
        )

    def followed_by_late(self, n_rows: int) -> Targets:
        """Return these targets with so many rows after them that correct earlier ones."""
        if not n_rows:
            return self

        no = torch.zeros(n_rows, device=self.clicks.device)
        return Targets(
            torch.cat([self.clicks, (no + 1.0).to(self.clicks.dtype)]),
            None if self.teacher is None else torch.cat([self.teacher, no]),
            None if self.trust is None else torch.cat([self.trust, no]),
            torch.arange(len(self.clicks) + n_rows, device=no.device) >= len(self.clicks),
        )


def objective_loss(objective: Objective, logits: Tensor, targets: Targets) -> Tensor:
    """Return the loss of a batch with logits f, (B,): a scalar.

    A row that corrects another takes back the loss of a non-click that was learnt and puts that of a click in its
    place: BCE(1, f) - BCE(0, f) = -f. So what is learnt of a row in the end is what its final label teaches, whenever
    that became known; the importance weights are +1 for the click and -1 for the earlier non-click (ours).
    """
    if targets.corrects is None:
        return _loss(objective, logits, targets)
    kept = ~targets.corrects
    loss = -(logits * targets.corrects).mean()
    if bool(kept.any()):
        loss = loss + _loss(objective, logits[kept], targets.take(kept)) * kept.to(torch.float32).mean()
    return loss


def _loss(objective: Objective, logits: Tensor, targets: Targets) -> Tensor:
    loss = click_loss(logits, targets.clicks)
    if targets.teacher is None or targets.trust is None:
        return loss
    if objective.model_prior != "none":
        loss = model_prior_loss(logits, targets.clicks, targets.teacher, targets.trust)
    if objective.confidence != "none":
        surrogate = accuracy_surrogate if objective.confidence == "accuracy" else auc_surrogate
        push = surrogate(logits, targets.clicks, targets.teacher, objective.confidence_margin)
        loss = loss + _weight_of_share(logits, targets.clicks, push, objective.confidence_share) * push
    return loss


def click_loss(logits: Tensor, clicks: Tensor) -> Tensor:
    """Return the mean log loss of a batch in nats, a scalar.

    Args:
        logits: (B,).
        clicks: 0 or 1, or a probability, (B,).
    """
    return functional.binary_cross_entropy_with_logits(logits, clicks.to(torch.float32))


def model_prior_loss(logits: Tensor, clicks: Tensor, teacher: Tensor, trust: Tensor) -> Tensor:
    """Return the mean of BCE(y, f) + beta BCE(q, f), a scalar.

    With a constant beta it is the distillation of IncCTR (arXiv:2009.02147) up to the factor 1 + beta, with
    lambda = beta / (1 + beta).

    Args:
        logits: f, (B,).
        clicks: y, (B,).
        teacher: g, (B,).
        trust: beta, (B,).

    Source: our reconstruction of arXiv:2312.15903, whose exact loss is not open to us.
    """
    soft = (clicks.to(torch.float32) + trust * torch.sigmoid(teacher)) / (1.0 + trust)
    losses = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    return ((1.0 + trust) * losses).mean()


def accuracy_surrogate(logits: Tensor, clicks: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Return the mean of phi(ahead), ahead = (2y - 1)(f - g) cut off at the margin: a scalar.

    Source: our reconstruction of arXiv:2307.01206; the margin is ours.
    """
    ahead = (2.0 * clicks.to(torch.float32) - 1.0) * (logits - teacher)
    return functional.softplus(-ahead.clamp(max=margin)).mean()


def auc_surrogate(logits: Tensor, clicks: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Return the mean over pairs of a click i and a non-click j of phi((f_i - f_j) - (g_i - g_j)), cut off likewise.

    0 where a batch has one class only. The first `PAIRS_SIDE_MAX` of either class are paired.

    Source: our reconstruction of arXiv:2307.01206; the margin is ours.
    """
    ahead = logits - teacher
    clicked, other = ahead[clicks > 0.5][:PAIRS_SIDE_MAX], ahead[clicks <= 0.5][:PAIRS_SIDE_MAX]
    if not len(clicked) or not len(other):
        return ahead.sum() * 0.0
    return functional.softplus(-(clicked[:, None] - other[None, :]).clamp(max=margin)).mean()


def _weight_of_share(logits: Tensor, clicks: Tensor, push: Tensor, share: float) -> float:
    """Return the weight at which the surrogate's gradient on the logits is `share` of the log loss's."""
    (pushed,) = torch.autograd.grad(push, logits, retain_graph=True)
    pulled = (torch.sigmoid(logits.detach()) - clicks.to(torch.float32)) / len(logits)
    return min(share * float(pulled.norm()) / max(float(pushed.norm()), 1e-12), SHARE_MAX)
