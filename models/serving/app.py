"""The HTTP side of the ranking service.

Owns how the routes are answered: who may ask, bodies, status codes and the JSON of every refusal. Must not know Kafka
or models: it is handed a pipeline, a way to publish and how ready it is.

Invariants: whatever a caller sends, the answer is below 500, in JSON, and says what, rule and got; what cannot be done
now is a 429 or a 503 with Retry-After; a body is never held beyond its limit, whatever its Content-Length says; a body
that is still on its way takes no place from those that are there; of a caller without a key no body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.fields import Field
from infra.metrics import ServeMetrics, expose
from models.serving.admission import Admission, Overloaded
from models.serving.bodies import read_events
from models.serving.keys import is_allowed
from models.serving.openapi import to_openapi
from models.serving.pipeline import Pipeline, Publish, Unavailable
from models.serving.routes import ROUTES
from models.serving.schema import (
    ClientEvent,
    EventResult,
    EventsAnswer,
    Fault,
    Health,
    Limits,
    Readiness,
    Refusal,
    Rejected,
)

BODY_WAIT_S = 10.0  # chosen by hand: a body that takes longer is not a caller who waits for a ranking
RETRY_AFTER_S = 1
_NAMES = {route.path: route.name for route in ROUTES}

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    pipeline: Pipeline,
    publish: Publish,
    metrics: ServeMetrics,
    admission: Admission,
    *,
    fields: Sequence[Field],
    limits: Limits,
    key_hashes: Sequence[bytes],
    readiness: Callable[[], Readiness],
    now_s: Callable[[], float],
) -> ASGIApp:
    """Return the service as an ASGI application.

    Args:
        pipeline: Ranks.
        publish: Takes events.
        metrics: Counts.
        admission: Gives rankings their turn.
        fields: Of the deployment.
        limits: On what one request may hold.
        key_hashes: Of the keys that callers may have; none: no key is asked for.
        readiness: Says what is missing.
        now_s: Event time of what happens now.
    """
    document = to_openapi(fields, limits, has_keys=bool(key_hashes))

    async def rank(request: Request) -> Response:
        body = await _body(request, limits.body_bytes_max)
        async with admission.place():
            return _json(await pipeline.rank(body))

    async def explain(request: Request) -> Response:
        body = await _body(request, limits.body_bytes_max)
        async with admission.place():
            return _json(await pipeline.explain(body))

    async def events(request: Request) -> Response:
        body = await _body(request, limits.body_bytes_max)
        read = read_events(body, events_max=limits.events_max, now_s=now_s(), ahead_max_s=limits.ahead_max_s)
        answer = await _publish_all(read, publish)
        if answer.error is not None:
            return _come_back(answer, 503)
        return _json(answer, 200 if answer.accepted else 400)

    async def healthz(_: Request) -> Response:
        return _json(Health())

    async def readyz(_: Request) -> Response:
        found = readiness()
        return _json(found, 200 if found.ready else 503)

    async def exported(_: Request) -> Response:
        content, media_type = expose(metrics.exported())
        return Response(content, media_type=media_type)

    async def openapi(_: Request) -> Response:
        return _json(document)

    endpoints: dict[str, Endpoint] = {
        "rank": rank,
        "explain": explain,
        "events": events,
        "healthz": healthz,
        "readyz": readyz,
        "metrics": exported,
        "openapi": openapi,
    }
    app = Starlette(
        routes=[
            routing.Route(
                route.path,
                endpoints[route.name] if route.is_open or not key_hashes else _keyed(endpoints[route.name], key_hashes),
                methods=[route.method],
            )
            for route in ROUTES
        ],
        exception_handlers={
            Rejected: _rejected,
            Overloaded: _overloaded,
            Unavailable: _unavailable,
            HTTPException: _no_such,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    return _CountAnswers(app, metrics)


def _keyed(endpoint: Endpoint, hashes: Sequence[bytes]) -> Endpoint:
    """Return the endpoint for callers with a key of one of the hashes; what others sent as a key is shown to nobody."""

    async def checked(request: Request) -> Response:
        said = request.headers.get("authorization", "")
        if is_allowed(said, hashes):
            return await endpoint(request)
        rule = "must be `Bearer KEY`, with a key of this deployment"
        response = _error(Fault("authorization", rule, "something else" if said else "nothing"), 401)
        response.headers["www-authenticate"] = 'Bearer realm="freshrank"'
        return response

    return checked


class _CountAnswers:
    """Counts each answer by route and status; outermost, so that it sees those after a mistake of ours too."""

    def __init__(self, app: ASGIApp, metrics: ServeMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = _NAMES.get(scope["path"], "other")
                self._metrics.answers.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting_send)


async def _body(request: Request, bytes_max: int) -> bytes:
    """Return the body, counted as it comes in: a Content-Length may lie or be missing.

    Raises:
        Rejected: If it is larger than the limit.
        HTTPException: If it takes too long.
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > bytes_max:
        raise Rejected("body", f"must be at most {bytes_max} bytes", said, is_too_large=True)
    chunks: list[bytes] = []
    count = 0
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            async for chunk in request.stream():
                count += len(chunk)
                if count > bytes_max:
                    raise Rejected("body", f"must be at most {bytes_max} bytes", f"{count} or more", is_too_large=True)
                chunks.append(chunk)
    except TimeoutError:
        raise HTTPException(408, f"the whole body must come within {BODY_WAIT_S:g} s") from None
    return b"".join(chunks)


async def _publish_all(read: list[ClientEvent | Fault], publish: Publish) -> EventsAnswer:
    """Publish the good events together; where the log was away for one, the answer has an `error` and says for which.

    Sending all of them again does no harm: the ledger counts those that it has as duplicates.
    """
    away: list[Fault] = []

    async def one(event: ClientEvent | Fault) -> EventResult:
        if isinstance(event, Fault):
            return EventResult(accepted=False, error=event)
        try:
            await publish(event)
        except Rejected as rejected:
            return EventResult(accepted=False, error=rejected.fault)
        except Unavailable as unavailable:
            away.append(_missing(unavailable))
            return EventResult(accepted=False, error=away[-1])
        return EventResult(accepted=True)

    outcomes = await asyncio.gather(*map(one, read), return_exceptions=True)
    results: list[EventResult] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    accepted = sum(result.accepted for result in results)
    return EventsAnswer(accepted, len(results) - accepted, results, away[0] if away else None)


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _error(fault: Fault, status: int) -> Response:
    return _json(Refusal(fault), status)


async def _rejected(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return _error(error.fault, 413 if error.is_too_large else 400)


async def _unavailable(_: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)
    return _come_back(Refusal(_missing(error)), 503)


async def _overloaded(_: Request, error: Exception) -> Response:
    assert isinstance(error, Overloaded)
    return _come_back(Refusal(Fault("request", error.rule, error.got)), 429)


def _missing(unavailable: Unavailable) -> Fault:
    return Fault(unavailable.part, "must be there to answer", unavailable.why)


def _come_back(content: object, status: int) -> Response:
    response = _json(content, status)
    response.headers["retry-after"] = str(RETRY_AFTER_S)
    return response


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        fault = Fault("method", "must be one that the path has", request.method)
    elif error.status_code == 404:
        fault = Fault("path", f"must be one of {', '.join(_NAMES)}", request.url.path)
    else:
        fault = Fault("request", error.detail, "one that took longer")
    response = _error(fault, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _gone(_: Request, __: Exception) -> Response:
    """Answer a caller who has left; nobody reads it, but it is counted apart from failures."""
    return _error(Fault("body", "must come whole", "a closed connection"), 400)


async def _failed(_: Request, __: Exception) -> Response:
    """Answer after a mistake of ours; the server logs it with its stack, the caller sees none."""
    return _error(Fault("server", "must not fail", "a mistake of ours; it is logged"), 500)
