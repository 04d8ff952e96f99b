"""The simulated cascade: it narrows, its truth is true, and an hour depends on the seed and the hour alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from stream.cascade import CREATIVES_MAX, STAGES, Cascade, Funnel, at_position, log_hours, market_frames

FUNNEL = Funnel(matched=200, preranked=40, exposed=5, sample_rate=0.25)


def a_cascade(seed: int = 3, hours: int = 4, funnel: Funnel = FUNNEL) -> Cascade:
    return Cascade(seed, hours=hours, funnel=funnel, n_ads=500)


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return pl.concat(log_hours(a_cascade()))


def test_each_request_narrows_and_the_log_holds_a_sample_of_what_was_not_ranked(log: pl.DataFrame) -> None:
    assert log.select(pl.sum_horizontal(STAGES)).unique().rows() == [(1,)]
    per_request = log.group_by("request_id").agg(pl.col(*STAGES).sum())
    assert per_request["realshow"].unique().to_list() == [5]
    assert per_request["rank_neg"].unique().to_list() == [35]
    assert per_request["prerank_neg"].mean() == pytest.approx(160 * 0.25, rel=0.02)
    assert log.group_by("prerank_neg").agg(pl.col("sample_rate").unique()).sort("prerank_neg").rows() == [
        (0, [1.0]),
        (1, [0.25]),
    ]
    assert log["time_s"].is_sorted()
    assert not log.filter(pl.struct("request_id", "ad_id").is_duplicated()).height


def test_only_what_is_shown_has_a_place_a_creative_and_clicks(log: pl.DataFrame) -> None:
    shown, others = log.filter(pl.col("realshow") == 1), log.filter(pl.col("realshow") == 0)
    assert others.select("position", "creative_id", "click_time_s").null_count().row(0) == (others.height,) * 3
    assert others["click"].sum() == 0
    assert shown["creative_id"].null_count() == 0
    assert (shown["click_time_s"].is_not_null() == (shown["click"] == 1)).all()
    assert shown.group_by("request_id").agg(pl.col("position").sort())["position"].unique().to_list() == [
        [0, 1, 2, 3, 4]
    ]


def test_what_is_clicked_is_what_the_truth_says_and_better_ads_come_further(log: pl.DataFrame) -> None:
    shown = log.filter(pl.col("realshow") == 1)
    expected, sd = shown["true_ctr"].sum(), np.sqrt((shown["true_ctr"] * (1 - shown["true_ctr"])).sum())
    assert shown["click"].sum() == pytest.approx(expected, abs=4 * sd)
    mean = [log.filter(pl.col(stage) == 1)["true_ctr"].mean() for stage in STAGES]
    assert mean == sorted(mean, reverse=True)


def test_the_truth_of_what_was_shown_is_that_of_its_creative_at_its_place() -> None:
    cascade = a_cascade(hours=1)
    hour, log = next(cascade.hours()), next(log_hours(cascade))
    shown = log.filter(pl.col("realshow") == 1).head(200)
    row_of = {int(number): row for row, number in enumerate(hour.market.number)}
    ad = np.array([row_of[one] for one in shown["ad_id"]])
    logit = cascade.click_logit(hour, shown["request_id"].to_numpy(), ad)
    creative = [int(one.split("-")[1]) for one in shown["creative_id"]]
    found = at_position(logit[np.arange(len(ad)), creative], shown["position"].to_numpy())
    np.testing.assert_allclose(found, shown["true_ctr"].to_numpy(), rtol=1e-12)
    absent = np.arange(CREATIVES_MAX) >= hour.market.n_creatives[ad][:, None]
    assert (np.isneginf(logit) == absent).all()


def test_creatives_are_drawn_evenly_and_their_propensity_is_known(log: pl.DataFrame) -> None:
    shown = log.filter(pl.col("realshow") == 1)
    n_creatives = (1.0 / shown["propensity"]).round().cast(pl.Int64)
    index = shown["creative_id"].str.split("-").list.get(1).cast(pl.Int64)
    assert (index < n_creatives).all()
    first = (index == 0).cast(pl.Float64)
    assert (first - shown["propensity"]).mean() == pytest.approx(0.0, abs=4 * 0.5 / np.sqrt(shown.height))


def test_an_hour_is_the_same_in_a_longer_log_and_another_in_another_world(log: pl.DataFrame) -> None:
    short = pl.concat(log_hours(a_cascade(hours=2)))
    assert short.equals(log[: short.height])
    assert not next(log_hours(a_cascade(seed=4)))["ad_id"].equals(next(log_hours(a_cascade()))["ad_id"])


def test_the_market_is_what_files_of_ads_and_creatives_hold() -> None:
    market = next(a_cascade().markets())
    ads, creatives = market_frames(market)
    assert ads["ad_id"].to_list() == market.number.tolist()
    assert ads["bid_micros"].min() > 0
    assert creatives["creative_id"].is_unique().all()
    counts = creatives.group_by("ad_id", maintain_order=True).len()["len"].to_list()
    assert counts == market.n_creatives.tolist()
    assert {*counts} == set(range(2, 11))


@pytest.mark.parametrize("funnel", [(10, 20, 5, 0.1), (20, 5, 10, 0.1), (20, 10, 0, 0.1), (20, 10, 5, 0.0)])
def test_a_cascade_that_does_not_narrow_is_refused(funnel: tuple[int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Funnel(*funnel)
    with pytest.raises(ValueError, match="n_ads must be >= 2 x matched"):
        Cascade(0, hours=1, n_ads=10)
