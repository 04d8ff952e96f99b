"""What the warm-up chooses: crosses and histories for `default`, and, where asked for, the settings of each of ours.

Owns the order in which things are tried. Must not open a slide after the warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from features.crosses import choose_crosses
from features.fields import Field, History
from features.priors import Floats
from infra.settings import PriorSettings
from models.evaluate import log_losses
from models.plan import Plan
from models.strategies.build import GATE_SUFFIX
from models.strategies.ours import LEARNERS
from models.strategies.tuning import CROSSES, HISTORIES, Choices, neighbours, settings_of, with_choices
from stream.compare.steps import run_steps
from stream.compare.store import SlideStore

STEPS_MAX = 2  # a setting moves by so many factors at most: what lies further is another model
LATER_SLIDES_MIN = 3  # fewer say nothing about what stays; chosen by hand
CHOOSER = "default"  # the strategy that chooses its crosses and histories without being asked


def to_toml(choices: Choices) -> str:
    """Return choices as lines for a configuration file."""
    lines: list[str] = []
    for one in choices.get(HISTORIES, []):
        lines += ["[[log.histories]]", f'name = "{one["name"]}"', f'of = "{one["of"]}"']
        lines += [f"clicked = {str(one['clicked']).lower()}", ""]
        lines += ["[[fields]]", f'name = "{one["name"]}"', 'side = "user"', 'kind = "categories"']
        lines += [f"values_max = {one['values_max']}", ""]
    for one in choices.get(CROSSES, []):
        parts = ", ".join(f'"{part}"' for part in one["of"])
        lines += ["[[fields]]", f'name = "{one["name"]}"', 'side = "cross"', f"of = [{parts}]", ""]
    if "half_lives_s" in choices:
        lines += ["[priors]", f"half_lives_s = {list(choices['half_lives_s'])}", ""]
    rest = {name: value for name, value in choices.items() if name not in (CROSSES, HISTORIES, "half_lives_s")}
    rates = {name.rpartition(".")[2]: value for name, value in rest.items()}
    if rates:
        lines += ["[update]", *(f"{name} = {value:.6g}" for name, value in rates.items()), ""]
    return "\n".join(lines)


def choose(  # what is chosen, from what, and how it is told
    name: str,
    plan: Plan,
    store: SlideStore,
    *,
    tunes: bool,
    budget: PriorSettings,
    offered: Sequence[tuple[History, Field]],
    say: Callable[[str], None],
) -> Choices:
    """Return what the warm-up chooses for a strategy; nothing for an outside control.

    `default` chooses its crosses and its histories where the configuration names none.

    Args:
        name: The strategy.
        plan: Of the deployment.
        store: The log's slides.
        tunes: Whether rates, half-lives and weights are chosen too.
        budget: What crosses may cost: `crosses_max` and `cells_max`.
        offered: Histories that the slides hold though the plan's fields do not name them.
        say: Called with how far it is.
    """
    own = name.removesuffix(GATE_SUFFIX)
    choices: Choices = {}
    if own == CHOOSER and not any(field.side == "cross" for field in plan.fields):
        say("choosing crosses")
        choices |= _crosses(plan, store, budget)
    if own == CHOOSER and offered:
        say("choosing histories")
        choices |= _histories(name, plan, store, choices, offered)
    if tunes and own in LEARNERS:
        choices = _tune(name, own, plan, store, choices, say)
    return choices


def _crosses(plan: Plan, store: SlideStore, budget: PriorSettings) -> Choices:
    frames = [slide.frame for _, slide in store.read(warmup_only=True)]
    if not frames:
        return {}
    found = choose_crosses(
        pl.concat(frames),
        plan.fields,
        half_lives_s=plan.half_lives_s,
        levels=plan.levels,
        crosses_max=budget.crosses_max,
        cells_max=budget.cells_max,
    )
    return {CROSSES: [{"name": one.field.name, "of": list(one.field.of)} for one in found]} if found else {}


def _histories(
    name: str, plan: Plan, store: SlideStore, choices: Choices, offered: Sequence[tuple[History, Field]]
) -> Choices:
    """Return the histories that are offered, all of them, unless the end of the warm-up is certainly worse with them.

    They begin empty, so what they are worth only grows: the slides before the last one do not count, and the last one
    has to speak against them rather than for them.
    """
    found: Choices = {
        HISTORIES: [
            {"name": one.name, "of": one.of, "clicked": one.clicked, "values_max": field.values_max}
            for one, field in offered
        ]
    }
    without = _warmup_losses(name, with_choices(plan, choices), store)
    if not without:
        return {}
    together = _warmup_losses(name, with_choices(plan, choices | found), store)
    return {} if _certainly_less(without[-1:], together[-1:]) else found


def _tune(  # noqa: PLR0917  # see `choose`
    name: str, own: str, plan: Plan, store: SlideStore, choices: Choices, say: Callable[[str], None]
) -> Choices:
    """Return one setting after the other, each pushed on in its direction for as long as that certainly gains.

    What gains must do so beyond two standard errors and on each of the later slides: a start is seldom like the rest,
    and what fits its odd days best does harm for weeks.
    """
    best = _warmup_losses(name, with_choices(plan, choices), store)
    if len(best) < LATER_SLIDES_MIN:
        say(f"tuning needs {2 * LATER_SLIDES_MIN} slides in the warm-up, got fewer: nothing is tuned")
        return choices
    for setting in settings_of(LEARNERS[own](plan)):
        for direction in (0, 1):
            for _ in range(STEPS_MAX):
                at = LEARNERS[own](with_choices(plan, choices))
                tried = choices | list(neighbours(at, setting))[direction]
                losses = _warmup_losses(name, with_choices(plan, tried), store)
                say(f"tuning {setting}: log loss {_mean(losses):.5f}, best {_mean(best):.5f}")
                if not _certainly_less(losses, best):
                    break
                choices, best = tried, losses
            if setting in choices:
                break  # smaller was better: larger is not
    return choices


def _warmup_losses(name: str, plan: Plan, store: SlideStore) -> list[Floats]:
    """Return the log losses of the later half of the warm-up's slides; the first ones teach what a start is like."""
    steps = list(run_steps(name, plan, store, warmup_only=True))
    later = [step for step in steps[len(steps) // 2 :] if len(step.clicks)]
    return [log_losses(step.probabilities.astype(np.float64), step.clicks) for step in later]


def _mean(losses: list[Floats]) -> float:
    return float(np.concatenate(losses).mean())


def _certainly_less(new: list[Floats], old: list[Floats]) -> bool:
    """Tell whether losses are lower on each slide, and beyond two standard errors on all rows together."""
    gains = [before - after for before, after in zip(old, new, strict=True)]
    together = np.concatenate(gains)
    error = float(together.std()) / math.sqrt(len(together))
    return all(float(gain.mean()) > 0.0 for gain in gains) and float(together.mean()) > 2.0 * error
