"""The events on the topic `events`: their schema, their version and how bytes become one of them.

Owns the JSON schema at the edge: `request`, `impression`, `click` and `tick`. Must not know Kafka, the ledger's state
or which fields a deployment has (the ledger checks values against the fields).

Invariants: a decoded event has finite times and non-empty ids; whatever cannot be decoded becomes an `EventError` that
names the rule, the field and the value, and never another exception. docs/events.md shows one example of each record.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

VERSION = 1
EVENT_BYTES_MAX = 1_000_000  # just below Kafka's default message.max.bytes; larger ones are dead letters, not crashes
TIME_S_MAX = 253_402_300_800.0  # the end of the year 9999; catches milliseconds and microseconds in place of seconds
POSITION_MAX = 1_000_000  # chosen by hand: no list shown is longer
ID_CHARS_MAX = 256  # chosen by hand: an id is a key in memory as long as its impression is pending

Value = str | int | float | bool | list[str | int] | None


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An ad in a request, with the item values that it was scored on.

    Attributes:
        ad_id: Which ad.
        values: Item values by field name, as they were when the request was answered.
        stage: The deepest stage of the cascade that it reached.
        sample_rate: Probability with which it is among the candidates; below 1 where a request holds a sample of those
            that did not come far.
        pctr: Click probability that it was shown with, by the request's snapshot on these values; None: not said.
    """

    ad_id: str
    values: dict[str, Value] = {}
    stage: str = "exposed"
    sample_rate: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    pctr: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None


class Request(msgspec.Struct, frozen=True, tag_field="type", tag="request", omit_defaults=True, gc=False):
    """A ranking request with the values used to answer it; written before the answer leaves.

    Attributes:
        request_id: Kafka key of the request and of all impressions and clicks that follow from it.
        time_s: Event time, seconds since 1970 (UTC).
        values: User and context values by field name.
        candidates: The ads, those shown first and in order of position, then others that were considered.
        snapshot: Version of the snapshot that ranked them; empty in a replay.
        split: Name of the experiment that its user took part in; empty: none.
        arm: Which arm of it answered.
        counts_s: Event time of the live counts that it was answered on; None: the snapshot's own counts.
    """

    request_id: str
    time_s: float
    candidates: list[Candidate]
    values: dict[str, Value] = {}
    snapshot: str = ""
    split: str = ""
    arm: str = ""
    counts_s: float | None = None
    v: int = VERSION


class Impression(msgspec.Struct, frozen=True, tag_field="type", tag="impression", omit_defaults=True, gc=False):
    """An ad was shown. Carries ids only: what it was scored on travels in its request.

    Attributes:
        request_id: The request that it answers.
        ad_id: Which of the request's candidates.
        position: Place in the list shown, 0 is the top; names the impression within its request.
        time_s: Event time, seconds since 1970 (UTC).
        propensity: Probability with which the ad was put there, in (0, 1].
        token: What the service gave out with the ad (stream/tokens.py); empty where none is demanded.
    """

    request_id: str
    ad_id: str
    position: int
    time_s: float
    propensity: float = 1.0
    token: str = ""
    v: int = VERSION


class Click(msgspec.Struct, frozen=True, tag_field="type", tag="click", omit_defaults=True, gc=False):
    """An impression was clicked; the same ids, and token, as the impression's."""

    request_id: str
    ad_id: str
    position: int
    time_s: float
    token: str = ""
    v: int = VERSION


class Tick(msgspec.Struct, frozen=True, tag_field="type", tag="tick", omit_defaults=True, gc=False):
    """Nothing older than `time_s` (minus the disorder allowed) will come: moves a silent partition's watermark."""

    time_s: float
    v: int = VERSION


Event = Request | Impression | Click | Tick


def fits_64_bits(value: int) -> bool:
    """Tell whether a whole number is one of 64 bits, with or without a sign: JSON's may have hundreds of digits."""
    return -(2**63) <= value < 2**64


class EventError(ValueError):
    """A record that is no valid event; becomes a dead letter.

    Attributes:
        rule: Which rule it breaks, from the closed list in docs/events.md.
        field: The part of the record that breaks it, empty when it is the whole.
        value: What stood there, cut to 200 characters.
    """

    def __init__(self, rule: str, field: str = "", value: object = "") -> None:
        """Keep what the dead letter has to say."""
        self.rule = rule
        self.field = field
        self.value = str(value)[:200]
        super().__init__(f"event breaks the rule {rule}: {field or 'record'} = {self.value}")


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Return the JSON bytes of an event."""
    return _encoder.encode(event)


def decode_event(value: bytes | None) -> Event:
    """Return the event that the bytes hold.

    Raises:
        EventError: With rule `empty`, `too_big`, `too_deep`, `not_utf8`, `not_json`, `schema`, or as in `check_event`.
    """
    if not value:
        raise EventError("empty")
    if len(value) > EVENT_BYTES_MAX:
        raise EventError("too_big", value=f"{len(value)} bytes")
    try:
        event: Event = _decoder.decode(value)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        raise EventError("schema", where.strip("`$."), what) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventError(_syntax_rule(value), value=error) from None
    except RecursionError:  # nested thousands deep, in a key that nobody asked for
        raise EventError("too_deep") from None
    check_event(event)
    return event


def check_event(event: Event) -> None:
    """Check what the types cannot say: version, times and ids.

    Raises:
        EventError: With rule `version`, `bad_time`, `bad_id`, `bad_position` or `bad_propensity`.
    """
    if event.v != VERSION:
        raise EventError("version", "v", event.v)
    if not 0.0 <= event.time_s < TIME_S_MAX:  # nor NaN
        raise EventError("bad_time", "time_s", event.time_s)
    if isinstance(event, Tick):
        return
    if not 0 < len(event.request_id) <= ID_CHARS_MAX:
        raise EventError("bad_id", "request_id", event.request_id)
    if isinstance(event, Request):
        return
    if not 0 < len(event.ad_id) <= ID_CHARS_MAX:
        raise EventError("bad_id", "ad_id", event.ad_id)
    if not 0 <= event.position <= POSITION_MAX:
        raise EventError("bad_position", "position", event.position)
    if isinstance(event, Impression) and not 0.0 < event.propensity <= 1.0:
        raise EventError("bad_propensity", "propensity", event.propensity)


def _syntax_rule(value: bytes) -> str:
    try:
        value.decode()
    except UnicodeDecodeError:
        return "not_utf8"
    return "not_json"
