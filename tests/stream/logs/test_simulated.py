"""The simulated world as a file that its configuration reads."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from infra.settings import read_settings
from stream.cascade import Cascade, Funnel, log_hours
from stream.events import Click, Impression, Request
from stream.logs.ads import read_ads
from stream.logs.reader import RowCounts, read_rows
from stream.logs.simulated import write_cascade, write_simulated
from stream.logs.source import read_arrivals
from stream.simulate import simulate


def test_the_file_holds_the_world_and_its_configuration_reads_it(tmp_path: Path) -> None:
    told: list[int] = []
    path = write_simulated(
        tmp_path / "simulated" / "impressions.parquet", seed=3, rows=5000, drift="abrupt", on_progress=told.append
    )
    assert told == [5000]
    world = pl.concat(simulate(3, 5000, "abrupt"))
    assert pl.read_parquet(path).equals(world)
    assert [file.name for file in path.parent.iterdir()] == ["impressions.parquet"]

    settings = read_settings(Path(__file__).resolve().parents[3] / "configs" / "simulated.toml")
    assert settings.log is not None
    counts = RowCounts()
    frame = pl.concat(read_rows(settings.log, settings.fields, [tmp_path], counts, wait_s=60.0))
    assert (counts.used, counts.clicks, counts.warnings()) == (5000, world["click"].sum(), [])
    assert frame.drop_nulls("click_time_s").height == counts.clicks
    assert frame["request_id"].n_unique() == world["request_id"].n_unique()
    assert not any("true" in name for name in frame.columns)


def test_the_files_of_the_cascade_are_read_as_requests_with_all_their_candidates(tmp_path: Path) -> None:
    funnel = Funnel(matched=60, preranked=20, exposed=4, sample_rate=0.5)
    cascade = Cascade(3, hours=2, funnel=funnel, n_ads=200, requests_per_hour=30.0)
    n_candidates, n_ads = write_cascade(tmp_path / "cascade", cascade)
    settings = read_settings(Path(__file__).resolve().parents[3] / "configs" / "cascade.toml")
    assert settings.log is not None
    world = pl.concat(log_hours(cascade))
    assert n_candidates == world.height
    assert {*world["ad_id"]} <= {*pl.read_parquet(tmp_path / "cascade" / "ads.parquet")["ad_id"]}
    counts = RowCounts()
    events = [event for _, event in read_arrivals(settings, [tmp_path], counts)]
    requests = [event for event in events if isinstance(event, Request)]
    shown = [event for event in events if isinstance(event, Impression)]
    assert (counts.used, counts.unexposed) == (n_candidates, int((world["realshow"] == 0).sum()))
    assert (counts.read, counts.warnings()) == (n_candidates, [])
    assert sum(isinstance(event, Click) for event in events) == world["click"].sum() == counts.clicks
    assert len(shown) == world["realshow"].sum() == 4 * len(requests)
    first = [(one.stage, one.sample_rate) for one in requests[0].candidates]
    assert first[:20] == [("exposed", 1.0)] * 4 + [("rank_neg", 1.0)] * 16
    assert {*first[20:]} == {("prerank_neg", 0.5)}
    own = [event for event in shown if event.request_id == requests[0].request_id]
    assert [(one.ad_id, one.position) for one in own] == [
        (one.ad_id, n) for n, one in enumerate(requests[0].candidates[:4])
    ]
    ads = read_ads(settings.log, settings.fields, [tmp_path])
    assert ads.is_complete
    assert len(ads.ads) == n_ads
    assert all(2 <= len(ad.creatives) <= 10 and ad.bid_micros > 0 for ad in ads.ads.values())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = write_simulated(tmp_path / "log.parquet", seed=1, rows=10)
    before = path.read_bytes()

    def stop(_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_simulated(path, seed=2, rows=10, on_progress=stop)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["log.parquet"]


def test_a_log_must_have_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a simulated log must have at least one row, got 0"):
        write_simulated(tmp_path / "log.parquet", seed=1, rows=0)
