"""Events at the edge: what is no event has a rule, and never another exception."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import Event, EventError, Impression, Tick, decode_event, encode_event

CLICK = {"type": "click", "request_id": "r", "ad_id": "a", "position": 0, "time_s": 1.0}
DOCS = Path(__file__).parents[2] / "docs" / "events.md"


def rule_of(value: bytes | None) -> tuple[str, str]:
    with pytest.raises(EventError) as caught:
        decode_event(value)
    return caught.value.rule, caught.value.field


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, ("empty", "")),
        (b"", ("empty", "")),
        (b" " * 1_000_001, ("too_big", "")),
        (b"{", ("not_json", "")),
        (b"\xff", ("not_utf8", "")),
        (b'{"type":"click","x":' + b"[" * 100_000, ("too_deep", "")),
        (b'{"type":"click","time_s":NaN}', ("not_json", "")),
        (b'{"type":"click","time_s":Infinity}', ("not_json", "")),
        (b'{"type":"purchase"}', ("schema", "type")),
    ],
)
def test_bytes_that_are_no_event_have_a_rule(value: bytes | None, rule: tuple[str, str]) -> None:
    assert rule_of(value) == rule


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"v": 2}, ("version", "v")),
        ({"time_s": -1.0}, ("bad_time", "time_s")),
        ({"time_s": "now"}, ("schema", "time_s")),
        ({"request_id": ""}, ("bad_id", "request_id")),
        ({"ad_id": "a" * 257}, ("bad_id", "ad_id")),
        ({"position": -1}, ("bad_position", "position")),
        ({"type": "impression", "propensity": 0.0}, ("bad_propensity", "propensity")),
        ({"type": "request", "candidates": [], "request_id": ""}, ("bad_id", "request_id")),
        ({"type": "tick", "time_s": 253_402_300_800.0}, ("bad_time", "time_s")),
        ({"position": -1, "time_s": -1.0, "v": 2}, ("version", "v")),  # the first of several, in the order above
        ({"request_id": "", "ad_id": 5}, ("schema", "ad_id")),
    ],
)
def test_fields_that_break_a_rule_are_named(changed: dict[str, object], rule: tuple[str, str]) -> None:
    assert rule_of(json.dumps(CLICK | changed).encode()) == rule


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_any_bytes_are_an_event_or_an_event_error(value: bytes) -> None:
    found = ""
    try:
        decode_event(value)
        found = "event"
    except EventError as error:
        found = error.rule
    assert found


@pytest.mark.parametrize("event", [Tick(2.5), Impression("r", "a", 3, 1e9 + 0.123456, 0.25)])
def test_event_survives_its_json(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


def test_every_event_in_the_documentation_is_one() -> None:
    examples = re.findall(r"^\{\"type\".*\}$", DOCS.read_text(), flags=re.MULTILINE)
    assert sorted(type(decode_event(line.encode())).__name__ for line in examples) == [
        "Click",
        "Impression",
        "Request",
        "Tick",
    ]
