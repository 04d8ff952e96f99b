"""The client of the ranking service: `Client`, and `AsyncClient` for programs on asyncio.

Owns connections, clocks and waiting; what is sent and when it is sent again stands in calls.py. A client may be shared
by threads (`AsyncClient`: tasks); it keeps connections open until it is closed.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx

from freshrank import calls
from freshrank.calls import Answered, Ask, Lost, Patience, Steps
from freshrank.schema import (
    CallError,
    Click,
    EventResult,
    EventsAnswer,
    Evidence,
    ExplainAnswer,
    ExplainedAd,
    ExplainedField,
    Failed,
    Fault,
    Impression,
    NamedAd,
    RankAnswer,
    RankedAd,
    Readiness,
    Refused,
    Terms,
    Unavailable,
    Unreachable,
)

__all__ = [
    "AsyncClient",
    "CallError",
    "Click",
    "Client",
    "EventResult",
    "EventsAnswer",
    "Evidence",
    "ExplainAnswer",
    "ExplainedAd",
    "ExplainedField",
    "Failed",
    "Fault",
    "Impression",
    "NamedAd",
    "RankAnswer",
    "RankedAd",
    "Readiness",
    "Refused",
    "Terms",
    "Unavailable",
    "Unreachable",
]

TIMEOUT_S = 5.0  # chosen by hand: beyond it nobody waits for a ranking
RETRIES = 3
_NOTHING: Mapping[str, Any] = {}
_T = TypeVar("_T")


class Client:
    """Asks one ranking service, and waits."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: Of the service, as in http://127.0.0.1:8080.
            api_key: Where the deployment asks for one.
            timeout_s: For a call with all its retries; httpx waits that long at most for each step of one.
            retries: How often a call is tried again after a broken connection, a 429 or a 503.
            transport: How requests travel, where that is special (client certificates, tests).
        """
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), transport=transport)
        self._patience = _patience(timeout_s, retries)

    def rank(
        self,
        candidates: Sequence[str | NamedAd],
        *,
        user: Mapping[str, Any] = _NOTHING,
        context: Mapping[str, Any] = _NOTHING,
        top: int | None = None,
        request_id: str = "",
        time_s: float | None = None,
    ) -> RankAnswer:
        """Return the ranked ads, best first.

        Args:
            candidates: By id, or with values of their own.
            user: Values by field name.
            context: Values by field name.
            top: How many ads at most; default: the deployment's.
            request_id: Names the request in its impressions and clicks; default: a new one.
            time_s: Event time, where the deployment's clock is that of a replay; default: now.

        Raises:
            CallError: As one of its kinds.
        """
        body = calls.to_body(candidates, user, context, top, request_id=request_id or uuid.uuid4().hex, time_s=time_s)
        return self._run(calls.rank(body, self._patience))

    def explain(
        self,
        candidates: Sequence[str | NamedAd],
        *,
        ads: Sequence[str] = (),
        user: Mapping[str, Any] = _NOTHING,
        context: Mapping[str, Any] = _NOTHING,
        top: int | None = None,
        request_id: str = "",
        time_s: float | None = None,
    ) -> ExplainAnswer:
        """Return why ads have the scores that `rank` gives them; nothing of it is learnt.

        Args:
            candidates: As in `rank`, as are the others.
            ads: Which of them are explained, 20 at most; default: the best.
            user: Values by field name.
            context: Values by field name.
            top: How many ads at most, where none are named; default: the deployment's.
            request_id: That of the ranking, where ads have creatives: these are drawn by it.
            time_s: Event time, where the deployment's clock is that of a replay; default: now.

        Raises:
            CallError: As one of its kinds.
        """
        body = calls.to_body(candidates, user, context, top, request_id=request_id or uuid.uuid4().hex, time_s=time_s)
        return self._run(calls.explain(calls.to_explain(body, ads), self._patience))

    def events(self, events: Sequence[Impression | Click]) -> EventsAnswer:
        """Report impressions and clicks; return what became of each.

        Raises:
            CallError: As one of its kinds, if none of the events was looked at or the log was away for some.
        """
        return self._run(calls.events(events, self._patience))

    def ready(self) -> Readiness:
        """Return whether requests can be ranked.

        Raises:
            CallError: As one of its kinds.
        """
        return self._run(calls.ready(self._patience))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return itself; the end of the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[_T]) -> _T:
        step = next(steps)
        try:
            while True:
                if isinstance(step, Ask):
                    step = steps.send(self._ask(step))
                else:
                    time.sleep(step.seconds)
                    step = next(steps)
        except StopIteration as end:
            answer: _T = end.value
            return answer

    def _ask(self, ask: Ask) -> Answered | Lost:
        try:
            return _answered(self._http.request(ask.method, ask.path, content=ask.content, timeout=ask.timeout_s))
        except httpx.TransportError as error:
            return _lost(error)


class AsyncClient:
    """Asks one ranking service, without holding up the event loop; otherwise as `Client`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect to nothing yet; the arguments are those of `Client`."""
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), transport=transport)
        self._patience = _patience(timeout_s, retries)

    async def rank(
        self,
        candidates: Sequence[str | NamedAd],
        *,
        user: Mapping[str, Any] = _NOTHING,
        context: Mapping[str, Any] = _NOTHING,
        top: int | None = None,
        request_id: str = "",
        time_s: float | None = None,
    ) -> RankAnswer:
        """As `Client.rank`."""
        body = calls.to_body(candidates, user, context, top, request_id=request_id or uuid.uuid4().hex, time_s=time_s)
        return await self._run(calls.rank(body, self._patience))

    async def explain(
        self,
        candidates: Sequence[str | NamedAd],
        *,
        ads: Sequence[str] = (),
        user: Mapping[str, Any] = _NOTHING,
        context: Mapping[str, Any] = _NOTHING,
        top: int | None = None,
        request_id: str = "",
        time_s: float | None = None,
    ) -> ExplainAnswer:
        """As `Client.explain`."""
        body = calls.to_body(candidates, user, context, top, request_id=request_id or uuid.uuid4().hex, time_s=time_s)
        return await self._run(calls.explain(calls.to_explain(body, ads), self._patience))

    async def events(self, events: Sequence[Impression | Click]) -> EventsAnswer:
        """As `Client.events`."""
        return await self._run(calls.events(events, self._patience))

    async def ready(self) -> Readiness:
        """As `Client.ready`."""
        return await self._run(calls.ready(self._patience))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return itself; the end of the block closes it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[_T]) -> _T:
        step = next(steps)
        try:
            while True:
                if isinstance(step, Ask):
                    step = steps.send(await self._ask(step))
                else:
                    await asyncio.sleep(step.seconds)
                    step = next(steps)
        except StopIteration as end:
            answer: _T = end.value
            return answer

    async def _ask(self, ask: Ask) -> Answered | Lost:
        try:
            asked = self._http.request(ask.method, ask.path, content=ask.content, timeout=ask.timeout_s)
            return _answered(await asked)
        except httpx.TransportError as error:
            return _lost(error)


def _headers(api_key: str) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    return headers | ({"authorization": f"Bearer {api_key}"} if api_key else {})


def _patience(timeout_s: float, retries: int) -> Patience:
    if not (timeout_s > 0.0 and retries >= 0):
        raise ValueError(f"timeout_s must be > 0 and retries >= 0, got {timeout_s} and {retries}")
    return Patience(timeout_s, retries, time.monotonic, random.random)


def _answered(response: httpx.Response) -> Answered:
    return Answered(response.status_code, response.content, response.headers.get("retry-after", ""))


def _lost(error: httpx.TransportError) -> Lost:
    # What took too long has had its time; a proxy or an address that cannot be used stays so.
    may_retry = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
    return Lost(f"{type(error).__name__}: {error}".removesuffix(": "), may_retry)
