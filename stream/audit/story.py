"""What became of one request, worked out a second time: slow, obvious, sharing no code with the ledger.

Owns a second reading of docs/ledger.md: the fate of every impression, click and candidate of a request_id, from its
records and the watermark at each of them. Must not know other requests, Kafka or blocks.

Invariants: what it says depends on the records and the rules alone; limits that make rows leave early are not followed
(nobody can tell from outside when they were reached).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from features.fields import Field, raw_fields
from stream.audit.events import Candidate, Click, Impression, Place, Request, Value

ARM_COLUMNS = ("split", "arm", "snapshot")
SERVED_COLUMNS = ("snapshot", "pctr", "counts_s", "request_s")


class Rules(msgspec.Struct, frozen=True):
    """The rules that a header names, as far as labels depend on them."""

    wait_s: float
    grace_s: float
    disorder_s: float
    late_clicks: str = "wait"
    candidates_max: int = 1_000_000_000


@dataclass(frozen=True)
class Row:
    """A row of `examples`, its values by column.

    Attributes:
        values: By column.
        settled_s: When it is due.
        offset: Of its impression.
        since: Offset of the record that brought it: the impression, or the late click that corrects it.
        left_at: Offset of the record at which it leaves.
    """

    values: dict[str, Any]
    settled_s: float
    offset: int
    since: int
    left_at: float = math.inf


@dataclass(frozen=True)
class Chain:
    """A request and its candidates, the values of each by column; the rest as in `Row`."""

    values: dict[str, Any]
    candidates: list[dict[str, Any]]
    settled_s: float
    offset: int
    left_at: float = math.inf


@dataclass
class Expected:
    """What must stand in the output of one partition.

    Attributes:
        rows: All, in the order in which they leave; `left_at` is inf for those that wait still.
        chains: The same of chains.
        letters: The rule of each dead letter, by offset.
        changes: (offset, name, by): what a record did to the cumulative counts.
        timeouts: (moment, name, by): what the horizon did to them when it reached a moment.
        offsets: Of all records.
        watermarks: At each, after it.
    """

    rows: list[Row] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    letters: dict[int, str] = field(default_factory=dict)
    changes: list[tuple[int, str, int]] = field(default_factory=list)
    timeouts: list[tuple[float, str, int]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    watermarks: list[float] = field(default_factory=list)


class Seen(NamedTuple):
    """A record that is an event, the watermark after it and the rules that held for it."""

    offset: int
    watermark_s: float
    rules: Rules
    event: Request | Impression | Click


def refuse(found: Expected, offset: int, rule: str) -> None:
    """Note a dead letter."""
    found.letters[offset] = rule
    found.changes.append((offset, "dead_letters", 1))


@dataclass
class _Asked:
    """A request, for as long as it is known."""

    offset: int
    event: Request
    candidates: list[Candidate]
    until_s: float  # it takes impressions up to here
    due_s: float  # it is forgotten here, and its chain leaves
    shown: dict[int, _Shown] = field(default_factory=dict)  # by position


@dataclass
class _Shown:
    """An impression, for as long as its request is known."""

    seen: Seen
    event: Impression
    candidate: int
    settled_s: float
    is_clicked: bool = False
    corrected: tuple[float, int] | None = None  # when its correcting row is due, and the offset of the late click


@dataclass
class _Held:
    time_s: float
    until_s: float
    ad_id: str


class Story:
    """What became of the events that name one request_id."""

    def __init__(self, found: Expected, place: Place) -> None:
        """Begin before the first of them; what they lead to is added to `found`."""
        self._found = found
        self._partition = place.partition
        raw = raw_fields(place.fields)
        self._request_fields = [one for one in raw if one.side in ("user", "context")]
        self._candidate_fields = [one for one in raw if one.side in ("item", "creative")]
        self._asked: _Asked | None = None
        self._held: dict[int, _Held] = {}  # by position

    def tell(self, records: Sequence[Seen]) -> None:
        """Add to what was found all that these records, in order, lead to."""
        for seen in records:
            self._forget(seen.watermark_s)
            if isinstance(seen.event, Request):
                self._request(seen, seen.event)
            elif isinstance(seen.event, Impression):
                self._impression(seen, seen.event)
            else:
                self._click(seen, seen.event)
        self._forget(math.inf)

    def _forget(self, horizon_s: float) -> None:
        asked = self._asked
        if asked is not None and horizon_s >= asked.due_s:
            for shown in asked.shown.values():
                self._found.rows += self._rows(asked, shown)
            self._found.chains.append(self._chain(asked))
            self._asked = None
        for position, held in list(self._held.items()):
            if horizon_s >= held.until_s:
                del self._held[position]
                self._found.timeouts += [(held.until_s, "held", -1), (held.until_s, "orphan", 1)]

    def _count(self, seen: Seen, **by: int) -> None:
        self._found.changes += [(seen.offset, name, change) for name, change in by.items()]

    def _request(self, seen: Seen, event: Request) -> None:
        until_s = event.time_s + seen.rules.wait_s + seen.rules.grace_s
        if self._asked is not None:
            self._asked.due_s = max(self._asked.due_s, until_s)
            self._count(seen, duplicates=1)
            return
        if not _fits(event.values, self._request_fields):
            refuse(self._found, seen.offset, "bad_value")
            return
        self._count(seen, requests=1)
        if until_s > seen.watermark_s:
            candidates = event.candidates[: seen.rules.candidates_max]
            self._count(seen, candidates_cut=len(event.candidates) - len(candidates))
            self._asked = _Asked(seen.offset, event, candidates, until_s, until_s)

    def _impression(self, seen: Seen, event: Impression) -> None:
        asked = self._asked
        settled_s = max(event.time_s + seen.rules.wait_s, seen.watermark_s)
        if asked is not None and event.position in asked.shown:
            asked.due_s = max(asked.due_s, settled_s + seen.rules.grace_s)
            self._count(seen, duplicates=1)
            return
        if asked is None or seen.watermark_s >= asked.until_s:
            refuse(self._found, seen.offset, "no_request")
            return
        candidate = _which(asked.candidates, event)
        if candidate is None or not _fits(asked.candidates[candidate].values, self._candidate_fields):
            refuse(self._found, seen.offset, "not_a_candidate" if candidate is None else "bad_value")
            return
        self._count(seen, impressions=1)
        shown = asked.shown[event.position] = _Shown(seen, event, candidate, settled_s)
        asked.due_s = max(asked.due_s, settled_s + seen.rules.grace_s)
        held = self._held.pop(event.position, None)
        if held is not None:
            asked.due_s = max(asked.due_s, held.until_s)
            self._count(seen, held=-1)
            if held.ad_id == event.ad_id:
                self._meet(seen, shown, held.time_s)
            else:
                self._count(seen, orphan=1)

    def _click(self, seen: Seen, event: Click) -> None:
        asked, held = self._asked, self._held.get(event.position)
        shown = asked.shown.get(event.position) if asked is not None else None
        if shown is not None and _is_pending(shown, seen) and shown.event.ad_id != event.ad_id:
            refuse(self._found, seen.offset, "ad_mismatch")
            return
        self._count(seen, clicks=1)
        until_s = event.time_s + seen.rules.wait_s
        if asked is not None and shown is not None:
            asked.due_s = max(asked.due_s, until_s)
            self._meet(seen, shown, event.time_s)
        elif held is not None:
            self._count(seen, repeated=1)
            held.time_s, held.until_s = min(held.time_s, event.time_s), max(held.until_s, until_s)
        elif until_s <= seen.watermark_s:
            self._count(seen, orphan=1)
        else:
            self._count(seen, held=1)
            self._held[event.position] = _Held(event.time_s, until_s, event.ad_id)

    def _meet(self, seen: Seen, shown: _Shown, click_s: float) -> None:
        """Join a click with its impression, which is known."""
        if shown.is_clicked or shown.corrected is not None:
            self._count(seen, repeated=1)
        elif _is_pending(shown, seen) and click_s - shown.event.time_s <= shown.seen.rules.wait_s:
            self._count(seen, matched=1)
            shown.is_clicked = True
        else:
            self._count(seen, late=1)
            if seen.rules.late_clicks == "correct":
                shown.corrected = (max(shown.settled_s, seen.watermark_s), seen.offset)

    def _rows(self, asked: _Asked, shown: _Shown) -> Iterator[Row]:
        event, candidate = shown.event, asked.candidates[shown.candidate]
        offset = shown.seen.offset
        values: dict[str, Any] = {
            "request_id": event.request_id,
            "position": event.position,
            "kind": "clicked" if shown.is_clicked else "expired_negative",
            "time_s": event.time_s,
            "settled_s": shown.settled_s,
            "click": int(shown.is_clicked),
            "propensity": event.propensity,
            "ad_id": event.ad_id,
            "source_partition": self._partition,
            "source_offset": offset,
        }
        values |= _columns(asked.event.values, self._request_fields)
        values |= _columns(candidate.values, self._candidate_fields)
        if asked.event.arm:
            values |= {name: getattr(asked.event, name) for name in ARM_COLUMNS}
        if candidate.pctr is not None:
            own = (asked.event.snapshot, candidate.pctr, asked.event.counts_s, asked.event.time_s)
            values |= zip(SERVED_COLUMNS, own, strict=True)
        yield Row(values, shown.settled_s, offset, offset)
        if shown.corrected is not None:
            settled_s, since = shown.corrected
            again = values | {"kind": "late_corrected", "click": 1, "settled_s": settled_s}
            yield Row(again, settled_s, offset, since)

    def _chain(self, asked: _Asked) -> Chain:
        values: dict[str, Any] = {
            "request_id": asked.event.request_id,
            "time_s": asked.event.time_s,
            "settled_s": asked.due_s,
            "source_partition": self._partition,
            "source_offset": asked.offset,
        }
        values |= _columns(asked.event.values, self._request_fields)
        candidates: list[dict[str, Any]] = []
        for index, candidate in enumerate(asked.candidates):
            shown = {at: one for at, one in asked.shown.items() if one.candidate == index}
            is_clicked = any(one.is_clicked or one.corrected is not None for one in shown.values())
            label = "clicked" if is_clicked else "exposed" if shown else "unexposed"
            own: dict[str, Any] = {"candidate": index, "ad_id": candidate.ad_id, "stage": candidate.stage}
            own |= {"sample_rate": candidate.sample_rate, "label": label, "position": min(shown, default=None)}
            candidates.append(own | _columns(candidate.values, self._candidate_fields))
        return Chain(values, candidates, asked.due_s, asked.offset)


def _is_pending(shown: _Shown, seen: Seen) -> bool:
    """Return whether an impression still waits when a record is looked at; at its own record it does."""
    return seen.watermark_s < shown.settled_s or seen.offset == shown.seen.offset


def _which(candidates: Sequence[Candidate], event: Impression) -> int | None:
    """Return the index of the candidate that was shown: the one at its position, if it is that ad, else the first."""
    if event.position < len(candidates) and candidates[event.position].ad_id == event.ad_id:
        return event.position
    return next((index for index, one in enumerate(candidates) if one.ad_id == event.ad_id), None)


_TYPES: dict[str, tuple[type, ...]] = {"category": (str, int), "categories": (list,), "number": (int, float)}


def _fits(values: dict[str, Value], fields: Sequence[Field]) -> bool:
    """Return whether each value is one that its field's kind takes; null is of every kind."""
    given = [(values.get(one.name), _TYPES[one.kind]) for one in fields]
    return all(
        value is None or (isinstance(value, types) and not isinstance(value, bool) and not _is_huge(value))
        for value, types in given
    )


def _is_huge(value: Value) -> bool:
    """Return whether a value is a whole number that 64 bits cannot hold."""
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _columns(values: dict[str, Value], fields: Sequence[Field]) -> dict[str, Any]:
    """Return values as their columns hold them; one that its column cannot hold is unknown."""
    return {one.column: _column_value(values.get(one.name), one.kind) for one in fields}


def _column_value(value: Value, kind: str) -> Any:
    """Return text for a category, however the producer wrote it, texts for categories, a float for a number."""
    if kind == "categories":
        return [str(part) for part in value] if isinstance(value, list) else None
    if value is None or isinstance(value, list) or _is_huge(value):
        return None
    if kind == "category":
        return str(value)
    return None if isinstance(value, str) else float(value)
