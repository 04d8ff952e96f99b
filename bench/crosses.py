"""Which crosses does the warm-up choose, and what are they worth? `python -m bench.crosses CONFIG --json FILE`.

Takes the configuration's crosses away, lets features/crosses.py choose from the slides of the warm-up alone, and scores
the slides after it by the prior alone: the base of models/networks/logistic.py, learnt by its Newton steps, each slide
predicted before it is learnt. Three times: without crosses, with those that the configuration names, with the chosen
ones. Nothing in it is left to chance.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from bench.report import machine, write_report
from features.crosses import ChosenCross, choose_crosses
from features.encode import encode, slot_fields
from features.fields import Field, raw_fields, slot_counts
from features.point_in_time import point_in_time
from features.posteriors import dense_inputs, dense_width
from features.priors import CORRECTION, PriorTable, SettledRows, advance
from features.strength import fit_strength
from infra.settings import Settings, read_settings, state_dir
from models.evaluate import evaluate, log_losses
from models.networks.logistic import base_inputs, base_logits, base_width, initial_base, newton_step
from models.window import Slide
from stream.backtest import Backtest
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals

BATCH_ROWS = 512
Floats = npt.NDArray[np.float64]


def inputs_by_slide(
    settings: Settings, fields: Sequence[Field], slides: list[Slide]
) -> Iterator[tuple[npt.NDArray[np.float32], Floats]]:
    """Yield per slide the dense inputs and the labels of its rows, as of their requests."""
    table, recent = PriorTable.empty(settings.priors.half_lives_s, len(fields)), SettledRows.empty(_width(fields))
    lookback_s = settings.ledger.wait_s + settings.ledger.grace_s + settings.ledger.disorder_s
    for slide in slides:
        keys = encode(slide.frame, fields)
        settled = recent.followed_by(SettledRows.from_frame(slide.frame, keys))
        shown_s = slide.frame.select(pl.col("time_s").min().over("request_id")).to_series().to_numpy()
        wanted = (shown_s >= table.as_of_s) & (slide.frame["kind"] != CORRECTION).to_numpy()
        keys, shown_s = keys[wanted], shown_s[wanted]
        counts = point_in_time(table, settled, keys, shown_s, slot_counts(fields))
        clicks = slide.frame["click"].to_numpy()[wanted].astype(np.float64)
        yield dense_inputs(counts, keys, table, fields, settings.priors.levels), clicks
        table = fit_strength(counts, keys, clicks, table, fields, settings.priors.levels)
        moment_s = max(table.as_of_s, slide.end_s - lookback_s)
        table = advance(table, settled.between(-np.inf, moment_s), moment_s, slot_field=slot_fields(fields))
        recent = settled.between(moment_s, np.inf)


def predictions(
    settings: Settings, fields: Sequence[Field], slides: list[Slide], n_warmup: int
) -> tuple[Floats, Floats]:
    """Return predicted rates and labels of the slides after the warm-up."""
    n_half_lives = len(settings.priors.half_lives_s)
    base = initial_base(base_width(dense_width(fields, n_half_lives), n_half_lives))
    rates, labels = [], []
    for index, (dense, y) in enumerate(inputs_by_slide(settings, fields, slides)):
        x, clicks = base_inputs(torch.from_numpy(dense), n_half_lives), torch.from_numpy(y)
        if index >= n_warmup:
            rates.append(torch.sigmoid(base_logits(base["weight"], x)).double().numpy())
            labels.append(y)
        for part, known in zip(x.split(BATCH_ROWS), clicks.split(BATCH_ROWS), strict=True):
            newton_step(base["weight"], base["curvature"], part, known)
    return np.concatenate(rates), np.concatenate(labels)


def warmup_slides(settings: Settings, slides: list[Slide]) -> int:
    """Return how many slides are warm-up, as the learner counts them."""
    up_to_s = float(slides[0].frame["settled_s"][0]) + settings.window.warmup_s
    return sum(slide.end_s <= up_to_s for slide in slides)


def choose(settings: Settings, slides: list[Slide], *, crosses_max: int, cells_max: int) -> list[ChosenCross]:
    """Return the crosses that these slides choose for the configuration's other fields."""
    return choose_crosses(
        pl.concat([slide.frame for slide in slides]),
        raw_fields(settings.fields),
        half_lives_s=settings.priors.half_lives_s,
        levels=settings.priors.levels,
        crosses_max=crosses_max,
        cells_max=cells_max,
    )


def _width(fields: Sequence[Field]) -> int:
    return sum(slot_counts(fields))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/movielens-1m.toml"))
    parser.add_argument("--data", type=Path, default=state_dir() / "data")
    parser.add_argument("--rows", type=int, default=None, help="stop after this many rows of the log")
    parser.add_argument("--crosses", type=int, default=8, help="choose at most so many")
    parser.add_argument("--cells", type=int, default=2_000_000, help="distinct values they may have among them")
    parser.add_argument("--runs", type=int, default=1, help="not used: nothing here is left to chance")
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    settings = read_settings(arguments.config)
    arrivals = read_arrivals(settings, [arguments.data, arguments.config.parent], RowCounts(), limit=arguments.rows)
    slides = list(Backtest(settings, arrivals).slides())
    n_warmup = warmup_slides(settings, slides)
    begun_s = time.process_time()
    chosen = choose(settings, slides[:n_warmup], crosses_max=arguments.crosses, cells_max=arguments.cells)
    cpu_s = time.process_time() - begun_s
    raw, by_crosses = raw_fields(settings.fields), []
    for name, fields in (
        ("none", raw),
        ("named", settings.fields),
        ("chosen", (*raw, *(one.field for one in chosen))),
    ):
        rates, clicks = predictions(settings, fields, slides, n_warmup)
        if not by_crosses:
            without = log_losses(rates, clicks)
        gain = without - log_losses(rates, clicks)
        by_crosses.append(
            {
                "crosses": name,
                "fields": [field.name for field in fields if field.side == "cross"],
                **dataclasses.asdict(evaluate(rates, clicks)),
                "gain": float(gain.mean()),
                "gain_error": float(gain.std() / np.sqrt(len(gain))),
            }
        )
        print(f"{settings.name} {by_crosses[-1]}", file=sys.stderr)
    report = {
        "name": "crosses",
        "log": settings.name,
        "machine": machine(),
        "warmup_slides": n_warmup,
        "warmup_rows": sum(len(slide.frame) for slide in slides[:n_warmup]),
        "choice_cpu_s": cpu_s,
        "chosen": [msgspec.to_builtins(one) for one in chosen],
        "by_crosses": by_crosses,
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
