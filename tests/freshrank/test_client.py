"""Both clients against the real service over HTTP, and their types against its document."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from freshrank import client as client_module
from freshrank import schema
from freshrank.client import AsyncClient, Click, Client, Impression, NamedAd, Refused, Unavailable, Unreachable
from models.serving.keys import hash_of, to_key
from models.serving.openapi import to_openapi
from tests.models.serving.service import LIMITS, NOW_S, Service, listening, ready_service
from tests.test_repo import ROOT

KEY = to_key(bytes(32))
# What a schema says beyond the shape: words, and limits, which the service checks.
WORDS = {
    "title",
    "description",
    "additionalProperties",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
}
WORDS |= {"minimum", "maximum", "exclusiveMinimum"}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return ready_service(tmp_path, key_hashes=[hash_of(KEY)])


@pytest.fixture
async def url(service: Service) -> AsyncIterator[str]:
    async with listening(service.app) as (host, port):
        yield f"http://{host}:{port}"


def shape(found: Any) -> Any:
    """Return a schema without its words."""
    if isinstance(found, dict):
        return {key: shape(value) for key, value in found.items() if key not in WORDS}
    return [shape(one) for one in found] if isinstance(found, list) else found


def test_the_clients_types_are_those_of_the_document() -> None:
    kinds = [schema.RankBody, schema.RankAnswer, schema.EventsAnswer, schema.Readiness]
    kinds += [schema.Impression, schema.Click, schema.ExplainBody, schema.ExplainAnswer]
    _, own = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    theirs = to_openapi((), LIMITS, has_keys=True)["components"]["schemas"]
    assert len(own) == 16
    for name, component in own.items():
        wanted = theirs[name]
        for described in wanted["properties"].values():
            if described.get("properties") == {}:
                del described["properties"]  # of values: there are no fields here
        assert shape(component) == shape(wanted), name


async def ask(client: Any, call: str, *arguments: Any, **named: Any) -> Any:
    """Call either client, the one that waits in a thread of its own."""
    called = getattr(client, call)
    if isinstance(client, Client):
        return await asyncio.to_thread(called, *arguments, **named)
    return await called(*arguments, **named)


def made(kind: type[Client | AsyncClient], url: str, **changed: Any) -> Any:
    transport = httpx.HTTPTransport() if kind is Client else httpx.AsyncHTTPTransport()  # whatever proxies there are
    return kind(url, transport=transport, **changed)  # type: ignore[arg-type]


async def close(client: Any) -> None:
    await ask(client, "close")


@pytest.fixture(params=[Client, AsyncClient])
async def client(request: pytest.FixtureRequest, url: str) -> AsyncIterator[Any]:
    client = made(request.param, url, api_key=KEY)
    yield client
    await close(client)


async def test_candidates_are_ranked_and_what_was_shown_is_reported(client: Any, service: Service) -> None:
    candidates = ["ad1", NamedAd("ad77", {"tags": ["t1"]})]
    answer = await ask(client, "rank", candidates, user={"user_id": "u1"}, context={"hour": 3}, top=1, request_id="q")
    assert (answer.request_id, len(answer.ads), answer.ignored_fields) == ("q", 1, [])
    best = answer.ads[0]
    shown = Impression("q", best.ad_id, best.position, propensity=best.propensity, token=best.token)
    found = await ask(client, "events", [shown, Click("q", best.ad_id, best.position, time_s=NOW_S)])
    assert (found.accepted, found.rejected) == (2, 0)
    assert [type(event).__name__ for event in service.log.events] == ["Served", "Impression", "Click"]


async def test_scores_are_explained(client: Any, service: Service) -> None:
    asked = {"user": {"user_id": "u1"}, "context": {"hour": 3}, "request_id": "q"}
    answer = await ask(client, "rank", ["ad1", "ad2", "ad3"], **asked)
    n_events = len(service.log.events)
    found = await ask(client, "explain", ["ad1", "ad2", "ad3"], ads=["ad2"], **asked)
    assert len(service.log.events) == n_events
    (why,) = found.ads
    assert (why.position, why.pctr) == next((ad.position, ad.pctr) for ad in answer.ads if ad.ad_id == "ad2")
    assert [field.name for field in why.fields] == ["user_id", "age", "hour", "ad", "tags", "user_tags"]
    assert len((await ask(client, "explain", ["ad1", "ad2", "ad3"], top=2)).ads) == 2


async def test_without_a_request_id_the_client_makes_a_new_one_each_time(client: Any) -> None:
    made = {(await ask(client, "rank", ["ad1"])).request_id for _ in range(2)}
    assert len(made) == 2
    assert "made-id" not in made  # the service's own


async def test_one_refused_event_does_not_hide_the_others(client: Any) -> None:
    found = await ask(client, "events", [Click("q", "ad1", -1), Click("q", "ad1", 0)])
    assert [one.accepted for one in found.results] == [False, True]
    assert found.results[0].error.what == "position"


async def test_it_says_whether_the_service_is_ready(client: Any, service: Service) -> None:
    assert (await ask(client, "ready")).ready
    service.holder._current = None  # type: ignore[attr-defined]
    found = await ask(client, "ready")
    assert (found.ready, found.missing) == (False, ["snapshot"])


async def test_a_bad_request_is_refused_in_the_services_words(client: Any) -> None:
    with pytest.raises(Refused, match="top must be `int` >= 1, got another value"):
        await ask(client, "rank", ["ad1"], top=0)


async def test_a_retry_asks_for_the_same_request(
    client: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is away until the client waits; what it made up for the first attempt holds for the second."""
    service.log.is_away = True

    def come_back(_: float) -> None:
        service.log.is_away = False

    async def come_back_soon(_: float) -> None:
        come_back(0.0)

    monkeypatch.setattr(client_module.time, "sleep", come_back)
    monkeypatch.setattr(client_module, "asyncio", type("Clock", (), {"sleep": staticmethod(come_back_soon)}))
    answer = await ask(client, "rank", ["ad1"])
    assert [event.request_id for event in service.log.events] == [answer.request_id]  # type: ignore[union-attr]
    assert service.metric("freshrank_answers_total", route="rank", status="503") == 1.0


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_what_stays_away_is_unavailable(kind: Any, url: str, service: Service) -> None:
    service.log.is_away = True
    client = made(kind, url, api_key=KEY, retries=0)
    with pytest.raises(Unavailable, match="log must be there to answer, got it is away"):
        await ask(client, "rank", ["ad1"])
    await close(client)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_key_that_is_not_known_is_refused(kind: Any, url: str) -> None:
    client = made(kind, url, api_key="another")
    with pytest.raises(Refused) as caught:
        await ask(client, "rank", ["ad1"])
    await close(client)
    assert (caught.value.status, caught.value.fault.what) == (401, "authorization")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_where_nobody_listens_nobody_is_reached(kind: Any) -> None:
    client = made(kind, "http://127.0.0.1:1", retries=1)
    with pytest.raises(Unreachable, match=r"/readyz must be answered within 5 s, got ConnectError"):
        await ask(client, "ready")
    await close(client)


async def test_the_example_of_the_documentation_runs(
    url: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text("utf-8"), re.DOTALL)
    example = example.replace("http://127.0.0.1:8080", url).replace("freshrank_...", KEY)
    await asyncio.to_thread(exec, example, {})
    assert [type(event).__name__ for event in service.log.events] == ["Served", "Impression", "Click"]


@pytest.mark.parametrize("changed", [{"timeout_s": 0.0}, {"retries": -1}])
def test_patience_must_be_possible(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout_s must be > 0 and retries >= 0"):
        Client("http://x", **changed)
