"""Hostile requests over HTTP: each has its one answer below 500, and the service goes on as before."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.serving.keys import hash_of, to_key
from models.serving.routes import ROUTES
from models.serving.schema import Click, Impression
from tests.models.serving.service import BODY, LIMITS, NOW_S, Service, ready_service

KEY = to_key(bytes(32))
SHOWN = {"type": "impression", "request_id": "q1", "ad_id": "ad1", "position": 0}


def ranking(**changed: Any) -> bytes:
    return json.dumps({"candidates": ["ad1"], **changed}).encode()


def ads(count: int) -> list[str]:
    return [f"a{i}" for i in range(count)]


def deep(n: int) -> bytes:
    return b'{"candidates": ["ad1"], "user": {"user_id": ' + b"[" * n + b"]" * n + b"}}"


# What each body is answered with: the status, and what is wrong (of a refusal).
RANKINGS: dict[str, tuple[bytes, int, str]] = {
    "no candidate": (ranking(candidates=[]), 400, "candidates"),
    "one candidate": (ranking(), 200, ""),
    "as many as there may be": (ranking(candidates=ads(LIMITS.candidates_max)), 200, ""),
    "one more": (ranking(candidates=ads(LIMITS.candidates_max + 1)), 400, "candidates"),
    "one twice": (ranking(candidates=["ad1", {"ad_id": "ad1"}]), 400, "candidates"),
    "a key twice": (b'{"candidates": [], "candidates": ["ad1"]}', 200, ""),
    "an id of 256": (ranking(candidates=["x" * 256]), 200, ""),
    "an id of 257": (ranking(candidates=["x" * 257]), 400, "candidates[0]"),
    "an id that is a number": (ranking(candidates=[7]), 400, "candidates[0]"),
    "an id that is nothing": (ranking(candidates=[None]), 400, "candidates[0]"),
    "an id that is a list": (ranking(candidates=[["ad1"]]), 400, "candidates[0]"),
    "an id with a zero": (ranking(candidates=["a\0b"]), 200, ""),
    "a request id that is a number": (ranking(request_id=7), 400, "request_id"),
    "a user nobody knows": (ranking(user={"user_id": "\u202enobody"}), 200, ""),
    "a user id that is a number": (ranking(user={"user_id": 7}), 200, ""),
    "a user id that is a huge number": (ranking(user={"user_id": 10**300}), 200, ""),
    "a user id that is true": (ranking(user={"user_id": True}), 400, "user.user_id"),
    "a user that is a list": (ranking(user=[]), 400, "user"),
    "NaN": (b'{"candidates": ["ad1"], "user": {"age": NaN}}', 400, "body"),
    "Infinity": (b'{"candidates": ["ad1"], "user": {"age": Infinity}}', 400, "body"),
    "a number beyond floats": (b'{"candidates": ["ad1"], "user": {"age": 1e999}}', 400, "user[...]"),
    "a whole number beyond floats": (ranking(user={"age": 10**400}), 400, "user.age"),
    "the largest float": (ranking(user={"age": 1.7976931348623157e308}), 200, ""),
    "the smallest float": (ranking(user={"age": 5e-324}), 200, ""),
    "top of nothing": (ranking(top=0), 400, "top"),
    "top of more than anybody counts": (ranking(top=10**30), 200, ""),
    "nested beyond all reason": (deep(9_000), 400, "body"),
    "nested and ignored": (ranking(user={"x": [[[[{}]]]]}), 200, ""),
    "no UTF-8": (b'{"candidates": ["\xff\xfe"]}', 400, "body"),
    "half a pair of surrogates": (rb'{"candidates": ["\ud800"]}', 400, "body"),
    "a byte order mark": (b"\xef\xbb\xbf" + ranking(), 400, "body"),
    "UTF-16": (ranking().decode().encode("utf-16"), 400, "body"),
    "two bodies": (ranking() + ranking(), 400, "body"),
    "as many bytes as there may be": (ranking().ljust(LIMITS.body_bytes_max), 200, ""),
    "one more byte": (ranking().ljust(LIMITS.body_bytes_max + 1), 413, "body"),
}
EVENTS: dict[str, tuple[bytes, int, str]] = {
    "no event": (b"[]", 400, "events"),
    "as many as there may be": (json.dumps([SHOWN] * LIMITS.events_max).encode(), 200, ""),
    "one more": (json.dumps([SHOWN] * (LIMITS.events_max + 1)).encode(), 400, "events"),
    "a request of one's own": (b'{"type": "request", "request_id": "q1"}', 400, "type"),
    "a tick": (b'{"type": "tick", "time_s": 9e9}', 400, "type"),
    "from the far future": (json.dumps({**SHOWN, "time_s": 1e18}).encode(), 400, "time_s"),
    "from before 1970": (json.dumps({**SHOWN, "time_s": -1}).encode(), 400, "time_s"),
    "a position beyond all lists": (json.dumps({**SHOWN, "position": 10**30}).encode(), 400, "position"),
    "a propensity of nothing": (json.dumps({**SHOWN, "propensity": 0}).encode(), 400, "propensity"),
    "a token as long as a book": (json.dumps({**SHOWN, "token": "x" * 101}).encode(), 400, "token"),
    "nested beyond all reason": (b"[" * 15_000, 400, "body"),
}
EXPLAINED: dict[str, tuple[bytes, int, str]] = {
    "more ads than are explained": (ranking(ads=[f"ad{number}" for number in range(21)]), 400, "ads"),
    "ads that are none": (ranking(ads=[7]), 400, "ads[0]"),
    "the same ad again and again": (ranking(ads=["ad1"] * 20), 200, ""),
}
CASES = [("/v1/rank", name, *case) for name, case in RANKINGS.items()]
CASES += [("/v1/explain", name, *case) for name, case in (RANKINGS | EXPLAINED).items()]
CASES += [("/v1/events", name, *case) for name, case in EVENTS.items()]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return ready_service(tmp_path)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as client:
        yield client


@pytest.mark.parametrize(("path", "body", "status", "what"), [pytest.param(p, *c, id=f"{p} {n}") for p, n, *c in CASES])
async def test_a_hostile_body_has_its_one_answer_and_the_next_is_as_ever(
    client: httpx.AsyncClient, path: str, body: bytes, status: int, what: str
) -> None:
    answer = await client.post(path, content=body)
    assert answer.status_code == status, answer.text
    if what:
        assert answer.json()["error"]["what"] == what
    assert (await client.post("/v1/rank", json=BODY)).status_code == 200


@pytest.mark.parametrize("token", ["", "0", "18b.1.0.AAAAAAAAAAAAAAAAAAAAAA", "' OR 1=1 --", "x" * 100])
async def test_a_token_goes_to_the_log_as_it_came_for_the_ledger_to_judge(
    service: Service, client: httpx.AsyncClient, token: str
) -> None:
    assert (await client.post("/v1/events", json={**SHOWN, "token": token})).status_code == 200
    assert service.log.events == [Impression("q1", "ad1", 0, NOW_S, token=token)]


async def test_an_event_that_is_sent_again_is_written_again_for_the_ledger_to_count_once(
    service: Service, client: httpx.AsyncClient
) -> None:
    for _ in range(2):
        assert (await client.post("/v1/events", json={**SHOWN, "type": "click"})).status_code == 200
    assert service.log.events == [Click("q1", "ad1", 0, NOW_S)] * 2


async def late() -> AsyncIterator[bytes]:
    yield b"{"
    raise TimeoutError  # as the time-out of a body does, whose real one test_app.py waits for


async def test_every_status_of_the_document_can_be_had_and_no_other(tmp_path: Path) -> None:
    service = ready_service(tmp_path, key_hashes=[hash_of(KEY)], concurrent_max=1, queue_max=0)
    found: set[tuple[str, int]] = set()
    async with service.client() as client:

        async def ask(content: Callable[[], Any], key: str = KEY) -> None:
            for route in ROUTES:
                sent, headers = content() if route.body else None, {"authorization": f"Bearer {key}"}
                answer = await client.request(route.method, route.path, content=sent, headers=headers)
                found.add((route.name, answer.status_code))

        good = (ranking(), json.dumps(SHOWN).encode())
        for content in (*good, b"{", b" " * (LIMITS.body_bytes_max + 1)):
            await ask(lambda content=content: content)
        await ask(lambda: b"{}", key="another")
        await ask(late)
        async with service.admission.place():
            await ask(ranking)
        service.log.is_away = True
        for content in good:
            await ask(lambda content=content: content)
        service.holder._current = None
        await ask(ranking)
    assert found == {(route.name, status) for route in ROUTES for status in route.replies}
