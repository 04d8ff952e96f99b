"""Rows of one's own against hashing: `python -m bench.vocabulary CONFIG --data DIR --seeds 0,1,2 --json FILE`.

Part log loss: a log is predicted slide by slide and then learnt, as in a backtest, by `finetune` and by `default`. What
differs is only who gets an embedding row:

    prior           as the product does it: a value has a row of its own while its counts say so
    hash            the key modulo as many rows as the prior gave at most, shared by those that fall together
    hash, quarter   the same with a quarter of the rows

Bytes are those of embedding, optimiser and, where rows belong to values, the values' keys (8 a row). Differences in log
loss to `prior` are paired, with a bootstrap over blocks of time (models/comparison.py); negative: hashing is better.

Part bounded: a category of ten million distinct values, each equally likely, through counts and vocabulary in a process
of its own, once within the limits given and once without any: its peak memory (PSS) and what is known at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import psutil
import torch

from bench.report import machine, write_report
from features.encode import Keys, mix
from features.priors import Ints, PriorTable, SettledRows, advance, within
from features.vocabulary import Vocabulary, revise
from infra.settings import Settings, read_settings, state_dir
from models.click_task import ClickTask
from models.comparison import Scored, compare
from models.evaluate import log_losses
from models.plan import Plan
from models.strategies.ours import LEARNERS
from models.train import fresh_rows, move_rows, use_threads
from models.update import Learner
from models.window import Slide
from stream.backtest import Backtest
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.plan import new_plan

PARTS = ("logloss", "bounded")
STRATEGIES = ("finetune", "default")
HASHES = {"hash": 1, "hash, quarter": 4}  # by what the number of rows is divided
DISTINCT = 10_000_000
SLIDES, SLIDE_ROWS, SLIDE_S = 15, 2_000_000, 3600.0
MEMORIES_S = (3600.0, 86_400.0, 2_592_000.0)
Floats = npt.NDArray[np.float64]


class Hashed(Vocabulary):
    """Every value has the row that its key says; nobody asks what is known about it."""

    def rows(self, keys: Keys) -> Ints:
        return np.where(keys == 0, 0, (keys % np.uint64(len(self.keys))).astype(np.int64) + 1)


@contextmanager
def hashing(learner: Learner, n_rows: int, plan: Plan) -> Iterator[None]:
    """Let a learner that has learnt nothing hash into so many rows, for as long as this lasts."""
    hashed = Hashed(np.arange(1, n_rows + 1, dtype=np.uint64))
    source = np.concatenate([[0], np.full(n_rows, -1)])
    tensors = move_rows(learner.latest.tensors, source, hashed.keys, plan.seed)
    learner.latest = learner.champion = dataclasses.replace(learner.latest, vocabulary=hashed, tensors=tensors)
    with patch("models.update.revise", lambda *_, **__: (hashed, np.arange(n_rows + 1), 0)):
        yield


@dataclasses.dataclass
class Run:
    """One learner over a log: the probabilities after the warm-up, the most rows that values had, what was compared."""

    probabilities: Floats
    rows: int
    scored: Scored


def follow(plan: Plan, slides: Sequence[Slide], n_rows: int | None) -> Run:
    """Predict and learn a log; with so many rows for hashing, or as the product does it."""
    learner = Learner(ClickTask(plan))
    with nullcontext() if n_rows is None else hashing(learner, n_rows, plan):
        return _follow(learner, plan, slides)


def _follow(learner: Learner, plan: Plan, slides: Sequence[Slide]) -> Run:
    most, found, parts = 0, [], []
    for slide in slides:
        examples = learner.score(slide)
        learner.learn(slide)
        most = max(most, len(learner.latest.tensors["embedding.rows"]) - 1)
        if not slide.is_warmup(learner.latest.origin_s, plan.warmup_s):
            found.append(learner.scores["latest"].astype(np.float64))
            parts.append((slide, examples))
    index = np.repeat(np.arange(len(parts)), [len(examples.clicks) for _, examples in parts])
    scored = Scored(
        window=index.astype(np.int64),
        start_s=np.array([slide.start_s for slide, _ in parts]),
        end_s=np.array([slide.end_s for slide, _ in parts]),
        clicks=np.concatenate([examples.clicks for _, examples in parts]),
        requests=np.concatenate([examples.groups for _, examples in parts]),
        users=np.concatenate([examples.groups for _, examples in parts]),
        item_evidence=np.concatenate([examples.item_evidence for _, examples in parts]),
    )
    return Run(np.concatenate(found), most, scored)


def measure_log(settings: Settings, bases: list[Path], limit: int | None, seeds: Sequence[int]) -> dict[str, Any]:
    """Return log loss and bytes of each way, strategy by strategy."""
    slides = list(Backtest(settings, read_arrivals(settings, bases, RowCounts(), limit=limit)).slides())
    report: dict[str, Any] = {}
    for strategy in STRATEGIES:
        runs: dict[str, list[Run]] = {}
        for seed in seeds:
            plan = LEARNERS[strategy](dataclasses.replace(new_plan(settings), is_gated=False, seed=seed))
            runs.setdefault("prior", []).append(follow(plan, slides, None))
            for name, divisor in HASHES.items():
                n_rows = runs["prior"][-1].rows // divisor
                runs.setdefault(name, []).append(follow(plan, slides, n_rows))
            losses = {name: round(logloss(of_seed[-1:]), 5) for name, of_seed in runs.items()}
            print(f"{settings.name}: {strategy}, seed {seed}: {losses}", file=sys.stderr)
        scored = runs["prior"][0].scored
        base = [of_seed.probabilities for of_seed in runs["prior"]]
        report[strategy] = {
            name: {
                "logloss": logloss(of_seed),
                "rows": of_seed[-1].rows,
                "bytes": of_seed[-1].rows * (4 * settings.model.dim + 4 + (8 if name == "prior" else 0)),
                "to_prior": dataclasses.asdict(compare(scored, [one.probabilities for one in of_seed], base)),
            }
            for name, of_seed in runs.items()
        }
    return {"compared_rows": len(scored.clicks), "strategies": report}


def logloss(runs: Sequence[Run]) -> float:
    return statistics.mean(float(log_losses(run.probabilities, run.scored.clicks).mean()) for run in runs)


def measure_bounded(counts_max: int, values_max: int) -> dict[str, Any]:
    """Return what ten million distinct values take, in this process.

    Rows come hour by hour; the table is what trainer and live priors hold, in three memories, and the vocabulary is
    revised after each hour with the defaults of [model].
    """
    process, rng = psutil.Process(), np.random.default_rng(0)
    before, peak, seen = process.memory_full_info().pss, 0, np.zeros(DISTINCT, bool)
    table, vocabulary = PriorTable.empty(MEMORIES_S, 1), Vocabulary.empty()
    embedding = {"embedding.rows": fresh_rows(np.zeros(1, np.uint64), 16, 0), "embedding.squares": torch.zeros(1, 1)}
    for hour in range(SLIDES):
        value = rng.integers(0, DISTINCT, SLIDE_ROWS)
        seen[value] = True
        settled_s = (hour + np.sort(rng.random(SLIDE_ROWS))) * SLIDE_S
        clicks, ones = (rng.random(SLIDE_ROWS) < 0.1).astype(np.float64), np.ones(SLIDE_ROWS)
        rows = SettledRows(mix(value.astype(np.uint64)[:, None] + np.uint64(1)), settled_s, clicks, ones)
        slot_field = np.zeros(1, np.int16)
        to_s = (hour + 1) * SLIDE_S
        table = advance(table, rows, to_s, slot_field=slot_field, evidence_min=0.1)
        table = within(table, counts_max)
        vocabulary, source, _ = revise(vocabulary, table, admit_min=2.0, forget_min=0.5, values_max=values_max)
        embedding = move_rows(embedding, source, vocabulary.keys, 0)
        peak = max(peak, process.memory_full_info().pss)
    high_water = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "distinct_seen": int(seen.sum()),
        "values_counted": len(table.keys),
        "values_with_a_row": len(vocabulary.keys),
        "bytes_between_slides_max": peak - before,
        "bytes_before": before,
        "bytes_peak": high_water,
    }


def in_a_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.vocabulary", "--bounded-within", *arguments]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/movielens-1m.toml"))
    parser.add_argument("--data", type=Path, default=state_dir() / "data")
    parser.add_argument("--rows", type=int, default=300_000, help="stop after this many rows of the log; 0: none")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--counts-max", type=int, default=1_000_000, help="limit of part bounded")
    parser.add_argument("--rows-max", type=int, default=500_000, help="limit of part bounded")
    parser.add_argument("--bounded-within", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=1, help="not used: each seed is a run")
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    if arguments.bounded_within:
        counts_max, values_max = arguments.bounded_within
        print(json.dumps(measure_bounded(counts_max or DISTINCT, values_max or DISTINCT)))
        return
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    report: dict[str, Any] = {"name": "vocabulary", "machine": machine(), "seeds": seeds}
    if "logloss" in arguments.parts:
        settings = read_settings(arguments.config)
        use_threads(settings.update.threads)
        bases = [arguments.data, arguments.config.parent]
        report["log"] = settings.name
        report |= measure_log(settings, bases, arguments.rows or None, seeds)
    if "bounded" in arguments.parts:
        limits = {"limited": (arguments.counts_max, arguments.values_max), "unlimited": (0, 0)}
        report["bounded"] = {
            name: {"counts_max": limit[0], "values_max": limit[1]} | in_a_process(*map(str, limit))
            for name, limit in limits.items()
        }
        print(f"bounded: {report['bounded']}", file=sys.stderr)
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
