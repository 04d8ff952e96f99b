"""The simulated worlds as Parquet files, which configs/simulated.toml and cascade.toml read like any other log.

Owns the files. Must not know how a world works.

Invariants: a file is whole or not there; the same arguments give the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow.parquet

from stream.cascade import Cascade, log_hours, market_frames
from stream.simulate import Drift, simulate


def write_simulated(
    path: Path, *, seed: int, rows: int, drift: Drift = "none", on_progress: Callable[[int], None] | None = None
) -> Path:
    """Write a simulated log and return its path; a file that is there is replaced.

    Args:
        path: Directories on the way to it are made.
        seed: Which world.
        rows: How many impressions, > 0.
        drift: How the world changes.
        on_progress: Called with the rows written so far.

    Raises:
        ValueError: If there are no rows to write.
    """
    if rows < 1:
        raise ValueError(f"a simulated log must have at least one row, got {rows}")
    return _write(path, simulate(seed, rows, drift), on_progress)


def write_cascade(
    directory: Path,
    cascade: Cascade,
    *,
    hours: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Write candidates.parquet, ads.parquet and creatives.parquet; return how many candidates and ads they hold.

    Args:
        directory: Made if it is not there.
        cascade: The world.
        hours: How many of its hours are logged; None: all. Ads and creatives are those of all hours.
        on_progress: Called with the candidates written so far.
    """
    ads, creatives = (pl.concat(frames) for frames in zip(*_markets(cascade), strict=True))
    _write(directory / "ads.parquet", iter([ads]))
    _write(directory / "creatives.parquet", iter([creatives]))
    n_written = 0

    def count(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        nonlocal n_written
        for frame in frames:
            n_written += frame.height
            yield frame

    _write(directory / "candidates.parquet", count(islice(log_hours(cascade), hours)), on_progress)
    return n_written, ads.height


def _markets(cascade: Cascade) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield what is new in each hour's market."""
    newest = -1
    for market in cascade.markets():
        ads, creatives = market_frames(market)
        yield ads.filter(pl.col("ad_id") > newest), creatives.filter(pl.col("ad_id") > newest)
        newest = int(market.number.max())


def _write(path: Path, frames: Iterator[pl.DataFrame], on_progress: Callable[[int], None] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    n_written = 0
    writer: pyarrow.parquet.ParquetWriter | None = None
    try:
        for frame in frames:
            table = frame.to_arrow()
            writer = writer or pyarrow.parquet.ParquetWriter(partial, table.schema)
            writer.write_table(table)
            n_written += frame.height
            if on_progress is not None:
                on_progress(n_written)
        if writer is not None:
            writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
