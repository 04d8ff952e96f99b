"""From settings to the plan of what is learnt: the same for the backtest and the trainer.

Owns the passing of settings as keyword arguments. Must not read files, topics or clocks.
"""

from __future__ import annotations

from infra.settings import Settings
from models.losses import Objective
from models.strategies.ours import LEARNERS
from models.update import Plan


def new_plan(settings: Settings) -> Plan:
    """Return everything that decides what is learnt.

    Raises:
        ValueError: If there is no strategy of the name in `[update]`.
    """
    name = settings.update.strategy
    if name not in LEARNERS:
        raise ValueError(f'[update] strategy must be one of {", ".join(LEARNERS)}, got "{name}"')
    model, update, gate, rules = settings.model, settings.update, settings.gate, settings.ledger
    plan = Plan(
        fields=settings.fields,
        family=model.family,
        network=model.network,
        dim=model.dim,
        hidden=model.hidden,
        admit_min=model.admit_min,
        forget_min=model.forget_min,
        half_lives_s=settings.priors.half_lives_s,
        levels=settings.priors.levels,
        evidence_min=settings.priors.evidence_min,
        prior="live",
        ways=("dense", "wide"),
        objective=Objective(),
        learns="always",
        is_gated=True,
        learning_rate=update.learning_rate,
        embedding_learning_rate=update.embedding_learning_rate,
        batch_rows=update.batch_rows,
        seed=update.seed,
        device=update.device,
        warmup_s=settings.window.warmup_s,
        window_s=settings.window.window_s,
        lookback_s=rules.wait_s + rules.grace_s + rules.disorder_s,
        alpha=gate.alpha,
        margin=gate.margin,
        buckets=gate.buckets,
        evidence_clip=gate.evidence_clip,
        clicks_min=gate.clicks_min,
        calibration=gate.calibration,
    )
    return LEARNERS[name](plan)
