"""A call as steps: when it is tried again, how long it waits, and what each answer means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freshrank import calls
from freshrank.calls import Answered, Ask, Lost, Patience, Wait
from freshrank.schema import (
    CallError,
    Click,
    Failed,
    Fault,
    RankAnswer,
    RankBody,
    Readiness,
    Refused,
    Unavailable,
    Unreachable,
)

RANKED = Answered(200, b'{"request_id": "q", "snapshot": "s", "ads": [], "later_key": 1}')
BUSY = Answered(429, b'{"error": {"what": "request", "rule": "must wait", "got": "a full queue"}}', "2")
AWAY = Answered(503, b'{"error": {"what": "log", "rule": "must be there", "got": "nothing"}}')
BROKEN = Lost("ConnectError: refused", may_retry=True)


class World:
    """Plays what happens to a call: answers in turn, and a clock that only waiting moves."""

    def __init__(self, *found: Answered | Lost, attempt_s: float = 0.0) -> None:
        self.found = list(found)
        self.now_s = 0.0
        self.attempt_s = attempt_s
        self.asked: list[Ask] = []
        self.waited: list[float] = []

    def patience(self, timeout_s: float = 10.0, retries: int = 3) -> Patience:
        return Patience(timeout_s, retries, lambda: self.now_s, lambda: 0.5)

    def play(self, steps: Any) -> Any:
        step = next(steps)
        try:
            while True:
                if isinstance(step, Wait):
                    self.waited.append(step.seconds)
                    self.now_s += step.seconds
                    step = next(steps)
                else:
                    self.asked.append(step)
                    self.now_s += self.attempt_s
                    step = steps.send(self.found.pop(0))
        except StopIteration as end:
            return end.value

    def rank(self, **patience: Any) -> RankAnswer:
        answer: RankAnswer = self.play(calls.rank(RankBody(["a"], "q"), self.patience(**patience)))
        return answer


def test_an_answer_is_its_type_and_keys_of_later_releases_are_ignored() -> None:
    assert World(RANKED).rank() == RankAnswer("q", "s", [])


@pytest.mark.parametrize("first", [BUSY, AWAY, BROKEN])
def test_what_may_pass_is_tried_again_with_the_same_bytes(first: Answered | Lost) -> None:
    world = World(first, RANKED)
    assert world.rank().request_id == "q"
    assert [ask.content for ask in world.asked] == [b'{"candidates":["a"],"request_id":"q"}'] * 2


def test_waits_grow_and_are_never_shorter_than_the_service_says() -> None:
    world = World(BROKEN, BROKEN, BUSY, RANKED)
    world.rank()
    assert world.waited == pytest.approx([0.05, 0.1, 2.2])


def test_the_first_attempt_and_the_retries_are_all_there_are() -> None:
    world = World(*[BUSY] * 5)
    with pytest.raises(Unavailable) as caught:
        world.rank(retries=2)
    assert len(world.asked) == 3
    assert (caught.value.status, caught.value.fault) == (429, Fault("request", "must wait", "a full queue"))
    assert str(caught.value) == "request must wait, got a full queue"


def test_a_wait_beyond_the_calls_time_is_not_begun() -> None:
    world = World(BUSY, RANKED)
    with pytest.raises(Unavailable):
        world.rank(timeout_s=2.0)
    assert world.waited == []


def test_an_attempt_has_what_is_left_of_the_calls_time() -> None:
    world = World(BUSY, RANKED, attempt_s=1.0)
    world.rank(timeout_s=10.0)
    assert [ask.timeout_s for ask in world.asked] == pytest.approx([10.0, 6.95])


@pytest.mark.parametrize(
    ("found", "kind", "status"),
    [
        (Answered(400, b'{"error": {"what": "top", "rule": "must be", "got": "0"}}'), Refused, 400),
        (Answered(401, b'{"error": {"what": "authorization", "rule": "must be", "got": "nothing"}}'), Refused, 401),
        (Answered(500, b'{"error": {"what": "server", "rule": "must", "got": "a mistake"}}'), Failed, 500),
        (Answered(404, b"<html>"), Refused, 404),
        (Answered(200, b"<html>"), Failed, 200),
        (Answered(200, b"\xff"), Failed, 200),
        (Answered(302, b""), Failed, 302),
        (Lost("ReadTimeout", may_retry=False), Unreachable, 0),
    ],
)
def test_what_cannot_pass_is_an_error_at_once(found: Answered | Lost, kind: type[CallError], status: int) -> None:
    world = World(found)
    with pytest.raises(kind) as caught:
        world.rank()
    assert (caught.value.status, len(world.asked)) == (status, 1)


def test_what_no_ranking_service_says_is_shown() -> None:
    with pytest.raises(Failed, match="answer must be one that a ranking service gives, got 502: <html>"):
        World(Answered(502, b"<html>")).rank()


def test_no_answer_says_which_path_and_why() -> None:
    with pytest.raises(Unreachable, match="/v1/rank must be answered within 10 s, got ConnectError: refused"):
        World(BROKEN).rank(retries=0)


def test_that_every_event_is_refused_is_an_answer() -> None:
    fault = {"what": "position", "rule": "must be", "got": "-1"}
    body = {"accepted": 0, "rejected": 1, "results": [{"accepted": False, "error": fault}]}
    world = World(Answered(400, json.dumps(body).encode()))
    answer = world.play(calls.events([Click("q", "a", -1)], world.patience()))
    assert answer.results[0].error == Fault(**fault)


def test_a_list_of_events_that_is_refused_as_a_whole_is_an_error() -> None:
    world = World(Answered(400, b'{"error": {"what": "events", "rule": "must be 1 to 3", "got": "0"}}'))
    with pytest.raises(Refused, match="events must be 1 to 3, got 0"):
        world.play(calls.events([], world.patience()))


def test_not_ready_is_an_answer_and_not_asked_again() -> None:
    world = World(Answered(503, b'{"ready": false, "missing": ["snapshot"], "snapshot": null}'))
    assert world.play(calls.ready(world.patience())) == Readiness(ready=False, missing=["snapshot"], snapshot=None)
    assert len(world.asked) == 1
