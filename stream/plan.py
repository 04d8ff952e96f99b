"""From settings to the plan of what is learnt: the same for the backtest and the trainer.

Owns the passing of settings as keyword arguments. Must not read files, topics or clocks.
"""

from __future__ import annotations

import dataclasses

from features.fields import Field
from infra.settings import CreativeSettings, PrerankSettings, Settings, SettingsError
from models.losses import Objective
from models.networks.build import NETWORKS
from models.plan import Plan
from models.prerank.build import PRERANKERS
from models.prerank.inputs import creative_fields, prerank_fields
from models.strategies.ours import LEARNERS


def check_plan(settings: Settings) -> None:
    """Check what can only be known here: names of strategies and networks.

    Raises:
        SettingsError: If one is unknown.
    """
    for key, name, known in (
        ("[update] strategy", settings.update.strategy, LEARNERS),
        ("[model] network", settings.model.network, NETWORKS),
    ):
        if name not in known:
            raise SettingsError(f'{key} must be one of {", ".join(known)}, got "{name}"')


INSTANT_S = 1e-6  # such a network sees counts as of its slide's start: none are kept beside them


def new_prerank_plan(settings: Settings) -> Plan:
    """Return everything that decides what the pre-ranker learns; slides, counts and the gate are the click model's.

    Raises:
        SettingsError: If `[prerank] network` is unknown.
    """
    own = settings.prerank
    if own.network not in PRERANKERS:
        raise SettingsError(f'[prerank] network must be one of {", ".join(PRERANKERS)}, got "{own.network}"')
    plan = _of_half_networks(new_plan(settings), own, prerank_fields(settings.fields))
    scale = own.margin / plan.margin if plan.margin else 1.0
    return dataclasses.replace(
        plan,
        margin=own.margin,
        slice_margin=plan.slice_margin * scale,
        harm_max=plan.harm_max * scale,
        evidence_clip=plan.evidence_clip * scale,
    )


def new_creative_plan(settings: Settings) -> Plan:
    """Return everything that decides what the creative ranker learns; slides, counts and gate are the click model's.

    Raises:
        SettingsError: As in `check_plan`.
    """
    return _of_half_networks(new_plan(settings), settings.creatives, creative_fields(settings.fields))


def _of_half_networks(plan: Plan, own: PrerankSettings | CreativeSettings, fields: tuple[Field, ...]) -> Plan:
    """Return the click model's plan for a network of models/prerank/ with settings and fields of its own."""
    return dataclasses.replace(
        plan,
        fields=fields,
        family=own.family,
        network=own.network,
        dim=own.dim,
        hidden=own.hidden,
        levels=(),
        prior="frozen",
        ways=(),
        learning_rate=own.learning_rate,
        embedding_learning_rate=own.embedding_learning_rate,
        batch_rows=own.batch_rows,
        rows_max=own.rows_max,
        lookback_s=INSTANT_S,
        learns="always",
        is_gated=True,
    )


def new_plan(settings: Settings) -> Plan:
    """Return everything that decides what is learnt.

    Raises:
        SettingsError: As in `check_plan`.
    """
    check_plan(settings)
    model, update, gate, rules = settings.model, settings.update, settings.gate, settings.ledger
    plan = Plan(
        fields=settings.fields,
        family=model.family,
        network=model.network,
        dim=model.dim,
        hidden=model.hidden,
        admit_min=model.admit_min,
        forget_min=model.forget_min,
        values_max=model.values_max,
        half_lives_s=settings.priors.half_lives_s,
        levels=settings.priors.levels,
        evidence_min=settings.priors.evidence_min,
        counts_max=settings.priors.counts_max,
        prior="live",
        ways=("dense", "wide"),
        objective=Objective(
            beta=update.beta,
            n0=update.n0,
            confidence_share=update.confidence_share,
            confidence_margin=update.confidence_margin,
        ),
        learns="always",
        is_gated=True,
        learning_rate=update.learning_rate,
        embedding_learning_rate=update.embedding_learning_rate,
        batch_rows=update.batch_rows,
        rows_max=update.rows_max,
        precision=update.precision,
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
        rule=gate.rule,
        shift_max=gate.shift_max,
        slice_margin=gate.slice_margin,
        harm_max=gate.harm_max,
        rollback_wait=gate.rollback_wait,
    )
    return LEARNERS[update.strategy](plan)
