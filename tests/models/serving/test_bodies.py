"""Bytes from outside: each body is a checked value or one refusal that says what, rule and got."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.fields import Field
from models.serving.bodies import RankReader, read_events
from models.serving.schema import Click, Fault, Impression, RankQuery, Rejected

FIELDS = (
    Field(name="user_id", side="user"),
    Field(name="age", side="user", kind="number"),
    Field(name="hour", side="context", kind="number"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="user_tag", side="cross", of=("user_id", "tags")),
)
READER = RankReader(FIELDS, candidates_max=3, top=20)
NOW_S = 1_000_000.0
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def read(body: dict[str, Any] | bytes) -> RankQuery:
    return READER.read(body if isinstance(body, bytes) else json.dumps(body).encode())


def refusal(body: dict[str, Any] | bytes) -> tuple[str, str, str]:
    with pytest.raises(Rejected) as caught:
        read(body)
    fault = caught.value.fault
    return fault.what, fault.rule, fault.got


def events(body: object, events_max: int = 3) -> list[Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_events(raw, events_max=events_max, now_s=NOW_S, ahead_max_s=60.0)


def event_refusal(body: object) -> tuple[str, str, str]:
    with pytest.raises(Rejected) as caught:
        events(body)
    fault = caught.value.fault
    return fault.what, fault.rule, fault.got


def impression(**changed: Any) -> dict[str, Any]:
    return {"type": "impression", "request_id": "r1", "ad_id": "a1", "position": 0, **changed}


def test_candidates_come_by_id_or_with_values() -> None:
    query = read({"candidates": ["a1", {"ad_id": "a2", "values": {"tags": ["x", 7]}}]})
    assert (query.ids, query.own) == (["a1", "a2"], {"a2": {"tags": ["x", "7"]}})
    assert (query.request_id, query.top, query.ignored_fields) == ("", 20, [])


def test_values_of_user_and_context_become_the_one_type_of_their_kind() -> None:
    query = read({"candidates": ["a"], "user": {"user_id": 7, "age": 30}, "context": {"hour": None}})
    assert query.values == {"user_id": "7", "age": 30.0, "hour": None}
    assert type(query.values["age"]) is float


def test_a_single_value_of_a_field_with_several_is_a_list_of_one() -> None:
    assert read({"candidates": [{"ad_id": "a", "values": {"tags": "x"}}]}).own == {"a": {"tags": ["x"]}}


def test_a_request_says_its_time_only_where_callers_own_the_clock() -> None:
    body = {"candidates": ["a"], "time_s": NOW_S + 9000.0}
    assert refusal(body) == (
        "time_s",
        "must be left out, because this deployment's clock is the wall clock",
        "1009000.0",
    )
    replays = RankReader(FIELDS, candidates_max=3, top=20, is_replay=True)
    assert replays.read(json.dumps(body).encode()).time_s == NOW_S + 9000.0
    assert replays.read(b'{"candidates": ["a"]}').time_s is None
    with pytest.raises(Rejected, match="time_s must be `float` <= 253402300799"):
        replays.read(b'{"candidates": ["a"], "time_s": 1e15}')


def test_unknown_fields_are_ignored_and_said() -> None:
    ads = [{"ad_id": "a", "values": {"colour": {"deep": []}, "ad": "a"}}, {"ad_id": "b", "values": {"colour": 1}}]
    query = read({"candidates": ads, "user": {"hour": 3, "shoe": 42}, "context": {"user_tag": "x"}})
    assert query.ignored_fields == ["candidates.colour", "context.user_tag", "user.hour", "user.shoe"]
    assert query.values == {}


@pytest.mark.parametrize(
    ("body", "what", "rule", "got"),
    [
        (b"", "body", "must be JSON", "nothing"),
        (b"{", "body", "must be JSON", "Input data was truncated"),
        (b'{"candidates": ["a"], "user": {"age": NaN}}', "body", "must be JSON", "JSON is malformed"),
        (b"\xff\xfe", "body", "must be UTF-8", "0xff at byte 0"),
        (b'{"candidates": ["\xff"]}', "body", "must be UTF-8", "0xff at byte 17"),
        (b'{"user": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "body", "must not be nested this deep", "200"),
        (b"[]", "body", "must be `object`", "`array`"),
        ({}, "body", "must hold `candidates`", "none"),
        ({"candidates": ["a"], "tpo": 3}, "body", "must hold known keys only", "`tpo`"),
        ({"candidates": "a"}, "candidates", "must be `array`", "`str`"),
        ({"candidates": [1]}, "candidates[0]", "must be `str | object`", "`int`"),
        ({"candidates": [""]}, "candidates[0]", "must be `str` of length >= 1", "another value"),
        ({"candidates": ["a" * 257]}, "candidates[0]", "must be `str` of length <= 256", "another value"),
        ({"candidates": [{"values": {}}]}, "candidates[0]", "must hold `ad_id`", "none"),
        ({"candidates": []}, "candidates", "must hold 1 to 3 ads", "0"),
        ({"candidates": ["a", "b", "c", "d"]}, "candidates", "must hold 1 to 3 ads", "4"),
        ({"candidates": ["a", {"ad_id": "a"}]}, "candidates", "must hold each ad once", '"a" twice'),
        ({"candidates": ["a"], "top": 0}, "top", "must be `int` >= 1", "another value"),
        ({"candidates": ["a"], "top": "1"}, "top", "must be `int | null`", "`str`"),
        ({"candidates": ["a"], "request_id": ""}, "request_id", "must be `str` of length >= 1", "another value"),
        ({"candidates": ["a"], "user": [1]}, "user", "must be `object`", "`array`"),
        ({"candidates": ["a"], "user": {"age": "old"}}, "user.age", "must be a finite number", '"old"'),
        ({"candidates": ["a"], "user": {"age": True}}, "user.age", "must be a finite number", "true"),
        ({"candidates": ["a"], "user": {"age": 10**400}}, "user.age", "must be a finite number", "1000"),
        (b'{"candidates": ["a"], "user": {"age": 1e400}}', "user[...]", "must be a value", "Number out of range"),
        ({"candidates": ["a"], "user": {"user_id": 1.5}}, "user.user_id", "must be a text or a whole number", "1.5"),
        ({"candidates": ["a"], "user": {"user_id": ["u"]}}, "user.user_id", "must be a text or", '["u"]'),
        (
            {"candidates": [{"ad_id": "a", "values": {"tags": ["x", {}]}}]},
            "candidates.tags",
            "must be a list of texts or whole numbers",
            '["x",{}]',
        ),
    ],
)
def test_a_bad_ranking_request_is_refused_in_words(
    body: dict[str, Any] | bytes, what: str, rule: str, got: str
) -> None:
    found = refusal(body)
    assert found[0] == what
    assert found[1].startswith(rule)
    assert found[2].startswith(got)


def test_the_limit_itself_is_allowed() -> None:
    assert len(read({"candidates": ["a", "b", "c"]}).ids) == 3


def test_what_stands_there_is_said_in_at_most_200_characters() -> None:
    assert len(refusal({"candidates": ["a"], "user": {"age": "x" * 5000}})[2]) == 200


@given(body=st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_body_fails_but_by_a_refusal(body: bytes) -> None:
    for reader in (READER.read, events):
        with suppress(Rejected):
            reader(body)


@given(user=st.dictionaries(st.sampled_from(["user_id", "age", "x"]), json_values), values=json_values)
def test_values_that_pass_are_text_texts_or_finite_numbers(user: dict[str, Any], values: Any) -> None:
    try:
        query = read({"candidates": [{"ad_id": "a", "values": {"tags": values}}], "user": user})
    except Rejected:
        return
    own = query.own.get("a", {})
    for value in [*query.values.values(), *own.values()]:
        texts = value if isinstance(value, list) else []
        assert value is None or isinstance(value, str | list | float)
        assert all(isinstance(text, str) for text in texts)


def test_an_event_or_a_list_of_them_is_read_in_order() -> None:
    click = {"type": "click", "request_id": "r1", "ad_id": "a1", "position": 0, "time_s": 5.0}
    assert events(click) == [Click("r1", "a1", 0, 5.0)]
    assert events([impression(propensity=0.5, v=1), click]) == [
        Impression("r1", "a1", 0, NOW_S, propensity=0.5),
        Click("r1", "a1", 0, 5.0),
    ]


def test_one_bad_event_does_not_spoil_the_others() -> None:
    good, bad = events([impression(), impression(position=-1)])
    assert isinstance(good, Impression)
    assert bad == Fault("position", "must be `int` >= 0", "another value")


@pytest.mark.parametrize(
    ("body", "what", "rule", "got"),
    [
        ([], "events", "must be 1 to 3", "0"),
        ([1, 2, 3, 4], "events", "must be 1 to 3", "4"),
        (b"[" * 100_000, "body", "must not be nested this deep", "100000 bytes"),
        (b"[\xff]", "body", "must be UTF-8", "0xff at byte 1"),
        (3, "body", "must be `object`", "`int`"),
        ({"type": "request", "request_id": "r"}, "type", "must be a value", "Invalid value 'request'"),
        ({"type": "tick", "time_s": 9e9}, "type", "must be a value", "Invalid value 'tick'"),
        ({"request_id": "r"}, "body", "must hold `type`", "none"),
        (impression(values={"age": 3}), "body", "must hold known keys only", "`values`"),
        (impression(v=2), "v", "must be `int` <= 1", "another value"),
        (impression(propensity=0.0), "propensity", "must be `float` > 0.0", "another value"),
        (impression(time_s=-1.0), "time_s", "must be seconds since 1970, at most 60 s ahead", "-1.0"),
        (impression(time_s=NOW_S + 61.0), "time_s", "must be seconds since 1970, at most 60 s ahead", "1000061.0"),
    ],
)
def test_a_bad_event_is_refused_in_words(body: object, what: str, rule: str, got: str) -> None:
    found = event_refusal(body)
    assert found[0] == what
    assert found[1].startswith(rule)
    assert found[2].startswith(got)
