"""What the audit reads: committed records of one partition, opened by code of the audit's own.

Owns when a topic has been read far enough. Must not compare anything.

Invariants: both topics of blocks are read up to the same transaction, although its markers come one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.audit.blocks import Block, Difference, Head, Letter, open_block, open_head
from stream.kafka import Record, read_last, read_range
from stream.roles import Cluster

MARKERS_S_MAX = 10.0  # how long the markers of a transaction that has just been committed may be on their way
PAUSE_S = 0.25


@dataclass(frozen=True)
class Heads:
    """The headers of one topic from its first kept block on, with their bytes, and whether retention took some."""

    heads: list[tuple[Head, bytes]]
    is_cut: bool


@dataclass(frozen=True)
class Letters:
    """Dead letters with their JSON; those of events before an offset are gone by retention."""

    letters: list[tuple[Letter, dict[str, Any]]]
    from_offset: int = 0


class AuditTopics:
    """The topics of one partition."""

    def __init__(self, cluster: Cluster, partition: int) -> None:
        """Prepare; nothing connects yet."""
        self._cluster = cluster
        self._partition = partition

    def events(self, start: int | None) -> aclosing[AsyncGenerator[Record, None]]:
        """Return the events from an offset on; None: from the first kept."""
        return self._records("events", start, None)

    async def first_offset(self, topic: str) -> int:
        """Return the first offset that retention kept."""
        consumer = AIOKafkaConsumer(**self._cluster.options)
        await consumer.start()
        try:
            tp = TopicPartition(self._cluster.topic(topic), self._partition)
            first: int = (await consumer.beginning_offsets([tp]))[tp]
            return first
        finally:
            await consumer.stop()

    async def read_heads(self) -> tuple[Heads, Heads]:
        """Return the headers of both topics, up to the same transaction."""
        ends = await self._last_offsets()
        deadline_s = asyncio.get_running_loop().time() + MARKERS_S_MAX
        while (await self._number_at("examples", ends[0])) != (await self._number_at("chains", ends[1])):
            if asyncio.get_running_loop().time() > deadline_s:
                break  # the difference will be said
            await asyncio.sleep(PAUSE_S)
            ends = await self._last_offsets()
        found = []
        for topic, last in zip(("examples", "chains"), ends, strict=True):
            heads: list[tuple[Head, bytes]] = []
            if last is not None:
                async with self._records(topic, None, last + 1) as records:
                    heads = [self._opened(topic, record, open_head) async for record in records]
            is_cut = bool(heads) and heads[0][0].number > 0 and await self.first_offset(topic) > 0
            found.append(Heads(heads, is_cut))
        return found[0], found[1]

    async def read_letters(self, last: Head, start: Head | None) -> Letters:
        """Return the dead letters of events that the blocks account for, with their JSON.

        If some are missing that the last header counts, the markers of their transaction may be on their way.
        """
        n_wanted = last.counts.get("dead_letters", 0) - (start.counts.get("dead_letters", 0) if start else 0)
        after = start.through if start else -1
        deadline_s = asyncio.get_running_loop().time() + MARKERS_S_MAX
        while True:
            letters = await self._letters_between(after, last.through)
            if len(letters) < n_wanted and await self.first_offset("dead-letters") > 0:
                return Letters(letters, letters[0][0].offset if letters else last.through + 1)
            if len(letters) >= n_wanted or asyncio.get_running_loop().time() > deadline_s:
                return Letters(letters)
            await asyncio.sleep(PAUSE_S)

    async def letters_up_to(self, start: Head) -> dict[int, str]:
        """Return the rules of the dead letters, by offset, of the records that a block still rests on."""
        return {
            letter.offset: letter.rule for letter, _ in await self._letters_between(start.resume_at - 1, start.through)
        }

    async def blocks(self, topic: str, after: int) -> AsyncGenerator[Block, None]:
        """Yield the blocks of a topic behind a number."""
        async with self._records(topic, None, None) as records:
            async for record in records:
                block = self._opened(topic, record, open_block)
                if block.head.number > after:
                    yield block

    def _records(self, topic: str, start: int | None, end: int | None) -> aclosing[AsyncGenerator[Record, None]]:
        records = read_range(self._cluster.topic(topic), self._partition, start, end, options=self._cluster.options)
        return aclosing(records)

    async def _last_offsets(self) -> list[int | None]:
        options = self._cluster.options
        last = [
            await read_last(self._cluster.topic(topic), self._partition, options=options)
            for topic in ("examples", "chains")
        ]
        return [record.offset if record else None for record in last]

    async def _number_at(self, topic: str, offset: int | None) -> int | None:
        if offset is None:
            return None
        async with self._records(topic, offset, offset + 1) as records:
            async for record in records:
                head: Head = self._opened(topic, record, open_head)[0]
                return head.number
        return None

    def _opened(self, topic: str, record: Record, opener: Callable[[bytes | None], Any]) -> Any:
        try:
            return opener(record.value)
        except (ValueError, KeyError, msgspec.MsgspecError) as error:
            raise Difference(
                f"the record in {topic}",
                partition=self._partition,
                block=None,
                expected="a block",
                found=str(error),
                offset=record.offset,
            ) from None

    async def _letters_between(self, after: int, through: int) -> list[tuple[Letter, dict[str, Any]]]:
        letters = []
        async with self._records("dead-letters", None, None) as records:
            async for record in records:
                letter = self._opened("dead-letters", record, _open_letter)
                if letter["topic"] == self._cluster.topic("events") and after < letter["offset"] <= through:
                    letters.append((Letter(letter["offset"], letter["rule"]), letter))
        return letters


def _open_letter(data: bytes | None) -> dict[str, Any]:
    letter: dict[str, Any] = msgspec.json.decode(data or b"", type=dict)
    if missing := {"topic", "offset", "rule"} - letter.keys():
        raise ValueError(f"a dead letter must have the keys topic, offset and rule, got none of {sorted(missing)}")
    return letter
