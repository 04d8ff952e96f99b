"""How often `freshrank leakcheck` finds planted leaks, and how often it cries on clean logs.

    .venv/bin/python -m bench.leakcheck --seeds 50 --json leakcheck.json

Clean logs are worlds of this file's own, of several sizes and click rates, with strong but honest fields: ids,
placement, a relevance, static attributes, and counts and rates of the past. Planted ones are the same with one leak.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import polars as pl

from bench.report import machine, write_report
from features.fields import COLUMN_PREFIX, Field
from models.leaks.findings import Finding
from models.leaks.futures import check_futures
from models.leaks.proxies import check_proxies, check_siblings
from models.leaks.repeats import check_repeats, check_requests
from models.leaks.table import compact, to_table

Floats = np.ndarray
HONEST = (
    Field("user", "user"),
    Field("age", "user"),
    Field("ad", "item"),
    Field("price", "item", "number"),
    Field("hour", "context"),
    Field("place", "context"),
    Field("relevance", "item", "number"),
    Field("seen", "item", "number"),
    Field("past_ctr", "item", "number"),
)


def world(seed: int, rows: int = 20_000, base: float = -2.5, ads: int = 200, users: int = 1500) -> pl.DataFrame:
    """A clean log: requests of one to three ads, in time order over three days."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(1, 4, rows)
    request = np.repeat(np.arange(rows), shown)[:rows]
    position = np.arange(rows) - np.searchsorted(request, request)
    n_requests = int(request[-1]) + 1
    time_s = (1.7e9 + np.sort(rng.uniform(0, 3 * 86_400, n_requests)))[request].round(3)
    popular = rng.pareto(1.5, ads) + 0.2
    user = rng.integers(0, users, n_requests)[request]
    ad = rng.choice(ads, rows, p=popular / popular.sum())
    quality, taste = rng.normal(0, 0.7, ads), rng.normal(0, 0.5, users)
    relevance = rng.normal(0, 0.8, (users, 8))[user] * rng.normal(0, 0.5, (ads, 8))[ad]
    place = rng.integers(0, 4, n_requests)[request]
    logit = (
        base + quality[ad] + taste[user] + relevance.sum(1) - 0.6 * position + np.array([0.8, 0.0, -0.5, -1.0])[place]
    )
    p = 1 / (1 + np.exp(-logit))
    click = (rng.random(rows) < p).astype(np.int8)
    frame = pl.DataFrame(
        {
            "time_s": time_s,
            "click": click,
            "request_id": [f"r{r}" for r in request],
            "position": position.astype(np.int32),
            "user": [f"u{u}" for u in user],
            "age": [str(u % 6) for u in user],
            "ad": [f"a{a}" for a in ad],
            "price": (np.exp(quality * 0.5 + rng.normal(0, 0.5, ads)))[ad],
            "hour": [str(int(t // 3600) % 24) for t in time_s],
            "place": [str(one) for one in place],
            "relevance": relevance.sum(1),
            "p": p,
        }
    )
    n, c = pl.int_range(pl.len()).over("ad"), (pl.col("click").cum_sum().over("ad") - pl.col("click"))
    return frame.with_columns(seen=n.cast(pl.Float64), past_ctr=pl.when(n > 0).then(c / n))


def noise(frame: pl.DataFrame, scale: float) -> pl.Series:
    return pl.Series(np.random.default_rng(frame.height).normal(0, scale, frame.height))


def per(key: str, noisy: float = 0.0, what: str = "mean") -> Callable[[pl.DataFrame], pl.Series]:
    def plant(frame: pl.DataFrame) -> pl.Series:
        column = pl.col("click")
        expr = {
            "mean": column.mean(),
            "sum": column.sum(),
            "len": pl.len().cast(pl.Float64),
            "log": (column.sum() + 1).log(),
            "smooth": (column.sum() + 2) / (pl.len() + 30),
            "scaled": 300 * column.mean() - 7,
            "round": column.mean().round(2),
            "decile": (column.mean() * 40).floor(),
            "upto": column.cum_sum() / (pl.int_range(pl.len()) + 1),
            "count_upto": column.cum_sum(),
            "future": (column.reverse().cum_sum() / (pl.int_range(pl.len()) + 1)).reverse(),
            "centred": column.cast(pl.Float64).rolling_mean(41, center=True, min_samples=1),
        }[what]
        return frame.select(expr.cast(pl.Float64).over(key)).to_series() + noise(frame, noisy)

    return plant


def flipped(share: float) -> Callable[[pl.DataFrame], pl.Series]:
    def plant(frame: pl.DataFrame) -> pl.Series:
        flip = np.random.default_rng(7).random(frame.height) < share
        return pl.Series(frame["click"].to_numpy() ^ flip).cast(pl.Float64)

    return plant


def dwell(gap: float) -> Callable[[pl.DataFrame], pl.Series]:
    def plant(frame: pl.DataFrame) -> pl.Series:
        return (frame["click"] * gap + noise(frame, 1.0)).exp()

    return plant


def missing(other: float) -> Callable[[pl.DataFrame], pl.Series]:
    def plant(frame: pl.DataFrame) -> pl.Series:
        rng = np.random.default_rng(3)
        there = (frame["click"].to_numpy() == 1) | (rng.random(frame.height) < other)
        return pl.Series(np.where(there, rng.normal(size=frame.height), np.nan)).fill_nan(None)

    return plant


def sibling(share: float, *, own: bool = False) -> Callable[[pl.DataFrame], pl.Series]:
    def plant(frame: pl.DataFrame) -> pl.Series:
        total = frame.select(pl.col("click").sum().over("request_id")).to_series()
        value = (total if own else total - frame["click"]).cast(pl.Float64).to_numpy()
        rng = np.random.default_rng(5)
        return pl.Series(np.where(rng.random(frame.height) < share, rng.permutation(value), value))

    return plant


def teacher(steps: int) -> Callable[[pl.DataFrame], pl.Series]:
    """Predictions of a logistic regression on ids, trained on all rows."""

    def plant(frame: pl.DataFrame) -> pl.Series:
        y = frame["click"].to_numpy()
        codes = [frame[name].rank("dense").to_numpy().astype(int) - 1 for name in ("user", "ad", "place")]
        weights = [np.zeros(code.max() + 1) for code in codes]
        bias = -2.5
        for _ in range(steps):
            p = 1 / (1 + np.exp(-(bias + sum(w[c] for w, c in zip(weights, codes, strict=True)))))
            bias += (y - p).mean() * 4
            for w, c in zip(weights, codes, strict=True):
                np.add(w, 0.3 * np.bincount(c, y - p) / (np.bincount(c) * 0.1 + 0.3), out=w)
        return pl.Series(1 / (1 + np.exp(-(bias + sum(w[c] for w, c in zip(weights, codes, strict=True))))))

    return plant


def zscore(frame: pl.DataFrame) -> pl.Series:
    return (frame["relevance"] - frame["relevance"].mean()) / frame["relevance"].std()


COLUMNS: dict[str, Callable[[pl.DataFrame], pl.Series]] = {
    "label": flipped(0.0),
    "label, 5 % flipped": flipped(0.05),
    "label, 10 % flipped": flipped(0.1),
    "label, 20 % flipped": flipped(0.2),
    "dwell, 2 sd apart": dwell(2.0),
    "dwell, 1.5 sd apart": dwell(1.5),
    "missing unless clicked": missing(0.0),
    "missing unless clicked, but 20 %": missing(0.2),
    "ad rate of the whole log": per("ad"),
    "ad rate, scaled": per("ad", what="scaled"),
    "ad rate, rounded": per("ad", what="round"),
    "ad rate, smoothed": per("ad", what="smooth"),
    "ad rate, in steps": per("ad", what="decile"),
    "ad rate, noise .01 a row": per("ad", 0.01),
    "ad rate, noise .03 a row": per("ad", 0.03),
    "ad clicks": per("ad", what="sum"),
    "ad clicks, logarithm": per("ad", what="log"),
    "ad impressions": per("ad", what="len"),
    "user rate": per("user"),
    "user rate, noise .03": per("user", 0.03),
    "user impressions": per("user", what="len"),
    "ad rate with this row": per("ad", what="upto"),
    "ad clicks with this row": per("ad", what="count_upto"),
    "ad rate from here on": per("ad", what="future"),
    "ad rate, centred window": per("ad", what="centred"),
    "sibling's click": sibling(0.0),
    "sibling's click, 20 % mixed": sibling(0.2),
    "request's clicks": sibling(0.0, own=True),
    "teacher of all rows": teacher(60),
    "z-score of the whole log": zscore,
}


def findings(frame: pl.DataFrame, fields: tuple[Field, ...]) -> list[Finding]:
    columns = {field.name: COLUMN_PREFIX + field.name for field in fields}
    rows = compact(frame.rename(columns), fields, ["request_id"])
    table = to_table(rows, fields, is_explicit=True, has_positions=True)
    checks = (
        check_repeats(table),
        check_requests(table, wait_s=60.0),
        check_proxies(table),
        check_siblings(table),
        check_futures(table),
    )
    return [finding for check in checks for finding in check]


def worlds(seeds: int) -> list[pl.DataFrame]:
    shapes = [(20_000, -2.5, 200, 1500), (8_000, -0.3, 60, 400), (50_000, -3.5, 500, 8000), (20_000, -1.0, 1000, 300)]
    return [world(seed, *shapes[seed % len(shapes)]) for seed in range(seeds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--planted", type=int, default=8)
    parser.add_argument("--json", default="-")
    arguments = parser.parse_args()
    alarms = {}
    for seed, frame in enumerate(worlds(arguments.seeds)):
        if found := findings(frame, HONEST):
            alarms[seed] = [f"{one.field}: {one.kind} {one.evidence}" for one in found]
    found_of = {}
    for name, plant in COLUMNS.items():
        field = Field("planted", "item", "number")
        hits = [
            [
                one.kind
                for one in findings(frame.with_columns(planted=plant(frame)), (*HONEST, field))
                if one.field == "planted"
            ]
            for frame in worlds(arguments.planted)
        ]
        found_of[name] = {
            "found": sum(map(bool, hits)),
            "of": len(hits),
            "kinds": sorted({kind for hit in hits for kind in hit}),
        }
    write_report(
        {"name": "leakcheck", "machine": machine(), "clean": arguments.seeds, "alarms": alarms, "planted": found_of},
        arguments.json,
    )


if __name__ == "__main__":
    main()
