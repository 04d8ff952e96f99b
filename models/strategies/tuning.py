"""What may be chosen about a strategy of ours, and in which order: one setting after the other, by the warm-up alone.

Owns the values that are tried. Must not know slides or how good anything was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from features.fields import Field
from models.plan import Plan

FACTORS = (0.3, 3.0)  # a rate is tried this much smaller and larger, and again from the best while that gains
TIME_FACTORS = (0.25, 4.0)  # the same for half-lives

CROSSES, HISTORIES = "crosses", "histories"
Choices = dict[str, Any]
"""Fields of a plan, those of its objective as `objective.NAME`, with the values chosen; crosses by `name` and `of`,
histories by `name`, `of`, `clicked` and `values_max`."""


def with_choices(plan: Plan, choices: Choices) -> Plan:
    """Return the plan with these values."""
    prefix = "objective."
    inputs = (CROSSES, HISTORIES)
    own = {name: value for name, value in choices.items() if not name.startswith(prefix) and name not in inputs}
    own["fields"] = (
        *(field for field in plan.fields if field.side != "cross"),
        *(Field(one["name"], "user", "categories", values_max=one["values_max"]) for one in choices.get(HISTORIES, [])),
        *(field for field in plan.fields if field.side == "cross"),
        *(Field(one["name"], "cross", of=tuple(one["of"])) for one in choices.get(CROSSES, [])),
    )
    inner = {name.removeprefix(prefix): value for name, value in choices.items() if name.startswith(prefix)}
    return dataclasses.replace(plan, objective=dataclasses.replace(plan.objective, **inner), **own)


def settings_of(plan: Plan) -> list[str]:
    """Return what there is to choose about a plan, what matters most first."""
    names = ["learning_rate", "embedding_learning_rate"]
    if plan.prior != "none":
        names.append("half_lives_s")
    if plan.objective.model_prior != "none":
        names.append("objective.beta" if plan.objective.model_prior == "constant" else "objective.n0")
    if plan.objective.confidence != "none":
        names.append("objective.confidence_share")
    return names


def neighbours(plan: Plan, name: str) -> Iterator[Choices]:
    """Yield the values to try for one setting beside the one that the plan has."""
    if name == "half_lives_s":
        for factor in TIME_FACTORS:
            yield {name: tuple(factor * half_life_s for half_life_s in plan.half_lives_s)}
        return
    owner, _, inner = name.rpartition(".")
    value = getattr(plan.objective if owner else plan, inner)
    for factor in FACTORS:
        yield {name: factor * value}
