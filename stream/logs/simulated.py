"""The simulated ad world as a Parquet file, which `configs/simulated.toml` reads like any other log.

Owns the file. Must not know how the world works.

Invariants: the file is whole or not there; the same arguments give the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet

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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    n_written = 0
    writer: pyarrow.parquet.ParquetWriter | None = None
    try:
        for frame in simulate(seed, rows, drift):
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
