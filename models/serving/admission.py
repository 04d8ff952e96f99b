"""The queue in front of ranking: how many requests are worked on at once, how many wait, and for how long.

Owns the places and the waiting. Must not know HTTP or what is done in a place.

Invariants: never more than `concurrent_max` have a place and never more than `queue_max` wait; first come, first
served; who has waited longer than `stale_s` gets no place, because its caller is about to give up; a place is always
given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infra.metrics import ServeMetrics


class Overloaded(Exception):
    """There is no place now; the same request may well have one later.

    Attributes:
        rule: What a request must do to be worked on.
        got: What this one met.
    """

    def __init__(self, rule: str, got: str) -> None:
        """Keep what the answer has to say."""
        self.rule = rule
        self.got = got
        super().__init__(f"a request {rule}, got {got}")


class Admission:
    """Gives out places, first come, first served."""

    def __init__(self, metrics: ServeMetrics, *, concurrent_max: int, queue_max: int, stale_s: float) -> None:
        """Begin with all places free."""
        self._metrics = metrics
        self._places = asyncio.Semaphore(concurrent_max)
        self._queue_max = queue_max
        self._stale_s = stale_s
        self._n_waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place.

        Raises:
            Overloaded: If too many wait already, or this one has waited too long.
        """
        if self._places.locked() and self._n_waiting >= self._queue_max:
            self._metrics.admissions.labels("full").inc()
            raise Overloaded(f"must be one of at most {self._queue_max} that wait", "a full queue")
        begun_s = time.perf_counter()
        await self._wait()
        try:
            waited_s = time.perf_counter() - begun_s
            self._metrics.rank_latency_s.labels("queue").observe(waited_s)
            if waited_s > self._stale_s:  # the loop was busy: the place came before the time-out could
                raise self._stale()
            self._metrics.admissions.labels("admitted").inc()
            yield
        finally:
            self._places.release()

    async def _wait(self) -> None:
        self._count_waiting(1)
        try:
            async with asyncio.timeout(self._stale_s):
                await self._places.acquire()
        except TimeoutError:
            raise self._stale() from None
        finally:
            self._count_waiting(-1)

    def _count_waiting(self, more: int) -> None:
        self._n_waiting += more
        self._metrics.queued.set(self._n_waiting)

    def _stale(self) -> Overloaded:
        self._metrics.admissions.labels("stale").inc()
        return Overloaded(f"must have its turn within {self._stale_s:g} s", "a longer queue")
