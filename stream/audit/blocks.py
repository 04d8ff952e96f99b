"""Blocks as the audit reads them, and their comparison with what must stand there.

Owns the opening of blocks (sharing no code with stream/blocks.py) and the search for the first difference. Must not
know Kafka or how labels come about: stream/audit/labels.py works out what must stand where.

Invariants: each row, chain, dead letter and count of every block is compared once, in order; the first difference ends
the comparison.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise, zip_longest
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from stream.audit.story import ARM_COLUMNS, SERVED_COLUMNS, Chain, Expected, Row, Rules

VERSION = 1
HEADER_KEY = b"freshrank"
LIMITS = ("expired_early", "forgotten_early")
NOTHING = "nothing"


class Head(msgspec.Struct, frozen=True):
    """A block's header; what its parts mean stands in docs/ledger.md and docs/events.md."""

    partition: int
    number: int
    through: int
    watermark_s: float
    horizon_s: float
    resume_at: int
    resume_watermark_s: float
    resume_horizon_s: float
    resume_letters: int
    rules: Rules
    counts: dict[str, int]
    rows_ahead: int
    chains_ahead: int
    earlier: list[tuple[int, Rules]]
    forced: list[tuple[int, float, float]]
    v: int


class Block(NamedTuple):
    """A block: its header, the same as bytes, and its rows by column."""

    head: Head
    raw_head: bytes
    rows: list[dict[str, Any]]


class Letter(NamedTuple):
    """A dead letter, as far as it can be worked out: of which event, and which rule that broke."""

    offset: int
    rule: str


class Difference(ValueError):
    """What stands in a topic is not what must stand there."""

    def __init__(
        self, what: str, *, partition: int, block: int | None, expected: object, found: object, **where: Any
    ) -> None:
        """Say what differs: `where` names request_id, position, candidate or offset as far as they apply."""
        self.report = {"what": what, "partition": partition, "block": block} | where
        self.report |= {"expected": expected, "found": found}
        place = "".join(f", {name} {value}" for name, value in where.items())
        at = f"partition {partition}" + ("" if block is None else f", block {block}") + place
        super().__init__(f"{at}: {what} must be {expected}, got {found}")


class Unprovable(ValueError):
    """What stands in a topic cannot be worked out again; says from where on and why."""


def open_head(data: bytes | None) -> tuple[Head, bytes]:
    """Return the header of a block, and its bytes.

    Raises:
        ValueError: If there is none, or one of a version that the audit does not know.
    """
    raw = (_schema(data).metadata or {}).get(HEADER_KEY)
    if raw is None:
        raise ValueError(f"its metadata must hold the key {HEADER_KEY.decode()}, got none")
    version = msgspec.json.decode(raw)["v"]
    if version != VERSION:
        raise ValueError(f"its version must be {VERSION}, got {version}")
    return msgspec.json.decode(raw, type=Head), raw


def open_block(data: bytes | None) -> Block:
    """Return a block with its rows; of `chains` a row is a request, with the list `candidates`.

    Raises:
        ValueError: If the bytes hold none.
    """
    head, raw = open_head(data)
    table = pa.ipc.open_stream(data).read_all()
    return Block(head, raw, table.to_pylist())


def _schema(data: bytes | None) -> pa.Schema:
    try:
        return pa.ipc.open_stream(data or b"").schema
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"a block must be an Arrow IPC stream, got: {error}") from None


def check_heads(partition: int, examples: Sequence[tuple[Head, bytes]], chains: Sequence[tuple[Head, bytes]]) -> None:
    """Check that the blocks of both topics, from the same number on, are the same ones, one after the other.

    Raises:
        Difference: If a number is missing, comes twice or has no twin.
    """
    for topic, heads in (("examples", examples), ("chains", chains)):
        for (before, _), (head, _) in pairwise(heads):
            number = before.number + 1
            _same(partition, number, f"the number of the next block of {topic}", number, head.number)
            through = max(before.through, head.through)
            _same(partition, number, f"through in {topic} (at least that of the block before)", through, head.through)
    for (head, raw), (twin, twin_raw) in zip(examples, chains, strict=False):
        _same(partition, head.number, "the partition that the header names", partition, head.partition)
        _same(partition, head.number, "the number of its twin in chains", head.number, twin.number)
        _same(partition, head.number, "the header of its twin in chains", raw.decode(), twin_raw.decode())
    if len(examples) != len(chains):
        last = [heads[-1][0].number if heads else NOTHING for heads in (examples, chains)]
        _same(partition, None, "the number of the last block of chains, as in examples,", *last)


class Comparison:
    """Goes through the blocks of a partition, in order, beside what must stand there."""

    def __init__(self, partition: int, expected: Expected, start: Head | None) -> None:
        """Begin before the first block, or behind the one that `start` is the header of."""
        self._partition = partition
        self._expected = expected
        self._start = self._last = start
        self._row_at = self._passed(expected.rows, start, start.rows_ahead) if start else 0
        self._chain_at = self._passed(expected.chains, start, start.chains_ahead) if start else 0
        self._counts = Counter(start.counts if start else {})
        self._oldest = list(accumulate((chain.offset for chain in reversed(expected.chains)), min))[::-1]
        self._letter_offsets = sorted(expected.letters)
        through, horizon_s = (start.through, start.horizon_s) if start else (-1, -math.inf)
        self._changes = deque(one for one in expected.changes if one[0] > through)
        self._timeouts = deque(one for one in expected.timeouts if one[0] > horizon_s)
        self.n_blocks = self.n_rows = self.n_chains = self.n_candidates = self.n_letters = 0

    def take(self, examples: Block, chains: Block) -> None:
        """Compare the next block of both topics.

        Raises:
            Difference: If it is not what must stand there.
            Unprovable: If a limit had been reached.
        """
        head = examples.head
        if any(head.counts.get(name) for name in LIMITS):
            reached = ", ".join(f"{name} = {head.counts.get(name)}" for name in LIMITS)
            raise Unprovable(
                f"partition {self._partition}, block {head.number}: this block and those behind it cannot be worked out"
                f" again, because limits were reached ({reached}); what stands before is as it must be"
            )
        self._take_rows(head, examples.rows)
        self._take_chains(head, chains.rows)
        self._check_clocks(head)
        self._check_counts(head)
        self._check_resume(head)
        self._last = head
        self.n_blocks += 1

    def check_letters(self, letters: Sequence[Letter], from_offset: int = 0) -> None:
        """Compare all dead letters with those of the records, from an offset on, that the blocks account for.

        Raises:
            Difference: If one is missing, wrong, too many or out of order.
        """
        first = max(self._start.through if self._start else -1, from_offset - 1)
        through = self._last.through if self._last else -1
        expected = self._expected.letters
        must = [Letter(offset, expected[offset]) for offset in sorted(expected) if first < offset <= through]
        found = [letter for letter in letters if letter.offset > first]
        for one, there in zip_longest(must, found):
            if one != there:
                offset = min(letter.offset for letter in (one, there) if letter is not None)
                self._differ(None, "the next dead letter", one or NOTHING, there or NOTHING, offset=offset)
        self.n_letters = len(found)

    def _take_rows(self, head: Head, found: Sequence[Mapping[str, Any]]) -> None:
        end = self._passed(self._expected.rows, head, head.rows_ahead)
        must = _with_optional([row.values for row in self._expected.rows[self._row_at : end]])
        for row, there in zip_longest(must, found):
            self._compare(head, "examples", row, there)
        self._row_at = end
        self.n_rows += len(found)
        self._counts.update(_KINDS[row["kind"]] for row in must)

    def _take_chains(self, head: Head, found: Sequence[Mapping[str, Any]]) -> None:
        end = self._passed(self._expected.chains, head, head.chains_ahead)
        must = self._expected.chains[self._chain_at : end]
        for chain, there in zip_longest(must, found):
            if chain is None or there is None:
                self._compare(head, "chains", None if chain is None else chain.values, there)
                continue
            self._compare(head, "chains", chain.values, {name: there[name] for name in there if name != "candidates"})
            for candidate, own in zip_longest(chain.candidates, there["candidates"]):
                self._compare(head, "chains", candidate, own, request_id=chain.values["request_id"])
            self.n_candidates += len(chain.candidates)
        self._chain_at = end
        self.n_chains += len(found)
        self._counts["chains"] += len(must)

    def _compare(
        self, head: Head, topic: str, must: Mapping[str, Any] | None, found: Mapping[str, Any] | None, **where: Any
    ) -> None:
        """Compare two rows: whether they are the same one at all, then column by column."""
        if must == found:
            return
        row = must or found or {}
        where |= {name: row[name] for name in ("request_id", "position", "candidate") if name in row}
        if must is None or found is None or _name(must) != _name(found):
            self._differ(head.number, f"the next row of {topic}", _name(must), _name(found), **where)
            return
        for name in [*must, *found]:
            one, other = must.get(name, NOTHING), found.get(name, NOTHING)
            if one != other:
                self._differ(head.number, f"{name} in {topic}", one, other, **where)

    def _check_clocks(self, head: Head) -> None:
        """Check that the watermark lies between its records and the rows, and that no limit moved the horizon."""
        offsets, watermarks = self._expected.offsets, self._expected.watermarks
        at = bisect_right(offsets, head.through)
        low = watermarks[at - 1] if at else 0.0
        high = watermarks[at] if at < len(offsets) else math.inf
        if self._row_at:
            low = max(low, self._expected.rows[self._row_at - 1].settled_s)
        if self._row_at < len(self._expected.rows):
            high = min(high, max(self._expected.rows[self._row_at].settled_s, low))
        if not low <= head.watermark_s <= high:
            self._differ(head.number, "watermark_s in the header", f"in [{low}, {high}]", head.watermark_s)
        _same(self._partition, head.number, "horizon_s in the header", head.watermark_s, head.horizon_s)

    def _check_counts(self, head: Head) -> None:
        while self._changes and self._changes[0][0] <= head.through:
            _, name, by = self._changes.popleft()
            self._counts[name] += by
        while self._timeouts and self._timeouts[0][0] <= head.horizon_s:
            _, name, by = self._timeouts.popleft()
            self._counts[name] += by
        must = self._counts
        must["pending"] = must["impressions"] - must["clicked"] - must["expired_negative"]
        for name in [*must, *head.counts]:
            _same(self._partition, head.number, f"{name} in the header", must[name], head.counts.get(name, 0))
        for total, parts in LAWS.items():
            rest = head.counts[total] - sum(head.counts[part] for part in parts)
            law = f"the rest of the law {total} = {' + '.join(parts)}"
            _same(self._partition, head.number, law, 0, rest)

    def _check_resume(self, head: Head) -> None:
        """Check that a resume would begin before all that is still known, and that it would find its dead letters."""
        needed = min([head.through + 1, *self._oldest[self._chain_at : self._chain_at + 1]])
        if head.resume_at > needed:
            self._differ(head.number, "resume_at in the header", f"<= {needed}", head.resume_at)
        if self._start is None:
            n_letters = bisect_left(self._letter_offsets, head.resume_at)
            _same(self._partition, head.number, "resume_letters in the header", n_letters, head.resume_letters)

    def _passed(self, expected: Sequence[Row] | Sequence[Chain], head: Head, n_ahead: int) -> int:
        """Return how many of the rows or chains have left by a block: those up to `through`, and some of the next."""
        end = bisect_right(expected, head.through, key=attrgetter("left_at"))
        while end < len(expected) and (n_ahead > 0 or _is_behind(expected[end], expected[end - 1 : end])):
            n_ahead -= not _is_behind(expected[end], expected[end - 1 : end])
            end += 1
        return end

    def _differ(self, block: int | None, what: str, expected: object, found: object, **where: Any) -> None:
        raise Difference(what, partition=self._partition, block=block, expected=expected, found=found, **where)


LAWS = {
    "impressions": ("clicked", "expired_negative", "pending"),
    "clicks": ("matched", "repeated", "late", "orphan", "held"),
    "records": ("requests", "impressions", "clicks", "ticks", "duplicates", "dead_letters"),
}
_KINDS = {"clicked": "clicked", "expired_negative": "expired_negative", "late_corrected": "corrected"}


def _with_optional(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a block: if one of them has an arm, or says what it was served with, all have the columns."""
    nothing: dict[str, Any] = {}
    if any("pctr" in row for row in rows):
        nothing |= dict.fromkeys(SERVED_COLUMNS) | {"snapshot": ""}
    if any("arm" in row for row in rows):
        nothing |= dict.fromkeys(ARM_COLUMNS, "")
    return [nothing | row for row in rows] if nothing else rows


def _is_behind(one: Row | Chain, before: Sequence[Row | Chain]) -> bool:
    """Return whether a row corrects the one before it and leaves with it: a header counts both as one.

    Its click had come before they left: one that makes them leave is dealt with behind them, perhaps in the next block.
    """
    if isinstance(one, Row) and one.since == one.left_at:
        return False
    return any((one.offset, one.left_at) == (other.offset, other.left_at) for other in before)


def _name(row: Mapping[str, Any] | None) -> object:
    """Return what names a row among the rows of its topic."""
    if row is None:
        return NOTHING
    return {name: row[name] for name in ("request_id", "position", "kind", "source_offset", "ad_id") if name in row}


def _same(partition: int, block: int | None, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise Difference(what, partition=partition, block=block, expected=expected, found=found)
