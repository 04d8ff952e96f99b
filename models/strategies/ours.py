"""How the network is kept up to date: one small function a strategy, from a deployment's plan to its own.

Owns the names and what each stands for. Must not know how a plan is carried out (models/update.py).

Those without a feature prior see values and the overall rate alone, as the methods that they stand for do. All but
`static` learn each row once, when it has settled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from models.plan import Plan


def static(plan: Plan) -> Plan:
    """Learn the warm-up and then stand still."""
    return dataclasses.replace(finetune(plan), learns="warmup")


def finetune(plan: Plan) -> Plan:
    """Go on from the last model with each slide: incremental update."""
    plain = dataclasses.replace(plan.objective, model_prior="none", confidence="none")
    return dataclasses.replace(plan, prior="none", ways=("dense", "wide"), objective=plain, learns="always")


def kd(plan: Plan) -> Plan:
    """Go on and stay near the last model, by distillation with one weight. Source: IncCTR, arXiv:2009.02147."""
    return _with(finetune(plan), model_prior="constant")


def ddp_fp(plan: Plan) -> Plan:
    """The feature prior alone, live: as of each request, as inputs and as terms of the logit."""
    return dataclasses.replace(finetune(plan), prior="live")


def ddp_fp_frozen(plan: Plan) -> Plan:
    """The feature prior alone, as of the slide's start: what arXiv:2312.15903 suggests (our reading)."""
    return dataclasses.replace(finetune(plan), prior="frozen")


def ddp_fp_dense(plan: Plan) -> Plan:
    """The live feature prior as inputs of the network alone."""
    return dataclasses.replace(ddp_fp(plan), ways=("dense",))


def ddp_fp_wide(plan: Plan) -> Plan:
    """The live feature prior as terms of the logit alone."""
    return dataclasses.replace(ddp_fp(plan), ways=("wide",))


def ddp_fp_initial(plan: Plan) -> Plan:
    """The live feature prior as the first embedding of new values alone."""
    return dataclasses.replace(ddp_fp(plan), ways=("initial",))


def ddp_mp(plan: Plan) -> Plan:
    """The model prior alone: the last model weighs as much as the evidence behind the row."""
    return _with(finetune(plan), model_prior="evidence")


def ddp(plan: Plan) -> Plan:
    """Feature prior and model prior. Source: our reconstruction of arXiv:2312.15903."""
    return _with(ddp_fp(plan), model_prior="evidence")


def ddp_constant(plan: Plan) -> Plan:
    """Feature prior and IncCTR's constant weight: the control of `ddp`."""
    return _with(ddp_fp(plan), model_prior="constant")


def cr(plan: Plan) -> Plan:
    """Confidence ranking with the surrogate of accuracy. Source: our reconstruction of arXiv:2307.01206."""
    return _with(finetune(plan), confidence="accuracy")


def cr_auc(plan: Plan) -> Plan:
    """Confidence ranking with the surrogate of AUC. Source: our reconstruction of arXiv:2307.01206."""
    return _with(finetune(plan), confidence="auc")


def ddp_cr(plan: Plan) -> Plan:
    """Both priors and confidence ranking."""
    return _with(ddp(plan), confidence="accuracy")


def default(plan: Plan) -> Plan:
    """What is recommended; docs/results.md says why."""
    return ddp_fp(plan)


LEARNERS: dict[str, Callable[[Plan], Plan]] = {
    "default": default,
    "static": static,
    "finetune": finetune,
    "kd": kd,
    "ddp-fp": ddp_fp,
    "ddp-fp-frozen": ddp_fp_frozen,
    "ddp-fp-dense": ddp_fp_dense,
    "ddp-fp-wide": ddp_fp_wide,
    "ddp-fp-initial": ddp_fp_initial,
    "ddp-mp": ddp_mp,
    "ddp": ddp,
    "ddp-constant": ddp_constant,
    "cr": cr,
    "cr-auc": cr_auc,
    "ddp+cr": ddp_cr,
}


def _with(plan: Plan, **changes: Any) -> Plan:
    return dataclasses.replace(plan, objective=dataclasses.replace(plan.objective, **changes))
