"""Does the gate keep its promise, and how long does it take? `python -m bench.gate --streams 1000 --json FILE`.

Two models score the same simulated traffic, slide by slide (an hour each), and are equally good by construction: users
come in twins with the same click rate and activity, and what one model misses of a user the other misses of the twin.
Users return, the rows of a user are correlated, click rates follow the hour of the day, and in each hour both models
miss something in common and each something of its own (`hour_own`, logits), which all users of that hour share. A model
that is better or worse is the same stream with the effect added to the losses of every row.

Reported per world: how many streams promote wrongly (equally good under superiority; worse by exactly the margin under
non-inferiority) or reject wrongly, each with its 95 % interval (Wilson), and how long it takes to decide about models
that are truly better or worse. Guardrails are left out: they only ever hold back. Then the policy as a whole: how often
it promotes and rolls back models that are equally good, and how soon it rolls back one that does harm once it serves.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.report import machine, write_report
from models.evaluate import Evaluation, log_losses
from models.evidence import Evidence, gather, is_above, is_below
from models.gate import PROBABILITY_MIN, Comparison, GateRules, Rule, compare, judge
from models.shadow import Shadow, follow, look, settle

ALPHA, MARGIN, CLIP = 0.05, 0.01, 0.25  # the defaults of [gate]
RULES = GateRules(
    rule="non_inferiority",
    alpha=ALPHA,
    margin=MARGIN,
    buckets=128,
    evidence_clip=CLIP,
    clicks_min=0,
    calibration=(0.5, 2.0),
    shift_max=1.5,
    slice_margin=0.05,
    harm_max=0.1,
    rollback_wait=12,
)
GOOD = Evaluation(rows=1000, clicks=100, calibration=1.0)
HARMS = (0.01, 0.03, 0.1, 0.2)  # nats by which what serves is worse than the former champion
EFFECTS = (0.002, 0.005, 0.02)  # nats better or worse; the margin lies between the second and the third
HOURS = 24
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Where the streams come from; standard deviations are of logits.

    Attributes:
        slides: Hours of traffic.
        rows: Impressions an hour on average; by day four times as many as by night.
        twins: Pairs of users.
        buckets: The gate's.
        user_own: What each model misses of a user, for ever.
        row_own: What each model misses of a row.
        hour_own: What each model misses of one hour.
        hour_memory: Correlation of that with the hour before.
        day_own: What each model misses of an hour of the day, every day; over a day both miss as much.
    """

    slides: int = 96
    rows: int = 1000
    twins: int = 1000
    buckets: int = 128
    user_own: float = 0.2
    row_own: float = 0.1
    hour_own: float = 0.1
    hour_memory: float = 0.0
    day_own: float = 0.0


WORLDS = {
    "no hour effects": World(hour_own=0.0),
    "weak": World(hour_own=0.1),
    "strong": World(hour_own=0.2),
    "very strong": World(hour_own=0.4),
    "strong, remembered (0.8)": World(hour_own=0.2, hour_memory=0.8),
    "strong, the same every day": World(hour_own=0.0, day_own=0.2),
}
POLICY_WORLD = "strong"  # one alone: the whole policy takes three times as long as all cases of a world


@dataclass(frozen=True)
class Hour:
    """One slide of a stream: what each bucket of users says, (K,), and how many impressions it had."""

    pieces: Floats
    rows: int


def stream(world: World, seed: int) -> list[Hour]:
    """Return one stream in which both models are equally good."""
    rng = np.random.default_rng(seed)
    activity = np.repeat(rng.gamma(0.7, 1.0, world.twins), 2)
    rate = np.repeat(rng.normal(-2.2, 0.8, world.twins), 2)
    missed = np.repeat(rng.normal(0.0, 0.3, world.twins), 2)
    own = rng.normal(0.0, world.user_own, (world.twins, 2))
    errors = missed + np.stack([own.ravel(), own[:, ::-1].ravel()])  # (2, users)
    bucket = rng.integers(0, world.buckets, 2 * world.twins)
    up_to = np.cumsum(activity) / activity.sum()
    day = rng.normal(0.0, world.day_own, HOURS)
    days = np.stack([day, np.roll(day[::-1], HOURS // 2 + 1)])  # hours h and 12 - h have the same traffic
    hour_own = rng.normal(0.0, world.hour_own, 2)
    hours = []
    for t in range(world.slides):
        daylight = math.sin(2.0 * math.pi * t / HOURS)
        n_rows = int(rng.poisson(world.rows * (1.0 + 0.6 * daylight)))
        user = np.minimum(np.searchsorted(up_to, rng.random(n_rows)), len(up_to) - 1)
        truth = rate[user] + 0.4 * daylight
        clicks = (rng.random(n_rows) < _sigmoid(truth)).astype(np.float64)
        fresh = rng.normal(0.0, world.hour_own, 2)
        hour_own = world.hour_memory * hour_own + math.sqrt(1.0 - world.hour_memory**2) * fresh
        shared = rng.normal(0.0, 0.1) + hour_own + days[:, t % HOURS]  # (2,)
        noise = rng.normal(0.0, world.row_own, (2, n_rows))
        p = _sigmoid(truth + errors[:, user] + shared[:, None] + noise)
        slices = np.zeros(n_rows, np.int64)
        losses = [log_losses(one, clicks, PROBABILITY_MIN) for one in p]
        means = (float(p[0].mean()), float(p[1].mean()))
        said = compare(losses[0] - losses[1], bucket[user], slices, CLIP, means=means)
        hours.append(Hour(said.pieces, n_rows))
    return hours


def decide(hours: Iterable[Hour], effect: float, threshold: float) -> tuple[str, int, int]:
    """Return what is decided first about a model that is worse by an effect, after how many slides and impressions."""
    evidence, n_rows, n_slides = Evidence(), 0, 0
    for hour in hours:
        n_rows, n_slides = n_rows + hour.rows, n_slides + 1
        evidence = gather(evidence, np.clip(hour.pieces + effect, -CLIP, CLIP), MARGIN)
        if is_above(evidence, MARGIN, ALPHA):
            return "reject", n_slides, n_rows
        if is_below(evidence, threshold, ALPHA):
            return "promote", n_slides, n_rows
    return "hold", n_slides, n_rows


@dataclass(frozen=True)
class Course:
    """What the policy did in one stream.

    Attributes:
        promotions: How many.
        rollbacks: How many.
        harmful: Slides that a harmful model served until it was rolled back; None without one.
    """

    promotions: int
    rollbacks: int
    harmful: int | None


def serve(newest: Sequence[Hour], serving: Sequence[Hour], rule: Rule, harm: float | None) -> Course:
    """Return what the policy does.

    Args:
        newest: The newest model against what serves: equally good.
        serving: What serves against the former champion: equally good, but for the harm.
        rule: The gate's.
        harm: Nats by which the first model that is promoted is worse; None: no harm, and the stream is run to its end.
    """
    rules = dataclasses.replace(RULES, rule=rule)
    shadow, evidence, promotions, rollbacks, since = Shadow(), Evidence(), 0, 0, 0
    for slide, (new, served) in enumerate(zip(newest, serving, strict=True)):
        shadow = look(shadow, np.clip(served.pieces + (harm or 0.0), -CLIP, CLIP), rules)
        verdict = settle(
            judge(evidence, Comparison(new.pieces, {}, shift=1.0, expected=0.0), GOOD, rules), shadow, rules
        )
        shadow, evidence = follow(shadow, verdict, rules, champion="former", learnt=()), verdict.evidence
        if verdict.decision == "promote":
            promotions, since = promotions + 1, since or slide
        if verdict.decision == "rollback":
            rollbacks += 1
            if harm is not None:
                return Course(promotions, rollbacks, slide - since)
        elif harm is not None and promotions and not shadow.former:
            break  # proven although it does harm
    return Course(promotions, rollbacks, None)


def share(n_found: int, n_streams: int) -> dict[str, Any]:
    """Return a share with its 95 % Wilson interval."""
    z = 1.96
    p, scale = n_found / n_streams, 1.0 + z**2 / n_streams
    middle = (p + z**2 / (2 * n_streams)) / scale
    reach = z / scale * math.sqrt(p * (1.0 - p) / n_streams + z**2 / (4.0 * n_streams**2))
    return {"streams": n_found, "share": p, "interval": [max(middle - reach, 0.0), min(middle + reach, 1.0)]}


def summarise(found: Sequence[tuple[str, int, int]], wanted: str) -> dict[str, Any]:
    """Return how often each decision fell, and the delay of the wanted one (a stream without it counts as longer)."""
    names = [name for name, _, _ in found]
    slides, rows = ([row[i] if row[0] == wanted else math.inf for row in found] for i in (1, 2))
    return {name: share(names.count(name), len(found)) for name in ("promote", "reject", "hold")} | {
        "slides_p50": _finite(float(np.median(slides))),
        "slides_p90": _finite(float(np.quantile(slides, 0.9, method="higher"))),
        "impressions_p50": _finite(float(np.median(rows))),
    }


def measure(world: World, n_streams: int) -> dict[str, Any]:
    """Return everything about one world."""
    cases = {"equal, superiority": (0.0, 0.0, "promote"), "worse by the margin, non_inferiority": (MARGIN, MARGIN, "")}
    cases |= {f"better by {effect}, superiority": (-effect, 0.0, "promote") for effect in EFFECTS}
    cases |= {f"better by {effect}, non_inferiority": (-effect, MARGIN, "promote") for effect in (0.0, *EFFECTS)}
    cases |= {f"worse by {MARGIN + effect}, non_inferiority": (MARGIN + effect, MARGIN, "reject") for effect in EFFECTS}
    found: dict[str, list[tuple[str, int, int]]] = {name: [] for name in cases}
    for seed in range(n_streams):
        hours = stream(world, seed)
        for name, (effect, threshold, _) in cases.items():
            found[name].append(decide(hours, effect, threshold))
    return {name: summarise(found[name], wanted or "promote") for name, (_, _, wanted) in cases.items()}


def measure_policy(world: World, n_streams: int) -> dict[str, Any]:
    """Return how often the whole policy promotes and rolls back."""
    cases: dict[str, tuple[Rule, float | None]] = {
        "equal, non_inferiority": ("non_inferiority", None),
        "equal, superiority": ("superiority", None),
    }
    cases |= {f"worse by {harm} once it serves": ("non_inferiority", harm) for harm in HARMS}
    found: dict[str, list[Course]] = {name: [] for name in cases}
    for seed in range(n_streams):
        newest, serving = stream(world, seed), stream(world, n_streams + seed)
        for name, (rule, harm) in cases.items():
            found[name].append(serve(newest, serving, rule, harm))
    return {name: _summarise_courses(courses) for name, courses in found.items()}


def _summarise_courses(courses: Sequence[Course]) -> dict[str, Any]:
    harmful = [math.inf if course.harmful is None else course.harmful for course in courses]
    return {
        "promotions": sum(course.promotions for course in courses),
        "rollbacks": sum(course.rollbacks for course in courses),
        "rolled_back": share(sum(course.rollbacks > 0 for course in courses), len(courses)),
        "more_than_once": share(sum(course.rollbacks > 1 for course in courses), len(courses)),
        "slides_p50": _finite(float(np.median(harmful))),
        "slides_p90": _finite(float(np.quantile(harmful, 0.9, method="higher"))),
    }


def _sigmoid(logit: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--worlds", nargs="*", choices=tuple(WORLDS), default=tuple(WORLDS))
    parser.add_argument("--runs", type=int, default=1, help="not used: each stream has a seed of its own")
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    worlds = {}
    for name in arguments.worlds:
        worlds[name] = {"world": asdict(WORLDS[name]), "cases": measure(WORLDS[name], arguments.streams)}
        for case, result in worlds[name]["cases"].items():
            shares = {key: value["share"] if isinstance(value, dict) else value for key, value in result.items()}
            print(f"{name}: {case}: {shares}", file=sys.stderr)
        if name == POLICY_WORLD:
            worlds[name]["policy"] = measure_policy(WORLDS[name], arguments.streams)
            print(f"{name}: {worlds[name]['policy']}", file=sys.stderr)
    report = {
        "name": "gate",
        "machine": machine(),
        "streams": arguments.streams,
        "rules": asdict(RULES),
        "worlds": worlds,
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
