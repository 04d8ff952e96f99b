"""Stand-ins for what leaves the process, and for nothing else."""

from __future__ import annotations

import polars as pl

from models.serving.pipeline import Unavailable
from models.serving.schema import ClientEvent, Served


class EventLog:
    """The log that a service publishes to, in memory.

    Attributes:
        events: What was published, in order.
        is_away: Nothing can be published.
        leaves_after: It goes away once it holds so many.
    """

    def __init__(self) -> None:
        self.events: list[Served | ClientEvent] = []
        self.is_away = False
        self.leaves_after: int | None = None

    async def publish(self, event: Served | ClientEvent) -> None:
        if self.is_away or len(self.events) == self.leaves_after:
            raise Unavailable("log", "it is away")
        self.events.append(event)


class UserShelf:
    """The part of a feature store that is written to, in memory.

    Attributes:
        batches: What was pushed, in order.
        is_away: Nothing can be pushed.
    """

    def __init__(self) -> None:
        self.batches: list[pl.DataFrame] = []
        self.is_away = False
        self.is_closed = False

    async def push(self, users: pl.DataFrame) -> int:
        if self.is_away:
            raise ConnectionError("no route to the store")
        self.batches.append(users)
        return 0

    def close(self) -> None:
        self.is_closed = True


class Producer:
    """The part of Kafka's producer that publications go through, in memory.

    Attributes:
        sent: Topic and value of each, in order.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    async def send_and_wait(self, topic: str, value: bytes) -> None:
        self.sent.append((topic, value))
