"""The bridge without Kafka: records are mapped whole or refused, and leave in order and once."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.metrics import BRIDGE_OUTCOMES
from stream.bridge import Bridged, FieldPath, Merger, Source, bridge_record, parse_path
from stream.events import Click, Event, EventError, Impression, Request, decode_event

VIEWS = Source(
    is_click=False,
    time=("meta", "at"),
    time_unit="ms",
    key=(("request", "id"), ("slot",)),
    ad_id=("ads", 0, "id"),
    position=("slot",),
    propensity=("p",),
    values=(
        FieldPath("age", "user", "number", ("user", "age")),
        FieldPath("shop", "context", "category", ("shop",)),
        FieldPath("tags", "item", "categories", ("ads", 0, "tags")),
        FieldPath("size", "creative", "category", ("ads", 0, "size")),
    ),
    ad_field="ad",
    defaults={"shop": "none", "propensity": 0.5},
)
CLICKS = Source(is_click=True, time=("at",), key=(("rid",), ("slot",)), ad_id=("ad",), position=("slot",))
VIEW: dict[str, Any] = {
    "meta": {"at": 1_700_000_000_123},
    "request": {"id": 77},
    "slot": 2,
    "ads": [{"id": "a", "tags": ["x", 3], "size": "big"}],
    "user": {"age": 30.5, "name": "not mapped"},
    "shop": None,
}
CLICK: dict[str, Any] = {"at": 1_700_000_001.5, "rid": "77", "slot": 2, "ad": "a"}


def mapped(record: object, source: Source, **options: Any) -> Bridged:
    return bridge_record(json.dumps(record).encode(), source, **options)


def events_of(bridged: Bridged) -> list[Event]:
    return [decode_event(value) for value in bridged.values]


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


def test_an_impression_becomes_its_request_and_itself() -> None:
    bridged = mapped(VIEW, VIEWS)
    request, impression = events_of(bridged)
    assert isinstance(request, Request)
    assert request.values == {"age": 30.5, "shop": "none"}
    assert request.candidates[0].values == {"ad": "a", "tags": ["x", 3], "size": "big"}
    assert impression == Impression("77:2", "a", 2, 1_700_000_000.123, 0.5)
    assert (request.request_id, request.time_s) == (bridged.request_id, bridged.time_s) == ("77:2", 1_700_000_000.123)


def test_a_click_of_the_same_key_meets_its_impression() -> None:
    (click,) = events_of(mapped(CLICK, CLICKS))
    assert click == Click("77:2", "a", 2, 1_700_000_001.5)


def test_a_value_that_stands_nowhere_and_has_no_default_is_not_known() -> None:
    request, _ = events_of(mapped(VIEW | {"user": "nobody"}, VIEWS))
    assert isinstance(request, Request)
    assert request.values == {"shop": "none"}


@pytest.mark.parametrize(
    ("unit", "at", "time_s"),
    [
        ("s", 5, 5.0),
        ("ms", 5, 0.005),
        ("us", 5_000_000, 5.0),
        ("iso", "1970-01-01T00:00:05Z", 5.0),
        ("iso", "1970-01-01T02:00:05+02:00", 5.0),
        ("iso", "1970-01-01 00:00:05.25", 5.25),
    ],
)
def test_times_are_seconds_in_the_end(unit: Any, at: object, time_s: float) -> None:
    source = Source(is_click=True, time=("at",), time_unit=unit, key=(("rid",),), ad_id=("ad",))
    assert mapped(CLICK | {"at": at}, source).time_s == time_s


@pytest.mark.parametrize(
    ("changed", "rule", "field"),
    [
        (without(VIEW, "meta"), "bridge_path", "time"),
        (VIEW | {"meta": {"at": "soon"}}, "bad_time", "time"),
        (VIEW | {"meta": {"at": True}}, "bad_time", "time"),
        (VIEW | {"meta": {"at": -1}}, "bad_time", "time_s"),
        (VIEW | {"meta": {"at": 10**400}}, "bad_time", "time"),
        (VIEW | {"request": {}}, "bridge_path", "key"),
        (VIEW | {"request": {"id": [1]}}, "bad_id", "key"),
        (VIEW | {"request": {"id": "i" * 300}}, "bad_id", "request_id"),
        (VIEW | {"ads": []}, "bridge_path", "ad_id"),
        (VIEW | {"ads": {"id": "a"}}, "bridge_path", "ad_id"),
        (VIEW | {"ads": [{"id": ""}]}, "bad_id", "ad_id"),
        (VIEW | {"slot": "2"}, "bad_position", "position"),
        (VIEW | {"slot": -1}, "bad_position", "position"),
        (VIEW | {"slot": None}, "bridge_path", "key"),
        (VIEW | {"p": 0}, "bad_propensity", "propensity"),
        (VIEW | {"p": 1.5}, "bad_propensity", "propensity"),
        (VIEW | {"user": {"age": "30"}}, "bad_value", "age"),
        (VIEW | {"user": {"age": True}}, "bad_value", "age"),
        (VIEW | {"shop": 1.5}, "bad_value", "shop"),
        (VIEW | {"shop": 2**70}, "bad_value", "shop"),
        (VIEW | {"ads": [{"id": "a", "tags": "x"}]}, "bad_value", "tags"),
        (VIEW | {"ads": [{"id": "a", "tags": [["x"]]}]}, "bad_value", "tags"),
        (VIEW | {"ads": [{"id": "a", "tags": ["x" * 1_000_001]}]}, "too_big", ""),
        ([VIEW], "bridge_path", "time"),
        ("text", "bridge_path", "time"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_its_rule(changed: object, rule: str, field: str) -> None:
    with pytest.raises(EventError) as caught:
        mapped(changed, VIEWS)
    assert (caught.value.rule, caught.value.field) == (rule, field)
    assert rule in BRIDGE_OUTCOMES


def test_what_lies_too_far_ahead_is_refused() -> None:
    with pytest.raises(EventError, match="future"):
        mapped(CLICK, CLICKS, latest_s=CLICK["at"] - 0.1)
    assert mapped(CLICK, CLICKS, latest_s=CLICK["at"]).time_s == CLICK["at"]


@pytest.mark.parametrize(
    ("value", "rule"),
    [(None, "empty"), (b"", "empty"), (b"{", "not_json"), (b'{"a":"\xff"}', "not_utf8"), (b"[" * 100_000, "too_deep")],
)
def test_bytes_that_are_no_json_are_refused(value: bytes | None, rule: str) -> None:
    with pytest.raises(EventError) as caught:
        bridge_record(value, VIEWS)
    assert caught.value.rule == rule
    assert rule in BRIDGE_OUTCOMES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=60)
    | st.fixed_dictionaries({}, optional=dict.fromkeys(VIEW, JSON)).map(
        lambda changed: json.dumps(VIEW | changed).encode()
    )
)
def test_any_bytes_are_mapped_whole_or_refused(value: bytes) -> None:
    for source in (VIEWS, CLICKS):
        rule = ""
        try:
            events = events_of(bridge_record(value, source))
            assert [type(event) for event in events] == ([Click] if source.is_click else [Request, Impression])
        except EventError as error:
            rule = error.rule
            assert rule in BRIDGE_OUTCOMES
        assert rule != "" or events


def test_events_bear_the_token_of_who_signs() -> None:
    _, impression = events_of(mapped(VIEW, VIEWS, sign=lambda event: f"for {event.ad_id} at {event.position}"))
    assert isinstance(impression, Impression)
    assert impression.token == "for a at 2"


@pytest.mark.parametrize(
    ("text", "path"),
    [("a", ("a",)), ("a.b", ("a", "b")), ("a[0]", ("a", 0)), ("a[0][12].b c.d", ("a", 0, 12, "b c", "d"))],
)
def test_a_path_is_its_steps(text: str, path: tuple[str | int, ...]) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "[0]", "a[", "a[x]", "a[-1]", "a]b"])
def test_what_is_no_path_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="a path must be names with dots between"):
        parse_path(text)


ALIGN_S = 2.0
PARTS = (0, 1, 2)
Rows = list[tuple[int, float | None]]
ROWS: st.SearchStrategy[Rows] = st.lists(
    st.tuples(st.sampled_from(PARTS), st.none() | st.integers(0, 30).map(float)), max_size=40
)


def drain(merger: Merger[int, int], idle: tuple[int, ...], limit: int) -> list[tuple[int, int]]:
    left: list[tuple[int, int]] = []
    while released := merger.release(idle, limit):
        assert len(released) <= limit
        left += released
    return left


@given(ROWS, st.integers(1, 5), st.integers(1, 7))
def test_each_record_leaves_once_and_in_its_partitions_order(rows: Rows, limit: int, every: int) -> None:
    merger: Merger[int, int] = Merger(PARTS, ALIGN_S)
    left: list[tuple[int, int]] = []
    for number, (part, time_s) in enumerate(rows):
        merger.add(part, time_s, number)
        if number % every == 0:
            left += merger.release((), limit)
    left += drain(merger, PARTS, limit)
    for part in PARTS:
        assert [number for name, number in left if name == part] == [n for n, (p, _) in enumerate(rows) if p == part]


@given(ROWS)
def test_nothing_leaves_that_is_further_ahead_than_align_s(rows: Rows) -> None:
    merger: Merger[int, int] = Merger(PARTS, ALIGN_S)
    fronts = dict.fromkeys(PARTS, -math.inf)  # the largest time of each partition so far
    times: list[float] = []
    for number, (part, time_s) in enumerate(rows):
        fronts[part] = max(fronts[part], -math.inf if time_s is None else time_s)
        times.append(fronts[part])
        merger.add(part, time_s, number)
        for _, leaving in merger.release((), 100):
            assert times[leaving] <= min(fronts.values()) + ALIGN_S


@given(ROWS)
def test_records_that_are_all_there_leave_in_order_of_time(rows: Rows) -> None:
    merger: Merger[int, int] = Merger(PARTS, 0.0)
    times: list[float] = []
    fronts = dict.fromkeys(PARTS, -math.inf)
    for number, (part, time_s) in enumerate(rows):
        fronts[part] = max(fronts[part], -math.inf if time_s is None else time_s)
        times.append(fronts[part])
        merger.add(part, time_s, number)
    left = [times[number] for _, number in drain(merger, PARTS, 1000)]
    assert left == sorted(left)
    assert len(left) == len(rows)


def test_an_idle_partition_holds_nobody_back_and_one_that_is_not_does() -> None:
    merger: Merger[str, int] = Merger(("views", "clicks"), ALIGN_S)
    merger.add("views", 100.0, 1)
    assert merger.release((), 9) == []
    assert merger.release(("clicks",), 9) == [("views", 1)]
    merger.add("clicks", 50.0, 2)
    merger.add("views", 101.0, 3)
    assert merger.release((), 9) == [("clicks", 2)]  # clicks have come to 50: 101 is too far ahead
    merger.add("clicks", 99.0, 4)
    assert merger.release((), 9) == [("clicks", 4), ("views", 3)]


def test_a_record_that_is_late_in_its_partition_does_not_take_the_partition_back() -> None:
    merger: Merger[str, int] = Merger(("views", "clicks"), ALIGN_S)
    merger.add("views", 100.0, 1)
    merger.add("views", 50.0, 2)
    merger.add("clicks", 101.0, 3)
    assert merger.release((), 9) == [("views", 1), ("views", 2), ("clicks", 3)]
    assert merger.time_s(()) == 100.0


def test_how_far_all_have_come_is_the_time_of_the_slowest_that_is_not_idle() -> None:
    merger: Merger[str, int] = Merger(("views", "clicks"), ALIGN_S)
    assert merger.time_s(()) == -math.inf
    merger.add("views", 100.0, 1)
    assert merger.time_s(()) == -math.inf
    assert merger.time_s(("clicks",)) == 100.0
    merger.add("clicks", 40.0, 2)
    assert merger.time_s(()) == 40.0
    drain(merger, ("views", "clicks"), 9)
    assert merger.time_s(("clicks",)) == 100.0
    assert merger.time_s(("clicks", "views")) == -math.inf


def test_a_topic_is_read_up_to_its_slowest_partition_that_is_not_idle() -> None:
    merger: Merger[str, int] = Merger(("one", "other", "clicks"), ALIGN_S)
    views = ("one", "other")
    merger.add("one", 100.0, 1)
    assert merger.read_s(views, ()) == -math.inf
    assert merger.read_s(views, ("other",)) == 100.0
    merger.add("other", 40.0, 2)
    assert merger.read_s(views, ()) == 40.0
    drain(merger, ("one", "other", "clicks"), 9)
    assert merger.read_s(views, ("other",)) == 100.0
    assert merger.read_s(views, views) == 100.0


def test_a_topic_is_ahead_by_what_its_next_record_waits_for() -> None:
    merger: Merger[str, int] = Merger(("views", "clicks"), ALIGN_S)
    assert merger.ahead_s(("views",), ()) == 0.0
    merger.add("views", None, 1)
    assert merger.ahead_s(("views",), ()) == 0.0
    drain(merger, ("views", "clicks"), 9)
    merger.add("views", 100.0, 2)
    merger.add("views", 900.0, 3)
    assert merger.ahead_s(("views",), ()) == math.inf
    merger.add("clicks", 40.0, 4)
    assert (merger.ahead_s(("views",), ()), merger.ahead_s(("clicks",), ())) == (60.0, 0.0)
    assert merger.release((), 9) == [("clicks", 4)]
    assert merger.ahead_s(("views",), ()) == 60.0
    assert merger.ahead_s(("views",), ("clicks",)) == 0.0


def test_a_topic_whose_own_partition_is_the_slowest_is_not_ahead() -> None:
    merger: Merger[str, int] = Merger(("one", "other", "clicks"), ALIGN_S)
    for partition, time_s in (("one", 40.0), ("other", 100.0), ("clicks", 70.0)):
        merger.add(partition, time_s, 1)
    assert merger.ahead_s(("one", "other"), ()) == 0.0
    assert merger.ahead_s(("clicks",), ()) == 30.0
