"""The label ledger: one partition's join of requests, impressions and clicks, as a Mealy machine.

Owns the states of an impression (pending, then clicked or expired_negative, then perhaps corrected), the rules for
clicks (matched, repeated, late, orphan, held), what the limits do, and where blocks are cut. docs/ledger.md is its
specification. Must not know Kafka, bytes on the wire or the wall clock: time is the event's, and the append time that
comes with each record.

Invariants: the blocks depend on the records alone, never on how they were batched; the three laws of `Counts` hold
after every record; a row leaves once its deadline has passed, clicked or not, so no label is seen early; a ledger that
resumes from its last block writes the same bytes that it would have written.

How a resume works: a request, with all that belongs to it, is forgotten at one moment, when no record about it that has
come can matter any more. So the state after the last block follows from its header and the records from the oldest
request or held click on that is not forgotten. They are stepped through once more with their output thrown away.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import msgspec

from features.fields import Field
from stream.blocks import Chains, Columns, Counts, Header, Rules
from stream.due import DueQueue
from stream.events import Click, Event, EventError, Impression, Request, Tick
from stream.ledger_rows import SMALL_REQUEST_BYTES, Held, KnownRequest, Left, Row, RowColumns, ad_bytes
from stream.partitioner import request_partition
from stream.tokens import Tokens

BLOCK_BYTES = 4_000_000  # a block closes at about this size, well below the 8 MB that a topic takes
CANDIDATES_PER_ROW = 16  # a block holds so many candidates of chains for each row that it may hold
IDLE_S = 60.0  # a block closes this long (append time) after the last even if it is empty: a resume need not read far
RELIEF = 1 / 16  # by how much of a limit the ledger goes below it: moving on one by one would cost a header entry each
# What is found wrong with a record once it has moved the watermark; anything else is found before.
STATE_RULES = frozenset({"no_request", "not_a_candidate", "ad_mismatch", "bad_value"})


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


@dataclass(frozen=True)
class Closed:
    """A closed block: its header, what left in it, and the dead letters found on the way."""

    header: Header
    dead_letters: list[DeadLetter]
    left: list[Left]
    forgotten: list[KnownRequest]
    columns: RowColumns

    @cached_property
    def rows(self) -> Columns:
        """The rows in the columns of `row_schema`."""
        return self.columns.examples(self.left)

    @cached_property
    def chains(self) -> Chains:
        """The chains in the columns of `chain_schema`; only made for who asks."""
        return self.columns.chains(self.forgotten)


class Ledger:
    """The ledger of one partition: feed it every record in offset order, take the closed blocks."""

    def __init__(
        self,
        partition: int,
        fields: Sequence[Field],
        slides: SlideEdges,
        *,
        rules: Rules,
        block_rows: int,
        block_s: float,
        tokens: Tokens | None = None,
        n_partitions: int | None = None,
    ) -> None:
        """Begin with an empty state, before the first record of the partition.

        Args:
            partition: Of `events`.
            fields: Which values rows and chains take from their requests.
            slides: Where blocks have to end.
            rules: How long to wait and what to do at a limit.
            block_rows: A block closes when it holds this many rows.
            block_s: A block closes when append time has passed its first row by this much.
            tokens: What impressions and clicks must bring; None: nothing.
            n_partitions: Of `events`, to find keys that went astray; None: not looked at.
        """
        self.partition = partition
        self.rules = self._rules_again = self._rules_next = rules
        self.counts = Counts()
        self.watermark_s = self.horizon_s = 0.0
        self._slides = slides
        self._boundary_s = slides.end_s(slides.index(0.0))  # of the slide that the watermark lies in
        self._block_rows = block_rows
        self._block_s = block_s
        self._tokens = tokens
        self._n_partitions = n_partitions
        self._is_guarded = tokens is not None or (n_partitions is not None and n_partitions > 1)
        self._handlers: dict[type, Callable[[int, Any, int], None]] = {
            Impression: self._impression,
            Click: self._click,
            Request: self._request,
            Tick: self._tick,
        }
        self._columns = RowColumns(partition, fields)
        width_s = max(rules.wait_s / 256, 1e-3)
        self._requests: dict[str, KnownRequest] = {}
        self._known_bytes = 0
        self._arrived: deque[KnownRequest] = deque()  # by offset, those at the front not gone
        self._rows_due: DueQueue[Row] = DueQueue(width_s)
        self._chains_due: DueQueue[KnownRequest] = DueQueue(width_s)
        self._held: dict[tuple[str, int], Held] = {}
        self._held_due: DueQueue[Held] = DueQueue(width_s)
        self._taken: dict[str, tuple[KnownRequest, Held]] = {}  # the first click that came before its impression
        self._open: list[Left] = []
        self._open_chains: list[KnownRequest] = []
        self._open_letters: list[DeadLetter] = []
        self._open_bytes = self._open_candidates = 0
        self._is_full = False
        self._opened_s: float | None = None  # append time of what is first in the open block
        self._rows_ahead = self._chains_ahead = 0  # that have left since the last record was done with
        self._number = 0
        self._closed: list[Closed] = []
        self._earlier: list[tuple[int, Rules]] = []
        self._forced: list[tuple[int, float, float]] = []
        self._is_over_limit = self._is_forcing = False
        self._again: deque[tuple[int, float, float]] = deque()  # what was forced before, and is about to be again
        self._refused: Mapping[int, str] | None = None  # while resuming: rule by offset
        self._offset = -1  # of the record that is being taken
        self._append_s = math.nan  # its append time
        self._closed_s: float | None = None  # append time of the record that closed the last block; of the first

    def step(self, offset: int, append_s: float, event: Event | EventError, n_bytes: int = 0) -> list[Closed]:
        """Take the next record; return the blocks that it closed, most often none.

        Args:
            offset: Its offset in `events`, larger than the last one's.
            append_s: When the broker appended it, seconds; never falls.
            event: The event, or why the record is none.
            n_bytes: Its size; what is kept in memory follows from it.
        """
        self._offset = offset
        if append_s != self._append_s:  # those of one batch of a producer have one
            self._pass_time(append_s)
        if self._is_over_limit or self._again:
            self._relieve(offset)
        if self._refused is None:
            self._take(offset, event, n_bytes)
        else:
            self._take_again(offset, event, n_bytes, self._refused.get(offset))
        self._rows_ahead = self._chains_ahead = 0
        if self._is_full:
            self._close(offset, self.watermark_s, self.horizon_s)
        closed = self._closed
        if closed:
            self._closed = []
        return closed

    def rewind(self, header: Header, refused: Mapping[int, str]) -> None:
        """Go back to the record at `header.resume_at`; then `step` through `header.through`, then `seal`.

        What those steps return was written before and has to be thrown away.

        Args:
            header: Of the partition's last block.
            refused: The rule of each dead letter from `header.resume_at` on, by offset. They are not judged again.
        """
        self._refused = refused
        self._earlier = list(header.earlier)
        self.rules = self._rules_again = header.rules
        self.counts.dead_letters = header.resume_letters
        self._forced = list(header.forced)
        self._again = deque(header.forced)
        self._set_watermark(header.resume_watermark_s)
        self.horizon_s = header.resume_horizon_s

    def seal(self, header: Header) -> None:
        """Take over what the last block says; new rules apply to the records that come after it.

        Raises:
            ValueError: If what waits now is not what waited then: the log between is not the one that was read.
        """
        self._offset = header.through + 1  # what has left ahead did so on its account
        for _ in range(header.rows_ahead):
            self._settle(self._rows_due.pop())
        self.counts.chains = header.counts.chains - header.chains_ahead
        while self.counts.chains < header.counts.chains:
            self._forget_request()
        self._expire_held(header.horizon_s)
        counts = header.counts
        found = (len(self._rows_due), len(self._held), self.counts.dead_letters)
        if found != (counts.pending, counts.held, counts.dead_letters):
            raise ValueError(
                f"events[{self.partition}] must hold {counts.pending} pending impressions, {counts.held} held clicks"
                f" and {counts.dead_letters} dead letters from offset {header.resume_at} through {header.through}, got"
                f" {found}: it is not the log that was read before; start again under a new [kafka] prefix"
            )
        self._refused = None
        self.counts = msgspec.structs.replace(header.counts)
        if self._rules_next != header.rules:
            self._earlier.append((header.through, header.rules))
        self.rules = self._rules_next
        self._closed_s = header.append_s
        self._is_over_limit = True  # perhaps, by the new rules: the next step finds out
        self._number = header.number + 1
        self._open_nothing()
        self._rows_ahead, self._chains_ahead = header.rows_ahead, header.chains_ahead
        self._set_watermark(header.watermark_s)
        self.horizon_s = header.horizon_s

    @property
    def known(self) -> tuple[int, int]:
        """How many requests are known, and the bytes of their records."""
        return len(self._requests), self._known_bytes

    # One record -----------------------------------------------------------------------------------------------

    def _pass_time(self, append_s: float) -> None:
        """Close the open block if it has been open for long enough."""
        if self._closed_s is None:
            self._closed_s = append_s
        self._append_s = append_s
        is_old = self._opened_s is not None and append_s - self._opened_s >= self._block_s
        if is_old or append_s - self._closed_s >= IDLE_S:
            self._close(self._offset - 1, self.watermark_s, self.horizon_s)

    def _take(self, offset: int, event: Event | EventError, n_bytes: int) -> None:
        try:
            if isinstance(event, EventError):
                raise event
            if self._is_guarded and not isinstance(event, Tick):
                self._admit(event)
            self._advance_with(offset, event)
            self._handlers[event.__class__](offset, event, n_bytes)
        except EventError as error:
            self._refuse(offset, n_bytes, error)
        self.counts.records += 1
        if self._rows_due.first_s <= self.watermark_s:  # it came too late to wait
            self._drain(offset, self.watermark_s, self.horizon_s)

    def _take_again(self, offset: int, event: Event | EventError, n_bytes: int, rule: str | None) -> None:
        """Take a record that was judged before: what was refused stays refused, what was taken is taken."""
        self.rules = next((rules for last, rules in self._earlier if offset <= last), self._rules_again)
        if rule is not None:
            self.counts.dead_letters += 1
            if rule not in STATE_RULES:
                return
        if isinstance(event, EventError):
            raise ValueError(
                f"events[{self.partition}] offset {offset} was used before and must be readable to resume, got {event};"
                " resume with the version of freshrank that read it"
            )
        self._advance_with(offset, event)
        if rule is None:
            with suppress(EventError):  # of records whose request was forgotten before the last block
                self._handlers[event.__class__](offset, event, n_bytes)
            self._drain(offset, self.watermark_s, self.horizon_s)

    def _admit(self, event: Request | Impression | Click) -> None:
        """Refuse what must not even move the watermark."""
        if (
            self._n_partitions is not None
            and event.request_id not in self._requests
            and request_partition(event.request_id, self._n_partitions) != self.partition
        ):
            raise EventError("wrong_partition", "request_id", event.request_id)
        if self._tokens is not None and not isinstance(event, Request):
            self._tokens.check(event, self.watermark_s)

    def _request(self, offset: int, event: Request, n_bytes: int) -> None:
        until_s = event.time_s + self.rules.wait_s + self.rules.grace_s
        known = self._requests.get(event.request_id)
        if known is not None:
            self.counts.duplicates += 1
            known.prolong(until_s)
            return
        cells = self._columns.request_cells(event)
        if self._refused is None:
            self._columns.check_request(cells)
        self.counts.requests += 1
        if until_s <= self.horizon_s:
            return
        candidates = event.candidates
        if len(candidates) > self.rules.candidates_max:
            candidates = candidates[: self.rules.candidates_max]
            self.counts.candidates_cut += len(event.candidates) - len(candidates)
        clocks = (self.watermark_s, self.horizon_s)
        request = KnownRequest(
            event.request_id,
            [candidate.ad_id for candidate in candidates],
            *self._columns.put(cells, candidates),
            offset,
            n_bytes,
            ad_bytes(event) if n_bytes > SMALL_REQUEST_BYTES else (),
            until_s,
            until_s,
            *clocks,
            self.counts.dead_letters,
        )
        self._requests[event.request_id] = request
        self._known_bytes += n_bytes
        self._arrived.append(request)
        self._chains_due.put(until_s, offset, request)
        if len(self._requests) > self.rules.known_max or self._known_bytes > self.rules.known_bytes_max:
            self._is_over_limit = True

    def _impression(self, offset: int, event: Impression, _: int) -> None:
        rules, counts = self.rules, self.counts
        position, time_s = event.position, event.time_s
        settled_s = time_s + rules.wait_s
        settled_s = max(settled_s, self.watermark_s)
        request = self._requests.get(event.request_id)
        if request is not None and position in request.rows:
            counts.duplicates += 1
            request.prolong(settled_s + rules.grace_s)
            return
        if request is None or self.horizon_s >= request.until_s:
            raise EventError("no_request", "request_id", event.request_id)
        candidate = request.find(position, event.ad_id)
        if self._refused is None:
            self._columns.check_ad(request, candidate)
        row = Row(request.request_id, position, time_s, event.propensity, offset, candidate, rules.wait_s, settled_s)
        request.rows[position] = row
        request.n_pending += 1
        request.prolong(settled_s + rules.grace_s)
        self._rows_due.put(settled_s, offset, row)
        counts.impressions += 1
        counts.pending += 1
        if counts.pending > rules.pending_max:
            self._is_over_limit = True
        if self._held:
            self._take_held(request, row)

    def _take_held(self, request: KnownRequest, row: Row) -> None:
        """Let an impression meet the click that came before it, if one did."""
        request_id = row.request_id
        held = self._held.pop((request_id, row.position), None)
        if held is None:
            return
        self.counts.held -= 1
        request.prolong(held.until_s)
        if request_id not in self._taken or held.offset < self._taken[request_id][1].offset:
            self._taken[request_id] = (request, held)
        if held.ad_id != request.ad_ids[row.candidate]:
            self.counts.orphan += 1
        else:
            self._match(request, row, held.time_s)

    def _click(self, offset: int, event: Click, _: int) -> None:
        request = self._requests.get(event.request_id)
        row = request.rows.get(event.position) if request is not None else None
        if request is None or row is None:
            self.counts.clicks += 1
            self._hold(offset, event)
            return
        if row.is_pending and request.ad_ids[row.candidate] != event.ad_id:
            raise EventError("ad_mismatch", "ad_id", event.ad_id)
        self.counts.clicks += 1
        request.prolong(event.time_s + self.rules.wait_s)
        self._match(request, row, event.time_s)

    def _match(self, request: KnownRequest, row: Row, click_s: float) -> None:
        if row.click or row.is_late:
            self.counts.repeated += 1
        elif row.is_pending and click_s - row.time_s <= row.wait_s:
            row.click = 1
            self.counts.matched += 1
        else:
            self.counts.late += 1
            if self.rules.late_clicks == "correct":
                if row.is_pending:
                    row.is_late = True
                else:
                    self._correct(request, row, self.watermark_s)

    def _hold(self, offset: int, event: Click) -> None:
        """Keep a click whose impression has not come.

        Several are kept as one, from the earliest until the last has waited: whatever the order, and so that a
        resume, which may begin between them, agrees.
        """
        key = (event.request_id, event.position)
        until_s = event.time_s + self.rules.wait_s
        held = self._held.get(key)
        if held is not None:
            self.counts.repeated += 1
            held.time_s = min(held.time_s, event.time_s)
            held.until_s = max(held.until_s, until_s)
        elif until_s <= self.horizon_s:
            self.counts.orphan += 1
        else:
            self.counts.held += 1
            held = Held(key, event.time_s, until_s, event.ad_id, offset, self.watermark_s, self.horizon_s)
            held.letters = self.counts.dead_letters
            self._held[key] = held
            self._held_due.put(until_s, offset, held)
            if len(self._held) > self.rules.pending_max:
                self._is_over_limit = True

    def _tick(self, _offset: int, _event: Tick, _n_bytes: int) -> None:
        self.counts.ticks += 1

    def _refuse(self, offset: int, n_bytes: int, error: EventError) -> None:
        self.counts.dead_letters += 1
        self._open_letters.append(DeadLetter(offset, error.rule, error.field, error.value))
        self._add_open(n_bytes)

    # The clocks, and what falls due ---------------------------------------------------------------------------

    def _advance_with(self, offset: int, event: Event) -> None:
        """Move the clocks to an event's time; the event itself comes after."""
        to_s = event.time_s - self.rules.disorder_s
        if to_s > self.watermark_s:
            self._advance(offset, to_s, max(to_s, self.horizon_s))
        elif self._rows_due.first_s <= self.watermark_s or self._chains_due.first_s <= self.horizon_s:
            self._drain(offset, self.watermark_s, self.horizon_s)  # what a resume in the middle of a step has left

    def _advance(self, offset: int, to_s: float, horizon_s: float) -> None:
        """Move the clocks; a block is cut at the last slide boundary on the way."""
        if to_s >= self._boundary_s:
            boundary_s = self._slides.last_boundary(self.watermark_s, to_s)
            assert boundary_s is not None
            before_s = math.nextafter(boundary_s, -math.inf)  # what settles at a boundary is in the slide after it
            self._drain(offset, before_s, max(before_s, self.horizon_s))
            self._close(offset - 1, boundary_s, max(boundary_s, self.horizon_s))
        if self._rows_due.first_s <= to_s or self._chains_due.first_s <= horizon_s:
            self._drain(offset, to_s, horizon_s)
        self.watermark_s, self.horizon_s = to_s, horizon_s
        if self._held_due.first_s <= horizon_s:
            self._expire_held(horizon_s)
        if self._is_full:
            self._close(offset - 1, to_s, horizon_s)

    def _set_watermark(self, watermark_s: float) -> None:
        self.watermark_s = watermark_s
        self._boundary_s = self._slides.end_s(self._slides.index(watermark_s))

    def _drain(self, offset: int, to_s: float, horizon_s: float) -> None:
        """Let rows due by to_s and requests due by horizon_s leave, in the order of time."""
        rows, chains = self._rows_due, self._chains_due
        while True:
            row_s, due_s = rows.first_s, chains.first_s
            is_row = row_s <= to_s and row_s <= due_s
            if is_row:
                due_s = row_s
            elif due_s > horizon_s:
                break
            if self._is_full:
                self._close(offset - 1, max(self.watermark_s, min(due_s, to_s)), max(self.horizon_s, due_s))
            if is_row:
                if due_s >= self._boundary_s:
                    self._cut_slide(offset, due_s)
                self._settle(rows.pop())
                self._rows_ahead += 1
            else:
                self._forget_request()

    def _cut_slide(self, offset: int, due_s: float) -> None:
        """Close the block before a row of a later slide."""
        boundary_s = self._slides.last_boundary(self.watermark_s, due_s)
        assert boundary_s is not None
        if self._open:
            self._close(offset - 1, boundary_s, max(self.horizon_s, boundary_s))
        else:
            self._set_watermark(boundary_s)

    def _settle(self, row: Row) -> None:
        request, counts = self._requests[row.request_id], self.counts
        row.is_pending = False
        request.n_pending -= 1
        counts.pending -= 1
        if row.click:
            counts.clicked += 1
            kind = "clicked"
        else:
            counts.expired_negative += 1
            kind = "expired_negative"
        self._open.append((row, kind, row.settled_s, request))
        self._add_open(request.ad_bytes[row.candidate] if request.ad_bytes else request.n_bytes)
        if self._is_forcing:
            self.counts.expired_early += 1
        if row.is_late:
            self._correct(request, row, row.settled_s)

    def _correct(self, request: KnownRequest, row: Row, settled_s: float) -> None:
        row.click, row.is_late = 1, False
        self.counts.corrected += 1
        self._open.append((row, "late_corrected", settled_s, request))
        self._add_open(request.ad_bytes[row.candidate] if request.ad_bytes else request.n_bytes)

    def _forget_request(self) -> None:
        """Take the request that is due first; let its chain leave, unless it is due later by now."""
        due_s = self._chains_due.first_s
        request = self._chains_due.pop()
        if request.due_s > due_s:
            self._chains_due.put(request.due_s, request.offset, request)
            return
        assert not request.n_pending
        del self._requests[request.request_id]
        request.gone_at = self._offset
        self._known_bytes -= request.n_bytes
        self.counts.chains += 1
        self._chains_ahead += 1
        self._open_chains.append(request)
        self._open_candidates += len(request.ad_ids)
        self._add_open(request.n_bytes)
        if self._is_forcing:
            self.counts.forgotten_early += 1

    def _expire_held(self, horizon_s: float) -> None:
        while self._held_due.first_s <= horizon_s:
            held = self._held_due.pop()
            if self._held.get(held.key) is not held:
                continue  # its impression came
            if held.until_s > horizon_s:
                self._held_due.put(held.until_s, held.offset, held)
            else:
                del self._held[held.key]
                self.counts.held -= 1
                self.counts.orphan += 1

    # Limits ---------------------------------------------------------------------------------------------------

    def _relieve(self, offset: int) -> None:
        """Move the clocks on because a limit is exceeded, or where that was done before."""
        if self._again and self._again[0][0] == offset:
            _, to_s, horizon_s = self._again.popleft()
            self._force(offset, to_s, horizon_s)
            return
        rules = self.rules
        self._is_over_limit = (
            self.counts.pending > rules.pending_max
            or len(self._held) > rules.pending_max
            or len(self._requests) > rules.known_max
            or self._known_bytes > rules.known_bytes_max
        )
        if not self._is_over_limit or self._refused is not None:
            return
        to_s, horizon_s = self._relief()
        self._forced.append((offset, to_s, horizon_s))
        self._force(offset, to_s, horizon_s)

    def _force(self, offset: int, to_s: float, horizon_s: float) -> None:
        self._is_forcing = True
        if to_s > self.watermark_s or horizon_s > self.horizon_s:
            self._advance(offset, max(to_s, self.watermark_s), max(horizon_s, self.horizon_s))
        else:
            self._drain(offset, to_s, horizon_s)
        self._is_forcing = False

    def _relief(self) -> tuple[float, float]:
        """Return the watermark and the horizon that bring everything below its limit again."""
        rules, to_s, horizon_s = self.rules, self.watermark_s, self.horizon_s
        n_rows = len(self._rows_due) - int(rules.pending_max * (1 - RELIEF))
        if len(self._rows_due) > rules.pending_max:
            to_s = next(islice((due_s for due_s, _ in self._rows_due.in_order()), n_rows - 1, None))
        if len(self._held) > rules.pending_max:
            n_held = len(self._held_due) - int(rules.pending_max * (1 - RELIEF))
            horizon_s = next(islice((due_s for due_s, _ in self._held_due.in_order()), n_held - 1, None))
        if len(self._requests) > rules.known_max or self._known_bytes > rules.known_bytes_max:
            n_known = len(self._requests) - int(rules.known_max * (1 - RELIEF))
            n_bytes = self._known_bytes - int(rules.known_bytes_max * (1 - RELIEF))
            for due_s, request in self._chains_due.in_order():
                if n_known <= 0 and n_bytes <= 0:
                    break
                n_known, n_bytes, horizon_s = n_known - 1, n_bytes - request.n_bytes, max(horizon_s, due_s)
        # No request is forgotten while one of its rows is pending: those are due at least `grace_s` before it.
        grace_s = min([rules.grace_s, *(earlier.grace_s for _, earlier in self._earlier)])
        to_s = max(to_s, horizon_s - grace_s)
        return to_s, max(to_s, horizon_s)

    # Blocks ---------------------------------------------------------------------------------------------------

    def _add_open(self, n_bytes: int) -> None:
        """Note that something was added to the open block."""
        if self._opened_s is None:
            self._opened_s = self._append_s
        self._open_bytes += n_bytes
        if (
            len(self._open) >= self._block_rows
            or self._open_bytes >= BLOCK_BYTES
            or len(self._open_letters) >= self._block_rows
            or self._open_candidates >= self._block_rows * CANDIDATES_PER_ROW
        ):
            self._is_full = True

    def _close(self, through: int, watermark_s: float, horizon_s: float) -> None:
        self._set_watermark(watermark_s)
        self.horizon_s = horizon_s
        self._expire_held(horizon_s)
        if self._refused is not None:
            self._open_nothing()
            return
        resume_at, resume_watermark_s, resume_horizon_s, resume_letters = self._oldest(through)
        self._earlier = [one for one in self._earlier if one[0] >= resume_at]
        self._forced = [one for one in self._forced if one[0] >= resume_at]
        header = Header(
            partition=self.partition,
            number=self._number,
            through=through,
            append_s=self._append_s,
            watermark_s=watermark_s,
            horizon_s=horizon_s,
            resume_at=resume_at,
            resume_watermark_s=resume_watermark_s,
            resume_horizon_s=resume_horizon_s,
            resume_letters=resume_letters,
            rules=self.rules,
            counts=msgspec.structs.replace(self.counts),
            rows_ahead=self._rows_ahead,
            chains_ahead=self._chains_ahead,
            earlier=self._earlier.copy(),
            forced=self._forced.copy(),
        )
        self._closed.append(Closed(header, self._open_letters, self._open, self._open_chains, self._columns))
        self._number += 1
        self._closed_s = self._append_s
        self._open_nothing()

    def _open_nothing(self) -> None:
        self._open, self._open_chains, self._open_letters = [], [], []
        self._open_bytes = self._open_candidates = 0
        self._is_full = False
        self._opened_s = None

    def _oldest(self, through: int) -> tuple[int, float, float, int]:
        """Return the offset of the oldest record still needed, and what a resume has to know before it takes it."""
        while self._arrived and self._arrived[0].gone_at <= through:
            self._arrived.popleft()
        self._taken = {name: taken for name, taken in self._taken.items() if taken[0].gone_at > through}
        needed: list[KnownRequest | Held] = [*self._held.values(), *(held for _, held in self._taken.values())]
        if self._arrived:
            needed.append(self._arrived[0])
        if not needed:
            return through + 1, self.watermark_s, self.horizon_s, self.counts.dead_letters
        oldest = min(needed, key=lambda one: one.offset)
        return oldest.offset, oldest.watermark_s, oldest.horizon_s, oldest.letters
