"""`freshrank audit`: proves from outside that the ledger's topics hold what `events` gives, each once and nothing else.

Owns from where on a deployment's topics can be proven, and the report. Must not decide what must stand there:
stream/audit/labels.py works it out, stream/audit/blocks.py compares.

Invariants: only committed records count; what retention took, or limits blurred, is said and never taken for equal.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import msgspec

from infra.settings import Settings, token_keys
from stream.audit.blocks import Comparison, Difference, Head, Unprovable, check_heads
from stream.audit.events import Logged, Place
from stream.audit.labels import Reading
from stream.audit.story import Expected, Rules
from stream.audit.topics import AuditTopics, Heads, Letters
from stream.kafka import OffsetGone, Record
from stream.roles import Cluster

PROGRESS_RECORDS = 5000

Progress = Callable[[str], None]


class Proof(msgspec.Struct):
    """What could be proven about one partition; the keys are those of the JSON report (docs/cli.md)."""

    partition: int
    equal: bool = False
    first_block: int | None = None
    last_block: int | None = None
    from_offset: int = 0
    through: int = -1
    events: int = 0
    blocks: int = 0
    rows: int = 0
    chains: int = 0
    candidates: int = 0
    dead_letters: int = 0
    unproven: str | None = None
    difference: dict[str, Any] | None = None
    text: str = ""


async def audit(settings: Settings, cluster: Cluster, on_progress: Progress = lambda _: None) -> list[Proof]:
    """Return what could be proven, partition by partition."""
    return [
        await _Partition(settings, cluster, partition, on_progress).prove() for partition in range(cluster.partitions)
    ]


class _Partition:
    """The audit of one partition."""

    def __init__(self, settings: Settings, cluster: Cluster, partition: int, on_progress: Progress) -> None:
        self._topics = AuditTopics(cluster, partition)
        self._partition = partition
        self._n_partitions = cluster.partitions
        self._on_progress = on_progress
        kafka = settings.kafka
        self._place = Place(
            partition,
            cluster.partitions,
            settings.fields,
            ahead_s=kafka.max_ahead_s if kafka.clock == "live" else math.inf,
            token_keys=token_keys(settings),
            token_ttl_s=settings.ledger.token_ttl_s,
        )
        self._proof = Proof(partition)
        self._broken: Difference | None = None  # a dead letter whose raw record is not the event's

    async def prove(self) -> Proof:
        """Return what could be proven."""
        proof = self._proof
        try:
            await self._prove()
            proof.equal = True
            proof.text = (
                f"partition {self._partition}: {proof.blocks:,} blocks with {proof.rows:,} rows,"
                f" {proof.chains:,} chains of {proof.candidates:,} candidates and {proof.dead_letters:,} dead letters"
                f" are what {proof.events:,} events give, through offset {proof.through}"
            )
            if proof.unproven:
                proof.text += f"; {proof.unproven}"
        except Difference as error:
            proof.difference, proof.text = error.report, str(error)
        except (Unprovable, OffsetGone) as error:
            proof.unproven = proof.text = str(error)
        return proof

    async def _prove(self) -> None:
        proof = self._proof
        examples, chains = await self._topics.read_heads()
        first_event = await self._topics.first_offset("events")
        start = self._start(examples, chains, first_event)
        from_number = start.number if start else 0
        own = [[one for one in topic.heads if one[0].number >= from_number] for topic in (examples, chains)]
        heads = [head for head, _ in own[0]]
        check_heads(self._partition, *own)
        if start is None and heads:
            _check_begins(self._partition, heads[0])
        if not heads:
            self._leave_open("there is no block yet")
            return
        proof.from_offset = start.resume_at if start else first_event
        proof.last_block, proof.through = heads[-1].number, heads[-1].through
        found = await self._topics.read_letters(heads[-1], start)
        if found.from_offset:
            self._leave_open(f"dead letters of events before offset {found.from_offset} are gone by retention")
        expected = await self._work_out(heads, start, found)
        comparison = Comparison(self._partition, expected, start)
        try:
            await self._compare(comparison, start)
            comparison.check_letters([letter for letter, _ in found.letters], found.from_offset)
            if self._broken is not None:
                raise self._broken
        finally:
            proof.blocks, proof.rows, proof.chains = comparison.n_blocks, comparison.n_rows, comparison.n_chains
            proof.candidates, proof.dead_letters = comparison.n_candidates, comparison.n_letters

    def _tell(self, text: str) -> None:
        self._on_progress(f"partition {self._partition} of {self._n_partitions}: {text}")

    def _leave_open(self, what: str) -> None:
        """Remember what is not proven."""
        self._proof.unproven = "; ".join(one for one in (self._proof.unproven, what) if one)

    # From where on -------------------------------------------------------------------------------------------

    def _start(self, examples: Heads, chains: Heads, first_event: int) -> Head | None:
        """Return the header behind which everything can be proven; None: from the beginning."""
        if not (examples.is_cut or chains.is_cut or first_event > 0):
            return None
        first_twin = chains.heads[0][0].number if chains.heads else 0
        for head, _ in examples.heads:
            if head.number >= first_twin and head.resume_at >= first_event:
                self._proof.first_block = head.number + 1
                self._leave_open(
                    f"proven behind block {head.number} (offset {head.through}): what lies before rests on records that"
                    f" retention took (first kept: offset {first_event} of events, block {examples.heads[0][0].number}"
                    f" of examples, block {first_twin} of chains)"
                )
                return head
        if not examples.heads:
            return None
        last = examples.heads[-1][0]
        raise Unprovable(
            f"partition {self._partition}: nothing can be proven, because retention took what even the last block,"
            f" {last.number}, rests on: events from offset {last.resume_at} on; the first kept is {first_event}"
        )

    async def _work_out(self, heads: Sequence[Head], start: Head | None, letters: Letters) -> Expected:
        """Read the events, up to the one behind the last block, and work out what they give."""
        reading = Reading(
            self._place,
            _rules_by_offset(heads, start),
            start_s=start.resume_watermark_s if start else 0.0,
            floors=_floors(heads),
            refused=await self._topics.letters_up_to(start) if start else None,
        )
        raw = {letter.offset: content for letter, content in letters.letters}
        async with self._topics.events(start.resume_at if start else None) as records:
            async for record in records:
                if record.offset in raw:
                    self._check_raw(record, raw.pop(record.offset))
                reading.take(Logged(record.offset, record.timestamp_ms / 1000.0, record.value))
                if record.offset > heads[-1].through:
                    break
                self._proof.events += 1
                if self._proof.events % PROGRESS_RECORDS == 0:
                    self._tell(f"{self._proof.events:,} events read")
        self._tell(f"{self._proof.events:,} events read, labels are worked out")
        return await asyncio.to_thread(reading.finish)

    def _check_raw(self, record: Record, letter: dict[str, Any]) -> None:
        """Check that a dead letter holds the raw record; what it says is wrong with it is compared later."""
        for name, raw in (("key", record.key), ("record", record.value)):
            held = msgspec.convert(letter.get(name), bytes | None)
            if (held or b"") != (raw or b"") and self._broken is None:
                self._broken = Difference(
                    f"{name} in the dead letter",
                    partition=self._partition,
                    block=None,
                    expected=raw,
                    found=held,
                    offset=record.offset,
                )

    async def _compare(self, comparison: Comparison, start: Head | None) -> None:
        """Compare block by block, both topics side by side."""
        after = start.number if start else -1
        last = self._proof.last_block
        own, twin = self._topics.blocks("examples", after), self._topics.blocks("chains", after)
        async with aclosing(own) as examples, aclosing(twin) as twins:
            async for block in examples:
                comparison.take(block, await anext(twins))
                if comparison.n_blocks % 100 == 0:
                    self._tell(f"block {block.head.number:,} of {last:,} is compared")
                if block.head.number == last:
                    return


def _check_begins(partition: int, first: Head) -> None:
    if first.number != 0:
        raise Difference(
            "the number of the first block", partition=partition, block=first.number, expected=0, found=first.number
        )


def _rules_by_offset(heads: Sequence[Head], start: Head | None) -> Callable[[int], Rules]:
    """Return the rules of each record: those of the block that accounts for it."""
    spans = [*(start.earlier if start else []), *((head.through, head.rules) for head in heads)]
    ends = [through for through, _ in spans]
    return lambda offset: spans[min(bisect_left(ends, offset), len(spans) - 1)][1]


def _floors(heads: Sequence[Head]) -> list[tuple[int, float]]:
    """Return what the watermark does not fall below where rules changed: other rules would move it elsewhere."""
    return [(head.through + 1, head.watermark_s) for head, behind in pairwise(heads) if head.rules != behind.rules]
