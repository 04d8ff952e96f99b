"""When a click came: the log's word, or a delay that the row and the seed alone decide."""

from __future__ import annotations

import math

import polars as pl
import pytest

from stream.logs.clicks import with_click_times

Row = tuple[float, str, int, int, float | None]


def rows(*given: Row) -> pl.DataFrame:
    columns = {
        "time_s": pl.Float64,
        "request_id": pl.String,
        "position": pl.Int32,
        "click": pl.Int8,
        "click_time_s": pl.Float64,
    }
    return pl.DataFrame(given, schema=columns, orient="row")


def times(frame: pl.DataFrame, mean: float = 5.0, seed: int = 7) -> list[float | None]:
    return with_click_times(frame, delay_mean_s=mean, delay_seed=seed)["click_time_s"].to_list()


def test_the_logs_times_stay_and_what_was_not_clicked_has_none() -> None:
    frame = rows((20.0, "a", 0, 1, 33.0), (20.0, "a", 1, 0, None), (21.0, "b", 0, 1, None))
    known, none, drawn = times(frame)
    assert (known, none) == (33.0, None)
    assert drawn is not None
    assert drawn > 21.0


def test_a_drawn_delay_depends_on_the_row_and_the_seed_alone() -> None:
    frame = rows((20.0, "a", 0, 1, None), (20.0, "a", 1, 1, None), (21.0, "b", 0, 1, None))
    assert times(frame) == times(frame[:2]) + times(frame[2:])
    assert len(set(times(frame))) == 3
    assert not set(times(frame)) & set(times(frame, seed=8))


def test_drawn_delays_are_exponential_with_the_mean_asked_for() -> None:
    frame = rows(*((20.0, f"r{number:05}", 0, 1, None) for number in range(20_000)))
    delays = sorted(time_s - 20.0 for time_s in times(frame) if time_s is not None)
    assert delays[0] > 0.0
    assert sum(delays) / len(delays) == pytest.approx(5.0, rel=0.03)
    assert delays[len(delays) // 2] == pytest.approx(5.0 * math.log(2.0), rel=0.03)


def test_a_mean_of_zero_puts_the_click_at_the_impression() -> None:
    assert times(rows((20.0, "a", 0, 1, None)), mean=0.0) == [20.0]


def test_no_rows_have_no_clicks() -> None:
    assert times(rows()) == []
