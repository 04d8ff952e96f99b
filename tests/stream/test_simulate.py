"""The simulated world: its truth is true, its drifts drift, and rows do not depend on how they are cut."""

from __future__ import annotations

from typing import get_args

import numpy as np
import polars as pl
import pytest

from stream.simulate import HOUR_S, N_USERS, ROWS_PER_HOUR, START_S, Ads, Drift, World, simulate

ROWS = 40_000
DRIFTS: tuple[Drift, ...] = get_args(Drift)


def world_of(drift: Drift = "none", seed: int = 3, rows: int = ROWS, *, rows_max: int = 65_536) -> pl.DataFrame:
    return pl.concat(simulate(seed, rows, drift, rows_max=rows_max))


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return world_of()


def test_the_same_seed_gives_the_same_rows_and_another_one_others(log: pl.DataFrame) -> None:
    assert world_of().equals(log)
    assert not world_of(seed=4)["ad_id"].equals(log["ad_id"])
    assert not np.array_equal(World(3, "none", 1.0).tastes, World(4, "none", 1.0).tastes)


@pytest.mark.parametrize("rows_max", [777, 10_000])
def test_rows_do_not_depend_on_how_they_are_cut(log: pl.DataFrame, rows_max: int) -> None:
    frames = list(simulate(3, ROWS, rows_max=rows_max))
    assert {frame.height for frame in frames[:-1]} == {rows_max}
    assert pl.concat(frames).equals(log)


def test_a_longer_log_begins_with_the_shorter_one(log: pl.DataFrame) -> None:
    assert world_of(rows=ROWS // 4).equals(log[: ROWS // 4])


def test_there_are_as_many_rows_as_asked_for_in_time_order_at_about_one_a_second(log: pl.DataFrame) -> None:
    assert log.height == ROWS
    assert log["time_s"].is_sorted()
    days = world_of(rows=3 * 24 * ROWS_PER_HOUR)
    assert (days["time_s"][-1] - START_S) / HOUR_S == pytest.approx(72.0, rel=0.05)


def test_a_request_has_one_user_one_time_and_positions_from_the_top(log: pl.DataFrame) -> None:
    requests = log.group_by("request_id").agg(
        pl.col("user_id", "time_s", "placement").n_unique(),
        (pl.col("position").sort() == pl.int_range(pl.len())).all().alias("is_from_the_top"),
    )
    assert requests.select(pl.col("user_id", "time_s", "placement").max()).row(0) == (1, 1, 1)
    assert requests["is_from_the_top"].all()


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_true_click_probability_is_what_is_clicked(drift: Drift) -> None:
    frame = world_of(drift, rows=100_000)
    click, truth = frame["click"].to_numpy(), frame["true_ctr"].to_numpy()
    assert 0.02 < truth.mean() < 0.08
    for low, high in ((0.0, 0.5), (0.5, 0.9), (0.9, 1.0)):
        bounds = np.quantile(truth, [low, high])
        inside = (truth >= bounds[0]) & (truth <= bounds[1])
        error = np.sqrt((truth[inside] * (1.0 - truth[inside])).sum())
        assert abs(click[inside].sum() - truth[inside].sum()) < 4.0 * error


def test_the_truth_tells_clicks_apart_but_not_perfectly(log: pl.DataFrame) -> None:
    ranked = log.sort("true_ctr")["click"].to_numpy()
    n_clicks = ranked.sum()
    auc = (np.flatnonzero(ranked).sum() - n_clicks * (n_clicks - 1) / 2) / (n_clicks * (len(ranked) - n_clicks))
    assert 0.68 < auc < 0.85


def test_a_click_has_a_time_after_its_impression_and_no_other_row_has_one(log: pl.DataFrame) -> None:
    delay_s = log["click_time_s"] - log["time_s"]
    assert delay_s.is_not_null().equals(log["click"] == 1)
    assert delay_s.min() >= 0.0  # type: ignore[operator]
    assert delay_s.median() < 15.0 < delay_s.mean() < 60.0  # type: ignore[operator]


def test_ads_come_and_go() -> None:
    days = world_of(rows=3 * 24 * ROWS_PER_HOUR)
    by_day = [set(day["ad_id"]) for day in days.with_columns(day=days["time_s"] // 86_400.0).partition_by("day")]
    first, last = by_day[0], by_day[2]
    assert len(first & last) < 0.4 * len(first), "most of the first day's ads are gone by the third"
    assert len(last - first) > 0.5 * len(last), "most of the third day's ads are new"


def true_ctr(world: World, passed: float) -> np.ndarray:
    """Return the click probability of the same impressions at one moment, `passed` of the log's time gone by."""
    rng = np.random.default_rng(0)
    ads = Ads(np.arange(500), world, rng, np.full(500, np.inf))
    user, ad = rng.integers(N_USERS, size=500), np.arange(500)
    hour_s = 24.0 * HOUR_S  # the same hour of the day
    time_s = np.full(500, START_S + round(passed * 100) * hour_s)
    place = np.zeros(500, dtype=np.int64)
    return world.click_probability(user, ads, ad, time_s, placement=place, position=place)


HUNDRED_DAYS_S = 100 * 24 * HOUR_S


@pytest.mark.parametrize(
    ("drift", "same", "different"),
    [
        ("none", [(0.0, 1.0)], []),
        ("abrupt", [(0.0, 0.49), (0.5, 1.0)], [(0.49, 0.5)]),
        ("gradual", [(0.0, 0.33), (0.67, 1.0)], [(0.4, 0.5), (0.5, 0.6)]),
        ("recurring", [(0.0, 0.25), (0.0, 0.5)], [(0.0, 0.12), (0.12, 0.25)]),
    ],
)
def test_each_drift_changes_the_world_when_it_should_and_only_then(
    drift: Drift, same: list[tuple[float, float]], different: list[tuple[float, float]]
) -> None:
    world = World(3, drift, HUNDRED_DAYS_S)
    for before, after in same:
        np.testing.assert_allclose(true_ctr(world, before), true_ctr(world, after), rtol=1e-9)
    for before, after in different:
        change = np.abs(np.log(true_ctr(world, before) / true_ctr(world, after)))
        assert change.mean() > 0.05


def test_a_drift_leaves_the_users_and_ads_as_they_are() -> None:
    same = ["time_s", "user_id", "ad_id", "placement", "position", "category"]
    assert world_of("abrupt").select(same).equals(world_of("none").select(same))
