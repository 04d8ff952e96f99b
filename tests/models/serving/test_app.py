"""The HTTP side: every answer is JSON, hostile bodies stay below 500, swaps go unnoticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.serving import app as app_module
from models.serving.rank import Scorer
from models.serving.schema import Click, Impression
from tests.models.serving.service import BODY, NOW_S, Service, listening, ready_service
from tests.models.serving.test_bodies import json_values
from tests.models.serving.trained import two_snapshots

IMPRESSION = {"type": "impression", "request_id": "q1", "ad_id": "ad1", "position": 0}
CLICK = {"type": "click", "request_id": "q1", "ad_id": "ad1", "position": 0, "time_s": 2999.0}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return ready_service(tmp_path)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as client:
        yield client


async def test_a_ranking_request_is_answered_in_json(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/rank", json={**BODY, "top": 1})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    (best,) = content.pop("ads")
    assert content == {
        "request_id": "q1",
        "snapshot": two_snapshots()[0].version,
        "prerank": "",
        "creatives": "",
        "degraded": [],
        "ignored_fields": [],
        "inactive": [],
        "arm": "",
    }
    assert best.keys() == {
        "ad_id",
        "position",
        "pctr",
        "known",
        "bid_micros",
        "ecpm_micros",
        "creative_id",
        "propensity",
        "token",
    }
    assert 0.0 < best["pctr"] < 1.0


async def test_events_are_accepted_when_the_log_has_them(service: Service, client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/events", json=[IMPRESSION, CLICK])
    assert answer.status_code == 200
    assert answer.json() == {"accepted": 2, "rejected": 0, "results": [{"accepted": True}, {"accepted": True}]}
    assert service.log.events == [Impression("q1", "ad1", 0, NOW_S), Click("q1", "ad1", 0, 2999.0)]


async def test_each_event_is_answered_for_itself(service: Service, client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/events", json=[{**IMPRESSION, "position": "top"}, CLICK])
    assert answer.status_code == 200
    fault = {"what": "position", "rule": "must be `int`", "got": "`str`"}
    assert answer.json()["results"] == [{"accepted": False, "error": fault}, {"accepted": True}]
    assert len(service.log.events) == 1


async def test_a_body_without_one_good_event_is_a_400(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/events", json=[3, {}])).status_code == 400


@pytest.mark.parametrize(
    ("call", "content", "status", "what"),
    [
        ("POST /v1/rank", b"{", 400, "body"),
        ("POST /v1/rank", b'{"candidates": []}', 400, "candidates"),
        ("POST /v1/rank", json.dumps({"candidates": [str(i) for i in range(51)]}).encode(), 400, "candidates"),
        ("POST /v1/rank", b" " * 20_001, 413, "body"),
        ("POST /v1/events", b"\xff", 400, "body"),
        ("POST /v1/events", json.dumps([CLICK] * 11).encode(), 400, "events"),
        ("POST /v1/events", b'{"type": "request"}', 400, "type"),
        ("POST /v1/events", b" " * 20_001, 413, "body"),
        ("GET /v1/rank", b"", 405, "method"),
        ("DELETE /v1/events", b"", 405, "method"),
        ("POST /metrics", b"", 405, "method"),
        ("GET /", b"", 404, "path"),
        ("GET /v1/rank/%00", b"", 404, "path"),
    ],
)
async def test_a_refusal_says_what_rule_and_got(
    client: httpx.AsyncClient, call: str, content: bytes, status: int, what: str
) -> None:
    method, _, path = call.partition(" ")
    answer = await client.request(method, path, content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() == {"what", "rule", "got"}
    assert error["what"] == what


async def long() -> AsyncIterator[bytes]:
    for _ in range(1000):
        yield b" " * 1000


@pytest.mark.parametrize("headers", [{}, {"content-length": "10"}])
async def test_a_body_is_counted_as_it_comes(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post("/v1/rank", content=long(), headers=headers)
    assert answer.status_code == 413


async def test_a_body_that_never_ends_is_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "BODY_WAIT_S", 0.05)
    async with listening(service.app) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        async with asyncio.timeout(5.0):
            head = await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 408")


async def test_while_the_log_is_away_the_answer_is_503_with_a_time_to_come_back(
    service: Service, client: httpx.AsyncClient
) -> None:
    service.log.is_away = True
    for path, content in (("/v1/rank", BODY), ("/v1/events", CLICK), ("/v1/events", [IMPRESSION, CLICK])):
        answer = await client.post(path, json=content)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["what"] == "log"


async def test_when_the_log_goes_away_each_event_says_whether_it_was_written(
    service: Service, client: httpx.AsyncClient
) -> None:
    service.log.leaves_after = 1
    answer = await client.post("/v1/events", json=[CLICK, IMPRESSION, {}])
    assert answer.status_code == 503
    found = answer.json()
    assert [result["accepted"] for result in found["results"]] == [True, False, False]
    assert found["results"][1]["error"] == found["error"]
    assert found["results"][2]["error"]["what"] != "log"
    assert (found["accepted"], found["rejected"]) == (1, 2)


async def test_before_a_snapshot_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    service = Service(tmp_path)
    async with service.client() as client:
        assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "missing": ["snapshot"], "snapshot": None})
        ranked = await client.post("/v1/rank", json=BODY)
        assert (ranked.status_code, ranked.json()["error"]["what"]) == (503, "snapshot")
        service.holder.swap(Scorer.from_snapshot(two_snapshots()[0]))
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json() == {"ready": True, "missing": [], "snapshot": two_snapshots()[0].version}


async def test_metrics_count_answers_by_route_and_status(client: httpx.AsyncClient) -> None:
    await client.post("/v1/rank", json=BODY)
    await client.post("/v1/rank", content=b"")
    await client.get("/some/other/path")
    exported = (await client.get("/metrics")).text
    assert 'freshrank_answers_total{route="rank",status="200"} 1.0' in exported
    assert 'freshrank_answers_total{route="rank",status="400"} 1.0' in exported
    assert 'freshrank_answers_total{route="other",status="404"} 1.0' in exported
    assert "freshrank_rank_candidates_count_sum 20.0" in exported


async def test_a_mistake_of_ours_shows_no_stack(service: Service, client: httpx.AsyncClient) -> None:
    service.pipeline._reader = None  # type: ignore[assignment]
    answer = await client.post("/v1/rank", json=BODY)
    assert answer.status_code == 500
    assert answer.json()["error"]["what"] == "server"
    assert "NoneType" not in answer.text
    assert service.metric("freshrank_answers_total", route="rank", status="500") == 1.0


rank_bodies = st.fixed_dictionaries(
    {"candidates": st.lists(st.text(max_size=3) | json_values, max_size=5)},
    optional=dict.fromkeys(("user", "context", "top", "request_id"), json_values),
) | st.fixed_dictionaries(
    {"candidates": st.just(["ad1"])},
    optional={"user": st.dictionaries(st.sampled_from(["user_id", "age"]), json_values)},
)
event_bodies = st.fixed_dictionaries(
    {"type": st.sampled_from(["impression", "click", "request", "tick"])},
    optional=dict.fromkeys(("request_id", "ad_id", "position", "time_s", "propensity", "v", "x"), json_values),
)
hostile = st.binary(max_size=60) | (rank_bodies | event_bodies | st.lists(event_bodies, max_size=3) | json_values).map(
    lambda value: json.dumps(value).encode()
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=hostile, path=st.sampled_from(["/v1/rank", "/v1/events"]))
def test_no_body_is_answered_with_a_500(service: Service, body: bytes, path: str) -> None:
    async def post() -> httpx.Response:
        async with service.client() as client:
            return await client.post(path, content=body)

    answer = asyncio.run(post())
    assert answer.status_code in {200, 400, 413}
    assert answer.headers["content-type"] == "application/json"
    json.loads(answer.content)


async def test_swaps_under_load_give_no_failed_and_no_mixed_answer(service: Service) -> None:
    scorers = [Scorer.from_snapshot(snapshot) for snapshot in two_snapshots()]
    truth: dict[str, Any] = {}
    for scorer in scorers:
        service.registry.save(two_snapshots()[scorers.index(scorer)], {})
        service.holder.swap(scorer)
        answer = await service.pipeline.rank(json.dumps(BODY).encode())
        truth[answer.snapshot] = [(ad.ad_id, ad.pctr) for ad in answer.ads]
    assert len(truth) == 2
    answers: list[dict[str, Any]] = []
    is_over = asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        while not is_over.is_set():
            answer = await client.post("/v1/rank", json=BODY)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())

    async with (
        listening(service.app) as (host, port),
        httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client,
    ):
        asking = [asyncio.create_task(ask(client)) for _ in range(4)]
        try:
            for turn in range(20):
                assert await service.refresher.bring_in(scorers[turn % 2].version)
        finally:
            is_over.set()
            await asyncio.gather(*asking)
    assert {answer["snapshot"] for answer in answers} == set(truth)
    for answer in answers:
        assert [(ad["ad_id"], ad["pctr"]) for ad in answer["ads"]] == truth[answer["snapshot"]]
