"""When a click came: at the time that the log gives, or at one drawn after the row was shown.

Owns the drawing of delays. Must not know files, events or what waits for a click.

Invariant: a drawn delay depends on the request, the position and the seed alone, so the clicks do not depend on how the
rows were cut into frames.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import xxhash


def with_click_times(frame: pl.DataFrame, *, delay_mean_s: float, delay_seed: int) -> pl.DataFrame:
    """Return the rows with the time of every click in `click_time_s`, null where there was none.

    Args:
        frame: click, click_time_s (null where the log does not say), time_s, request_id and position.
        delay_mean_s: Mean of the exponential delay of clicks whose time the log does not hold.
        delay_seed: Which delays are drawn.
    """
    lacks = frame.select((pl.col("click") == 1) & pl.col("click_time_s").is_null()).to_series()
    clicked = frame.filter(lacks)
    keys = zip(clicked["request_id"].to_list(), clicked["position"].to_list(), strict=True)
    texts = [f"{delay_seed}\x1f{request_id}\x1f{position}".encode() for request_id, position in keys]
    hashes = [xxhash.xxh3_64_intdigest(text) for text in texts]
    # 53 bits fill a float's mantissa; the half keeps u inside (0, 1), so that the logarithm is finite.
    uniform = ((np.array(hashes, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    drawn = clicked["time_s"] + pl.Series(-delay_mean_s * np.log(uniform), dtype=pl.Float64)
    return frame.with_columns(frame["click_time_s"].scatter(lacks.arg_true(), drawn))
