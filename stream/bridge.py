"""The bridge: records of two topics of the user's own become events, in one order.

Owns the mapping of a JSON record to a request with its impression, or to a click, and the order in which records of
several partitions leave. Must not know Kafka, settings or the wall clock: who is idle is told to it.

Invariants: a record is mapped whole or refused with an `EventError`, never half; within a partition the order stays;
a record leaves only once every partition that is not idle has come within `align_s` of its time, so what is behind is
never later than that.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec

from features.fields import Kind, Side
from stream.events import (
    EVENT_BYTES_MAX,
    Candidate,
    Click,
    Event,
    EventError,
    Impression,
    Request,
    Value,
    check_event,
    encode_event,
    fits_64_bits,
)

TimeUnit = Literal["s", "ms", "us", "iso"]
Path = tuple[str | int, ...]

_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6}
_STEP = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")
_decoder = msgspec.json.Decoder()


class FieldPath(NamedTuple):
    """Where the value of a field stands in an impression's record."""

    name: str
    side: Side
    kind: Kind
    path: Path


@dataclass(frozen=True)
class Source:
    """How the records of one topic are read.

    Attributes:
        is_click: They are clicks; else impressions.
        key: What names the request; several are joined by a colon.
        position: None: every record has the default.
        propensity: None: every record has the default.
        values: Of the fields; clicks have none.
        ad_field: The field that holds the ad's id where no path gives it; empty if one does.
        defaults: What holds where a path leads to nothing: by field, and `position` and `propensity`.
    """

    is_click: bool
    time: Path
    key: tuple[Path, ...]
    ad_id: Path
    time_unit: TimeUnit = "s"
    position: Path | None = None
    propensity: Path | None = None
    values: tuple[FieldPath, ...] = ()
    ad_field: str = ""
    defaults: Mapping[str, Value] = field(default_factory=dict)


class Bridged(NamedTuple):
    """What a record becomes: events of one request, as they go to the log."""

    request_id: str
    time_s: float
    values: list[bytes]


Signer = Callable[[Impression | Click], str]  # gives the token of an event


def parse_path(text: str) -> Path:
    """Return the steps of a path such as `user.ids[0]`.

    Raises:
        ValueError: If it is none.
    """
    steps: list[str | int] = []
    for part in text.split("."):
        found = _STEP.fullmatch(part)
        if found is None:
            raise ValueError(f'a path must be names with dots between and [n] behind lists, got "{text}"')
        steps.append(found[1])
        steps += [int(index) for index in re.findall(r"\d+", found[2])]
    return tuple(steps)


def bridge_record(
    value: bytes | None, source: Source, sign: Signer | None = None, *, latest_s: float = math.inf
) -> Bridged:
    """Return the events that a record becomes.

    Args:
        value: The record.
        source: How it is read.
        sign: Where the ledger demands tokens.
        latest_s: What happened later than this is refused.

    Raises:
        EventError: With rule `bridge_path` where a path leads to nothing, `future`, `bad_value`, or one of
            stream/events.py.
    """
    record = _decode(value)
    time_s = _time_s(_need(record, source.time, "time"), source.time_unit)
    if time_s > latest_s:
        raise EventError("future", "time", time_s)
    request_id = ":".join(_id(_need(record, path, "key"), "key") for path in source.key)
    ad_id = _id(_need(record, source.ad_id, "ad_id"), "ad_id")
    position = _position(_or_default(record, source.position, source.defaults.get("position", 0)))
    events: list[Event]
    if source.is_click:
        click = Click(request_id, ad_id, position, time_s)
        events = [click if sign is None else msgspec.structs.replace(click, token=sign(click))]
    else:
        propensity = _propensity(_or_default(record, source.propensity, source.defaults.get("propensity", 1.0)))
        impression = Impression(request_id, ad_id, position, time_s, propensity)
        if sign is not None:
            impression = msgspec.structs.replace(impression, token=sign(impression))
        request_values, ad_values = _values(record, source, ad_id)
        events = [Request(request_id, time_s, [Candidate(ad_id, ad_values)], request_values), impression]
    for event in events:
        check_event(event)
    encoded = [encode_event(event) for event in events]
    if len(encoded[0]) > EVENT_BYTES_MAX:
        raise EventError("too_big", value=f"{len(encoded[0])} bytes")
    return Bridged(request_id, time_s, encoded)


def _decode(value: bytes | None) -> Any:
    if not value:
        raise EventError("empty")
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventError("not_utf8" if _is_other_text(value) else "not_json", value=error) from None
    except RecursionError:
        raise EventError("too_deep") from None


def _is_other_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _find(record: Any, path: Path) -> Any:
    """Return what stands at a path, None if there is nothing."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(record, list) or step >= len(record):
                return None
            record = record[step]
        elif not isinstance(record, dict):
            return None
        else:
            record = record.get(step)
    return record


def _need(record: Any, path: Path, name: str) -> Any:
    found = _find(record, path)
    if found is None:
        raise EventError("bridge_path", name, f"nothing at {_shown(path)}")
    return found


def _or_default(record: Any, path: Path | None, default: Value) -> Any:
    found = None if path is None else _find(record, path)
    return default if found is None else found


def _shown(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _time_s(found: Any, unit: TimeUnit) -> float:
    if unit == "iso":
        try:
            moment = datetime.fromisoformat(found)
        except (TypeError, ValueError):
            raise EventError("bad_time", "time", found) from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if found.__class__ not in (int, float):
        raise EventError("bad_time", "time", found)
    try:
        return float(found) / _PER_S[unit]
    except OverflowError:
        raise EventError("bad_time", "time", found) from None


def _id(found: Any, name: str) -> str:
    if found.__class__ not in (str, int):
        raise EventError("bad_id", name, found)
    return str(found)


def _position(found: Any) -> int:
    if found.__class__ is not int:
        raise EventError("bad_position", "position", found)
    return int(found)


def _propensity(found: Any) -> float:
    if found.__class__ not in (int, float) or not 0.0 < found <= 1.0:
        raise EventError("bad_propensity", "propensity", found)
    return float(found)


def _values(record: Any, source: Source, ad_id: str) -> tuple[dict[str, Value], dict[str, Value]]:
    """Return the values of the request and of the ad; what stands nowhere and has no default is left out: not known."""
    request_values: dict[str, Value] = {}
    ad_values: dict[str, Value] = {source.ad_field: ad_id} if source.ad_field else {}
    for name, side, kind, path in source.values:
        value = _or_default(record, path, source.defaults.get(name))
        if value is None:
            continue
        if not is_of_kind(value, kind):
            raise EventError("bad_value", name, value)
        (request_values if side in ("user", "context") else ad_values)[name] = value
    return request_values, ad_values


def is_of_kind(value: Any, kind: Kind) -> bool:
    """Tell whether the ledger takes a value for a field of this kind."""
    if kind == "number":
        return _is_whole(value) or (value.__class__ is float and math.isfinite(value))
    if kind == "category":
        return value.__class__ is str or _is_whole(value)
    return isinstance(value, list) and all(one.__class__ is str or _is_whole(one) for one in value)


def _is_whole(value: Any) -> bool:
    return value.__class__ is int and fits_64_bits(value)  # what JSON's encoder takes


K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class _Queue(Generic[T]):
    """Records of one partition that wait, each with the largest event time up to it."""

    order: int
    waiting: deque[tuple[float, T]] = field(default_factory=deque)
    time_s: float = -math.inf  # of the records that came so far


class Merger(Generic[K, T]):
    """Records of several partitions on their way into one order, by event time."""

    def __init__(self, partitions: Collection[K], align_s: float) -> None:
        """Begin empty; of records of the same time, those of the partition that stands first leave first."""
        self._align_s = align_s
        self._queues: dict[K, _Queue[T]] = {name: _Queue(order) for order, name in enumerate(partitions)}

    def add(self, partition: K, time_s: float | None, item: T) -> None:
        """Take the next record of a partition; one without a time waits behind the one before it."""
        queue = self._queues[partition]
        if time_s is not None:
            queue.time_s = max(queue.time_s, time_s)
        queue.waiting.append((queue.time_s, item))

    def waiting(self, partition: K) -> int:
        """Return how many records of a partition wait."""
        return len(self._queues[partition].waiting)

    def release(self, idle: Collection[K], limit: int) -> list[tuple[K, T]]:
        """Return the records that may leave now, the earliest first, at most `limit`.

        Args:
            idle: Partitions that nothing is waited for from; they are passed over as long as they are empty.
            limit: How many may leave at most.
        """
        heads = [(q.waiting[0][0], q.order, name) for name, q in self._queues.items() if q.waiting]
        heapq.heapify(heads)
        empty = [q.time_s for name, q in self._queues.items() if not q.waiting and name not in idle]
        bound_s = min(empty, default=math.inf) + self._align_s
        released: list[tuple[K, T]] = []
        while heads and heads[0][0] <= bound_s and len(released) < limit:
            _, order, name = heapq.heappop(heads)
            queue = self._queues[name]
            released.append((name, queue.waiting.popleft()[1]))
            if queue.waiting:
                heapq.heappush(heads, (queue.waiting[0][0], order, name))
            else:
                bound_s = min(bound_s, queue.time_s + self._align_s)
        return released

    def time_s(self, idle: Collection[K]) -> float:
        """Return up to where all partitions but the idle ones have come; -inf if nothing is known of one, or all."""
        fronts = [
            queue.waiting[0][0] if queue.waiting else queue.time_s
            for name, queue in self._queues.items()
            if queue.waiting or name not in idle
        ]
        return min(fronts, default=-math.inf)

    def read_s(self, partitions: Collection[K], idle: Collection[K]) -> float:
        """Return the event time up to which partitions were read: the least of those that are not idle.

        If all of them are idle it is the largest; -inf if nothing came of one that counts.
        """
        fronts = [self._queues[name].time_s for name in partitions if self.waiting(name) or name not in idle]
        return min(fronts) if fronts else max(self._queues[name].time_s for name in partitions)

    def ahead_s(self, partitions: Collection[K], idle: Collection[K]) -> float:
        """Return by how much the next record of partitions is ahead of what all have come to; 0 if none waits."""
        heads = [self._queues[name].waiting[0][0] for name in partitions if self.waiting(name)]
        next_s = min(heads, default=-math.inf)
        return next_s - self.time_s(idle) if next_s > -math.inf else 0.0
