"""Brings what serves up to date: new snapshots, and the live counts on top of them.

Owns the way of a snapshot from its announcement to the one reference that requests read. Must not know who announces
it. Loading, checking and warming up happen in a thread; requests go on meanwhile with what they have.

Invariants: what serves is whole and has scored a real request before its first caller sees it; a snapshot that cannot
be used is refused once, counted and logged, and the one before goes on serving; counts and snapshot change together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from features.fields import Field
from features.live_priors import CountUpdate, PublishedCounts
from infra.metrics import ServeMetrics
from models.registry import Registry
from models.serving.rank import Scorer
from models.snapshot import SnapshotError
from models.swap import Holder

log = logging.getLogger("freshrank.refresh")

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 10.0  # a registry that was away is asked again within this time


class Refresher:
    """Follows announcements and count updates; see `want`, `run` and `apply`."""

    def __init__(
        self,
        registry: Registry,
        holder: Holder[Scorer],
        metrics: ServeMetrics,
        *,
        fields: Sequence[Field],
        half_lives_s: Sequence[float],
        evidence_min: float,
        counts_max: int,
        sample: Callable[[], tuple[pl.DataFrame, float]],
    ) -> None:
        """Begin without a snapshot and without counts.

        Args:
            registry: Where snapshots are.
            holder: Where the one that serves goes.
            metrics: What is exported.
            fields: Of the deployment.
            half_lives_s: Of its counts.
            evidence_min: Published values whose evidence has decayed below this are forgotten with each new snapshot.
            counts_max: If more values than this are published, those with the least evidence are.
            sample: The last request's frame and time, for warming up.
        """
        self._registry = registry
        self._holder = holder
        self._metrics = metrics
        self._fields = fields
        self._evidence_min = evidence_min
        self._counts_max = counts_max
        self._sample = sample
        self._live = PublishedCounts.empty(half_lives_s, len(fields))
        self._wanted = ""
        self._news = asyncio.Event()
        self._one_change = asyncio.Lock()

    def want(self, version: str) -> None:
        """Say which snapshot is to serve; the newest call counts, and nobody waits."""
        self._wanted = version
        self._news.set()

    async def run(self) -> None:
        """Bring in what is wanted, for ever; a registry that cannot be reached is asked again and again."""
        wait_s = RETRY_FIRST_S
        while True:
            await self._news.wait()
            self._news.clear()
            version = self._wanted
            try:
                await self.bring_in(version)
                wait_s = RETRY_FIRST_S
            except OSError as error:
                self._metrics.snapshots.labels("unreachable").inc()
                log.warning("[refresh] snapshot %s cannot be read, trying again in %.1f s: %s", version, wait_s, error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)
                self._news.set()

    async def bring_in(self, version: str) -> bool:
        """Load, check and warm up a snapshot, then swap; return whether it serves now.

        Raises:
            OSError: If the registry cannot be reached.
        """
        current = self._holder.current
        if current is not None and current.version == version:
            return True
        try:
            scorer = await asyncio.to_thread(self._load, version)
        except (ValueError, RuntimeError) as error:  # RuntimeError is torch's word for weights of another shape
            self._metrics.snapshots.labels("refused").inc()
            serving = current.version if current else "nothing"
            log.error("[refresh] snapshot %s is refused, %s goes on serving: %s", version, serving, error)
            return False
        async with self._one_change:
            self._live = await asyncio.to_thread(self._live.without, self._evidence_min)
            await self._swap(scorer)
        self._metrics.snapshots.labels("swapped").inc()
        self._metrics.swapped_at_s.set(time.time())
        self._metrics.snapshot_slide.set(-1 if scorer.slide is None else scorer.slide)
        log.info("[refresh] snapshot %s serves", version)
        return True

    async def apply(self, updates: Sequence[CountUpdate]) -> None:
        """Put count updates, oldest first, under all later scores; a bad one is counted and left out."""
        async with self._one_change:
            good = [update for update in updates if self._is_good(update)]
            told = await asyncio.to_thread(self._live.updated, good)
            self._live = await asyncio.to_thread(told.within, self._counts_max)
            self._metrics.prior_evicted.inc(len(told.table.keys) - len(self._live.table.keys))
            if self._holder.current is not None:
                await self._swap(self._holder.current)

    def _is_good(self, update: CountUpdate) -> bool:
        try:
            self._live.check(update)
        except ValueError as error:
            self._metrics.records.labels("prior-updates", "refused").inc()
            log.warning("[refresh] %s", error)
            return False
        self._metrics.records.labels("prior-updates", "applied").inc()
        return True

    async def _swap(self, scorer: Scorer) -> None:
        scorer = await asyncio.to_thread(scorer.with_live_counts, self._live)
        self._holder.swap(scorer)
        self._metrics.counts_as_of_s.set(scorer.table.as_of_s)
        self._metrics.prior_values.set(len(scorer.table.keys))

    def _load(self, version: str) -> Scorer:
        """Return a scorer that has proved itself on the last request; the first call of a network is its slowest."""
        snapshot, _ = self._registry.load(version, fields=self._fields)
        frame, time_s = self._sample()
        try:
            scorer = Scorer.from_snapshot(snapshot)
            scores = scorer.score(frame, time_s)
        except LookupError as error:
            rule = "hold every tensor that this release reads"
            raise SnapshotError(
                f"snapshot {version} must {rule}, got no {error}; use the release that wrote it"
            ) from error
        if not np.isfinite(scores).all():
            raise SnapshotError(f"snapshot {version} must give finite probabilities, got others on the last request")
        return scorer
