"""The ledger: its states, its conservation laws, and that a resume re-decides nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.fields import Field
from models.window import Slides
from stream.blocks import decode_block, encode_block, row_schema
from stream.events import Candidate, Click, Event, EventError, Impression, Request, Tick, decode_event, encode_event
from stream.ledger import Closed, Ledger

FIELDS = (
    Field(name="user", side="user"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="price", side="item", kind="number"),
)
SCHEMA = row_schema(FIELDS)
RULES: dict[str, Any] = {"wait_s": 10.0, "grace_s": 20.0, "disorder_s": 2.0, "block_rows": 5, "block_s": 3.0}


def new_ledger(**changed: Any) -> Ledger:
    return Ledger(0, FIELDS, Slides(slide_s=50.0, edges=()), **(RULES | changed))


def request(request_id: str, time_s: float, n: int = 2, **values: Any) -> Request:
    candidates = [Candidate(f"ad{i}", {"ad": f"ad{i}", "tags": ["a", "b"], "price": 1.5}) for i in range(n)]
    return Request(request_id, time_s, candidates, values or {"user": "u1"})


def impression(request_id: str, time_s: float, position: int = 0) -> Impression:
    return Impression(request_id, f"ad{position}", position, time_s)


def click(request_id: str, time_s: float, position: int = 0) -> Click:
    return Click(request_id, f"ad{position}", position, time_s)


def run(ledger: Ledger, events: list[Event | EventError], append_s: float = 0.0) -> list[Closed]:
    return [block for offset, event in enumerate(events) for block in ledger.step(offset, append_s, event)]


def labels(blocks: list[Closed]) -> list[tuple[str, int, int]]:
    rows = [zip(b.columns["request_id"], b.columns["position"], b.columns["click"], strict=True) for b in blocks]
    return [row for block in rows for row in block]


def settle(events: list[Event | EventError], **changed: Any) -> tuple[list[tuple[str, int, int]], Ledger]:
    ledger = new_ledger(**changed)
    blocks = run(ledger, [*events, Tick(1000.0)])
    assert ledger.counts.violations() == {"impressions": 0, "clicks": 0, "records": 0}
    return labels(blocks), ledger


def letters(events: list[Event | EventError]) -> list[tuple[str, str]]:
    blocks = run(new_ledger(), [*events, Tick(1000.0)])
    return [(letter.rule, letter.field) for block in blocks for letter in block.dead_letters]


def test_click_within_the_wait_makes_the_impression_clicked() -> None:
    rows, ledger = settle([request("r", 0.0), impression("r", 1.0), click("r", 11.0)])
    assert rows == [("r", 0, 1)]
    assert (ledger.counts.clicked, ledger.counts.matched, ledger.counts.expired_negative) == (1, 1, 0)


def test_impression_without_a_click_expires_as_negative() -> None:
    rows, ledger = settle([request("r", 0.0), impression("r", 1.0)])
    assert rows == [("r", 0, 0)]
    assert ledger.counts.expired_negative == 1


def test_click_before_its_impression_still_joins() -> None:
    rows, ledger = settle([request("r", 0.0), click("r", 2.0), impression("r", 1.0)])
    assert rows == [("r", 0, 1)]
    assert (ledger.counts.held, ledger.counts.matched) == (0, 1)


def test_click_after_the_wait_is_late_even_when_the_impression_is_still_pending() -> None:
    rows, ledger = settle([request("r", 0.0), impression("r", 1.0), click("r", 11.5)])
    assert rows == [("r", 0, 0)]
    assert ledger.counts.late == 1


def test_click_after_settling_is_late_and_after_the_grace_an_orphan() -> None:
    events = [request("r", 0.0), impression("r", 1.0), Tick(20.0), click("r", 20.0), Tick(40.0), click("r", 40.0)]
    rows, ledger = settle(list(events))
    assert rows == [("r", 0, 0)]
    assert (ledger.counts.late, ledger.counts.orphan) == (1, 1)


def test_click_for_nothing_is_an_orphan() -> None:
    rows, ledger = settle([click("r", 1.0)])
    assert (rows, ledger.counts.orphan) == ([], 1)


def test_second_click_is_counted_as_repeated() -> None:
    rows, ledger = settle([request("r", 0.0), impression("r", 1.0), click("r", 2.0), click("r", 3.0)])
    assert (rows, ledger.counts.repeated) == ([("r", 0, 1)], 1)


def test_duplicate_impression_and_request_are_counted_once() -> None:
    events = [request("r", 0.0), impression("r", 1.0), request("r", 0.0), impression("r", 1.0), Tick(20.0)]
    rows, ledger = settle([*events, impression("r", 1.0)])
    assert (rows, ledger.counts.duplicates, ledger.counts.impressions) == ([("r", 0, 0)], 3, 1)


def test_impression_that_comes_later_than_the_wait_settles_at_the_watermark() -> None:
    blocks = run(new_ledger(), [request("r", 0.0), Tick(17.0), impression("r", 1.0), Tick(1000.0)])
    assert [b.columns["settled_s"] for b in blocks if b.columns["click"]] == [[15.0]]


@pytest.mark.parametrize(
    ("events", "letter"),
    [
        ([impression("r", 1.0)], ("no_request", "request_id")),
        ([request("r", 0.0, n=1), impression("r", 1.0, 1)], ("not_a_candidate", "ad_id")),
        ([request("r", 0.0), impression("r", 1.0), Click("r", "other", 0, 2.0)], ("ad_mismatch", "ad_id")),
        ([request("r", 0.0, user=[1])], ("bad_value", "user")),
        ([request("r", 0.0), Tick(33.0), impression("r", 1.0)], ("no_request", "request_id")),
        ([EventError("not_json")], ("not_json", "")),
    ],
)
def test_record_that_cannot_be_used_is_a_dead_letter_with_its_rule(events: list[Any], letter: tuple[str, str]) -> None:
    assert letters(events) == [letter]


def test_blocks_close_by_rows_by_append_time_and_at_slide_boundaries() -> None:
    ledger = new_ledger(block_rows=2)
    events = [request("r", 0.0, n=4), *(impression("r", 1.0, i) for i in range(3)), Tick(14.0), Tick(15.0)]
    by_rows = [b for o, e in enumerate(events) for b in ledger.step(o, 0.0, e)]
    assert [len(b.columns["click"]) for b in by_rows] == [2]
    (by_time,) = ledger.step(6, 3.0, Tick(15.0))
    assert len(by_time.columns["click"]) == 1
    (empty,) = ledger.step(7, 3.0, Tick(60.0))
    assert (len(empty.columns["click"]), empty.header.watermark_s, empty.header.through) == (0, 50.0, 6)


def test_rows_of_different_slides_never_share_a_block() -> None:
    events: list[Event | EventError] = [
        request("r", 38.0),
        impression("r", 38.0),
        impression("r", 41.0, 1),
        Tick(500.0),
    ]
    blocks = run(new_ledger(), events)
    assert [(b.columns["settled_s"], b.header.watermark_s) for b in blocks] == [([48.0], 50.0), ([51.0], 450.0)]


def test_values_travel_from_the_request_into_the_row() -> None:
    ledger = new_ledger()
    blocks = run(ledger, [request("r", 0.0, user=7), impression("r", 1.0, 1), Tick(1000.0)])
    (block,) = [b for b in blocks if b.columns["click"]]
    header, frame = decode_block(encode_block(block.header, block.columns, SCHEMA))
    assert header == block.header
    row = frame.row(0, named=True)
    assert (row["field.user"], row["field.ad"], row["field.tags"], row["field.price"]) == ("7", "ad1", ["a", "b"], 1.5)


# Properties over random streams -----------------------------------------------------------------------------------


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[float, Event | EventError]]:
    """Requests, impressions, clicks (early, late, doubled, for nothing) and ticks, disordered, with append times."""
    timed: list[tuple[float, Event | EventError]] = []
    for index in range(draw(st.integers(1, 12))):
        start_s = draw(st.integers(0, 120))
        name = f"r{index}"
        timed.append((start_s, request(name, float(start_s))))
        for position in range(draw(st.integers(0, 2))):
            shown_s = start_s + draw(st.integers(0, 35))
            timed += [(shown_s, impression(name, float(shown_s), position))] * draw(st.integers(0, 2))
            for delay_s in draw(st.lists(st.integers(0, 40), max_size=2)):
                timed.append((shown_s + delay_s, click(name, float(shown_s + delay_s), position)))
    for tick_s in draw(st.lists(st.integers(0, 200), max_size=4)):
        timed.append((tick_s, Tick(float(tick_s))))
    if draw(st.booleans()):
        timed.append((draw(st.integers(0, 120)), EventError("not_json")))
    shifts = draw(st.lists(st.integers(0, 12), min_size=len(timed), max_size=len(timed)))
    order = sorted(range(len(timed)), key=lambda i: (timed[i][0] + shifts[i], i))
    steps = draw(st.lists(st.sampled_from([0.0, 0.1, 2.0]), min_size=len(timed), max_size=len(timed)))
    append_s, stream = 0.0, []
    for index, step_s in zip(order, steps, strict=True):
        append_s += step_s
        stream.append((append_s, timed[index][1]))
    return [*stream, (append_s, Tick(400.0))]


def to_bytes(blocks: list[Closed]) -> list[bytes]:
    return [encode_block(b.header, b.columns, SCHEMA) + repr(b.dead_letters).encode() for b in blocks]


@given(streams())
def test_conservation_laws_hold_after_every_record(stream: list[tuple[float, Event | EventError]]) -> None:
    ledger = new_ledger()
    for offset, (append_s, event) in enumerate(stream):
        ledger.step(offset, append_s, event)
        assert ledger.counts.violations() == {"impressions": 0, "clicks": 0, "records": 0}
    assert (ledger.counts.pending, ledger.counts.held) == (0, 0)


@given(streams(), st.sampled_from([1, 2, 5]))
def test_resuming_at_any_block_gives_the_same_bytes(stream: list[Any], block_rows: int) -> None:
    whole = new_ledger(block_rows=block_rows)
    blocks: list[Closed] = []
    ends: list[int] = []  # how many blocks stand after each step that closed some: where a transaction may end
    for offset, (append_s, event) in enumerate(stream):
        closed = whole.step(offset, append_s, event)
        blocks += closed
        if closed:
            ends.append(len(blocks))
    for end in ends:
        resumed = resume(blocks[:end], stream, block_rows)
        again: list[Closed] = []
        for offset in range(blocks[end - 1].header.through + 1, len(stream)):
            again += resumed.step(offset, stream[offset][0], stream[offset][1])
        assert to_bytes(again) == to_bytes(blocks[end:])


def resume(blocks: list[Closed], stream: list[Any], block_rows: int) -> Ledger:
    header = blocks[-1].header
    ledger = new_ledger(block_rows=block_rows)
    settled = [
        (request_id, position, settled_s + RULES["grace_s"], clicked)
        for block in blocks
        for request_id, position, settled_s, clicked in zip(
            *(block.columns[name] for name in ("request_id", "position", "settled_s", "click")), strict=True
        )
        if settled_s + RULES["grace_s"] > header.resume_watermark_s
    ]
    ledger.rewind(header, settled)
    for offset in range(header.resume_at, header.through + 1):
        ledger.step(offset, stream[offset][0], stream[offset][1])
    ledger.seal(header)
    return ledger


@given(streams())
def test_labels_equal_an_obvious_join_when_nothing_is_later_than_the_disorder(stream: list[Any]) -> None:
    events = sorted(
        (e for _, e in stream if not isinstance(e, EventError)), key=lambda e: (e.time_s, type(e) is not Request)
    )
    rows, _ = settle(list(events))
    assert sorted(rows) == sorted(obvious_join(events))


def obvious_join(events: list[Event]) -> list[tuple[str, int, int]]:
    asked = {e.request_id: e.time_s for e in events if isinstance(e, Request)}
    shown = {(e.request_id, e.position): e.time_s for e in reversed(events) if isinstance(e, Impression)}
    rows = []
    for (request_id, position), shown_s in shown.items():
        if shown_s - asked[request_id] >= 32.0:  # wait + grace + disorder: its request is forgotten
            continue
        clicks = [
            e.time_s for e in events if isinstance(e, Click) and (e.request_id, e.position) == (request_id, position)
        ]
        rows.append((request_id, position, int(any(time_s - shown_s <= 10.0 for time_s in clicks))))
    return rows


@given(streams())
def test_events_survive_their_json(stream: list[Any]) -> None:
    for _, event in stream:
        if not isinstance(event, EventError):
            assert decode_event(encode_event(event)) == event
