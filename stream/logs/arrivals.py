"""From rows of a log to the events that a live system would have seen, in the order in which it would have seen them.

Owns the merging of requests, impressions and clicks by event time, and the ticks. Must not know files, topics or the
ledger. The backtest and the replay call the same generator, so they see the same events.

Invariants: events leave in the order (time_s, rows before clicks, request_id, position), a request directly before its
impressions; the stream does not depend on how the rows were cut into frames (as long as the log is in time order);
nothing but clicks is kept between frames.

Ticks: the watermark is the largest event time minus `disorder_s`. Before the first event that would move it past slide
boundaries, one tick moves it to the last of them exactly; the tick at the end closes the slide of the last row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import polars as pl

from features.fields import COLUMN_PREFIX, Field, Side, raw_fields
from stream.events import Candidate, Click, Event, Impression, Request, Tick, Value
from stream.ledger import SlideEdges
from stream.logs.columns import EXPOSED

OPEN_END_S = 3.15e9  # an open last slide has no end; its tick needs one: a hundred years after the last row

Arrival = tuple[str | None, Event]  # the request_id to partition by; None goes to every partition

_CLICK_COLUMNS = {"time_s": pl.Float64, "request_id": pl.String, "position": pl.Int32, "ad_id": pl.String}


def log_events(
    frames: Iterable[pl.DataFrame],
    fields: Sequence[Field],
    slides: SlideEdges,
    *,
    wait_s: float,
    disorder_s: float,
) -> Iterator[Arrival]:
    """Yield the events of a log in order of arrival, ticks included.

    Args:
        frames: What `reader.read_rows` yields.
        fields: User and context values travel in the request, item and creative values with their candidate.
        slides: Where the ticks fall.
        wait_s: How long an impression waits for its click: decides when the last row has settled.
        disorder_s: How far the watermark stays behind the largest event time.
    """
    arrivals = _in_event_order(frames, fields)
    return _with_ticks(arrivals, slides, wait_s, disorder_s)


def _with_ticks(arrivals: Iterator[Arrival], slides: SlideEdges, wait_s: float, disorder_s: float) -> Iterator[Arrival]:
    newest_s = settled_s = -math.inf  # the largest event time; when the last row has settled
    boundary_s = due_s = math.inf  # the boundary passed last; the event time from which on a tick is due
    for key, event in arrivals:
        time_s = event.time_s
        if newest_s == -math.inf:
            boundary_s = time_s - disorder_s
            due_s = _next_due_s(slides, boundary_s, disorder_s)
        elif time_s >= due_s:
            passed_s = slides.last_boundary(boundary_s, time_s - disorder_s)
            assert passed_s is not None, "a tick is due only when a boundary is passed"
            yield None, Tick(time_of_watermark(passed_s, disorder_s))
            boundary_s, due_s = passed_s, _next_due_s(slides, passed_s, disorder_s)
        newest_s = max(newest_s, time_s)
        if not isinstance(event, Click):
            settled_s = max(settled_s, time_s + wait_s)
        yield key, event
    if newest_s > -math.inf:
        settled_s = max(settled_s, newest_s - disorder_s)  # a row that came late settles at the watermark
        end_s = slides.end_s(slides.index(settled_s))
        end_s = end_s if math.isfinite(end_s) else settled_s + OPEN_END_S
        yield None, Tick(time_of_watermark(end_s, disorder_s))


def _next_due_s(slides: SlideEdges, watermark_s: float, disorder_s: float) -> float:
    end_s = slides.end_s(slides.index(watermark_s))
    return time_of_watermark(end_s, disorder_s) if math.isfinite(end_s) else math.inf


def time_of_watermark(watermark_s: float, disorder_s: float) -> float:
    """Return an event time that moves the watermark there, and not by a rounding short of it."""
    time_s = watermark_s + disorder_s
    while time_s - disorder_s < watermark_s:
        time_s = math.nextafter(time_s, math.inf)
    return time_s


def _in_event_order(frames: Iterable[pl.DataFrame], fields: Sequence[Field]) -> Iterator[Arrival]:
    waiting = pl.DataFrame(schema=_CLICK_COLUMNS)
    for frame in frames:
        new = _clicks_of(frame)
        waiting = pl.concat([waiting, new]).sort("time_s", "request_id", "position", maintain_order=True)
        n_due = int(waiting["time_s"].search_sorted(frame["time_s"][-1], side="left"))
        due, waiting = _click_events(waiting[:n_due]), waiting[n_due:]
        click = next(due, None)
        for request, impressions in _requests(frame, fields):
            while click is not None and click.time_s < request.time_s:
                yield click.request_id, click
                click = next(due, None)
            key = request.request_id
            yield key, request
            for impression in impressions:
                yield key, impression
    for click in _click_events(waiting):
        yield click.request_id, click


def _clicks_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the clicks of the rows with their times."""
    clicked = frame.filter(pl.col("click") == 1)
    return clicked.with_columns(pl.col("click_time_s").alias("time_s")).select(list(_CLICK_COLUMNS))


def _click_events(clicks: pl.DataFrame) -> Iterator[Click]:
    columns = (clicks[name].to_list() for name in ("request_id", "ad_id", "position", "time_s"))
    return map(Click, *columns)


def _requests(frame: pl.DataFrame, fields: Sequence[Field]) -> Iterator[tuple[Request, list[Impression]]]:
    """Yield each request of a frame with its impressions; rows of one stand together, in order of position."""
    columns = (frame[name].to_list() for name in ("request_id", "ad_id", "position", "time_s", "propensity"))
    impressions = list(map(Impression, *columns))
    item_values = _values(frame, fields, ("item", "creative"))
    stages = frame["stage"].to_list() if "stage" in frame.columns else None
    reached = (stages, frame["sample_rate"].to_list()) if stages else ()
    candidates = list(map(Candidate, frame["ad_id"].to_list(), item_values, *reached))
    first = frame["request_id"].rle_id().diff().fill_null(1) != 0
    starts = first.arg_true().to_list()
    request_values = _values(frame.filter(first), fields, ("user", "context"))
    for (start, end), values in zip(pairwise([*starts, frame.height]), request_values, strict=True):
        rows = impressions[start:end]
        request = Request(rows[0].request_id, rows[0].time_s, candidates[start:end], values)
        if stages:
            rows = [row for row, stage in zip(rows, stages[start:end], strict=True) if stage == EXPOSED]
        yield request, rows


def _values(frame: pl.DataFrame, fields: Sequence[Field], sides: tuple[Side, ...]) -> Iterator[dict[str, Value]]:
    names = [field.name for field in raw_fields(fields) if field.side in sides]
    columns = [frame[COLUMN_PREFIX + name].to_list() for name in names]
    if not columns:
        return ({} for _ in range(frame.height))
    return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
