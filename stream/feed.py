"""Blocks for an agent: each block of a topic once and in order per partition, whatever Faust delivers.

Owns where an agent is in each partition. Must not know what the agent does with a block.

Invariants: a block is named by its partition and `number`, so what comes twice (aborted and written again, delivered
again) is dropped, and what is missing (acknowledged in an earlier life, not yet in a snapshot) is read with a plain
committed reader. A Faust offset decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import polars as pl

from stream.blocks import Header, decode_header
from stream.kafka import Record, read_range
from stream.roles import Cluster

Decode = Callable[[bytes], tuple[Header, pl.DataFrame]]


@dataclass(frozen=True)
class Block:
    """A block with the offset and append time that the broker gave it."""

    offset: int
    append_s: float
    header: Header
    frame: pl.DataFrame


class BlockFeed:
    """The blocks of all partitions of a topic from given positions on."""

    def __init__(self, cluster: Cluster, positions: Mapping[int, int], topic: str, decode: Decode) -> None:
        """Begin at the given offsets; a partition without one begins at its first block.

        Args:
            cluster: Where the topic is.
            positions: Where to begin, by partition.
            topic: `examples` or `chains`.
            decode: From the bytes of a block to its header and its rows.
        """
        self._decode = decode
        self._topic = cluster.topic(topic)
        self._options = cluster.options
        self._next_offset = {partition: positions.get(partition, 0) for partition in range(cluster.partitions)}
        self._next_number: dict[int, int] = {}

    async def catch_up(self) -> AsyncIterator[Block]:
        """Yield all that stands in the log by now, the partition that is furthest behind in event time first."""
        async with AsyncExitStack() as stack:
            readers = {p: await stack.enter_async_context(aclosing(self._range(p, None))) for p in self._next_offset}
            watermarks = dict.fromkeys(readers, float("-inf"))
            while readers:
                partition = min(readers, key=lambda p: watermarks[p])
                block = await anext(readers[partition], None)
                if block is None:
                    del readers[partition]
                    continue
                watermarks[partition] = block.header.watermark_s
                yield block

    async def take(self, partition: int, record: Record) -> AsyncIterator[Block]:
        """Yield what a delivered record adds: nothing if it was seen, the missing ones before it if there is a gap."""
        assert record.value is not None
        number = decode_header(record.value).number
        expected = self._next_number.get(partition)
        if (expected is None or number > expected) and record.offset > self._next_offset[partition]:
            async with aclosing(self._range(partition, record.offset)) as missing:
                async for block in missing:
                    yield block
        accepted = self._accept(partition, record)
        if accepted is not None:
            yield accepted

    async def _range(self, partition: int, end: int | None) -> AsyncGenerator[Block, None]:
        start = self._next_offset[partition] or None
        async with aclosing(read_range(self._topic, partition, start, end, options=self._options)) as records:
            async for record in records:
                block = self._accept(partition, record)
                if block is not None:
                    yield block

    def _accept(self, partition: int, record: Record) -> Block | None:
        if record.offset < self._next_offset[partition]:
            return None
        self._next_offset[partition] = record.offset + 1
        assert record.value is not None
        header, frame = self._decode(record.value)
        if header.number < self._next_number.get(partition, 0):
            return None
        self._next_number[partition] = header.number + 1
        return Block(record.offset, record.timestamp_ms / 1000.0, header, frame)


def saved_positions(manifest: Mapping[str, Any]) -> dict[int, int]:
    """Return the offset from which on a snapshot's manifest says that each partition has to be read."""
    return {int(partition): offset for partition, offset in manifest["context"]["positions"].items()}
