"""When does an impression count, and when its click? `python -m bench.counting_rules CONFIG --json FILE`.

Three rules, by the log loss of the prior alone (no embedding, no network): each slide's rows are given the counts that
had been made when they were shown, point in time, and are scored by what was learnt on the slides before.

- settled: (1, y) when the label settles, `wait_s` after the impression: what freshrank does; with `--waits` also after
  shorter waits, clicks that come later added as (0, 1) when they come (`late_clicks = "correct"`)
- at_once: (1, 0) at the impression, (0, 1) at the click
- click_early: (1, 1) at the click, (1, 0) when no click has come within `wait_s`

Reported per rule: `logistic`, a logistic regression on the dense inputs of features/posteriors.py, fitted anew before
each slide on the slides before it; `item`, the posterior mean of the ad alone, with nothing fitted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.report import machine, write_report
from features.encode import encode, hash_strings, mix, slot_fields
from features.fields import id_field, slot_counts
from features.point_in_time import point_in_time
from features.posteriors import ROOT_INPUT, dense_inputs
from features.priors import Counts, PriorTable, SettledRows, advance
from features.strength import fit_strength
from infra.settings import Settings, read_settings, state_dir
from models.window import Slide
from stream.backtest import Backtest
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals

RULES = ("settled", "at_once", "click_early")
FITTED_ON = 4  # slides before the one that is scored; chosen by hand, the same for every rule
RIDGE = 1.0
LOGIT_MAX = 4.0  # rates beyond are extrapolated by the fit: unclipped, one slide of KuaiRand decided between the rules
LATER_S = 1e-6  # an impression that counts at once must not be seen by the rows of its own request
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """All rows of a log in the order in which they were shown."""

    keys: npt.NDArray[np.uint64]
    shown_s: Floats
    settled_s: Floats
    clicked_s: Floats
    click: Floats
    slide: npt.NDArray[np.int64]


def read_log(settings: Settings, slides: list[Slide]) -> Log:
    parts = []
    for slide in slides:
        frame = slide.frame
        keys = encode(frame, settings.fields)
        shown_s = frame["time_s"].to_numpy()
        # When a click came is known to the ledger alone; the delays of the configuration are drawn once more.
        assert settings.log is not None
        row_hash = mix(hash_strings(frame["request_id"]) + frame["position"].to_numpy().astype(np.uint64))
        uniform = (row_hash >> np.uint64(11)).astype(np.float64) / 2.0**53
        delay_s = np.minimum(-np.log1p(-uniform) * settings.log.click_delay_s.mean, settings.ledger.wait_s)
        columns = (frame["settled_s"].to_numpy(), shown_s + delay_s, frame["click"].to_numpy().astype(np.float64))
        parts.append((keys, shown_s, *columns, np.full(len(frame), slide.index)))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[1], kind="stable")
    return Log(*(column[order] for column in joined))


def counted(log: Log, rule: str, wait_s: float) -> SettledRows:
    """Return what a rule counts, in the order of its moments; `wait_s` is that of the rule settled, 0: the log's."""
    every, ones = np.arange(len(log.click)), np.ones(len(log.click))
    clicked = np.flatnonzero(log.click)
    if rule == "settled" and wait_s:
        in_time = log.clicked_s <= log.shown_s + wait_s
        late = np.flatnonzero((log.click == 1.0) & ~in_time)
        row, moment_s = np.concatenate([every, late]), np.concatenate([log.shown_s + wait_s, log.clicked_s[late]])
        click = np.concatenate([log.click * in_time, ones[late]])
        impression = np.concatenate([ones, 0.0 * ones[late]])
    elif rule == "settled":
        row, moment_s, click, impression = every, log.settled_s, log.click, ones
    elif rule == "click_early":
        row, click, impression = every, log.click, ones
        moment_s = np.where(log.click == 1.0, log.clicked_s, log.settled_s)
    else:
        row = np.concatenate([every, clicked])
        moment_s = np.concatenate([log.shown_s + LATER_S, np.maximum(log.clicked_s, log.shown_s + LATER_S)[clicked]])
        click = np.concatenate([0.0 * ones, ones[clicked]])
        impression = np.concatenate([ones, 0.0 * ones[clicked]])
    order = np.argsort(moment_s, kind="stable")
    return SettledRows(log.keys[row][order], moment_s[order], click[order], impression[order])


def inputs_by_slide(settings: Settings, log: Log, rule: str, wait_s: float) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Yield per slide its dense inputs, the logit of the ad's posterior mean, and the labels."""
    fields, rows = settings.fields, counted(log, rule, wait_s)
    table = PriorTable.empty(settings.priors.half_lives_s, len(fields))
    item = id_field(fields, "item")
    assert item is not None
    for index in np.unique(log.slide):
        own = log.slide == index
        start_s = float(log.shown_s[own].min())
        before = rows.between(table.as_of_s, np.nextafter(start_s, -np.inf))
        table = advance(table, before, np.nextafter(start_s, -np.inf), slot_field=slot_fields(fields))
        later = rows.between(table.as_of_s, float(log.shown_s[own].max()))
        counts = point_in_time(table, later, log.keys[own], log.shown_s[own], slot_counts(fields))
        dense = dense_inputs(counts, log.keys[own], table, fields, settings.priors.levels).astype(np.float64)
        yield dense, item_logit(settings, counts, log.keys[own], table, fields.index(item)), log.click[own]
        table = fit_strength(counts, log.keys[own], log.click[own], table, fields, settings.priors.levels)


def item_logit(
    settings: Settings, counts: Counts, keys: npt.NDArray[np.uint64], table: PriorTable, item: int
) -> Floats:
    """Return the logit of the ad's posterior mean in its shortest memory, which leans on the longer ones."""
    plain = dense_inputs(counts, keys, table, settings.fields, ()).astype(np.float64)
    n_half_lives = len(settings.priors.half_lives_s)
    first = 1 + n_half_lives + item * n_half_lives
    logit: Floats = plain[:, ROOT_INPUT] + plain[:, first : first + n_half_lives].sum(axis=1)
    return logit


def fit(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Return weights, mean and scale of a ridge logistic regression, by Newton's method."""
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
    mean[0], scale[0] = 0.0, 1.0
    z, weights = (x - mean) / scale, np.zeros(x.shape[1])
    for _ in range(8):
        p = 1.0 / (1.0 + np.exp(-z @ weights))
        gradient = z.T @ (p - y) + RIDGE * weights
        hessian = (z * (p * (1.0 - p))[:, None]).T @ z + RIDGE * np.eye(len(weights))
        weights -= np.linalg.solve(hessian, gradient)
    return weights, mean, scale


def losses(logit: Floats, y: Floats) -> Floats:
    each: Floats = np.logaddexp(0.0, logit) - y * logit
    return each


def measure(settings: Settings, log: Log, rule: str, wait_s: float) -> dict[str, object]:
    seen: list[tuple[Floats, Floats]] = []
    by_model: dict[str, list[Floats]] = {"logistic": [], "item": []}
    labels = []
    for dense, item, y in inputs_by_slide(settings, log, rule, wait_s):
        if len(seen) >= FITTED_ON:
            x, known = (np.concatenate(part) for part in zip(*seen[-FITTED_ON:], strict=True))
            weights, mean, scale = fit(x, known)
            by_model["logistic"].append(np.clip((dense - mean) / scale @ weights, -LOGIT_MAX, LOGIT_MAX))
            by_model["item"].append(item)
            labels.append(y)
        seen.append((dense, y))
    y = np.concatenate(labels)
    report: dict[str, object] = {"rule": rule, "wait_s": wait_s, "rows": len(y), "clicks": int(y.sum())}
    for name, parts in by_model.items():
        logit = np.concatenate(parts)
        calibration = float((1.0 / (1.0 + np.exp(-logit))).mean() / y.mean())
        by_slide = [float(losses(part, one).mean()) for part, one in zip(parts, labels, strict=True)]
        report[name] = {
            "logloss": float(losses(logit, y).mean()),
            "logloss_slide_median": float(np.median(by_slide)),
            "calibration": calibration,
            "by_slide": by_slide,
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/movielens-1m.toml"))
    parser.add_argument("--data", type=Path, default=state_dir() / "data")
    parser.add_argument("--rows", type=int, default=None, help="stop after this many rows of the log")
    parser.add_argument("--rules", nargs="*", choices=RULES, default=RULES)
    parser.add_argument("--waits", nargs="*", type=float, default=(), help="further waits of the rule settled, seconds")
    parser.add_argument("--runs", type=int, default=1, help="not used: nothing here is left to chance")
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    settings = read_settings(arguments.config)
    arrivals = read_arrivals(settings, [arguments.data, arguments.config.parent], RowCounts(), limit=arguments.rows)
    log = read_log(settings, list(Backtest(settings, arrivals).slides()))
    rules = []
    for rule, wait_s in [
        *((rule, 0.0) for rule in arguments.rules),
        *(("settled", wait_s) for wait_s in arguments.waits),
    ]:
        rules.append(measure(settings, log, rule, wait_s))
        print(f"{settings.name} {rule}: {rules[-1]}"[:200], file=sys.stderr)
    report = {
        "name": "counting_rules",
        "log": settings.name,
        "machine": machine(),
        "wait_s": settings.ledger.wait_s,
        "rules": rules,
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
