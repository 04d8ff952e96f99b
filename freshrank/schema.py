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


class ExplainBody(RankBody, frozen=True, omit_defaults=True):
    """A request whose scores are to be explained: of these `ads`, or of the best."""

    ads: list[str] = []


class RankedAd(msgspec.Struct, frozen=True):
    """One place of an answer.

    Attributes:
        pctr: Predicted probability of a click.
        known: The ad was in the catalog.
        bid_micros: What a click of it is worth, in millionths.
        ecpm_micros: What a thousand impressions are expected to be worth: by this ads are ordered.
        creative_id: The creative that it is to be shown with; empty where it has none.
        propensity: Probability with which this ad was in the list, times that with which this creative was chosen; to
            be sent back with its impression.
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


class Evidence(msgspec.Struct, frozen=True):
    """What was known of one value when it was scored; lists are in the order of the answer's `half_lives_s`.

    Attributes:
        impressions: How many, decayed.
        clicks: How many of them were clicked, decayed.
        rate: Click rate that this comes to, given what the value leans on.
        has_row: The network has an embedding of it; else it is one of the unknown to it.
    """

    impressions: list[float]
    clicks: list[float]
    rate: list[float]
    has_row: bool


class ExplainedField(msgspec.Struct, frozen=True):
    """What a field had to do with a score.

    Attributes:
        values: What it holds, by name; of a cross its parts'.
        evidence: One of each value that is there; those of a field of several values in no particular order.
        effect: By how much the probability is higher than without the field (and the crosses it is a part of).
    """

    name: str
    values: dict[str, str | list[str] | float | None]
    evidence: list[Evidence]
    effect: float


class Terms(msgspec.Struct, frozen=True):
    """What a probability is made of, in logits; the three that are calibrated add up to it.

    Attributes:
        base_logit: What the regression on counts says.
        network_logit: What the network says.
        calibrated_base: What the calibration takes of the base.
        calibrated_network: What it takes of how far the network lies from the base.
        calibrated_level: What it adds in any case.
    """

    base_logit: float
    network_logit: float
    calibrated_base: float
    calibrated_network: float
    calibrated_level: float


class ExplainedAd(msgspec.Struct, frozen=True):
    """Why an ad has its place.

    Attributes:
        position: Where it stands, from 0, also behind `top`; null: the pre-ranker left it out.
        pctr: Predicted probability of a click, as a ranking gives it.
        known: The ad is in the catalog.
        bid_micros: What a click of it is worth, in millionths.
        ecpm_micros: What a thousand impressions are expected to be worth: by this ads are ordered.
        creative_id: The creative that it was scored with; empty where it has none.
        prerank_score: By what it was pre-ranked; null: all candidates are ranked.
        prerank_position: Where it stood then, from 0.
        terms: What base and network said.
        fields: What each field had to do with it.
    """

    ad_id: str
    position: int | None
    pctr: float
    known: bool
    bid_micros: int
    ecpm_micros: float
    creative_id: str
    prerank_score: float | None
    prerank_position: int | None
    terms: Terms
    fields: list[ExplainedField]


class ExplainAnswer(msgspec.Struct, frozen=True):
    """Why ads of a request have their scores.

    Attributes:
        snapshot: Version of the snapshot that scored all of it.
        time_s: Event time that counts are decayed to.
        half_lives_s: Of the counts.
        ads: In the order asked, or best first.
        prerank: What chose the candidates that are ranked; as in a ranking.
        unexplained: Ads that were asked for and are not ranked: no candidates, or inactive.
        degraded: `users` where the feature store could not say what it knows.
        ignored_fields: Names that no field has.
    """

    request_id: str
    snapshot: str
    time_s: float
    half_lives_s: list[float]
    ads: list[ExplainedAd]
    prerank: str = ""
    unexplained: list[str] = []
    degraded: list[str] = []
    ignored_fields: list[str] = []


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
