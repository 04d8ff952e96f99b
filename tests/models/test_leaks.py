"""Planted leaks are found, and the same logs without them are clean."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl
import pytest

from features.fields import COLUMN_PREFIX, Field
from models.leaks.findings import Finding
from models.leaks.futures import check_futures
from models.leaks.order import Clock, check_clock, check_delays, check_slides
from models.leaks.proxies import check_proxies, check_siblings
from models.leaks.repeats import check_forbidden, check_repeats, check_requests
from models.leaks.table import Table, compact, to_table
from models.window import Slides

FIELDS = (Field("user", "user"), Field("ad", "item"), Field("x", "context", "number"))
ROWS, ADS, USERS = 6_000, 150, 300


def log(seed: int = 0) -> pl.DataFrame:
    """Requests of two rows in a world where ads and users differ; x knows the ad's quality, honestly."""
    rng = np.random.default_rng(seed)
    ad, user = rng.integers(0, ADS, ROWS), np.repeat(rng.integers(0, USERS, ROWS // 2), 2)
    quality = rng.normal(0, 0.8, ADS)
    p = 1 / (1 + np.exp(1.0 - quality[ad] - rng.normal(0, 0.5, USERS)[user]))
    request = np.repeat(np.arange(ROWS // 2), 2)
    return pl.DataFrame(
        {
            "time_s": request * 30.0,
            "click": (rng.random(ROWS) < p).astype(np.int8),
            "request_id": [f"r{one}" for one in request],
            "position": (np.arange(ROWS) % 2).astype(np.int32),
            "user": [f"u{one}" for one in user],
            "ad": [f"a{one}" for one in ad],
            "x": quality[ad],
        }
    )


def table(frame: pl.DataFrame, *, has_positions: bool = True) -> Table:
    rows = compact(frame.rename({one.name: COLUMN_PREFIX + one.name for one in FIELDS}), FIELDS, ["request_id"])
    return to_table(rows, FIELDS, is_explicit=True, has_positions=has_positions)


def kinds(found: Iterable[Finding]) -> list[str]:
    return [finding.kind for finding in found]


def of_x(frame: pl.DataFrame, x: pl.Expr) -> set[str]:
    rows = table(frame.with_columns(x.cast(pl.Float64).alias("x")))
    found = [*check_proxies(rows), *check_siblings(rows), *check_futures(rows)]
    assert {finding.field for finding in found} <= {"x"}
    return {finding.kind for finding in found}


CLICK = pl.col("click")
NOISE = pl.Series(np.random.default_rng(1).normal(size=ROWS))
UNIFORM = pl.Series(np.random.default_rng(2).random(ROWS))
N = pl.int_range(1, pl.len() + 1)
BESIDE = CLICK.sum().over("request_id") - CLICK


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        pytest.param(CLICK, "label_proxy", id="the label"),
        pytest.param(pl.when(UNIFORM < 0.1).then(1 - CLICK).otherwise(CLICK), "label_proxy", id="label, a tenth wrong"),
        pytest.param((1.5 * CLICK + NOISE).exp(), "label_proxy", id="dwell"),
        pytest.param(pl.when(CLICK == 1).then(NOISE), "label_proxy", id="missing unless clicked"),
        pytest.param(pl.when((CLICK == 1) | (UNIFORM < 0.1)).then(NOISE), "label_proxy", id="often missing"),
        pytest.param(CLICK * (UNIFORM < 0.05), "label_proxy", id="a rare sure outcome"),
        pytest.param(BESIDE, "sibling_label", id="sibling"),
        pytest.param(pl.when(UNIFORM < 0.2).then(UNIFORM > 0.15).otherwise(BESIDE), "sibling_label", id="noisy"),
        pytest.param(CLICK.mean().over("ad"), "future_statistic", id="rate"),
        pytest.param(CLICK.mean().over("ad").round(2) * 500 - 3, "future_statistic", id="rate, rounded and scaled"),
        pytest.param(CLICK.mean().over("ad") + 0.02 * NOISE, "future_statistic", id="rate with noise"),
        pytest.param((CLICK.sum().over("ad") + 1).log(), "future_statistic", id="logarithm of clicks"),
        pytest.param(CLICK.mean().over("user"), "future_statistic", id="user rate"),
        pytest.param(pl.len().over("ad"), "future_statistic", id="impressions"),
        pytest.param((CLICK.cum_sum() / N).over("ad"), "future_statistic", id="rate with its own row"),
        pytest.param(CLICK.cum_sum().over("ad"), "future_statistic", id="clicks with its own row"),
        pytest.param((CLICK.cum_sum(reverse=True) / (pl.len() + 1 - N)).over("ad"), "future_statistic", id="future"),
        pytest.param((NOISE - NOISE.mean()) / NOISE.std(), "normaliser", id="z-score"),
        pytest.param(pl.lit(NOISE.rank() / ROWS), "normaliser", id="ranks"),
    ],
)  # fmt: skip
def test_a_field_that_leaks_is_found(x: pl.Expr, kind: str) -> None:
    assert of_x(log(), x) & {kind}


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(pl.col("x"), id="quality"),
        pytest.param(pl.col("x") + 0.3 * NOISE, id="quality with noise"),
        pytest.param(pl.lit(NOISE), id="noise"),
        pytest.param(pl.col("position"), id="position"),
        pytest.param(pl.lit(UNIFORM), id="uniform"),
        pytest.param((N - 1).over("ad"), id="impressions before"),
        pytest.param((CLICK.cum_sum() - CLICK).over("ad"), id="clicks before"),
        pytest.param(((CLICK.cum_sum() - CLICK) / (N - 1)).fill_nan(None).over("ad"), id="rate before"),
        pytest.param(((CLICK.cum_sum() - CLICK + 1) / (N + 5)).over("user"), id="user rate before, smoothed"),
        pytest.param(CLICK.shift(1).ewm_mean(half_life=10).over("ad"), id="decayed rate before"),
        pytest.param((pl.col("time_s") // 3600) % 24, id="hour"),
        pytest.param(pl.when(UNIFORM < 0.5).then(NOISE), id="missing at random"),
        pytest.param(pl.col("x").max().over("request_id"), id="the best of the request"),
        pytest.param(1e300 * pl.lit(NOISE), id="far out"),
    ],
)
def test_an_honest_field_is_not(x: pl.Expr) -> None:
    assert not of_x(log(), x)


@pytest.mark.parametrize("share", [0.01, 0.05, 1.0])
def test_repeated_rows_are_found(share: float) -> None:
    frame = log()
    twice = pl.concat([frame, frame.head(int(share * ROWS))])
    (finding,) = check_repeats(table(twice))
    assert (finding.kind, finding.evidence["rows"]) == ("repeated_rows", int(share * ROWS))
    assert kinds(check_repeats(table(twice, has_positions=False))) == ["repeated_rows"]


def test_the_same_ad_for_the_same_user_at_another_time_or_place_is_no_repeat() -> None:
    frame = log()
    later = frame.with_columns(pl.col("time_s") + 1e6, request_id="later-" + pl.col("request_id"))
    beside = frame.with_columns(pl.col("position") + 2)
    assert not list(check_repeats(table(pl.concat([frame, later, beside]))))
    assert not list(check_repeats(table(frame, has_positions=False)))  # ads drawn with replacement: some stand twice


def test_a_request_spread_over_the_log_is_found() -> None:
    frame = log()
    assert not list(check_requests(table(frame), wait_s=60.0))
    is_moved = (pl.int_range(pl.len()) % 40 == 1) & (pl.col("position") == 1)
    moved = table(frame.with_columns(pl.col("time_s") + 86_400.0 * is_moved))
    (finding,) = check_requests(moved, wait_s=60.0)
    assert (finding.kind, finding.evidence["requests"]) == ("split_request", ROWS // 40)


def test_a_forbidden_key_on_both_sides_is_found() -> None:
    frame = log()
    middle_s = ROWS // 4 * 30.0
    side = pl.when(pl.col("time_s") < middle_s).then(pl.lit("train ")).otherwise(pl.lit("test "))
    apart = frame.with_columns(user=side + pl.col("user"))
    assert kinds(check_forbidden(table(frame), ["user"], end_s=middle_s)) == ["shared_key"]
    assert not list(check_forbidden(table(apart), ["user"], end_s=middle_s))


def clock(time_s: list[float], delay_s: list[float | None], *, disorder_s: float = 1.0) -> Clock:
    times = pl.DataFrame({"time_s": time_s, "delay_s": pl.Series(delay_s, dtype=pl.Float64)})
    times = times.with_columns(click_time_s=pl.col("time_s") + pl.col("delay_s"))
    seen = Clock(disorder_s=disorder_s, wait_s=60.0)
    for row in range(len(time_s)):  # the most chunks there can be
        seen.add(times[row : row + 1])
    return seen


@pytest.mark.parametrize(
    ("time_s", "delay_s", "expected"),
    [
        ([0.0, 1.0, 1.0, 2.0], [None, 0.5, 5.0, None], []),
        ([0.0, 2.0, 1.0, 2.0], [None, 0.5, 5.0, None], []),  # within disorder_s
        ([0.0, 5.0, 3.9, 6.0], [None, 0.5, 5.0, None], ["time_order"]),
        ([0.0, 1.0, 2.0, 3.0], [None, -0.5, 5.0, None], ["early_click"]),
        ([0.0, 1.0, 2.0, 3.0], [None, 0.0, 5.0, None], ["zero_delay"]),
        ([float(row) for row in range(1_200)], [0.0] + [5.0] * 1_199, []),  # one that was rounded
    ],
)
def test_times_that_leak_are_found(time_s: list[float], delay_s: list[float | None], expected: list[str]) -> None:
    assert kinds(check_clock(clock(time_s, delay_s), disorder_s=1.0)) == expected


@pytest.mark.parametrize(
    ("mean_s", "wait_s", "expected"),
    [(5.0, 60.0, []), (5.0, 0.1, ["short_wait"]), (0.0, 60.0, ["zero_delay"])],
)
def test_a_wait_that_most_clicks_miss_is_found(mean_s: float, wait_s: float, expected: list[str]) -> None:
    drawn = clock([0.0], [None])
    found = check_delays(drawn, has_click_times=False, delay_mean_s=mean_s, wait_s=wait_s, is_corrected=False)
    assert kinds(found) == expected
    if wait_s < mean_s:
        kept = check_delays(drawn, has_click_times=False, delay_mean_s=mean_s, wait_s=wait_s, is_corrected=True)
        assert not list(kept)


@pytest.mark.parametrize(
    ("slides", "warmup_s", "expected"),
    [
        (Slides(slide_s=100.0), 300.0, []),
        (Slides(slide_s=100.0), 2_000.0, ["no_test"]),
        (Slides(edges=(500.0,)), 0.0, []),
        (Slides(edges=(1e6,)), 0.0, ["no_test"]),
    ],
)
def test_a_split_without_a_test_side_is_found(slides: Slides, warmup_s: float, expected: list[str]) -> None:
    assert kinds(check_slides(0.0, 1_000.0, slides, warmup_s=warmup_s)) == expected
