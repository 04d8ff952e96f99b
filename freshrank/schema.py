"""What the ranking service is asked and what it answers, as a caller's types, and how a call can fail.

Owns the types of the client. Must not know HTTP. They are those of the service's OpenAPI document, of which a test
makes sure; a key that an answer gains later is ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec


class NamedAd(msgspec.Struct, frozen=True):
    """A candidate with values of its own, by field name; they win over the catalog's."""

    ad_id: str
    values: dict[str, Any] = {}


class RankBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ranking request."""

    candidates: list[str | NamedAd]
    request_id: str | None = None
    user: dict[str, Any] = {}
    context: dict[str, Any] = {}
    top: int | None = None
    time_s: float | None = None


class RankedAd(msgspec.Struct, frozen=True):
    """One place of an answer.

    Attributes:
        pctr: Predicted probability of a click.
        known: The ad was in the catalog.
        bid_micros: What a click of it is worth, in millionths.
        ecpm_micros: What a thousand impressions are expected to be worth: by this ads are ordered.
        creative_id: The creative that it is to be shown with; empty where it has none.
        propensity: Probability with which that creative was chosen; to be sent back with its impression.
        token: To be sent back with its impression and its click; empty where none is demanded.
    """

    ad_id: str
    position: int
    pctr: float
    known: bool
    bid_micros: int = 0
    ecpm_micros: float = 0.0
    creative_id: str = ""
    propensity: float = 1.0
    token: str = ""


class RankAnswer(msgspec.Struct, frozen=True):
    """Ranked ads, best first.

    Attributes:
        snapshot: Version of the snapshot that scored all of it.
        prerank: What chose the candidates that were ranked: version of a pre-ranker's snapshot, `prior`, or empty where
            all were ranked.
        creatives: What chose the creatives: version of a creative ranker's snapshot, `prior`, or empty where none was
            to be chosen.
        degraded: Parts that were left out to answer in time: `users` (the feature store), `prerank`, `rank`,
            `creatives`.
        ignored_fields: Names in the request that no field has.
        inactive: Candidates that are not ranked because the catalog holds them as inactive.
        arm: Which arm of an experiment answered: `champion`, `latest`, or `fallback` (the champion in place of the
            latest model); empty without one.
    """

    request_id: str
    snapshot: str
    ads: list[RankedAd]
    prerank: str = ""
    creatives: str = ""
    degraded: list[str] = []
    ignored_fields: list[str] = []
    inactive: list[str] = []
    arm: str = ""


class Impression(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="impression"):
    """An ad was shown; ids, position, propensity and token as in the answer. No time means now."""

    request_id: str
    ad_id: str
    position: int
    time_s: float | None = None
    propensity: float = 1.0
    token: str = ""
    v: int = 1


class Click(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="click"):
    """An impression was clicked; ids, position and token of the impression. No time means now."""

    request_id: str
    ad_id: str
    position: int
    time_s: float | None = None
    token: str = ""
    v: int = 1


class Fault(msgspec.Struct, frozen=True):
    """Why something was refused: which part, what holds for it, what stood there."""

    what: str
    rule: str
    got: str


class EventResult(msgspec.Struct, frozen=True):
    """What became of one event; `error` if it was refused."""

    accepted: bool
    error: Fault | None = None


class EventsAnswer(msgspec.Struct, frozen=True):
    """One result per event, in the order given.

    Attributes:
        error: Why some were not taken now though they may be later.
    """

    accepted: int
    rejected: int
    results: list[EventResult]
    error: Fault | None = None


class Readiness(msgspec.Struct, frozen=True):
    """Whether the service can rank, which parts are missing, and which snapshot serves."""

    ready: bool
    missing: list[str]
    snapshot: str | None


class CallError(Exception):
    """A call without the answer that was asked for.

    Attributes:
        fault: What, rule and got.
        status: Of the answer; 0 if there was none.
    """

    def __init__(self, fault: Fault, status: int = 0) -> None:
        """Keep what is known."""
        self.fault = fault
        self.status = status
        super().__init__(f"{fault.what} {fault.rule}, got {fault.got}")


class Refused(CallError):
    """The request cannot be used (4xx): asking again does not help."""


class Unavailable(CallError):
    """The service cannot do it now (429, 503), nor could it until the time or the retries had run out."""


class Unreachable(CallError):
    """No answer came, or none in time."""


class Failed(CallError):
    """The service made a mistake (5xx), or what answered is no ranking service."""
