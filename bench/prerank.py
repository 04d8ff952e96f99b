"""How good are the pre-rankers, and what do they cost? `python -m bench.prerank --seeds 1 2 3 --json FILE`.

Each learns the log of a simulated cascade (stream/cascade.py) hour by hour, with one candidate in ten of those that
were not ranked; in the last hours it first scores *all* candidates of each request. Reported, as the mean over hours
and seeds with the standard deviation over seeds: recall of what was clicked and of what was exposed, AUC and GAUC on
what was exposed, agreement with the order by true eCPM, multiply-adds and microseconds per candidate once the halves of
ads are there, and how many of ECMM's gates are open. `random` is what no knowledge at all recalls.

The production system that made the log chooses by a noisy true eCPM: nothing can recall all that it exposed by chance.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch

from bench.report import machine, write_report
from features.fields import raw_fields
from infra.settings import read_settings
from models.evaluate import grouped_auc
from models.plan import Plan
from models.prerank.build import PRERANKERS, trunk_of
from models.prerank.ecmm import Ecmm
from models.prerank.inputs import is_of_ad
from models.prerank.recall import agreement, recall
from models.prerank.task import PrerankTask, chain_rows, vectors_of
from models.snapshot import Snapshot
from models.update import Learner
from models.window import Slide
from stream.cascade import Cascade, Funnel, log_hours, market_frames
from stream.plan import new_prerank_plan
from stream.simulate import HOUR_S, START_S

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cascade.toml"
SAMPLE_RATE = 0.1
KS = (1, 10, 50, 200)
K_AGREE = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--tested", type=int, default=6, help="hours at the end")
    parser.add_argument("--matched", type=int, default=1000)
    parser.add_argument("--preranked", type=int, default=100)
    parser.add_argument("--requests", type=float, default=120.0, help="an hour")
    parser.add_argument("--names", nargs="+", default=list(PRERANKERS))
    parser.add_argument("--gate-penalties", type=float, nargs="*", default=[0.0, 0.01, 0.1, 0.3])
    parser.add_argument("--runs", type=int, default=5, help="of each timing")
    parser.add_argument("--json", default="-")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [seed_of(seed, arguments) for seed in arguments.seeds]
    names = list(runs[0])
    report = {name: summary([run[name] for run in runs]) for name in names}
    write_report({"machine": machine(), "arguments": vars(arguments), "prerankers": report}, arguments.json)


def seed_of(seed: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the figures of each pre-ranker in one world."""
    tasks: dict[str, PrerankTask] = {}
    for name in arguments.names:
        plan = plan_of(name, seed)
        if name == "ecmm":
            penalties = arguments.gate_penalties
            tasks |= {f"ecmm {penalty:g}": PrerankTask(plan, gate_penalty=penalty) for penalty in penalties}
        else:
            tasks[name] = PrerankTask(plan, gate_penalty=0.0)
    learners = {name: Learner(task) for name, task in tasks.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("random", *learners)}
    rng = np.random.default_rng(seed)
    for index, (frame, bids) in enumerate(hours(seed, arguments)):
        if index >= arguments.hours - arguments.tested:
            whole = slide_of(index, frame)
            found["random"].append(figures(rng.random(frame.height), frame, bids))
            for name, learner in learners.items():
                scored = tasks[name].score(tasks[name].read(whole, learner.latest), learner.latest)
                found[name].append(figures(scored.scores, frame, bids))
        kept = (frame["prerank_neg"] == 0).to_numpy() | (rng.random(frame.height) < SAMPLE_RATE)
        rate = pl.when(pl.col("prerank_neg") == 0).then(1.0).otherwise(SAMPLE_RATE)
        part = slide_of(index, frame.with_columns(sample_rate=rate).filter(pl.Series(kept)))
        for learner in learners.values():
            learner.learn(part)
        print(f"seed {seed}, hour {index + 1} of {arguments.hours}", file=sys.stderr)
    means = {name: {key: float(np.mean([one[key] for one in rows])) for key in rows[0]} for name, rows in found.items()}
    for name, learner in learners.items():
        means[name] |= costs(learner.latest, arguments.runs)
    return means


def plan_of(name: str, seed: int) -> Plan:
    """Return the plan of a pre-ranker, every new model of which goes on."""
    settings = read_settings(CONFIG)
    settings = msgspec.structs.replace(settings, prerank=msgspec.structs.replace(settings.prerank, network=name))
    return dataclasses.replace(new_prerank_plan(settings), is_gated=False, seed=seed)


def hours(seed: int, arguments: argparse.Namespace) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """Yield all candidates of each hour as chains, and their bids."""
    funnel = Funnel(arguments.matched, arguments.preranked, 10, sample_rate=1.0)
    n_ads = 3 * arguments.matched
    cascade = Cascade(seed, hours=arguments.hours, funnel=funnel, n_ads=n_ads, requests_per_hour=arguments.requests)
    ads = pl.concat([market_frames(market)[0] for market in cascade.markets()]).unique("ad_id")
    label = pl.when(pl.col("click") == 1).then(pl.lit("clicked")).when(pl.col("realshow") == 1)
    fields = raw_fields(read_settings(CONFIG).fields)
    for frame in log_hours(cascade):
        joined = frame.join(ads, on="ad_id", how="left", maintain_order="left").with_columns(
            label=label.then(pl.lit("exposed")).otherwise(pl.lit("unexposed")),
            candidate=pl.int_range(pl.len(), dtype=pl.Int32).over("request_id"),
            settled_s=pl.col("time_s"),
            request_id=pl.col("request_id").cast(pl.String),
            source_partition=pl.lit(0),
        )
        columns = [pl.col(field.name).cast(pl.String).alias(field.column) for field in fields if field.name in joined]
        rows = chain_rows(joined.with_columns(columns).with_columns(source_offset=pl.int_range(pl.len())))
        yield rows, rows["bid_micros"].to_numpy()


def slide_of(index: int, frame: pl.DataFrame) -> Slide:
    start_s = START_S + HOUR_S * index
    return Slide(index, start_s, start_s + HOUR_S, frame)


def figures(scores: np.ndarray, frame: pl.DataFrame, bids: np.ndarray) -> dict[str, float]:
    """Return how good scores of all candidates are."""
    requests = frame["request_id"].cast(pl.Int64).to_numpy()
    clicked, exposed = (frame["label"] == "clicked").to_numpy(), (frame["realshow"] == 1).to_numpy()
    of_clicked, of_exposed = (recall(scores, targets, requests, KS).at for targets in (clicked, exposed))
    shown = scores[exposed].astype(np.float64)
    return {
        **{f"clicked@{k}": of_clicked[k] for k in KS},
        **{f"exposed@{k}": of_exposed[k] for k in KS},
        "auc": grouped_auc(shown, clicked[exposed].astype(np.float64), np.zeros(len(shown), np.int64)) or 0.0,
        "gauc": grouped_auc(shown, clicked[exposed].astype(np.float64), requests[exposed]) or 0.0,
        f"agreement@{K_AGREE}": agreement(scores, frame["true_ctr"].to_numpy() * bids, requests, K_AGREE),
    }


def costs(snapshot: Snapshot, runs: int) -> dict[str, float]:
    """Return what one candidate costs where thousands are asked for at once, the halves of ads being there."""
    trunk, n = trunk_of(snapshot), 2000
    torch.manual_seed(0)
    of_ad = [is_of_ad(field) for field in snapshot.fields]
    width = vectors_of(snapshot).shape[1]
    with torch.inference_mode():
        request = trunk.request_half(torch.randn(1, of_ad.count(False), width))
        ads = trunk.ad_half(torch.randn(n, of_ad.count(True), width))
        seconds = []
        for _ in range(runs + 1):
            started_s = time.perf_counter()
            for _ in range(10):
                trunk.join(request, ads)
            seconds.append((time.perf_counter() - started_s) / 10)
    found = {"products": float(trunk.join_products()), "us_per_candidate": 1e6 * statistics.median(seconds[1:]) / n}
    if isinstance(trunk, Ecmm):
        n_open, n_gates = trunk.open_gates()
        found |= {"gates_open": float(n_open), "gates": float(n_gates)}
    return found


def summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over seeds."""
    return {
        key: {
            "mean": round(statistics.mean(run[key] for run in runs), 5),
            "sd": round(statistics.stdev(run[key] for run in runs), 5) if len(runs) > 1 else 0.0,
        }
        for key in runs[0]
    }


if __name__ == "__main__":
    main()
