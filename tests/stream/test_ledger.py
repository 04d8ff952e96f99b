"""The ledger: its states, its conservation laws, and that a resume re-decides nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.fields import Field
from models.window import Slides
from stream.blocks import (
    Rules,
    chain_schema,
    decode_block,
    decode_chains,
    encode_block,
    encode_chains,
    row_schema,
    to_frame,
)
from stream.events import Candidate, Click, Event, EventError, Impression, Request, Tick, decode_event, encode_event
from stream.families import example_decoder
from stream.ledger import Closed, Ledger
from stream.ledger_rows import ad_bytes
from stream.partitioner import request_partition
from stream.tokens import Tokens

FIELDS = (
    Field(name="user", side="user"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="price", side="item", kind="number"),
)
SCHEMA = row_schema(FIELDS)
CHAIN_SCHEMA = chain_schema(FIELDS)
RULES = Rules(wait_s=10.0, grace_s=20.0, disorder_s=2.0)
NO_VIOLATION = {"impressions": 0, "clicks": 0, "records": 0}


def new_ledger(*, block_rows: int = 5, tokens: Tokens | None = None, **rules: Any) -> Ledger:
    return Ledger(
        0,
        FIELDS,
        Slides(slide_s=50.0, edges=()),
        rules=msgspec.structs.replace(RULES, **rules),
        block_rows=block_rows,
        block_s=3.0,
        tokens=tokens,
    )


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
    frames = [to_frame(b.rows, SCHEMA).select("request_id", "position", "click") for b in blocks]
    return [row for frame in frames for row in frame.rows()]


def settle(events: list[Event | EventError], **changed: Any) -> tuple[list[tuple[str, int, int]], Ledger]:
    ledger = new_ledger(**changed)
    blocks = run(ledger, [*events, Tick(1000.0)])
    assert ledger.counts.violations() == NO_VIOLATION
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
    assert [b.rows["settled_s"] for b in blocks if b.rows["click"]] == [[15.0]]


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
    assert [len(b.rows["click"]) for b in by_rows] == [2]
    (by_time,) = ledger.step(6, 3.0, Tick(15.0))
    assert len(by_time.rows["click"]) == 1
    (empty,) = ledger.step(7, 3.0, Tick(60.0))
    assert (len(empty.rows["click"]), empty.header.watermark_s, empty.header.through) == (0, 50.0, 6)


def test_empty_block_closes_when_nothing_else_has_for_a_minute() -> None:
    ledger = new_ledger()
    blocks = [b for at in range(10) for b in ledger.step(at, at * 25.0, Tick(20.0))]
    assert [(b.header.through, b.header.append_s) for b in blocks] == [(2, 75.0), (5, 150.0), (8, 225.0)]


def test_rows_of_different_slides_never_share_a_block() -> None:
    events: list[Event | EventError] = [
        request("r", 38.0),
        impression("r", 38.0),
        impression("r", 41.0, 1),
        Tick(500.0),
    ]
    blocks = run(new_ledger(), events)
    assert [(b.rows["settled_s"], b.header.watermark_s) for b in blocks] == [([48.0], 50.0), ([51.0], 450.0)]


def test_values_travel_from_the_request_into_the_row() -> None:
    ledger = new_ledger()
    blocks = run(ledger, [request("r", 0.0, user=7), impression("r", 1.0, 1), Tick(1000.0)])
    (block,) = [b for b in blocks if b.rows["click"]]
    header, frame = decode_block(encode_block(block.header, block.rows, SCHEMA))
    assert header == block.header
    row = frame.row(0, named=True)
    assert (row["field.user"], row["field.ad"], row["field.tags"], row["field.price"]) == ("7", "ad1", ["a", "b"], 1.5)


def armed(request_id: str, time_s: float, arm: str) -> Request:
    arms = {"split": "fresh", "arm": arm, "snapshot": "ctr-1"} if arm else {"snapshot": "ctr-0"}
    return msgspec.structs.replace(request(request_id, time_s), **arms)


def test_the_arm_of_a_request_travels_into_its_rows() -> None:
    events = [armed("r", 0.0, "latest"), armed("s", 0.0, ""), armed("t", 0.0, "champion")]
    shown = [impression(name, 1.0 + at) for at, name in enumerate("rst")]
    blocks = run(new_ledger(), [*events, *shown, Tick(100.0)])
    (block,) = [b for b in blocks if b.rows["click"]]
    frames = [decode_block(encode_block(block.header, block.rows, SCHEMA))[1], to_frame(block.rows, SCHEMA)]
    for frame in frames:
        assert frame.select("request_id", "split", "arm", "snapshot").rows() == [
            ("r", "fresh", "latest", "ctr-1"),
            ("s", "", "", ""),
            ("t", "fresh", "champion", "ctr-1"),
        ]


def test_a_log_without_arms_has_the_blocks_that_it_had_before_there_were_any() -> None:
    blocks = run(new_ledger(), [armed("s", 0.0, ""), impression("s", 1.0), Tick(100.0)])
    for block in blocks:
        assert decode_block(encode_block(block.header, block.rows, SCHEMA))[1].columns == SCHEMA.names


def served(request_id: str, time_s: float, pctrs: list[float | None], **changes: Any) -> Request:
    event = request(request_id, time_s)
    ads = [msgspec.structs.replace(ad, pctr=pctr) for ad, pctr in zip(event.candidates, pctrs, strict=True)]
    return msgspec.structs.replace(event, candidates=ads, snapshot="ctr-2", **changes)


def test_what_an_ad_was_served_with_travels_into_its_row() -> None:
    arm = {"split": "fresh", "arm": "latest"}
    events = [
        *(served("r", 0.5, [0.25, None], counts_s=-7.0), served("s", 0.0, [0.5, 0.5]), armed("t", 0.0, "")),
        *(served("u", 0.0, [0.125, None], counts_s=3.0, **arm), armed("v", 0.0, "champion")),
    ]
    shown = [impression(name, 1.0 + 0.1 * at) for at, name in enumerate("rstuv")]
    blocks = run(new_ledger(block_rows=10), [*events, *shown, impression("r", 2.0, 1), Tick(100.0)])
    (block,) = [b for b in blocks if b.rows["click"]]
    names = ["request_id", "split", "arm", "snapshot", "pctr", "counts_s", "request_s"]
    for frame in (decode_block(encode_block(block.header, block.rows, SCHEMA))[1], to_frame(block.rows, SCHEMA)):
        assert frame.columns == [*SCHEMA.names, *names[1:]]
        assert frame.select(names).rows() == [
            ("r", "", "", "ctr-2", 0.25, -7.0, 0.5),
            ("s", "", "", "ctr-2", 0.5, None, 0.0),
            ("t", "", "", "", None, None, None),
            ("u", "fresh", "latest", "ctr-2", 0.125, 3.0, 0.0),
            ("v", "fresh", "champion", "ctr-1", None, None, None),
            ("r", "", "", "", None, None, None),
        ]


def test_a_block_without_arms_has_no_columns_of_them_beside_what_was_served() -> None:
    blocks = run(new_ledger(), [served("r", 0.0, [0.25, None]), impression("r", 1.0), Tick(100.0)])
    (block,) = [b for b in blocks if b.rows["click"]]
    frame = decode_block(encode_block(block.header, block.rows, SCHEMA))[1]
    assert frame.columns == [*SCHEMA.names, "snapshot", "pctr", "counts_s", "request_s"]
    assert example_decoder(FIELDS)(encode_block(block.header, block.rows, SCHEMA))[1].columns == SCHEMA.names
    assert ad_bytes(served("r", 0.0, [0.25, None]))[0] > ad_bytes(served("r", 0.0, [None, None]))[0]


def test_arms_are_no_part_of_what_is_learnt_from() -> None:
    blocks = run(
        new_ledger(block_rows=1),
        [
            *(armed("r", 0.0, "latest"), impression("r", 1.0), armed("s", 2.0, ""), impression("s", 3.0), Tick(100.0)),
        ],
    )
    decode = example_decoder(FIELDS)
    frames = [decode(encode_block(block.header, block.rows, SCHEMA))[1] for block in blocks]
    assert pl.concat(frames).columns == SCHEMA.names


def test_a_long_arm_counts_towards_the_size_of_a_block() -> None:
    long = msgspec.structs.replace(armed("r", 0.0, "latest"), snapshot="x" * 5000)
    assert all(size > 5000 for size in ad_bytes(long))


def test_late_click_writes_a_correcting_row_once_when_that_is_wanted() -> None:
    events = [request("r", 0.0), impression("r", 1.0), Tick(20.0), click("r", 21.0), click("r", 22.0), Tick(100.0)]
    blocks = run(new_ledger(late_clicks="correct"), list(events))
    kinds = ("kind", "click", "settled_s", "source_offset")
    rows = [row for b in blocks for row in zip(*(b.rows[name] for name in kinds), strict=True)]
    assert rows == [("expired_negative", 0, 11.0, 1), ("late_corrected", 1, 19.0, 1)]
    counts = blocks[-1].header.counts
    assert (counts.late, counts.corrected, counts.repeated, counts.expired_negative) == (1, 1, 1, 1)


def test_late_click_on_a_pending_impression_corrects_it_right_behind_its_row() -> None:
    blocks = run(
        new_ledger(late_clicks="correct"), [request("r", 0.0), impression("r", 1.0), click("r", 11.5), Tick(99)]
    )
    assert [kind for b in blocks for kind in b.rows["kind"]] == ["expired_negative", "late_corrected"]
    assert [settled_s for b in blocks for settled_s in b.rows["settled_s"]] == [11.0, 11.0]


def chain(events: list[Event | EventError], *, more: tuple[str, ...] = (), **rules: Any) -> list[tuple[Any, ...]]:
    blocks = run(new_ledger(**rules), [*events, Tick(1000.0)])
    frames = [decode_chains(encode_chains(b.header, b.chains, CHAIN_SCHEMA))[1] for b in blocks]
    return [row for frame in frames for row in frame.select("ad_id", "label", "position", "stage", *more).rows()]


def test_chain_says_what_became_of_each_candidate() -> None:
    candidates = [Candidate("a"), Candidate("b"), Candidate("c", stage="preranked", sample_rate=0.1)]
    events = [Request("r", 0.0, candidates), Impression("r", "a", 0, 1.0), Impression("r", "b", 1, 1.0)]
    rows = chain([*events, Click("r", "b", 1, 2.0)], more=("sample_rate",))
    assert rows == [
        ("a", "exposed", 0, "exposed", 1.0),
        ("b", "clicked", 1, "exposed", 1.0),
        ("c", "unexposed", None, "preranked", 0.1),
    ]


def test_chain_of_a_request_that_nobody_saw_leaves_as_well() -> None:
    assert chain([request("r", 0.0, n=1)]) == [("ad0", "unexposed", None, "exposed")]


def test_chain_leaves_only_when_nothing_can_change_it_any_more() -> None:
    ledger = new_ledger()
    blocks = run(ledger, [request("r", 0.0), impression("r", 25.0), Tick(40.0), Tick(56.9)])
    assert ledger.counts.chains == 0
    blocks = [block for tick_s in (57.0, 200.0) for block in ledger.step(9 + int(tick_s), 0.0, Tick(tick_s))]
    assert [b.chains.requests["settled_s"] for b in blocks if b.forgotten] == [[55.0]]  # 25 + wait + grace


def test_candidates_beyond_the_limit_are_cut_and_counted() -> None:
    ledger = new_ledger(candidates_max=1)
    blocks = run(ledger, [request("r", 0.0), impression("r", 1.0, 1), Tick(1000.0)])
    assert [letter.rule for b in blocks for letter in b.dead_letters] == ["not_a_candidate"]
    assert (ledger.counts.candidates_cut, ledger.counts.chains) == (1, 1)


def test_too_many_pending_impressions_expire_early_oldest_first() -> None:
    ledger = new_ledger(pending_max=16)
    events: list[Event | EventError] = [request("r", 0.0, n=40)]
    events += [impression("r", 1.0 + i / 10, i) for i in range(18)]
    run(ledger, events)
    assert (ledger.counts.expired_early, ledger.counts.pending) == (2, 16)
    (late,) = ledger.step(50, 9.0, click("r", 2.0, 0))
    assert ledger.counts.late == 1
    assert late.rows["position"] == [0, 1]


def test_too_many_held_clicks_become_orphans_early() -> None:
    ledger = new_ledger(pending_max=16)
    run(ledger, [click(f"r{i}", 1.0 + i / 10) for i in range(18)])
    assert (ledger.counts.orphan, ledger.counts.held) == (2, 16)
    assert ledger.counts.violations() == NO_VIOLATION


@pytest.mark.parametrize("limit", [{"known_max": 16}, {"known_bytes_max": 1600}])
def test_too_many_known_requests_are_forgotten_early_with_their_rows_and_chains(limit: dict[str, int]) -> None:
    ledger = new_ledger(**limit)
    blocks = []
    for i in range(18):
        blocks += ledger.step(2 * i, 0.0, request(f"r{i}", 1.0 + i / 10), 100)
        blocks += ledger.step(2 * i + 1, 0.0, impression(f"r{i}", 1.0 + i / 10))
    assert ledger.known[0] == 16
    assert (ledger.counts.forgotten_early, ledger.counts.expired_early) == (2, 2)
    ledger.step(50, 0.0, impression("r0", 1.0))
    assert (ledger.counts.dead_letters, ledger.counts.duplicates) == (1, 0)


def test_key_of_another_partition_is_a_dead_letter_and_moves_no_watermark() -> None:
    ledger = Ledger(0, FIELDS, Slides(slide_s=50.0), rules=RULES, block_rows=5, block_s=3.0, n_partitions=3)
    strays = [name for name in ("a", "b", "c", "d", "e") if request_partition(name, 3) != 0]
    run(ledger, [request(strays[0], 40.0)])
    assert (ledger.counts.dead_letters, ledger.watermark_s) == (1, 0.0)


def test_forged_token_is_a_dead_letter_and_moves_no_watermark() -> None:
    tokens = Tokens([b"0123456789abcdef"], ttl_s=1000.0)
    ledger = new_ledger(tokens=tokens)
    forged = Impression("r", "ad0", 0, 500.0, token="x")
    run(ledger, [request("r", 0.0), forged, tokens.signed(impression("r", 5.0))])
    assert (ledger.counts.dead_letters, ledger.counts.pending, ledger.watermark_s) == (1, 1, 3.0)


def test_log_that_is_not_the_one_that_was_read_is_refused() -> None:
    blocks = run(new_ledger(), [request("r", 45.0), impression("r", 49.0), Tick(55.0)])
    header = blocks[-1].header
    assert header.counts.pending == 1
    resumed = new_ledger()
    resumed.rewind(header, {})
    with pytest.raises(ValueError, match=r"events\[0\] must hold 1 pending impressions, 0 held clicks and 0 dead"):
        resumed.seal(header)


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
    steps = draw(st.lists(st.sampled_from([0.0, 0.1, 2.0, 70.0]), min_size=len(timed), max_size=len(timed)))
    append_s, stream = 0.0, []
    for index, step_s in zip(order, steps, strict=True):
        append_s += step_s
        stream.append((append_s, timed[index][1]))
    return [*stream, (append_s, Tick(400.0))]


def to_bytes(blocks: list[Closed]) -> list[bytes]:
    return [
        encode_block(b.header, b.rows, SCHEMA)
        + encode_chains(b.header, b.chains, CHAIN_SCHEMA)
        + repr(b.dead_letters).encode()
        for b in blocks
    ]


@given(streams())
def test_conservation_laws_hold_after_every_record(stream: list[tuple[float, Event | EventError]]) -> None:
    ledger = new_ledger()
    for offset, (append_s, event) in enumerate(stream):
        ledger.step(offset, append_s, event)
        assert ledger.counts.violations() == NO_VIOLATION
    assert (ledger.counts.pending, ledger.counts.held) == (0, 0)


def limits() -> st.SearchStrategy[dict[str, Any]]:
    small = st.sampled_from([1, 3, 1000])
    return st.fixed_dictionaries(
        {
            "block_rows": st.sampled_from([1, 2, 5]),
            "late_clicks": st.sampled_from(["wait", "correct"]),
            "pending_max": small,
            "known_max": small,
            "known_bytes_max": st.sampled_from([250, 100_000]),
            "candidates_max": st.sampled_from([1, 1000]),
        }
    )


@given(streams(), limits())
def test_resuming_at_any_block_gives_the_same_bytes(stream: list[Any], chosen: dict[str, Any]) -> None:
    whole = new_ledger(**chosen)
    blocks: list[Closed] = []
    ends: list[int] = []  # how many blocks stand after each step that closed some: where a transaction may end
    for offset, (append_s, event) in enumerate(stream):
        closed = whole.step(offset, append_s, event, 100)
        blocks += closed
        if closed:
            ends.append(len(blocks))
        assert whole.counts.violations() == NO_VIOLATION
    for end in ends:
        again = go_on(resume(blocks[:end], stream, new_ledger(**chosen)), blocks[end - 1], stream)
        assert to_bytes(again) == to_bytes(blocks[end:])


@given(streams(), st.lists(st.tuples(limits(), st.integers(1, 40)), min_size=2, max_size=5))
def test_rules_that_change_between_runs_lose_and_double_nothing(stream: list[Any], runs: list[Any]) -> None:
    blocks: list[Closed] = []
    waits = [5.0, 10.0, 0.5, 30.0, 12.0]
    for at, (chosen, n_records) in enumerate(runs):
        ledger, first = new_ledger(**chosen, wait_s=waits[at], grace_s=waits[-1 - at]), 0
        if blocks:
            ledger, first = resume(blocks, stream, ledger), blocks[-1].header.through + 1
        is_last = at == len(runs) - 1
        for offset in range(first, len(stream) if is_last else min(len(stream), first + n_records)):
            blocks += ledger.step(offset, *stream[offset], 100)
            assert ledger.counts.violations() == NO_VIOLATION
    blocks += ledger.step(len(stream), stream[-1][0] + 10.0, Tick(1000.0))
    left = [row for block in blocks for row in zip(block.rows["source_offset"], block.rows["kind"], strict=True)]
    firsts = [offset for offset, kind in left if kind != "late_corrected"]
    assert len(set(left)) == len(left)
    assert len(set(firsts)) == len(firsts) == ledger.counts.impressions
    chains = [offset for block in blocks for offset in block.chains.requests["source_offset"]]
    assert len(set(chains)) == len(chains) == ledger.counts.chains
    assert (ledger.counts.pending, ledger.counts.held, ledger.known) == (0, 0, (0, 0))


def resume(blocks: list[Closed], stream: list[Any], ledger: Ledger) -> Ledger:
    header = blocks[-1].header
    letters = {one.offset: one.rule for block in blocks for one in block.dead_letters}
    ledger.rewind(header, {offset: rule for offset, rule in letters.items() if offset >= header.resume_at})
    for offset in range(header.resume_at, header.through + 1):
        ledger.step(offset, *stream[offset], 100)
    ledger.seal(header)
    return ledger


def go_on(ledger: Ledger, last: Closed, stream: list[Any]) -> list[Closed]:
    offsets = range(last.header.through + 1, len(stream))
    return [block for offset in offsets for block in ledger.step(offset, *stream[offset], 100)]


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


@st.composite
def disordered(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """Events in the order of their times, and as they arrive when each may be late by less than the disorder."""
    events: list[tuple[float, float, Event]] = []
    for index in range(draw(st.integers(1, 8))):
        start_s = float(draw(st.integers(0, 60)))
        name = f"r{index}"
        events.append((start_s, start_s - 0.05, request(name, start_s)))
        for position in range(draw(st.integers(0, 2))):
            shown_s = start_s + draw(st.integers(0, 25))
            times = [shown_s, *(shown_s + draw(st.integers(0, 25)) for _ in range(draw(st.integers(0, 2))))]
            for number, time_s in enumerate(times):
                late_s = draw(st.sampled_from([0.0, 0.5, 1.0, 1.9]))
                event = impression(name, time_s, position) if number == 0 else click(name, time_s, position)
                events.append((time_s, time_s + late_s, event))
    in_time = [event for _, _, event in sorted(events, key=lambda e: (e[0], isinstance(e[2], Click)))]
    arrived = [event for _, _, event in sorted(events, key=lambda e: e[1])]
    return in_time, arrived


@given(disordered(), st.sampled_from(["wait", "correct"]))
def test_order_of_arrival_within_the_disorder_does_not_change_the_labels(streams: Any, late_clicks: str) -> None:
    in_time, arrived = (settle(list(events), late_clicks=late_clicks) for events in streams)
    assert sorted(arrived[0]) == sorted(in_time[0])


@given(streams())
def test_events_survive_their_json(stream: list[Any]) -> None:
    for _, event in stream:
        if not isinstance(event, EventError):
            assert decode_event(encode_event(event)) == event
