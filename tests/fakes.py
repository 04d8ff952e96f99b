"""Stand-ins for what leaves the process, and for nothing else."""

from __future__ import annotations

from models.serving.pipeline import Unavailable
from models.serving.schema import ClientEvent, Served


class EventLog:
    """The log that a service publishes to, in memory.

    Attributes:
        events: What was published, in order.
        is_away: Nothing can be published.
    """

    def __init__(self) -> None:
        self.events: list[Served | ClientEvent] = []
        self.is_away = False

    async def publish(self, event: Served | ClientEvent) -> None:
        if self.is_away:
            raise Unavailable("log", "it is away")
        self.events.append(event)
