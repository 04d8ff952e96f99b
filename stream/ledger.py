"""The label ledger: one partition's join of requests, impressions and clicks, as a Mealy machine.

Owns the states of an impression (pending, then clicked or expired_negative), the rules for clicks (matched, repeated,
late, orphan, held) and where blocks are cut. Must not know Kafka, bytes on the wire or the wall clock: time is the
event's, and the append time that comes with each record.

Invariants: the blocks depend on the records alone, never on how they were batched; the three laws of `Counts` hold
after every record; a row leaves once its deadline has passed, clicked or not, so no label is seen early; a ledger that
resumes from its last block writes the same bytes that it would have written.

How a resume works: the last block's header holds counts and watermark, the blocks of the last `grace_s` hold the ids
that have settled, and the records from `resume_at` on are stepped through once more with their output thrown away.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from features.fields import Field, raw_fields
from stream.blocks import Counts, Header, Rules, row_schema
from stream.events import Candidate, Click, Event, EventError, Impression, Request, Tick, Value

ImpressionId = tuple[str, int]  # request_id and position

_TYPES: dict[str, frozenset[type]] = {
    "category": frozenset({str, int, type(None)}),
    "categories": frozenset({list, type(None)}),
    "number": frozenset({int, float, type(None)}),
}


class SlideEdges(Protocol):
    """Where slides end; `models.window.Slides` is one."""

    def index(self, time_s: float) -> int:
        """Return the slide that an event time belongs to."""

    def end_s(self, index: int) -> float:
        """Return the event time at which a slide ends (exclusive)."""

    def last_boundary(self, after_s: float, up_to_s: float) -> float | None:
        """Return the largest end of a slide in (after_s, up_to_s], or None."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be used: which rule it broke, and where it stands."""

    offset: int
    rule: str
    field: str
    value: str


class Closed(msgspec.Struct, frozen=True):
    """A closed block: its header, its columns (see `row_schema`) and the dead letters found on the way."""

    header: Header
    columns: dict[str, list[Any]]
    dead_letters: list[DeadLetter]


class _Request:
    """A request whose impressions may still come; `watermark_s` is the one just before it."""

    __slots__ = ("candidates", "n_pending", "offset", "request_id", "until_s", "values", "watermark_s")

    def __init__(self, event: Request, offset: int, watermark_s: float, until_s: float) -> None:
        self.request_id = event.request_id
        self.values = event.values
        self.candidates = event.candidates
        self.offset = offset
        self.watermark_s = watermark_s
        self.until_s = until_s
        self.n_pending = 0


class _Pending:
    """An impression that waits for its click."""

    __slots__ = (
        "ad_id",
        "click",
        "offset",
        "position",
        "propensity",
        "request",
        "settled_s",
        "time_s",
        "values",
        "wait_s",
    )

    def __init__(self, event: Impression, offset: int, request: _Request, values: dict[str, Value]) -> None:
        self.position = event.position
        self.ad_id = event.ad_id
        self.time_s = event.time_s
        self.propensity = event.propensity
        self.offset = offset
        self.request = request
        self.values = values
        self.click = 0
        self.settled_s = 0.0
        self.wait_s = 0.0


class _Held(msgspec.Struct):
    """A click that came before its impression."""

    time_s: float
    until_s: float
    ad_id: str
    offset: int
    watermark_s: float


class Ledger:
    """The ledger of one partition: feed it every record in offset order, take the closed blocks."""

    def __init__(
        self,
        partition: int,
        fields: Sequence[Field],
        slides: SlideEdges,
        *,
        wait_s: float,
        grace_s: float,
        disorder_s: float,
        block_rows: int,
        block_s: float,
    ) -> None:
        """Begin with an empty state, before the first record of the partition."""
        self.partition = partition
        self.rules = self._rules_next = Rules(wait_s, grace_s, disorder_s)
        self.counts = Counts()
        self._slides = slides
        self.watermark_s = 0.0
        self._boundary_s = slides.end_s(slides.index(0.0))  # of the slide that the watermark lies in
        self._block_rows = block_rows
        self._block_s = block_s
        self._number = 0
        self._fields = raw_fields(fields)
        self._schema = row_schema(fields)
        self._request_rules = _value_rules(self._fields, ("user", "context"))
        self._item_rules = _value_rules(self._fields, ("item", "creative"))
        self._requests: dict[str, _Request] = {}
        self._request_order: deque[_Request] = deque()
        self._pending: dict[ImpressionId, _Pending] = {}
        self._due: list[tuple[float, int, _Pending]] = []
        self._settled: dict[ImpressionId, tuple[float, int]] = {}  # id → when it is forgotten, its click
        self._settled_order: deque[tuple[ImpressionId, float]] = deque()
        self._held: dict[ImpressionId, _Held] = {}
        self._held_due: list[tuple[float, int, ImpressionId]] = []
        self._taken: dict[
            ImpressionId, _Held
        ] = {}  # held clicks whose impression came and is pending: a resume needs them
        self._open: list[_Pending] = []
        self._open_letters: list[DeadLetter] = []
        self._opened_s: float | None = None  # append time of the first row or dead letter of the open block
        self._closed: list[Closed] = []

    def step(self, offset: int, append_s: float, event: Event | EventError) -> list[Closed]:
        """Take the next record; return the blocks that it closed, most often none.

        Args:
            offset: Its offset in `events`, larger than the last one's.
            append_s: When the broker appended it, seconds; never falls.
            event: The event, or why the record is none.
        """
        self._closed = []
        if self._opened_s is not None and append_s - self._opened_s >= self._block_s:
            self._close(offset - 1, self.watermark_s)
        if isinstance(event, EventError):
            self.counts.records += 1
            self._refuse(offset, event)
        else:
            self._advance(offset, event.time_s - self.rules.disorder_s)
            self.counts.records += 1
            try:
                self._apply(offset, event)
            except EventError as error:
                self._refuse(offset, error)
            self._settle(offset, self.watermark_s)
        if self._opened_s is None and (self._open or self._open_letters):
            self._opened_s = append_s
        if len(self._open) >= self._block_rows:
            self._close(offset, self.watermark_s)
        return self._closed

    def rewind(self, header: Header, settled: Iterable[tuple[str, int, float, int]]) -> None:
        """Go back to just before the record at `header.resume_at`; then `step` through `header.through`, then `seal`.

        What those steps return was written before and has to be thrown away.

        Args:
            header: Of the partition's last block.
            settled: (request_id, position, until_s, click) of rows in the partition's own blocks that are forgotten
                only after `header.resume_watermark_s`; until_s = settled_s + the `grace_s` of the row's block.
        """
        self.rules = header.rules
        self._set_watermark(header.resume_watermark_s)
        for request_id, position, until_s, click in settled:
            self._settled[request_id, position] = (until_s, click)
            self._settled_order.append(((request_id, position), until_s))

    def seal(self, header: Header) -> None:
        """Take over what the last block says; new rules apply to the impressions that come after it."""
        self._forget(header.watermark_s)
        self.counts = msgspec.structs.replace(header.counts)
        self.rules = self._rules_next
        self._number = header.number + 1
        self._open, self._open_letters, self._opened_s = [], [], None
        self._set_watermark(header.watermark_s)

    # The watermark and what falls due -------------------------------------------------------------------------

    def _advance(self, offset: int, to_s: float) -> None:
        """Move the watermark, cutting a block at the last slide boundary on the way; the record itself comes after."""
        if to_s < self.watermark_s:
            return
        if to_s >= self._boundary_s:
            boundary_s = self._slides.last_boundary(self.watermark_s, to_s)
            assert boundary_s is not None
            self._settle_before(offset, boundary_s)
            self._set_watermark(boundary_s)
            self._close(offset - 1, boundary_s)
        self._settle(offset, to_s)
        self.watermark_s = to_s
        self._forget(to_s)
        if len(self._open) >= self._block_rows:
            self._close(offset - 1, to_s)

    def _set_watermark(self, watermark_s: float) -> None:
        self.watermark_s = watermark_s
        self._boundary_s = self._slides.end_s(self._slides.index(watermark_s))

    def _settle_before(self, offset: int, boundary_s: float) -> None:
        """Let rows due before a slide boundary leave, each slide in blocks of its own."""
        end_s = self._boundary_s  # of the rows in the open block, if any
        while self._due and self._due[0][0] < boundary_s:
            row_end_s = self._slides.end_s(self._slides.index(self._due[0][0]))
            if self._open and row_end_s != end_s:
                self._close(offset - 1, end_s)
            end_s = row_end_s
            self._leave(offset)

    def _settle(self, offset: int, to_s: float) -> None:
        while self._due and self._due[0][0] <= to_s:
            self._leave(offset)

    def _leave(self, offset: int) -> None:
        """Move the first due row into the open block; a full one is closed first, as of just before this record."""
        settled_s, _, row = self._due[0]
        if len(self._open) >= self._block_rows:
            self._close(offset - 1, settled_s)
        heapq.heappop(self._due)
        key = (row.request.request_id, row.position)
        del self._pending[key]
        self._taken.pop(key, None)
        row.request.n_pending -= 1
        self._remember(key, settled_s, row.click)
        self._open.append(row)
        self.counts.pending -= 1
        if row.click:
            self.counts.clicked += 1
        else:
            self.counts.expired_negative += 1

    def _remember(self, key: ImpressionId, settled_s: float, click: int) -> None:
        until_s = settled_s + self.rules.grace_s
        self._settled[key] = (until_s, click)
        self._settled_order.append((key, until_s))

    def _forget(self, watermark_s: float) -> None:
        """Give up held clicks, and free ids and requests, whose time has passed by a watermark.

        Look-ups of ids and requests do not rely on it: they compare times themselves.
        """
        while self._held_due and self._held_due[0][0] <= watermark_s:
            until_s, _, held_key = heapq.heappop(self._held_due)
            if held_key in self._held and self._held[held_key].until_s == until_s:
                del self._held[held_key]
                self.counts.held -= 1
                self.counts.orphan += 1
        order = self._settled_order
        while order and order[0][1] <= watermark_s:
            key, until_s = order.popleft()
            if key in self._settled and self._settled[key][0] == until_s:
                del self._settled[key]
        requests = self._request_order
        while requests and requests[0].until_s <= watermark_s and not requests[0].n_pending:
            request = requests.popleft()
            if self._requests.get(request.request_id) is request:
                del self._requests[request.request_id]

    # One record -----------------------------------------------------------------------------------------------

    def _apply(self, offset: int, event: Event) -> None:
        if isinstance(event, Impression):
            self._impression(offset, event)
        elif isinstance(event, Click):
            self._click(offset, event)
        elif isinstance(event, Request):
            self._request(offset, event)
        else:
            assert isinstance(event, Tick)
            self.counts.ticks += 1

    def _request(self, offset: int, event: Request) -> None:
        known = self._requests.get(event.request_id)
        if known is not None and self.watermark_s < known.until_s:
            self.counts.duplicates += 1
            return
        _check_values(event.values, self._request_rules)
        self.counts.requests += 1
        until_s = event.time_s + self.rules.wait_s + self.rules.grace_s
        if until_s > self.watermark_s:
            request = _Request(event, offset, self.watermark_s, until_s)
            self._requests[event.request_id] = request
            self._request_order.append(request)

    def _impression(self, offset: int, event: Impression) -> None:
        key = (event.request_id, event.position)
        if key in self._pending or self._known(key) is not None:
            self.counts.duplicates += 1
            return
        request = self._requests.get(event.request_id)
        if request is None or self.watermark_s >= request.until_s:
            raise EventError("no_request", "request_id", event.request_id)
        candidate = _candidate(request.candidates, event)
        _check_values(candidate.values, self._item_rules)
        row = _Pending(event, offset, request, candidate.values)
        row.wait_s = self.rules.wait_s
        row.settled_s = max(event.time_s + row.wait_s, self.watermark_s)
        self._pending[key] = row
        heapq.heappush(self._due, (row.settled_s, offset, row))
        request.n_pending += 1
        self.counts.impressions += 1
        self.counts.pending += 1
        held = self._held.pop(key, None)
        if held is not None:
            self.counts.held -= 1
            if held.ad_id != event.ad_id:
                self.counts.orphan += 1
            else:
                self._taken[key] = held
                self._match(row, held.time_s)

    def _click(self, offset: int, event: Click) -> None:
        key = (event.request_id, event.position)
        row = self._pending.get(key)
        if row is not None and row.ad_id != event.ad_id:
            raise EventError("ad_mismatch", "ad_id", event.ad_id)
        self.counts.clicks += 1
        if row is not None:
            self._match(row, event.time_s)
            return
        known = self._known(key)
        if known is not None:
            if known:
                self.counts.repeated += 1
            else:
                self.counts.late += 1
            return
        self._hold(offset, key, event)

    def _match(self, row: _Pending, click_s: float) -> None:
        if row.click:
            self.counts.repeated += 1
        elif click_s - row.time_s > row.wait_s:
            self.counts.late += 1
        else:
            row.click = 1
            self.counts.matched += 1

    def _hold(self, offset: int, key: ImpressionId, event: Click) -> None:
        """Keep a click whose impression has not come.

        Several are kept as one, from the earliest until the last has waited: whatever the order, and so that a
        resume, which may begin between them, agrees.
        """
        until_s = event.time_s + self.rules.wait_s
        held = self._held.get(key)
        if held is not None:
            self.counts.repeated += 1
            held.time_s = min(held.time_s, event.time_s)
            held.until_s = max(held.until_s, until_s)
        elif until_s <= self.watermark_s:
            self.counts.orphan += 1
            return
        else:
            self.counts.held += 1
            held = self._held[key] = _Held(event.time_s, until_s, event.ad_id, offset, self.watermark_s)
        heapq.heappush(self._held_due, (held.until_s, offset, key))

    def _known(self, key: ImpressionId) -> int | None:
        """Return the click (0 or 1) of an impression that has settled and is not forgotten, else None."""
        known = self._settled.get(key)
        return known[1] if known is not None and self.watermark_s < known[0] else None

    def _refuse(self, offset: int, error: EventError) -> None:
        self.counts.dead_letters += 1
        self._open_letters.append(DeadLetter(offset, error.rule, error.field, error.value))

    # Blocks ---------------------------------------------------------------------------------------------------

    def _close(self, through: int, watermark_s: float) -> None:
        self._forget(watermark_s)
        resume_at, resume_watermark_s = self._oldest(through, watermark_s)
        header = Header(
            partition=self.partition,
            number=self._number,
            through=through,
            watermark_s=watermark_s,
            resume_at=resume_at,
            resume_watermark_s=resume_watermark_s,
            rules=self.rules,
            counts=msgspec.structs.replace(self.counts),
        )
        self._closed.append(Closed(header, self._columns(), self._open_letters))
        self._number += 1
        self._open, self._open_letters, self._opened_s = [], [], None

    def _oldest(self, through: int, watermark_s: float) -> tuple[int, float]:
        """Return the offset of the oldest record still needed and the watermark just before it."""
        oldest = (through + 1, watermark_s)
        if self._request_order:
            oldest = (self._request_order[0].offset, self._request_order[0].watermark_s)
        for held in (*self._held.values(), *self._taken.values()):
            oldest = min(oldest, (held.offset, held.watermark_s))
        return oldest

    def _columns(self) -> dict[str, list[Any]]:
        rows = self._open
        columns: dict[str, list[Any]] = {
            "request_id": [row.request.request_id for row in rows],
            "position": [row.position for row in rows],
            "kind": ["clicked" if row.click else "expired_negative" for row in rows],
            "time_s": [row.time_s for row in rows],
            "settled_s": [row.settled_s for row in rows],
            "click": [row.click for row in rows],
            "propensity": [row.propensity for row in rows],
            "ad_id": [row.ad_id for row in rows],
            "source_partition": [self.partition] * len(rows),
            "source_offset": [row.offset for row in rows],
        }
        for field in self._fields:
            name = field.name
            if field.side in ("user", "context"):
                values = [row.request.values.get(name) for row in rows]
            else:
                values = [row.values.get(name) for row in rows]
            columns[field.column] = _canonical(values, field.kind)
        return columns


def _candidate(candidates: list[Candidate], event: Impression) -> Candidate:
    """Return the candidate that was shown: most often the one at its position."""
    if event.position < len(candidates) and candidates[event.position].ad_id == event.ad_id:
        return candidates[event.position]
    for candidate in candidates:
        if candidate.ad_id == event.ad_id:
            return candidate
    raise EventError("not_a_candidate", "ad_id", event.ad_id)


_ValueRules = tuple[tuple[str, frozenset[type]], ...]


def _value_rules(fields: Sequence[Field], sides: tuple[str, ...]) -> _ValueRules:
    return tuple((field.name, _TYPES[field.kind]) for field in fields if field.side in sides)


def _check_values(values: dict[str, Value], rules: _ValueRules) -> None:
    get = values.get
    for name, types in rules:
        value = get(name)
        if value.__class__ not in types:
            raise EventError("bad_value", name, value)


def _canonical(values: list[Any], kind: str) -> list[Any]:
    """Return values as their column holds them: text for categories, however the producer wrote them."""
    if kind == "category":
        return [value if value is None or value.__class__ is str else str(value) for value in values]
    if kind == "categories":
        return [value and [str(one) for one in value] for value in values]
    return [value if value is None else float(value) for value in values]
