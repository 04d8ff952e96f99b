"""Schemas change: older and newer producers, fields that come, go or change, and blocks of an earlier field set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from features.encode import encode, field_key
from features.fields import Field
from models.click_task import ClickTask
from models.registry import Registry
from models.snapshot import SnapshotError
from models.update import Learner
from models.window import Slides, Window, fit_columns
from stream import events
from stream.blocks import (
    Counts,
    Rules,
    chain_schema,
    decode_block,
    decode_chains,
    encode_block,
    encode_chains,
    row_schema,
    to_frame,
)
from stream.dead_letters import dead_letter_bytes, decode_dead_letter
from stream.events import Event, EventError, Request, decode_event
from stream.ledger import Closed, DeadLetter, Ledger
from tests.frames import plan

USER, AD = Field("user", "user"), Field("ad", "item")
AGE = Field("age", "user", "number")
TAGS = Field("tags", "item", "categories")
OLD, NEW = (USER, AD), (USER, AGE, AD, TAGS)
LISTED = (USER, Field("age", "user", "categories"), AD, TAGS)
SLIDES = Slides(slide_s=1000.0)
REQUEST: dict[str, Any] = {
    "type": "request",
    "request_id": "r",
    "time_s": 10.0,
    "candidates": [{"ad_id": "a", "values": {"ad": "a", "tags": ["x"]}}],
    "values": {"user": "u", "age": 30},
}
IMPRESSION = {"type": "impression", "request_id": "r", "ad_id": "a", "position": 0, "time_s": 11.0}
CLICK = {"type": "click", "request_id": "r", "ad_id": "a", "position": 0, "time_s": 12.0}
TICK = {"type": "tick", "time_s": 500.0}
END = {"type": "tick", "time_s": 5000.0}


def new_ledger(fields: tuple[Field, ...]) -> Ledger:
    return Ledger(0, fields, SLIDES, rules=Rules(10.0, 1000.0, 0.0), block_rows=100, block_s=1e9)


def to_event(record: dict[str, Any]) -> Event | EventError:
    try:
        return decode_event(json.dumps(record).encode())
    except EventError as error:
        return error


def run(fields: tuple[Field, ...], *records: dict[str, Any]) -> tuple[pl.DataFrame, list[str], Counts]:
    """Real bytes in, the rows of real blocks out, with the rules of the dead letters and the counts."""
    ledger, schema = new_ledger(fields), row_schema(fields)
    closed: list[Closed] = []
    for offset, record in enumerate(records):
        closed += ledger.step(offset, 0.0, to_event(record))
    frames = [decode_block(encode_block(block.header, block.rows, schema))[1] for block in closed]
    assert set(ledger.counts.violations().values()) == {0}
    return pl.concat(frames), [letter.rule for block in closed for letter in block.dead_letters], ledger.counts


def settle(fields: tuple[Field, ...], *changed: dict[str, Any]) -> tuple[pl.DataFrame, list[str]]:
    """What becomes of a request, its impression and its click when some of them are changed."""
    by_type = {record["type"]: record for record in (REQUEST, IMPRESSION, CLICK, *changed)}
    frame, rules, _ = run(fields, *by_type.values(), END)
    return frame, rules


# Events -------------------------------------------------------------------------------------------------------------


def test_a_field_that_an_older_producer_does_not_send_is_null() -> None:
    older = REQUEST | {"values": {"user": "u"}, "candidates": [{"ad_id": "a", "values": {"ad": "a"}}]}
    frame, rules = settle(NEW, older)
    assert frame.select("field.user", "field.age", "field.ad", "field.tags", "click").rows() == [
        ("u", None, "a", None, 1)
    ]
    assert rules == []


def test_a_field_that_was_removed_and_is_still_sent_is_ignored() -> None:
    frame, rules = settle(OLD)
    assert [name for name in frame.columns if name.startswith("field.")] == ["field.user", "field.ad"]
    assert (frame["click"].to_list(), rules) == ([1], [])


def test_a_key_that_a_newer_producer_adds_is_ignored_and_changes_nothing() -> None:
    newer = [record | {"added": {"deep": [1]}} for record in (REQUEST, IMPRESSION, CLICK)]
    newer[0]["candidates"] = [REQUEST["candidates"][0] | {"added": 1}]
    assert settle(NEW, *newer)[0].equals(settle(NEW)[0])
    assert settle(NEW, *newer)[1] == []


@pytest.mark.parametrize(
    "older",
    [
        {name: value for name, value in REQUEST.items() if name != "values"},
        REQUEST | {"candidates": [{"ad_id": "a"}]},
        REQUEST | {"v": 1},
        IMPRESSION | {"propensity": 0.5},
    ],
)
def test_keys_that_are_optional_may_be_missing_or_there(older: dict[str, Any]) -> None:
    frame, rules = settle(NEW, older)
    assert (len(frame), rules) == (1, [])


def test_a_key_that_is_needed_and_missing_is_a_dead_letter() -> None:
    without = {name: value for name, value in CLICK.items() if name != "ad_id"}
    frame, rules = settle(NEW, without)
    assert (frame["click"].to_list(), rules) == ([0], ["schema"])


def test_a_kind_that_was_changed_makes_dead_letters_until_producers_follow() -> None:
    _, rules, counts = run(LISTED, REQUEST, IMPRESSION, CLICK, END)
    assert rules == ["bad_value", "no_request"]
    assert counts.orphan == 1
    frame, rules = settle(LISTED, REQUEST | {"values": {"user": "u", "age": ["30"]}})
    assert (frame["field.age"].to_list(), rules) == [[["30"]], []] or (frame["field.age"].to_list(), rules) == (
        [["30"]],
        [],
    )


def test_a_newer_version_is_a_dead_letter_whose_bytes_an_upgraded_reader_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = json.dumps(REQUEST | {"v": 2}).encode()
    with pytest.raises(EventError) as caught:
        decode_event(newer)
    assert (caught.value.rule, caught.value.field, caught.value.value) == ("version", "v", "2")
    kept = decode_dead_letter(dead_letter_bytes(0, DeadLetter(3, "version", "v", "2"), Raw(value=newer)))
    assert kept.record == newer
    monkeypatch.setattr(events, "VERSION", 2)
    assert isinstance(decode_event(kept.record), Request)


class Raw(NamedTuple):
    value: bytes
    topic: str = "shop.events"
    key: bytes | None = b"r"
    timestamp: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


# A ledger that goes on under other fields ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "row"),
    [
        (OLD, NEW, {"request_id": ["q"], "field.age": [30.0]}),
        (NEW, OLD, {"request_id": ["q"], "field.user": ["u"]}),
        (NEW, LISTED, {"request_id": ["q"], "field.age": [None]}),  # taken when its kind was the field's
        (LISTED, NEW, {"request_id": [], "field.age": []}),  # a dead letter stays one
    ],
)
def test_a_ledger_resumes_under_other_fields_without_deciding_anew(
    before: tuple[Field, ...], after: tuple[Field, ...], row: dict[str, list[Any]]
) -> None:
    records = [REQUEST, IMPRESSION, TICK, REQUEST | {"request_id": "q", "time_s": 501.0}]
    pending = IMPRESSION | {"request_id": "q", "time_s": 501.0}
    ledger = new_ledger(before)
    closed = [block for n, record in enumerate([*records, pending]) for block in ledger.step(n, 0.0, to_event(record))]
    closed += ledger.step(len(records) + 1, 2e9, to_event(TICK))  # append time closes the block
    header = closed[-1].header
    refused = {letter.offset: letter.rule for block in closed for letter in block.dead_letters}

    resumed = new_ledger(after)
    resumed.rewind(header, {offset: rule for offset, rule in refused.items() if offset >= header.resume_at})
    for offset, record in enumerate([*records, pending, TICK]):
        if header.resume_at <= offset <= header.through:
            resumed.step(offset, 0.0, to_event(record))
    resumed.seal(header)
    assert resumed.counts == header.counts
    block = resumed.step(header.through + 1, 0.0, to_event(END))[0]
    assert to_frame(block.rows, row_schema(after)).select(*row).to_dict(as_series=False) == row
    assert decode_block(encode_block(block.header, block.rows, row_schema(after)))[0] == block.header
    assert decode_chains(encode_chains(block.header, block.chains, chain_schema(after)))[0] == block.header
    assert set(resumed.counts.violations().values()) == {0}


# Blocks of an earlier field set --------------------------------------------------------------------------------------


def block_of(fields: tuple[Field, ...], number: int) -> pl.DataFrame:
    """The row of one request as a block of these fields holds it, at a place of its own."""
    values = {name: value for name, value in {"user": "u", "age": 30.0}.items() if name in {f.name for f in fields}}
    frame, _ = settle(fields, REQUEST | {"values": values})
    return frame.with_columns(
        source_offset=pl.lit(number, pl.Int64), request_id=pl.lit(f"r{number}"), settled_s=pl.lit(100.0 + number)
    )


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)])
def test_a_slide_holds_rows_of_blocks_with_and_without_a_field(order: tuple[tuple[Field, ...], ...]) -> None:
    window = Window(1, SLIDES)
    for number, fields in enumerate(order):
        window.add(0, number, 100.0, fit_columns(block_of(fields, number), NEW))
    window.add(0, 2, 1000.0, fit_columns(block_of(NEW, 9).clear(), NEW))
    (slide,) = window.closed()
    ages = [30.0 if fields is NEW else None for fields in order]
    assert slide.frame["field.age"].to_list() == ages
    assert slide.frame["field.user"].to_list() == ["u", "u"]
    keys = encode(slide.frame, NEW)
    assert ((keys[:, 1] == 0) == [age is None for age in ages]).all()


def test_columns_of_the_same_fields_stay_as_they_are() -> None:
    frame = block_of(NEW, 0)
    assert fit_columns(frame, NEW) is frame


def test_a_column_of_no_field_goes() -> None:
    assert fit_columns(block_of(NEW, 0), OLD).columns == block_of(OLD, 0).columns


@pytest.mark.parametrize(
    ("written", "kind", "read"),
    [
        (pl.Series(["a", None], dtype=pl.String), "categories", [["a"], None]),
        (pl.Series([["a", "b"], None], dtype=pl.List(pl.String)), "category", [None, None]),
        (pl.Series([["a"], None], dtype=pl.List(pl.String)), "number", [None, None]),
        (pl.Series(["3", None], dtype=pl.String), "number", [None, None]),
        (pl.Series([3.0, None], dtype=pl.Float64), "category", [None, None]),
        (pl.Series([3.0, None], dtype=pl.Float64), "categories", [None, None]),
        (pl.Series([3, None], dtype=pl.Int64), "category", ["3", None]),
        (pl.Series([3, None], dtype=pl.Int64), "number", [3.0, None]),
        (pl.Series([3, None], dtype=pl.Int64), "categories", [["3"], None]),
    ],
)
def test_values_of_another_kind_are_null_unless_they_mean_the_same(
    written: pl.Series, kind: Any, read: list[Any]
) -> None:
    fields = (AD, Field("x", "user", kind))
    frame = pl.DataFrame({"position": [0, 1], "field.x": written, "field.gone": ["g", "g"]})
    fitted = fit_columns(frame, fields)
    assert fitted["field.x"].to_list() == read
    assert fitted.columns == ["position", "field.ad", "field.x"]
    assert [fitted.schema[c] for c in fitted.columns[1:]] == [
        pl.String(),
        {"category": pl.String(), "categories": pl.List(pl.String), "number": pl.Float64()}[kind],
    ]
    assert len(encode(fitted, fields)) == 2


def test_a_category_that_becomes_a_list_keeps_its_key() -> None:
    many = Field("user", "user", "categories")
    keys = encode(fit_columns(block_of(OLD, 0), (many, AD)), (many, AD))
    assert field_key(USER, "u") in keys[0].tolist()


# Snapshots of another field set --------------------------------------------------------------------------------------


def test_a_snapshot_of_other_fields_is_refused_in_words(tmp_path: Path) -> None:
    snapshot = Learner(ClickTask(plan(fields=OLD))).latest
    registry = Registry(str(tmp_path))
    registry.save(snapshot, {})
    assert registry.load(snapshot.version, fields=OLD)[0].digest == snapshot.digest
    with pytest.raises(
        SnapshotError, match=r"must have the fields user, age, ad, tags as they are configured, got user, ad"
    ):
        registry.load(snapshot.version, fields=NEW)


def test_the_order_of_fields_is_part_of_what_a_snapshot_is() -> None:
    from models.snapshot import schema_digest

    assert schema_digest(OLD) != schema_digest(OLD[::-1])
    assert np.array_equal(encode(block_of(OLD, 0), OLD), encode(block_of(OLD, 0), OLD[::-1])[:, ::-1])
