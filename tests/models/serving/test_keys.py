"""Keys of callers: who holds one is let in, and everybody else is told nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from models.serving import keys
from models.serving.keys import hash_of, is_allowed, to_key
from models.serving.routes import ROUTES
from tests.models.serving.service import BODY, Service, listening, ready_service

OLD, NEW = to_key(bytes(range(32))), to_key(bytes(32))
HASHES = (hash_of(OLD), hash_of(NEW))


def test_every_configured_key_is_allowed() -> None:
    assert is_allowed(f"Bearer {OLD}", HASHES)
    assert is_allowed(f"bearer  {NEW}", HASHES)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Bearer",
        "Bearer ",
        OLD,
        f"Basic {OLD}",
        f"Bearer {OLD}x",
        f"Bearer {OLD[:-1]}",
        f"Bearer {OLD},{NEW}",
        f"Bearer {hash_of(OLD).hex()}",
        "Bearer \x00\xff\ud800",
    ],
)
def test_anything_else_is_not(said: str) -> None:
    assert not is_allowed(said, HASHES)


def test_without_hashes_nothing_is_allowed() -> None:
    assert not is_allowed(f"Bearer {OLD}", ())


def test_every_hash_is_compared_wherever_the_right_one_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    class Watched:
        @staticmethod
        def compare_digest(own: bytes, one: bytes) -> bool:
            compared.append(one)
            return own == one

    monkeypatch.setattr(keys, "hmac", Watched)
    assert is_allowed(f"Bearer {OLD}", HASHES)
    assert compared == [*HASHES]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return ready_service(tmp_path, key_hashes=HASHES)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_what_is_open_asks_for_no_key_and_the_rest_does(service: Service, route: object) -> None:
    async with service.client() as client:
        answer = await client.request(route.method, route.path, json=BODY)  # type: ignore[attr-defined]
    assert (answer.status_code == 401) is (route.path not in {"/healthz", "/readyz", "/metrics"})  # type: ignore[attr-defined]
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == 'Bearer realm="freshrank"'
        assert answer.json()["error"]["got"] == "nothing"


async def test_a_key_opens_what_asks_for_one(service: Service) -> None:
    async with service.client() as client:
        for key in (OLD, NEW):
            answer = await client.post("/v1/rank", json=BODY, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        assert service.metric("freshrank_answers_total", route="rank", status="200") == 2.0


async def test_of_a_caller_without_a_key_no_body_is_read(service: Service) -> None:
    async with service.client() as client:
        answer = await client.post("/v1/rank", content=b" " * 30_000)
        assert answer.status_code == 401  # not 413
    assert service.metric("freshrank_answers_total", route="rank", status="401") == 1.0


async def test_a_key_is_neither_answered_nor_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "freshrank_a-key-of-some-other-deployment"
    service.pipeline._reader = None  # type: ignore[assignment]  # a mistake of ours is logged with its stack
    with caplog.at_level(logging.DEBUG):
        async with (
            listening(service.app) as (host, port),
            httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client,
        ):
            answers = [
                await client.post("/v1/rank", json=BODY, headers={"authorization": f"Bearer {key}"})
                for key in (wrong, OLD)
            ]
    assert [answer.status_code for answer in answers] == [401, 500]
    assert answers[0].json()["error"]["got"] == "something else"
    for text in (caplog.text, *(answer.text for answer in answers)):
        assert wrong not in text
        assert OLD not in text
    assert "NoneType" in caplog.text
