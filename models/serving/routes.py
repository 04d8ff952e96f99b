"""The routes of the service, in one list: what is asked, what may be answered, who may ask.

Owns paths, methods and the status codes of every route. Must not know how a request is answered.

Invariants: the application, its metrics and the OpenAPI document all read this list; a route answers with one of its
codes and the type beside it, and otherwise only with 404 and 405 (no such route) or 500 (a mistake of ours).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from models.serving.schema import (
    ClientEvent,
    EventResult,
    EventsAnswer,
    Evidence,
    ExplainAnswer,
    ExplainBody,
    ExplainedAd,
    ExplainedField,
    Fault,
    Health,
    RankAnswer,
    RankBody,
    RankedAd,
    Readiness,
    Refusal,
    Terms,
)


class Reply(msgspec.Struct, frozen=True):
    """What a status code of a route means.

    Attributes:
        example: A body; its type is the reply's.
        or_type: What the body may be of instead.
    """

    meaning: str
    example: Any
    or_type: Any = None

    @property
    def types(self) -> list[Any]:
        """The types that the body may be of."""
        return [type(self.example), *([self.or_type] if self.or_type else [])]


class Route(msgspec.Struct, frozen=True):
    """One route.

    Attributes:
        name: Of its operation, and in metrics.
        body: The type of its body; None: it has none.
        is_open: It asks for no key, whatever the settings say.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    summary: str
    replies: dict[int, Reply]
    body: Any = None
    is_open: bool = False


SNAPSHOT = "ctr-000012-5be1c5d0a1f3"
REQUEST_ID = "9f1c2a7be0d14c55"
_AWAY = Fault("log", "must be there to answer", "Kafka has not taken the event within 3 s")
_RANKED = RankAnswer(REQUEST_ID, SNAPSHOT, [RankedAd("ad-2", 0, 0.031, known=True)], arm="latest")
_OF_AD = ExplainedField(
    "ad_id", {"ad_id": "ad-2"}, [Evidence([41.5, 180.0], [1.5, 5.5], [0.034, 0.031], has_row=True)], 0.004
)
_TERMS = Terms(-3.5, -3.3, -3.5, 0.1, -0.04)
_WHY = ExplainedAd(
    "ad-2",
    0,
    0.031,
    known=True,
    bid_micros=1_000_000,
    ecpm_micros=31_000_000.0,
    creative_id="",
    prerank_score=None,
    prerank_position=None,
    terms=_TERMS,
    fields=[_OF_AD],
)
_EXPLAINED = ExplainAnswer(REQUEST_ID, SNAPSHOT, 1_770_000_000.0, [3600.0, 86400.0], [_WHY])
_WRITTEN = EventsAnswer(1, 0, [EventResult(accepted=True)])
_LOST = EventsAnswer(1, 1, [EventResult(accepted=True), EventResult(accepted=False, error=_AWAY)], _AWAY)


def _refused(meaning: str, what: str, rule: str, got: str) -> Reply:
    return Reply(meaning, Refusal(Fault(what, rule, got)))


_NO_KEY = _refused(
    "The header `Authorization: Bearer KEY` is missing, or its key is none of this deployment's.",
    "authorization",
    "must be `Bearer KEY`, with a key of this deployment",
    "nothing",
)
_TOO_SLOW = _refused(
    "The body did not come in time.", "request", "the whole body must come within 10 s", "one that took longer"
)
_TOO_LARGE = _refused(
    "The body is too large, or the event that would be written for it is.",
    "body",
    "must be at most 4000000 bytes",
    "5000000",
)

_NO_REQUEST = _refused(
    "The body is no ranking request within the limits.", "candidates[0]", "must be `str | object`", "`int`"
)
_TOO_MANY = _refused(
    "Too many requests wait already, or this one has waited too long.",
    "request",
    "must be one of at most 256 that wait",
    "a full queue",
)
_REFUSALS = {400: _NO_REQUEST, 401: _NO_KEY, 408: _TOO_SLOW, 413: _TOO_LARGE, 429: _TOO_MANY}

ROUTES = (
    Route(
        "rank",
        "POST",
        "/v1/rank",
        "Rank candidates: the answer holds the best, and says which snapshot scored them.",
        body=RankBody,
        replies={
            200: Reply("The ads, best first. What was shown, and on which values, is in the log.", _RANKED),
            **_REFUSALS,
            503: Reply("There is no snapshot yet, or the log is away.", Refusal(_AWAY)),
        },
    ),
    Route(
        "explain",
        "POST",
        "/v1/explain",
        "Say why ads of a request have their scores: the same numbers as ranking it, and nothing is written.",
        body=ExplainBody,
        replies={
            200: Reply("The ads that were asked for, each with what made its score.", _EXPLAINED),
            **_REFUSALS,
            503: _refused(
                "There is no snapshot yet.", "snapshot", "must be there to answer", "none has been announced"
            ),
        },
    ),
    Route(
        "events",
        "POST",
        "/v1/events",
        "Report impressions and clicks, one or a list; what comes again is counted once.",
        body=ClientEvent | list[ClientEvent],
        replies={
            200: Reply("One event or more is in the log; `results` says which.", _WRITTEN),
            400: Reply(
                "The body is neither an event nor a list of them, or holds none that can be used.",
                Refusal(Fault("position", "must be `int` >= 0", "another value")),
                or_type=EventsAnswer,
            ),
            401: _NO_KEY,
            408: _TOO_SLOW,
            413: _TOO_LARGE,
            503: Reply("The log was away for the events whose results say so; send all of them again.", _LOST),
        },
    ),
    Route("healthz", "GET", "/healthz", "Whether the process lives.", {200: Reply("It does.", Health())}, is_open=True),
    Route(
        "readyz",
        "GET",
        "/readyz",
        "Whether requests can be ranked.",
        {
            200: Reply("They can.", Readiness(ready=True, missing=[], snapshot=SNAPSHOT)),
            503: Reply("Parts are missing.", Readiness(ready=False, missing=["snapshot"], snapshot=None)),
        },
        is_open=True,
    ),
    Route(
        "metrics",
        "GET",
        "/metrics",
        "Counts and durations, as Prometheus reads them.",
        {200: Reply("All metrics.", 'freshrank_answers_total{route="rank",status="200"} 1.0')},
        is_open=True,
    ),
    Route(
        "openapi",
        "GET",
        "/openapi.json",
        "This document.",
        {200: Reply("An OpenAPI document.", {"openapi": "3.1.0"}), 401: _NO_KEY},
    ),
)
