"""From a name to a strategy.

Owns the list of names. Must not know what a strategy does.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

from models.plan import Plan
from models.strategies.ours import LEARNERS
from models.strategies.restart import RESTARTS
from models.strategies.strategy import Control, ControlStrategy, OwnStrategy, Strategy

MakeControl = Callable[[Plan], Control]

GATE_SUFFIX = "+gate"
_CONTROLS = "models.strategies.controls"
CONTROLS: dict[str, str] = {
    "prior-only": f"{_CONTROLS}.prior_only:PriorOnly",
    "lightgbm": f"{_CONTROLS}.lightgbm:LightGbm",
    "vw": f"{_CONTROLS}.vw:vw",
    "river": f"{_CONTROLS}.river:river",
}


def build_strategy(name: str, plan: Plan) -> Strategy:
    """Return the strategy of that name for a deployment, with nothing learnt.

    Args:
        name: A learner, perhaps with `+gate`; one that starts anew with each slide; an outside control; or
            `package.module:function` of your own, a function from a plan to a `Control`.
        plan: Of the deployment, its seed included.

    Raises:
        ValueError: If there is no such strategy, or what it needs is not installed.
    """
    check_strategy(name)
    own = name.removesuffix(GATE_SUFFIX)
    if own in LEARNERS:
        return OwnStrategy(dataclasses.replace(LEARNERS[own](plan), is_gated=name != own))
    if name in RESTARTS:
        return RESTARTS[name](plan)
    return ControlStrategy(plan, _find_control(name)(plan))


def check_strategy(name: str) -> None:
    """Check that there is a strategy of that name.

    Raises:
        ValueError: If not, or if what it needs is not installed.
    """
    own = name.removesuffix(GATE_SUFFIX)
    if own in LEARNERS or name in RESTARTS:
        return
    if own != name and (own in RESTARTS or own in CONTROLS):
        raise ValueError(f'strategy must be a learner to have a gate, got "{name}"; leave {GATE_SUFFIX} out')
    _find_control(name)


def _find_control(name: str) -> MakeControl:
    if name in CONTROLS:
        return _make_control(name, CONTROLS[name], "pip install 'freshrank[controls]'")
    if ":" in name:
        return _make_control(name, name, "put its directory on PYTHONPATH")
    known = ", ".join([*LEARNERS, *RESTARTS, *CONTROLS])
    raise ValueError(f'strategy must be one of {known}, or package.module:function of your own, got "{name}"')


def _make_control(name: str, path: str, remedy: str) -> MakeControl:
    """Return the function that a path names; imported only now, as controls bring libraries of their own.

    Raises:
        ValueError: If there is no such module or function, or the module cannot be imported; says the remedy.
    """
    module, _, function = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise ValueError(f'strategy of your own must be package.module:function, got "{name}"')
    try:
        found = importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs is missing
        raise ValueError(f'strategy "{name}" must be importable, got: {error}; {remedy}') from error
    make: MakeControl | None = getattr(found, function, None)
    if not callable(make):
        raise ValueError(f'strategy "{name}" must name a function from a plan to a control, got {make!r}')
    return make


def describe_strategies() -> dict[str, str]:
    """Return each name with what it stands for, in one line."""
    own = {name: (make.__doc__ or "").partition("\n")[0] for name, make in (LEARNERS | RESTARTS).items()}
    return own | {name: f"outside control, see {path.partition(':')[0]}" for name, path in CONTROLS.items()}
