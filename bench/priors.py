"""The priors alone, in one process, on a real log: `python -m bench.priors CONFIG --json FILE`.

- live: blocks of `examples` as the ledger writes them: decode, encode, count; and now and then what is published.
- point in time: the counts of every row as of its request, slide by slide as the trainer takes them, root included.

Each figure stands with its wall time and with its processor time: the second is what is left of it on a busy machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from bench.report import machine, write_report
from features.encode import encode, slot_fields
from features.fields import slot_counts
from features.live_priors import LivePriors
from features.point_in_time import point_in_time
from features.priors import PriorTable, SettledRows, advance
from infra.settings import Settings, read_settings, state_dir
from models.window import Slide
from stream.backtest import Backtest
from stream.blocks import decode_block, encode_block, row_schema
from stream.ledger import Closed
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.wiring import new_ledger, new_slides

PUBLISH_BLOCKS = 8  # blocks between two publications: about a second's at full speed


def make_blocks(settings: Settings, bases: list[Path], limit: int | None) -> list[bytes]:
    """Return the log as blocks of one partition."""
    ledger, schema = new_ledger(0, settings, new_slides(settings)), row_schema(settings.fields)
    arrivals = read_arrivals(settings, bases, RowCounts(), limit=limit)
    closed: list[Closed] = []
    for offset, (_, event) in enumerate(arrivals):
        closed += ledger.step(offset, 0.0, event)
    return [encode_block(block.header, block.rows, schema) for block in closed if block.rows["click"]]


def count_live(settings: Settings, blocks: list[bytes]) -> int:
    """Count blocks as the worker does; return how many values were published."""
    memory = settings.priors
    priors = LivePriors(
        settings.fields, memory.half_lives_s, evidence_min=memory.evidence_min, counts_max=memory.counts_max
    )
    published = 0
    for index, value in enumerate(blocks):
        priors.count(decode_block(value)[1])
        if index % PUBLISH_BLOCKS == 0:
            published += sum(len(part.keys) for part in priors.changes(100_000))
    return published


def prior_inputs(settings: Settings, slides: list[Slide]) -> float:
    """Return the seconds of processor time in `point_in_time` alone, over all slides in their order."""
    fields, half_lives_s = settings.fields, settings.priors.half_lives_s
    table, widths = PriorTable.empty(half_lives_s, len(fields)), slot_counts(fields)
    recent, seconds = SettledRows.empty(sum(widths)), 0.0
    lookback_s = settings.ledger.wait_s + settings.ledger.grace_s + settings.ledger.disorder_s
    for slide in slides:
        keys = encode(slide.frame, fields)
        settled = recent.followed_by(SettledRows.from_frame(slide.frame, keys))
        shown_s = np.maximum(slide.frame["time_s"].to_numpy(), table.as_of_s)
        begun_s = time.process_time()
        point_in_time(table, settled, keys, shown_s, widths)
        seconds += time.process_time() - begun_s
        moment_s = max(table.as_of_s, slide.end_s - lookback_s)
        before = settled.between(-np.inf, moment_s)
        table = advance(table, before, moment_s, slot_field=slot_fields(fields))
        recent = settled.between(moment_s, np.inf)
    return seconds


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall and the processor seconds of some work."""
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun_s, time.process_time() - begun_cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/movielens-1m.toml"))
    parser.add_argument("--data", type=Path, default=state_dir() / "data")
    parser.add_argument("--rows", type=int, default=200_000, help="stop after this many rows of the log")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    settings, bases = read_settings(arguments.config), [arguments.data, arguments.config.parent]
    blocks = make_blocks(settings, bases, arguments.rows)
    arrivals = read_arrivals(settings, bases, RowCounts(), limit=arguments.rows)
    slides = list(Backtest(settings, arrivals).slides())
    n_rows, n_fields = sum(len(slide.frame) for slide in slides), len(settings.fields)
    figures: dict[str, list[float]] = {}
    for run in range(arguments.runs):
        wall_s, cpu_s = timed(lambda: count_live(settings, blocks))
        figures.setdefault("live_rows_per_s", []).append(n_rows / wall_s)
        figures.setdefault("live_rows_per_cpu_s", []).append(n_rows / cpu_s)
        cpu_s = prior_inputs(settings, slides)
        figures.setdefault("point_in_time_rows_x_fields_per_cpu_s", []).append(n_rows * n_fields / cpu_s)
        frame = pl.concat([slide.frame for slide in slides])
        keys, widths = encode(frame, settings.fields), slot_counts(settings.fields)
        rows, shown_s = SettledRows.from_frame(frame, keys), frame["time_s"].to_numpy()
        empty = PriorTable.empty(settings.priors.half_lives_s, n_fields)
        wall_s, cpu_s = timed(lambda: point_in_time(empty, rows, keys, shown_s, widths))  # noqa: B023  # called at once
        figures.setdefault("point_in_time_at_once_rows_x_fields_per_s", []).append(n_rows * n_fields / wall_s)
        figures.setdefault("point_in_time_at_once_rows_x_fields_per_cpu_s", []).append(n_rows * n_fields / cpu_s)
        print(f"run {run}: { ({name: round(values[-1]) for name, values in figures.items()}) }", file=sys.stderr)
    report = {
        "name": "priors",
        "log": settings.name,
        "machine": machine(),
        "runs": arguments.runs,
        "rows": n_rows,
        "fields": n_fields,
        "slots": sum(slot_counts(settings.fields)),
        "half_lives": len(settings.priors.half_lives_s),
        "blocks": len(blocks),
        "figures": figures,
        "medians": {name: statistics.median(values) for name, values in figures.items()},
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
