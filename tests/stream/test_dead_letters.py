"""Dead letters: raw bytes survive, attempts are carried on, and a record finds its way home."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.dead_letters import (
    DeadLetterRecord,
    Letter,
    Wanted,
    again_headers,
    attempts_in,
    dead_letter_bytes,
    decode_dead_letter,
    encode_dead_letter,
    home_partition,
    is_hopeless,
    to_row,
)
from stream.events import Click, encode_event
from stream.ledger import DeadLetter
from stream.partitioner import murmur2_partition


class Raw(NamedTuple):
    topic: str = "shop.events"
    key: bytes | None = b"r"
    value: bytes | None = b"{"
    timestamp: int = 1_500
    headers: tuple[tuple[str, bytes], ...] = ()


def letter(**changed: Any) -> DeadLetterRecord:
    return DeadLetterRecord(**({"topic": "shop.events", "partition": 1, "offset": 7, "rule": "bad_value"} | changed))


@given(st.none() | st.binary(), st.none() | st.binary(), st.text(), st.integers(0, 9))
def test_a_letter_holds_the_record_byte_for_byte(
    key: bytes | None, value: bytes | None, stood: str, attempts: int
) -> None:
    raw = Raw(key=key, value=value, headers=(("freshrank-attempts", b"%d" % attempts),))
    found = decode_dead_letter(dead_letter_bytes(2, DeadLetter(7, "schema", "age", stood), raw))
    assert found == DeadLetterRecord(
        topic="shop.events",
        partition=2,
        offset=7,
        rule="schema",
        field="age",
        value=stood,
        key=key,
        record=value,
        attempts=attempts,
        appended_s=1.5,
    )


def test_the_json_is_that_of_the_documentation() -> None:
    found = json.loads(dead_letter_bytes(2, DeadLetter(7, "schema", "age", "[1]"), Raw()))
    assert found == {
        "v": 1,
        "topic": "shop.events",
        "partition": 2,
        "offset": 7,
        "rule": "schema",
        "field": "age",
        "value": "[1]",
        "key": base64.b64encode(b"r").decode(),
        "record": base64.b64encode(b"{").decode(),
        "attempts": 0,
        "appended_s": 1.5,
    }


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b'{"v":1}', b'{"v":2,"topic":"t","partition":0,"offset":0,"rule":"x"}']
)
def test_bytes_that_are_no_letter_are_an_error(value: bytes | None) -> None:
    with pytest.raises(ValueError, match=r"a dead letter must (be as docs|have version 1, got 2)"):
        decode_dead_letter(value)


@pytest.mark.parametrize("header", [b"", b"-1", b"x", b"1.5", b"9" * 40, b"\xb2", b" 1"])
def test_an_attempts_header_that_is_none_of_ours_counts_as_none(header: bytes) -> None:
    assert attempts_in([("freshrank-attempts", header)]) == 0


def test_each_time_that_a_record_is_sent_again_counts() -> None:
    headers: list[tuple[str, bytes]] = []
    for n_sent in range(1, 4):
        value = dead_letter_bytes(0, DeadLetter(7, "schema", "", ""), Raw(headers=tuple(headers)))
        headers = again_headers(Letter(2, 40 + n_sent, 0.0, decode_dead_letter(value)))
        assert headers == [("freshrank-attempts", b"%d" % n_sent), ("freshrank-letter", b"2:%d" % (40 + n_sent))]


@given(st.text(min_size=1, max_size=20), st.none() | st.binary(max_size=20), st.integers(1, 40))
def test_a_record_goes_to_the_partition_of_its_request_whatever_its_key(
    request_id: str, key: bytes | None, n_partitions: int
) -> None:
    record = encode_event(Click(request_id, "a", 0, 1.0))
    wanted = murmur2_partition(request_id.encode(), n_partitions)
    assert home_partition(letter(key=key, record=record), n_partitions) == wanted


def test_a_record_whose_request_cannot_be_read_goes_by_its_key_and_else_stays() -> None:
    unreadable = [b"{", b"\xff", b'{"request_id":5}', b'{"request_id":""}', b'{"x":' + b"[" * 100_000, b""]
    for record in unreadable:
        assert home_partition(letter(key=b"r", record=record, partition=5), 7) == murmur2_partition(b"r", 7) != 5
        assert home_partition(letter(record=record, partition=5), 7) == 5


def test_what_no_program_takes_is_hopeless() -> None:
    assert [is_hopeless(letter(record=record)) for record in (None, b"", b"x", b"x" * 1_000_001)] == [
        True,
        True,
        False,
        True,
    ]


WHEN_S = 100.0
STANDS = Letter(2, 40, 500.0, letter(rule="bad_value", field="age", appended_s=WHEN_S))


@pytest.mark.parametrize(
    ("wanted", "is_taken"),
    [
        (Wanted(), True),
        (Wanted(rules={"bad_value", "schema"}), True),
        (Wanted(rules={"schema"}), False),
        (Wanted(partition=2), True),
        (Wanted(partition=0), False),
        (Wanted(field="age"), True),
        (Wanted(field="sex"), False),
        (Wanted(since_s=WHEN_S), True),
        (Wanted(since_s=WHEN_S + 0.1), False),
        (Wanted(until_s=WHEN_S + 0.1), True),
        (Wanted(until_s=WHEN_S), False),
        (Wanted(offsets={40, 41}), True),
        (Wanted(offsets={7}), False),
        (Wanted(rules={"bad_value"}, partition=2, field="sex"), False),
    ],
)
def test_a_letter_is_taken_when_every_part_of_the_wish_fits(wanted: Wanted, is_taken: bool) -> None:
    assert wanted.takes(STANDS) == is_taken


def test_a_letter_of_an_earlier_release_stands_at_its_own_append_time() -> None:
    old = b'{"v":1,"topic":"t","partition":2,"offset":1,"rule":"x","field":"","value":"","key":"","record":"e30="}'
    found = decode_dead_letter(old)
    assert (found.attempts, found.record) == (0, b"{}")
    assert Letter(2, 40, 500.0, found).when_s == 500.0


@pytest.mark.parametrize(
    ("record", "shown"),
    [(b'{"a":[1]}', {"a": [1]}), (b"{", "{"), (b"\xff", {"base64": "/w=="}), (None, None), (b"", "")],
)
def test_a_row_shows_the_record_as_json_as_text_or_as_base64(record: bytes | None, shown: object) -> None:
    row = to_row(Letter(2, 40, 500.0, letter(key=b"r", record=record)), is_requeued=True)
    assert (row["record"], row["key"], row["letter"], row["requeued"]) == (shown, "r", "2:40", True)
    assert json.loads(encode_dead_letter(letter(record=record)))["offset"] == row["offset"]
