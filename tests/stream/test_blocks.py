"""Blocks: the same rows give the same bytes, and what is no block is named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from features.live_priors import CountUpdate
from stream.blocks import (
    BlockError,
    Chains,
    Counts,
    Header,
    Rules,
    add_counts,
    chain_schema,
    decode_block,
    decode_chains,
    decode_header,
    decode_prior_update,
    encode_block,
    encode_chains,
    encode_prior_update,
    row_schema,
)
from tests.stream.test_ledger import FIELDS

HEADER = Header(
    partition=1,
    number=7,
    through=41,
    append_s=1000.5,
    watermark_s=99.5,
    horizon_s=101.0,
    resume_at=30,
    resume_watermark_s=88.0,
    resume_horizon_s=90.0,
    resume_letters=3,
    rules=Rules(10.0, 20.0, 2.0),
    counts=Counts(records=42, requests=42),
    earlier=[(35, Rules(5.0, 5.0, 1.0))],
    forced=[(36, 80.0, 82.0)],
)
CHAINS = Chains(
    requests={
        "request_id": ["r", "none", "q"],
        "time_s": [1.0, 2.0, 3.0],
        "settled_s": [31.0, 32.0, 33.0],
        "source_partition": [1, 1, 1],
        "source_offset": [38, 39, 40],
        "field.user": ["u", "u", None],
    },
    n_candidates=[2, 0, 1],
    candidates={
        "candidate": [0, 1, 0],
        "ad_id": ["a", "b", "c"],
        "stage": ["exposed", "matched", "exposed"],
        "sample_rate": [1.0, 0.1, 1.0],
        "label": ["clicked", "unexposed", "exposed"],
        "position": [4, None, 0],
        "field.ad": ["a", "b", None],
        "field.tags": [["x", "y"], None, []],
        "field.price": [2.5, None, 0.0],
    },
)
COLUMNS = {
    "request_id": ["r"],
    "position": [0],
    "kind": ["clicked"],
    "time_s": [1.0],
    "settled_s": [11.0],
    "click": [1],
    "propensity": [1.0],
    "ad_id": ["a"],
    "source_partition": [1],
    "source_offset": [40],
    "field.user": ["u"],
    "field.ad": [None],
    "field.tags": [["x", "y"]],
    "field.price": [2.5],
}


def test_block_survives_its_bytes_and_the_bytes_are_always_the_same() -> None:
    data = encode_block(HEADER, COLUMNS, row_schema(FIELDS))
    assert data == encode_block(HEADER, COLUMNS, row_schema(FIELDS))
    header, frame = decode_block(data)
    assert header == decode_header(data) == HEADER
    assert {name: frame[name].to_list() for name in frame.columns} == COLUMNS


def test_chains_come_back_one_row_per_candidate() -> None:
    data = encode_chains(HEADER, CHAINS, chain_schema(FIELDS))
    assert data == encode_chains(HEADER, CHAINS, chain_schema(FIELDS))
    header, frame = decode_chains(data)
    assert header == decode_header(data) == HEADER
    rows = {name: frame[name].to_list() for name in frame.columns}
    assert {name: rows[name] for name in CHAINS.candidates} == CHAINS.candidates
    assert rows["request_id"] == ["r", "r", "q"]
    assert rows["field.user"] == ["u", "u", None]


def test_block_of_chains_may_be_empty_and_another_block_is_refused_as_chains() -> None:
    nothing = Chains({name: [] for name in CHAINS.requests}, [], {name: [] for name in CHAINS.candidates})
    _, frame = decode_chains(encode_chains(HEADER, nothing, chain_schema(FIELDS)))
    assert (frame.height, frame.width) == (0, 15)
    with pytest.raises(BlockError, match="a block of chains must have the column candidates, got none"):
        decode_chains(encode_block(HEADER, COLUMNS, row_schema(FIELDS)))


def test_prior_update_survives_its_bytes() -> None:
    counts = np.array([[1.0, 2.0], [3.0, 4.0]])
    update = CountUpdate(
        5.0, np.array([1, 2**63], np.uint64), np.array([0, 1], np.int16), counts, counts / 2, counts[0], counts[1]
    )
    again = decode_prior_update(encode_prior_update(update))
    assert again.at_s == 5.0
    for name in ("keys", "field", "n", "c", "root_n", "root_c"):
        np.testing.assert_array_equal(getattr(again, name), getattr(update, name))


def test_prior_update_of_other_fields_is_told_by_their_names() -> None:
    counts = np.array([[1.0], [2.0], [3.0]])
    keys, field = np.array([7, 8, 9], np.uint64), np.array([0, 1, 2], np.int16)
    update = CountUpdate(5.0, keys, field, counts, counts / 2, counts[0], counts[0] / 2, ("user", "gone", "ad"))
    read = decode_prior_update(encode_prior_update(update))
    assert read.fields == ("user", "gone", "ad")
    moved = read.under(["new", "ad", "user"])
    assert (moved.keys.tolist(), moved.field.tolist(), moved.n[:, 0].tolist()) == ([7, 9], [2, 1], [1.0, 3.0])
    assert read.under(["user", "gone", "ad"]) is read


def test_bytes_that_are_no_block_are_refused_by_name() -> None:
    with pytest.raises(BlockError, match="a block must be an Arrow IPC stream, got 3 other bytes"):
        decode_header(b"abc")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([])):
        pass
    with pytest.raises(BlockError, match="a block must carry a freshrank header"):
        decode_header(bytes(sink.getvalue()))


def test_block_of_a_newer_version_is_refused() -> None:
    newer = Header(**{name: getattr(HEADER, name) for name in Header.__struct_fields__} | {"v": 2})
    with pytest.raises(BlockError, match="a block must have version 1, got 2; update freshrank"):
        decode_header(encode_block(newer, COLUMNS, row_schema(FIELDS)))


def test_counts_add_up_and_say_by_how_much_a_law_is_broken() -> None:
    total = add_counts([Counts(records=2, requests=1, clicks=1, orphan=1), Counts(records=1, impressions=1)])
    assert total.records == 3
    assert total.violations() == {"impressions": 1, "clicks": 0, "records": 0}
