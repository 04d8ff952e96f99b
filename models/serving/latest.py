"""Brings in the newest model beside the champion, for the arm of an experiment that it serves.

Owns when that arm has a model. Must not know who is in the arm.

Invariants: the arm has the newest model that was announced, once that is loaded; from the moment that it turns out not
to be had, the arm has none: then the champion answers, and the record says so.
"""

from __future__ import annotations

from infra.metrics import ServeMetrics
from models.registry import Registry
from models.serving.refresh import Follower, Refresher


class LatestFollower(Follower):
    """Follows the newest model of the click family."""

    def __init__(self, registry: Registry, refresher: Refresher, metrics: ServeMetrics) -> None:
        """Begin without a model.

        Args:
            registry: Where snapshots are.
            refresher: Of the champion; it loads, and puts live counts under both.
            metrics: What is exported.
        """
        super().__init__(registry, metrics, "latest")
        self._refresher = refresher
        self._version = ""

    async def bring_in(self, version: str) -> bool:
        """See `Follower`."""
        if self._version == version:
            return True
        try:
            scorer = await self._refresher.load(version)
        except (ValueError, RuntimeError) as error:
            await self._leave()
            self._refuse(version, "the champion", error)
            return False
        except OSError:
            await self._leave()
            raise
        await self._refresher.put_latest(scorer)
        self._version = version
        self._swapped(version)
        return True

    async def _leave(self) -> None:
        self._version = ""
        await self._refresher.put_latest(None)
