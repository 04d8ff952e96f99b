"""From a name to a strategy.

Owns the list of names. Must not know what a strategy does.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

from models.strategies.ours import LEARNERS
from models.strategies.strategy import Control, ControlStrategy, OwnStrategy, Strategy
from models.update import Plan

MakeControl = Callable[[Plan], Control]

GATE_SUFFIX = "+gate"
_CONTROLS = "models.strategies.controls"
CONTROLS: dict[str, str] = {"prior-only": f"{_CONTROLS}.prior_only:PriorOnly"}


def build_strategy(name: str, plan: Plan) -> Strategy:
    """Return the strategy of that name for a deployment, with nothing learnt.

    Args:
        name: One of ours, perhaps with `+gate`; an outside control; or `package.module:function` of your own, a
            function from a plan to a `Control`.
        plan: Of the deployment, its seed included.

    Raises:
        ValueError: If there is no such strategy, or what it needs is not installed.
    """
    check_strategy(name)
    own = name.removesuffix(GATE_SUFFIX)
    if own in LEARNERS:
        return OwnStrategy(dataclasses.replace(LEARNERS[own](plan), is_gated=name != own))
    return ControlStrategy(plan, _make_control(CONTROLS.get(name, name))(plan))


def check_strategy(name: str) -> None:
    """Check that there is a strategy of that name.

    Raises:
        ValueError: If not, or if what it needs is not installed.
    """
    own = name.removesuffix(GATE_SUFFIX)
    if own in LEARNERS:
        return
    if own != name and own in CONTROLS:
        raise ValueError(f'strategy must be one of ours to have a gate, got "{name}"; leave {GATE_SUFFIX} out')
    if name in CONTROLS or ":" in name:
        _make_control(CONTROLS.get(name, name))
        return
    known = ", ".join([*LEARNERS, *CONTROLS])
    raise ValueError(f'strategy must be one of {known}, or package.module:function of your own, got "{name}"')


def _make_control(path: str) -> MakeControl:
    """Return the function that a path names; imported only now, as controls bring libraries of their own."""
    module, _, function = path.partition(":")
    try:
        make: MakeControl = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"strategy {path} must be importable, got: {error}; pip install 'freshrank[controls]'"
        ) from None
    return make


def describe_strategies() -> dict[str, str]:
    """Return each name with what it stands for, in one line."""
    own = {name: make.__doc__ or "" for name, make in LEARNERS.items()}
    controls = {
        name: f"outside control, {path.partition(':')[0].rpartition('.')[2]}" for name, path in CONTROLS.items()
    }
    return {name: text.partition("\n")[0] for name, text in (own | controls).items()}
