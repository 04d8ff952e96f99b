"""What the service is asked and what it answers, as checked values.

Owns the types of `POST /v1/rank` and `POST /v1/events` and of a refusal. Must not know how a body is read, HTTP, Kafka
or models.

Invariants: values are of exactly three types (text, list of texts, finite number), so that what is scored, what is
logged and what is trained on are the same; a refusal says what, rule and got.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

TOKEN_CHARS_MAX = 100  # two numbers and 16 bytes in base64
ID_CHARS_MAX = 256  # the same as for an event: each id becomes one
POSITION_MAX = 1_000_000  # the same as for an event
EXPLAINED_MAX = 20  # ads of a request; each is scored once more without each field; chosen by hand
TIME_S_MAX = 253_402_300_799.0  # as for an event: within the year 9999

Clean = str | list[str] | float | None
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]
Token = Annotated[str, msgspec.Meta(max_length=TOKEN_CHARS_MAX)]
Position = Annotated[int, msgspec.Meta(ge=0, le=POSITION_MAX)]


class Fault(msgspec.Struct, frozen=True):
    """Why something was refused: which part, what holds for it, what stood there."""

    what: str
    rule: str
    got: str


class Rejected(ValueError):
    """A body that cannot be used, and the caller's to repair.

    Attributes:
        fault: What the answer says.
        is_too_large: It breaks a limit on bytes, not a rule about its content.
    """

    def __init__(self, what: str, rule: str, got: object, *, is_too_large: bool = False) -> None:
        """Keep what the answer has to say; `got` is cut to 200 characters."""
        self.fault = Fault(what, rule, str(got)[:200])
        self.is_too_large = is_too_large
        super().__init__(f"{what} {rule}, got {self.fault.got}")


class Refusal(msgspec.Struct, frozen=True):
    """The body of every answer that is nothing but a refusal."""

    error: Fault


class Limits(msgspec.Struct, frozen=True):
    """What one request may hold.

    Attributes:
        candidates_max: Ads of a ranking request.
        top: Ads of an answer when the request does not say.
        events_max: Events of a list.
        body_bytes_max: Bytes of a body.
        ahead_max_s: How far beyond now the time of an event may lie.
    """

    candidates_max: int
    top: int
    events_max: int
    body_bytes_max: int
    ahead_max_s: float


class NamedAd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A candidate with values of its own.

    Attributes:
        values: By field name; they win over the catalog's. A name that no field has is ignored and said.
    """

    ad_id: Id
    values: dict[str, Any] = {}


class RankBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/rank`.

    Attributes:
        candidates: Ads by id, or with values of their own; each ad once.
        request_id: Names the request in its impressions and clicks; left out, the service makes one.
        user: Values by field name. A name that no field has is ignored and said.
        context: Values by field name. A name that no field has is ignored and said.
        top: How many ads the answer holds at most.
        time_s: Event time in seconds since 1970; left out or null: now. Refused unless the deployment's clock is that
            of a replay.
    """

    candidates: list[Id | NamedAd]
    request_id: Id | None = None
    user: dict[str, Any] = {}
    context: dict[str, Any] = {}
    top: Annotated[int, msgspec.Meta(ge=1)] | None = None
    time_s: Annotated[float, msgspec.Meta(ge=0.0, le=TIME_S_MAX)] | None = None


class ExplainBody(RankBody, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/explain`: that of a ranking, with the same `request_id` where creatives are to be the same.

    Attributes:
        ads: Which of the candidates are explained; none: those that an answer would hold, the first 20 of them.
    """

    ads: Annotated[list[Id], msgspec.Meta(max_length=EXPLAINED_MAX)] = []


class Ad(msgspec.Struct, frozen=True, gc=False):
    """A candidate of a request: its id, and its values by field name."""

    ad_id: str
    values: dict[str, Clean]


class RankQuery(msgspec.Struct, frozen=True):
    """A checked ranking request.

    Attributes:
        request_id: Empty if the caller left its making to us.
        values: User and context values by field name.
        ids: The candidates, each once, in the order asked.
        own: The values that the caller gave for some of them, by id.
        top: How many ads the answer holds at most.
        ignored_fields: Names that no field has, as `section.name`, sorted.
        time_s: Event time that the caller gave it; None: now.
    """

    request_id: str
    values: dict[str, Clean]
    ids: list[str]
    own: dict[str, dict[str, Clean]]
    top: int
    ignored_fields: list[str]
    time_s: float | None = None


class RankedAd(msgspec.Struct, frozen=True, gc=False):
    """One place of an answer.

    Attributes:
        pctr: Predicted probability of a click.
        known: The ad was in the catalog.
        bid_micros: What a click of it is worth, in millionths.
        ecpm_micros: What a thousand impressions are expected to be worth: by this ads are ordered.
        creative_id: The creative that it is to be shown with; empty where it has none.
        propensity: Probability with which this ad was in the list, times that with which this creative was chosen; for
            counterfactual estimates.
        token: Proof that it was, to be sent back with its impression and its click; empty where none is demanded.
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
    """The body of an answer to `POST /v1/rank`.

    Attributes:
        snapshot: Version of the snapshot that scored all of it.
        prerank: What chose the candidates that were ranked: version of a pre-ranker's snapshot, `prior`, or empty where
            all were ranked.
        creatives: What chose the creatives: version of a creative ranker's snapshot, `prior`, or empty where none was
            to be chosen.
        degraded: Parts that were left out to answer in time: `users` (the feature store), `prerank`, `rank`,
            `creatives`.
        inactive: Candidates that the catalog holds as inactive; they are not ranked.
        arm: Which arm of the experiment answered, `champion` or `latest`; `fallback`: the champion in place of the
            newest model, which could not be had. Empty without an experiment.
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
    values: dict[str, Clean]
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
    """The body of an answer to `POST /v1/explain`.

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


class Served(msgspec.Struct, frozen=True):
    """What was answered and on which values: becomes the `request` event, before the answer leaves.

    Attributes:
        ads: What was shown, best first.
        ranked: What was ranked and not shown: each an `Ad` as JSON without its closing brace, as they are many.
        sampled: Of the candidates that were not ranked, those that were drawn with the probability `sample_rate`;
            likewise.
        split: Name of the experiment; empty without one.
        arm: As in the answer.
        pctrs: Click probability of each of `ads` as it was ranked on the values that stand here; None where its
            creative was chosen anew behind that; empty where ranking was left out.
        counts_s: Event time of the counts over the snapshot's; None: the snapshot's own.
    """

    request_id: str
    time_s: float
    values: dict[str, Clean]
    ads: list[Ad]
    snapshot: str
    ranked: list[bytes] = []
    sampled: list[bytes] = []
    sample_rate: float = 1.0
    split: str = ""
    arm: str = ""
    pctrs: list[float | None] = []
    counts_s: float | None = None


class Health(msgspec.Struct, frozen=True):
    """The body of an answer to `GET /healthz`: the process lives."""

    status: str = "ok"


class Readiness(msgspec.Struct, frozen=True):
    """The body of an answer to `GET /readyz`.

    Attributes:
        missing: The parts that are not there yet; with none missing it is ready.
        snapshot: Version of the snapshot that serves, None before there is one.
    """

    ready: bool
    missing: list[str]
    snapshot: str | None


class Impression(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="impression"):
    """An ad was shown; ids as in the answer.

    Attributes:
        position: From 0.
        time_s: Event time in seconds since 1970; left out or null: now.
        propensity: As in the answer.
        token: As in the answer.
        v: Version of this schema.
    """

    request_id: Id
    ad_id: Id
    position: Position
    time_s: float | None = None
    propensity: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    token: Token = ""
    v: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1


class Click(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="click"):
    """An impression was clicked; the ids of the impression.

    Attributes:
        position: The impression's.
        time_s: Event time in seconds since 1970; left out or null: now.
        token: The impression's.
        v: Version of this schema.
    """

    request_id: Id
    ad_id: Id
    position: Position
    time_s: float | None = None
    token: Token = ""
    v: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1


ClientEvent = Impression | Click


class EventResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one event; `error` if it was refused."""

    accepted: bool
    error: Fault | None = None


class EventsAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an answer to `POST /v1/events`: one result per event, in the order given.

    Attributes:
        error: Why some were not taken now though they may be later; the status is 503 then.
    """

    accepted: int
    rejected: int
    results: list[EventResult]
    error: Fault | None = None
