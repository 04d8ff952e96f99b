"""The simulated world as a file that its configuration reads."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from infra.settings import read_settings
from stream.logs.reader import RowCounts, read_rows
from stream.logs.simulated import write_simulated
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
