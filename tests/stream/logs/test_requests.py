"""Requests by themselves; how they come out of real files is tested in test_reader.py."""

from __future__ import annotations

import polars as pl

from features.fields import Field
from stream.logs.requests import in_order, request_ids, whole_requests

FIELDS = (Field(name="ad", side="item"), Field(name="tags", side="item", kind="categories"))


def rows(*given: tuple[float, str, int | None]) -> pl.DataFrame:
    schema = {"time_s": pl.Float64, "request_id": pl.String, "position": pl.Int32}
    return pl.DataFrame(given, schema=schema, orient="row").with_columns(
        pl.lit("a").alias("field.ad"), pl.lit(None, dtype=pl.List(pl.String)).alias("field.tags")
    )


def test_an_id_is_the_same_in_every_run_and_on_every_machine() -> None:
    raw = pl.DataFrame({"user": [17, 18]})
    time_s = pl.Series([100.0, 100.5])
    assert request_ids(raw, time_s, ["user"], 0).to_list() == ["397c5f6334d7867c", "0f2bd889527ed0c6"]
    assert request_ids(raw, time_s, [], 7).to_list() == ["7", "8"]


def test_the_last_instant_of_a_chunk_waits_for_its_other_rows() -> None:
    first, second = rows((1.0, "a", None), (2.0, "b", None)), rows((2.0, "b", None), (3.0, "c", None))
    frames = [frame["request_id"].to_list() for frame in whole_requests(iter([first, second]), rows_max=100)]
    assert frames == [["a"], ["b", "b"], ["c"]]


def test_no_rows_at_all_are_no_frames() -> None:
    assert list(whole_requests(iter([]), rows_max=10)) == []
    assert list(whole_requests(iter([rows()]), rows_max=10)) == []


def test_rows_without_a_position_are_numbered_within_their_request() -> None:
    frame, n_cut = in_order(rows((1.0, "b", None), (1.0, "a", None), (1.0, "b", None)), FIELDS)
    assert frame.select("request_id", "position").rows() == [("a", 0), ("b", 0), ("b", 1)]
    assert n_cut == 0
