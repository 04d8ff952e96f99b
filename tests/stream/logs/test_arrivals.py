"""The events of a log: their order, drawn delays, ticks; and that none of it depends on how rows were cut."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.fields import Field
from models.window import Slides
from stream.blocks import Rules
from stream.events import Candidate, Impression, Request, Tick
from stream.ledger import Ledger
from stream.logs.arrivals import OPEN_END_S, Arrival, log_events
from stream.logs.clicks import with_click_times

FIELDS = (
    Field(name="user", side="user"),
    Field(name="page", side="context"),
    Field(name="ad", side="item"),
    Field(name="colour", side="creative"),
)
SLIDES = Slides(slide_s=100.0)
RULES: dict[str, Any] = {"wait_s": 10.0, "disorder_s": 2.0}


def rows(*given: tuple[float, str, int, int] | tuple[float, str, int, int, float]) -> pl.DataFrame:
    """Return rows as the reader yields them, from (time_s, request_id, position, click[, click_time_s])."""
    frame = pl.DataFrame(
        {
            "time_s": [float(one[0]) for one in given],
            "request_id": [one[1] for one in given],
            "position": pl.Series([one[2] for one in given], dtype=pl.Int32),
            "propensity": [1.0] * len(given),
            "ad_id": [f"ad{one[2]}" for one in given],
            "click": pl.Series([one[3] for one in given], dtype=pl.Int8),
            "click_time_s": pl.Series([one[4] if len(one) > 4 else None for one in given], dtype=pl.Float64),
            "field.user": [f"user of {one[1]}" for one in given],
            "field.page": ["home"] * len(given),
            "field.ad": [f"ad{one[2]}" for one in given],
            "field.colour": pl.Series([None] * len(given), dtype=pl.String),
        }
    )
    return with_click_times(frame, delay_mean_s=5.0, delay_seed=7)


def events(*frames: pl.DataFrame, slides: Slides = SLIDES, **rules: Any) -> list[Arrival]:
    return list(log_events(frames, FIELDS, slides, **(RULES | rules)))


def outline(arrivals: Iterable[Arrival]) -> list[tuple[str, float]]:
    return [(f"{type(event).__name__[0]}{request_id or ''}", event.time_s) for request_id, event in arrivals]


def ticks(arrivals: Iterable[Arrival]) -> list[float]:
    return [event.time_s for _, event in arrivals if isinstance(event, Tick)]


def test_a_request_carries_its_values_and_goes_directly_before_its_impressions() -> None:
    arrivals = events(rows((20, "r", 0, 0), (20, "r", 1, 0)))
    values = {"user": "user of r", "page": "home"}
    candidates = [Candidate(f"ad{position}", {"ad": f"ad{position}", "colour": None}) for position in range(2)]
    assert [event for _, event in arrivals[:-1]] == [
        Request("r", 20.0, candidates, values),
        Impression("r", "ad0", 0, 20.0),
        Impression("r", "ad1", 1, 20.0),
    ]
    assert [request_id for request_id, _ in arrivals] == ["r", "r", "r", None]


def test_an_impression_carries_its_propensity() -> None:
    frame = rows((20, "r", 0, 0), (20, "r", 1, 0)).with_columns(propensity=pl.Series([0.25, 0.5]))
    found = [event.propensity for _, event in events(frame) if isinstance(event, Impression)]
    assert found == [0.25, 0.5]


def test_clicks_come_at_their_own_time_after_the_rows_of_the_same_instant() -> None:
    frame = rows((20, "a", 0, 1, 25.0), (21, "b", 0, 1, 21.0), (25, "c", 0, 0), (30, "d", 0, 0))
    assert outline(events(frame))[:-1] == [
        *[("Ra", 20.0), ("Ia", 20.0), ("Rb", 21.0), ("Ib", 21.0), ("Cb", 21.0)],
        *[("Rc", 25.0), ("Ic", 25.0), ("Ca", 25.0), ("Rd", 30.0), ("Id", 30.0)],
    ]


def test_a_click_beyond_its_frame_waits_for_its_time() -> None:
    first, second = rows((20, "a", 0, 1, 33.0), (21, "b", 0, 1, 99.0)), rows((30, "c", 0, 0), (40, "d", 0, 0))
    names = [name for name, _ in outline(events(first, second))]
    assert names == ["Ra", "Ia", "Rb", "Ib", "Rc", "Ic", "Ca", "Rd", "Id", "Cb", "T"]


def test_a_log_without_rows_has_no_events() -> None:
    assert events() == []


# Ticks ------------------------------------------------------------------------------------------------------------


def test_a_tick_moves_the_watermark_to_the_boundary_before_the_first_event_that_passes_it() -> None:
    frame = rows((50, "a", 0, 0), (101.9, "b", 0, 0), (102, "c", 0, 0), (110, "d", 0, 0))
    assert outline(events(frame)) == [
        *[("Ra", 50.0), ("Ia", 50.0), ("Rb", 101.9), ("Ib", 101.9), ("T", 102.0)],
        *[("Rc", 102.0), ("Ic", 102.0), ("Rd", 110.0), ("Id", 110.0), ("T", 202.0)],
    ]


def test_a_tick_goes_no_further_than_the_watermark_of_the_event_behind_it() -> None:
    assert ticks(events(rows((50, "a", 0, 0), (201, "b", 0, 0), (250, "c", 0, 0))))[:2] == [102.0, 202.0]


def test_a_click_that_passes_a_boundary_asks_for_the_tick_too() -> None:
    frame = rows((50, "a", 0, 1, 150.0))
    assert outline(events(frame)) == [("Ra", 50.0), ("Ia", 50.0), ("T", 102.0), ("Ca", 150.0), ("T", 202.0)]


def test_a_long_gap_has_one_tick() -> None:
    assert ticks(events(rows((50, "a", 0, 0), (950, "b", 0, 0)))) == [902.0, 1002.0]


def test_the_last_tick_closes_the_slide_in_which_the_last_row_settles() -> None:
    assert ticks(events(rows((185, "a", 0, 0)))) == [202.0], "185 + 10 settles in the second slide"
    assert ticks(events(rows((195, "a", 0, 0)))) == [302.0], "195 + 10 settles in the third"


def test_a_click_long_after_the_last_row_does_not_move_the_end() -> None:
    assert ticks(events(rows((150, "a", 0, 1, 195.0)))) == [202.0], "the row settles at 160, the watermark is 193"


def test_edges_have_their_ticks_and_an_end_within_finite_time() -> None:
    slides = Slides(edges=(60.0, 90.0, 200.0))
    assert ticks(events(rows((55, "a", 0, 0), (95, "b", 0, 0)), slides=slides)) == [92.0, 202.0]
    assert ticks(events(rows((250, "a", 0, 0)), slides=slides)) == [260.0 + OPEN_END_S + 2.0]


@given(boundary_s=st.floats(0.0, 4e9), disorder_s=st.floats(0.0, 1e4))
def test_a_tick_never_falls_short_of_its_boundary(boundary_s: float, disorder_s: float) -> None:
    slides = Slides(edges=(boundary_s, boundary_s + 1e6))
    frame = rows((boundary_s - 1.0, "a", 0, 0), (boundary_s + disorder_s + 1.0, "b", 0, 0))
    first = ticks(events(frame, slides=slides, disorder_s=disorder_s))[0]
    assert boundary_s <= first - disorder_s <= math.nextafter(boundary_s, math.inf) + 1e-6


# The whole --------------------------------------------------------------------------------------------------------


drawn_rows = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from("abcde"), st.integers(1, 3), st.integers(0, 1)),
    min_size=1,
    max_size=25,
)


def as_log(drawn: list[tuple[int, str, int, int]]) -> pl.DataFrame:
    requests = {(float(t), f"{name}{t}"): (n_rows, click) for t, name, n_rows, click in drawn}
    return rows(
        *((t, name, place, click) for (t, name), (n_rows, click) in sorted(requests.items()) for place in range(n_rows))
    )


@settings(max_examples=60)
@given(drawn=drawn_rows, cuts=st.lists(st.integers(0, 400), max_size=4))
def test_the_events_do_not_depend_on_how_the_rows_were_cut(
    drawn: list[tuple[int, str, int, int]], cuts: list[int]
) -> None:
    log = as_log(drawn)
    bounds = [-1.0, *sorted(set(map(float, cuts))), 1e9]
    parts = [log.filter(pl.col("time_s").is_between(a, b, closed="right")) for a, b in pairwise(bounds)]
    assert events(*(part for part in parts if part.height)) == events(log)


@settings(max_examples=60)
@given(drawn=drawn_rows)
def test_events_arrive_in_the_order_of_their_times_and_the_ledger_settles_every_row(
    drawn: list[tuple[int, str, int, int]],
) -> None:
    log = as_log(drawn)
    arrivals = events(log)
    times = [event.time_s for request_id, event in arrivals if request_id is not None]
    assert times == sorted(times)
    ledger = Ledger(0, FIELDS, SLIDES, rules=Rules(10.0, 1e3, 2.0), block_rows=7, block_s=1e9)
    closed = [block for offset, (_, event) in enumerate(arrivals) for block in ledger.step(offset, 0.0, event)]
    counts = ledger.counts
    assert sum(len(block.rows["click"]) for block in closed) == counts.impressions == log.height
    assert (counts.pending, counts.held, counts.dead_letters, counts.duplicates, counts.orphan) == (0, 0, 0, 0, 0)
    assert counts.clicks == log["click"].sum()
