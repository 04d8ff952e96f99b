"""Each stage alone, in one process, on a real log: `python -m bench.stages CONFIG --json FILE`.

Every stage gets what the stage before it gave, held in memory, so that a figure is that stage's own. Stages take turns
over the runs; reported are medians, and the share of each stage in their sum (where the time goes).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.report import machine, write_report
from features.encode import encode, slot_fields
from features.priors import PriorTable, SettledRows, advance
from infra.settings import Settings, read_settings, state_dir
from models.click_task import ClickTask
from models.train import use_threads
from models.update import Learner
from models.window import Slide
from stream.backtest import Backtest
from stream.blocks import encode_block, row_schema
from stream.events import decode_event, encode_event
from stream.ledger import Closed
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.plan import new_plan
from stream.wiring import new_ledger, new_slides

Arrivals = list[tuple[str | None, Any]]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun_s = time.perf_counter()
    result = work()
    return time.perf_counter() - begun_s, result


def run_ledger(settings: Settings, events: list[Any]) -> list[Closed]:
    """One partition, as a worker owns it."""
    ledger = new_ledger(0, settings, new_slides(settings))
    return [block for offset, event in enumerate(events) for block in ledger.step(offset, 0.0, event)]


def encode_blocks(settings: Settings, blocks: list[Closed]) -> int:
    schema = row_schema(settings.fields)
    return sum(len(encode_block(block.header, block.rows, schema)) for block in blocks)


def count_priors(settings: Settings, slides: list[Slide]) -> PriorTable:
    table = PriorTable.empty(settings.priors.half_lives_s, len(settings.fields))
    for slide in slides:
        rows = SettledRows.from_frame(slide.frame, encode(slide.frame, settings.fields))
        table = advance(table, rows, slide.end_s, slot_field=slot_fields(settings.fields))
    return table


def learn(settings: Settings, slides: list[Slide]) -> str:
    learner = Learner(ClickTask(new_plan(settings)))
    for slide in slides:
        learner.learn(slide)
    return learner.latest.digest


def stages(settings: Settings, bases: list[Path], limit: int | None) -> Iterator[tuple[str, float, int]]:
    """Run each stage once; yield its name, seconds and how many things it handled (events, or rows)."""
    seconds, arrivals = timed(lambda: list(read_arrivals(settings, bases, RowCounts(), limit=limit)))
    events = [event for _, event in arrivals]
    yield "read the log, make events", seconds, len(events)
    seconds, raw = timed(lambda: [encode_event(event) for event in events])
    yield "events to JSON", seconds, len(events)
    seconds, _ = timed(lambda: [decode_event(value) for value in raw])
    yield "JSON to events", seconds, len(events)
    seconds, blocks = timed(lambda: run_ledger(settings, events))
    n_rows = sum(len(block.rows["click"]) for block in blocks)
    yield "ledger", seconds, len(events)
    seconds, _ = timed(lambda: encode_blocks(settings, blocks))
    yield "blocks to bytes", seconds, n_rows
    slides = list(Backtest(settings, arrivals).slides())
    seconds, _ = timed(lambda: count_priors(settings, slides))
    yield "live priors", seconds, n_rows
    seconds, _ = timed(lambda: learn(settings, slides))
    yield "score twice, gate, train", seconds, n_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/movielens-1m.toml"))
    parser.add_argument("--data", type=Path, default=state_dir() / "data")
    parser.add_argument("--rows", type=int, default=None, help="stop after this many rows of the log")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    settings = read_settings(arguments.config)
    use_threads(settings.update.threads)
    found: dict[str, list[float]] = {}
    handled: dict[str, int] = {}
    for run in range(arguments.runs):
        for name, seconds, count in stages(settings, [arguments.data, arguments.config.parent], arguments.rows):
            found.setdefault(name, []).append(seconds)
            handled[name] = count
            print(f"run {run}: {name}: {seconds:.2f} s, {count / seconds:,.0f} a second", file=sys.stderr)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    report = {
        "name": "stages",
        "log": settings.name,
        "machine": machine(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "runs": arguments.runs,
        "stages": {
            name: {
                "seconds": found[name],
                "seconds_median": median,
                "a_second": handled[name] / median,
                "share": median / sum(medians.values()),
            }
            for name, median in medians.items()
        },
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
