"""What people ask of a trainer on `commands`: serve this snapshot, or the one before again.

Owns that record. Must not apply it: the trainer does, between two slides. The key is the model family; records
with other keys (notes on dead letters) are no commands.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Literal

import msgspec
from aiokafka import AIOKafkaProducer

from stream.kafka import read_range
from stream.roles import Cluster

VERSION = 1

Action = Literal["promote", "rollback"]


class Command(msgspec.Struct, frozen=True):
    """One wish about one model family.

    Attributes:
        action: `promote`: `version` serves, the lineage that learns goes on; `rollback`: the lineage begins again from
            `version`, too.
        version: The snapshot that is to serve.
        note: Why, in the person's words.
    """

    action: Action
    version: str
    note: str = ""
    v: int = VERSION


async def send_command(cluster: Cluster, family: str, command: Command) -> int:
    """Write a command and return its offset."""
    producer = AIOKafkaProducer(**cluster.options)
    await producer.start()
    try:
        value = msgspec.json.encode(command)
        written = await producer.send_and_wait(cluster.topic("commands"), value, family.encode(), partition=0)
    finally:
        await producer.stop()
    return int(written.offset)


async def read_commands(cluster: Cluster, family: str, start: int) -> list[tuple[int, Command]]:
    """Return a family's commands from an offset on, with their offsets; what cannot be read is left out."""
    found = []
    async with aclosing(read_range(cluster.topic("commands"), 0, None, None, options=cluster.options)) as records:
        async for record in records:
            if record.offset < start or record.key != family.encode() or record.value is None:
                continue
            try:
                command = msgspec.json.decode(record.value, type=Command)
            except msgspec.DecodeError:
                continue
            if command.v == VERSION:
                found.append((record.offset, command))
    return found
