"""One call of the ranking service as steps, without doing any of them: so one code serves both clients.

Owns what is sent, when it is sent again, and what an answer means. Must not know httpx, sockets or clocks.

Invariants: what is sent again is the same bytes, and the service counts it once: a ranking has its request_id from the
beginning, and the ledger knows repeats. Nothing begins after the call's time, and no attempt is given more than what
is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from freshrank.schema import (
    Click,
    EventsAnswer,
    ExplainAnswer,
    ExplainBody,
    Failed,
    Fault,
    Impression,
    NamedAd,
    RankAnswer,
    RankBody,
    Readiness,
    Refused,
    Unavailable,
    Unreachable,
)

WAIT_S = 0.1  # chosen by hand: the first wait is up to this, each further one up to twice the one before
_COME_BACK = (429, 503)
_T = TypeVar("_T")


class Ask(msgspec.Struct, frozen=True):
    """A step: send this, and wait for the answer at most so long."""

    method: str
    path: str
    content: bytes
    timeout_s: float


class Wait(msgspec.Struct, frozen=True):
    """A step: wait."""

    seconds: float


class Answered(msgspec.Struct, frozen=True):
    """What came of an `Ask`: an answer; `retry_after` as its header has it."""

    status: int
    content: bytes
    retry_after: str = ""


class Lost(msgspec.Struct, frozen=True):
    """What came of an `Ask`: nothing.

    Attributes:
        why: For people.
        may_retry: The connection broke; the next one may hold.
    """

    why: str
    may_retry: bool


Steps = Generator[Ask | Wait, Answered | Lost | None, _T]
"""A call: yields steps, is sent what came of each, returns the answer or raises a `CallError`."""


class Patience(msgspec.Struct, frozen=True):
    """How long a call may take and how often it is tried again.

    Attributes:
        timeout_s: From the first attempt on.
        retries: After the first attempt.
        now_s: A clock.
        draw: Returns a random number in [0, 1): callers that were refused together must not come back together.
    """

    timeout_s: float
    retries: int
    now_s: Callable[[], float]
    draw: Callable[[], float]


def rank(body: RankBody, patience: Patience) -> Steps[RankAnswer]:
    """Return the steps of a ranking."""
    answer = yield from _ask("POST", "/v1/rank", msgspec.json.encode(body), patience, retried=_COME_BACK)
    return _read(answer, RankAnswer)


def explain(body: ExplainBody, patience: Patience) -> Steps[ExplainAnswer]:
    """Return the steps of asking why ads have their scores."""
    answer = yield from _ask("POST", "/v1/explain", msgspec.json.encode(body), patience, retried=_COME_BACK)
    return _read(answer, ExplainAnswer)


def events(several: Sequence[Impression | Click], patience: Patience) -> Steps[EventsAnswer]:
    """Return the steps of reporting events; that one or all of them are refused is an answer, too."""
    answer = yield from _ask("POST", "/v1/events", msgspec.json.encode(several), patience, retried=_COME_BACK)
    return _read(answer, EventsAnswer, also=400)


def ready(patience: Patience) -> Steps[Readiness]:
    """Return the steps of asking whether it is ready; that it is not is an answer, too."""
    answer = yield from _ask("GET", "/readyz", b"", patience, retried=())
    return _read(answer, Readiness, also=503)


def to_body(
    candidates: Sequence[str | NamedAd],
    user: Mapping[str, Any],
    context: Mapping[str, Any],
    top: int | None,
    *,
    request_id: str,
    time_s: float | None = None,
) -> RankBody:
    """Return a ranking request."""
    return RankBody(list(candidates), request_id, dict(user), dict(context), top, time_s)


def to_explain(body: RankBody, ads: Sequence[str]) -> ExplainBody:
    """Return the request that asks why these ads have their scores; none: the best."""
    return ExplainBody(**msgspec.structs.asdict(body), ads=list(ads))


def _ask(method: str, path: str, content: bytes, patience: Patience, *, retried: Sequence[int]) -> Steps[Answered]:
    end_s = patience.now_s() + patience.timeout_s
    attempt = 0
    while True:
        found = yield Ask(method, path, content, max(end_s - patience.now_s(), 0.001))
        assert isinstance(found, Answered | Lost), "an Ask is answered or lost"
        is_over = isinstance(found, Answered) and found.status not in retried
        if is_over or attempt == patience.retries or (isinstance(found, Lost) and not found.may_retry):
            break
        wait_s = _told_wait_s(found) + patience.draw() * WAIT_S * 2**attempt
        if patience.now_s() + wait_s >= end_s:
            break
        yield Wait(wait_s)
        attempt += 1
    if isinstance(found, Lost):
        raise Unreachable(Fault(path, f"must be answered within {patience.timeout_s:g} s", found.why))
    return found


def _told_wait_s(found: Answered | Lost) -> float:
    said = found.retry_after if isinstance(found, Answered) else ""
    return float(said) if said.isdecimal() else 0.0


def _read(answer: Answered, kind: type[_T], *, also: int = 200) -> _T:
    if answer.status in (200, also):
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    fault = _fault(answer)
    if answer.status in _COME_BACK:
        raise Unavailable(fault, answer.status)
    if 400 <= answer.status < 500:
        raise Refused(fault, answer.status)
    raise Failed(fault, answer.status)


class _Refusal(msgspec.Struct):
    error: Fault


def _fault(answer: Answered) -> Fault:
    try:
        return msgspec.json.decode(answer.content, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        shown = answer.content[:200].decode(errors="replace")
        return Fault("answer", "must be one that a ranking service gives", f"{answer.status}: {shown}")
