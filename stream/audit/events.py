"""Events as the audit reads them: docs/events.md read a second time, sharing no code with stream/events.py.

Owns which records are dead letters before anything is known about their request. Must not know labels or blocks.

Invariants: a record gives an event or the rule that it breaks, never an exception.
"""

from __future__ import annotations

import base64
import hmac
import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from features.fields import Field
from stream.partitioner import murmur2_partition

EVENT_BYTES_MAX = 1_000_000  # docs/ledger.md, Limits
ID_CHARS_MAX = 256  # docs/ledger.md, Limits
POSITION_MAX = 1_000_000  # docs/events.md, Dead letters
TIME_S_MAX = 253_402_300_800.0  # docs/events.md, Dead letters: the end of the year 9999


class Logged(NamedTuple):
    """A record of `events` as it stands in the log."""

    offset: int
    append_s: float
    value: bytes | None


@dataclass(frozen=True)
class Place:
    """What the settings of a deployment say about one partition.

    Attributes:
        partition: Its number.
        n_partitions: How many there are.
        fields: What events carry.
        ahead_s: How far an event's time may lie after its append time; inf where the clock is the log's.
        token_keys: Keys of which one must have signed impressions and clicks; none: tokens are not asked for.
        token_ttl_s: For how long a token holds.
    """

    partition: int
    n_partitions: int
    fields: tuple[Field, ...]
    ahead_s: float = math.inf
    token_keys: tuple[bytes, ...] = ()
    token_ttl_s: float = math.inf


Value = str | int | float | bool | list[str | int] | None


class Candidate(msgspec.Struct, gc=False):
    """An ad in a request."""

    ad_id: str
    values: dict[str, Value] = {}
    stage: str = "exposed"
    sample_rate: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    pctr: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None


class Request(msgspec.Struct, tag_field="type", tag="request"):
    """What was asked, and the values used to answer."""

    request_id: str
    time_s: float
    candidates: list[Candidate]
    values: dict[str, Value] = {}
    snapshot: str = ""
    split: str = ""
    arm: str = ""
    counts_s: float | None = None
    v: int = 1


class Impression(msgspec.Struct, tag_field="type", tag="impression"):
    """An ad was shown."""

    request_id: str
    ad_id: str
    position: int
    time_s: float
    propensity: float = 1.0
    token: str = ""
    v: int = 1


class Click(msgspec.Struct, tag_field="type", tag="click"):
    """An impression was clicked."""

    request_id: str
    ad_id: str
    position: int
    time_s: float
    token: str = ""
    v: int = 1


class Tick(msgspec.Struct, tag_field="type", tag="tick"):
    """Nothing older will come."""

    time_s: float
    v: int = 1


Event = Request | Impression | Click | Tick
_decode = msgspec.json.Decoder(Event).decode


def read_event(record: Logged, place: Place, watermark_s: float) -> tuple[Event | None, str]:
    """Return the event, or the rule that it breaks before anything is known about its request.

    Args:
        record: What stands in the log.
        place: Where.
        watermark_s: Just before it.
    """
    data = record.value
    if not data:
        return None, "empty"
    if len(data) > EVENT_BYTES_MAX:
        return None, "too_big"
    try:
        event: Event = _decode(data)
    except msgspec.ValidationError:
        return None, "schema"
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, "not_json" if _is_text(data) else "not_utf8"
    except RecursionError:
        return None, "too_deep"
    rule = _broken_rule(event) or _misplaced(event, record, place) or _bad_token(event, place, watermark_s)
    return (None, rule) if rule else (event, "")


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _broken_rule(event: Event) -> str:
    """Return which of the rules for single events is broken, the first in the order of docs/events.md."""
    if event.v != 1:
        return "version"
    if not 0.0 <= event.time_s < TIME_S_MAX:
        return "bad_time"
    if isinstance(event, Tick):
        return ""
    ids = [event.request_id] if isinstance(event, Request) else [event.request_id, event.ad_id]
    if not all(0 < len(one) <= ID_CHARS_MAX for one in ids):
        return "bad_id"
    if not isinstance(event, Request) and not 0 <= event.position <= POSITION_MAX:
        return "bad_position"
    if isinstance(event, Impression) and not 0.0 < event.propensity <= 1.0:
        return "bad_propensity"
    return ""


def _misplaced(event: Event, record: Logged, place: Place) -> str:
    if event.time_s > record.append_s + place.ahead_s:
        return "future"
    if not isinstance(event, Tick):
        own = murmur2_partition(event.request_id.encode(), place.n_partitions)
        if own != place.partition:
            return "wrong_partition"
    return ""


def _bad_token(event: Event, place: Place, watermark_s: float) -> str:
    if not place.token_keys or not isinstance(event, (Impression, Click)):
        return ""
    if not event.token:
        return "no_token"
    head, _, given = event.token.rpartition(".")
    text = f"{len(event.request_id)}.{len(event.ad_id)}.{event.position}.{head}.{event.request_id}.{event.ad_id}"
    digests = [hmac.digest(key, text.encode(errors="surrogatepass"), "sha256")[:16] for key in place.token_keys]
    if given not in {base64.urlsafe_b64encode(digest).decode().rstrip("=") for digest in digests}:
        return "bad_token"
    issued, _, propensity = head.partition(".")
    if isinstance(event, Impression) and not math.isclose(event.propensity, float(propensity), rel_tol=1e-9):
        return "bad_token"
    is_over = max(event.time_s, watermark_s) > int(issued, 16) / 1000.0 + place.token_ttl_s
    return "expired_token" if is_over else ""
