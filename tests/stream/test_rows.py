"""Records of any topic become rows that people can read."""

from __future__ import annotations

import msgspec

from stream.blocks import chain_schema, encode_block, encode_chains, row_schema
from stream.kafka import Record
from stream.rows import to_rows
from tests.stream.test_blocks import CHAINS, COLUMNS, HEADER
from tests.stream.test_ledger import FIELDS


def rows(topic: str, value: bytes | None, key: bytes | None = None) -> list[dict[str, object]]:
    return [msgspec.json.decode(row) for row in to_rows(topic, 2, Record(5, 1500, key, value))]


def test_block_of_examples_gives_its_header_and_a_row_per_impression() -> None:
    header, row = rows("examples", encode_block(HEADER, COLUMNS, row_schema(FIELDS)))
    assert (header["partition"], header["offset"], header["append_s"]) == (2, 5, 1.5)
    assert (row["kind"], row["field.tags"]) == ("clicked", ["x", "y"])


def test_block_of_chains_gives_its_header_and_a_row_per_candidate() -> None:
    header, *candidates = rows("chains", encode_chains(HEADER, CHAINS, chain_schema(FIELDS)))
    assert "header" in header
    assert [(row["request_id"], row["ad_id"], row["label"]) for row in candidates] == [
        ("r", "a", "clicked"),
        ("r", "b", "unexposed"),
        ("q", "c", "exposed"),
    ]


def test_anything_else_is_shown_as_it_is() -> None:
    assert rows("events", b'{"a":1}', b"k")[0]["value"] == {"a": 1}
    assert rows("events", b"\xff\xfe", b"k")[0]["value"] == {"raw": "//4="}
    assert rows("catalog", None, b"ad")[0]["deleted"] is True
