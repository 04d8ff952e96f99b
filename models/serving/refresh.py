"""Brings what serves up to date: new snapshots, and the live counts on top of them.

Owns the way of a snapshot from its announcement to the one reference that requests read. Must not know who announces
it. Loading, checking and warming up happen in a thread; requests go on meanwhile with what they have.

Invariants: what serves is whole and has scored real requests before its first caller sees it; a snapshot that cannot
be used is refused once, counted and logged, and the one before goes on serving; counts and snapshot change together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from features.encode import Keys
from features.fields import Field, slot_counts
from features.live_priors import CountUpdate, PublishedCounts
from infra.metrics import ServeMetrics
from models.registry import Registry
from models.serving.ad_table import NO_NUMBER, Held
from models.serving.catalog import Catalog
from models.serving.prerank import Preranker, item_slots
from models.serving.rank import Scorer, Scores
from models.snapshot import SnapshotError
from models.swap import Holder

log = logging.getLogger("freshrank.refresh")

T = TypeVar("T")

PAUSE_S = 0.03  # by hand: several times what a sample takes; a swap then takes a third of a second
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 10.0  # a registry that was away is asked again within this time


class Follower(ABC):
    """Brings in the snapshots that are wanted; see `want` and `run`."""

    def __init__(
        self,
        registry: Registry,
        metrics: ServeMetrics,
        task: Literal["click", "latest", "prerank", "creatives"],
    ) -> None:
        """Begin wanting nothing.

        Args:
            registry: Where snapshots are.
            metrics: What is exported.
            task: Which models these are, as metrics call them.
        """
        self._registry = registry
        self._metrics = metrics
        self._task = task
        self._wanted = ""
        self._news = asyncio.Event()

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
                self._metrics.snapshots.labels(self._task, "unreachable").inc()
                log.warning("[refresh] snapshot %s cannot be read, trying again in %.1f s: %s", version, wait_s, error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)
                self._news.set()

    @abstractmethod
    async def bring_in(self, version: str) -> bool:
        """Load, check and warm up a snapshot, then swap; return whether it serves now.

        Raises:
            OSError: If the registry cannot be reached.
        """

    def _refuse(self, version: str, serving: str, error: Exception) -> None:
        self._metrics.snapshots.labels(self._task, "refused").inc()
        log.error("[refresh] snapshot %s is refused, %s goes on serving: %s", version, serving or "nothing", error)

    def _swapped(self, version: str) -> None:
        self._metrics.snapshots.labels(self._task, "swapped").inc()
        log.info("[refresh] snapshot %s serves", version)


class Refresher(Follower):
    """Follows the click model's announcements and count updates; see `apply`."""

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
        samples: Callable[[], Sequence[tuple[Keys, float]]],
        latest: Holder[Scorer] | None = None,
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
            samples: Keys of the candidates of some recent requests, (K, S), and their times, for warming up.
            latest: Where the newest model goes that serves beside the champion.
        """
        super().__init__(registry, metrics, "click")
        self._holder = holder
        self._latest: Holder[Scorer] = latest or Holder()
        self._fields = fields
        self._evidence_min = evidence_min
        self._counts_max = counts_max
        self._samples = samples
        self._live = PublishedCounts.empty(half_lives_s, len(fields))
        self._loading: dict[str, asyncio.Task[Scorer]] = {}  # by version
        self._one_change = asyncio.Lock()

    async def bring_in(self, version: str) -> bool:
        """See `Follower`."""
        current = self._holder.current
        if current is not None and current.version == version:
            return True
        try:
            scorer = await self.load(version)
        except (ValueError, RuntimeError) as error:  # RuntimeError is torch's word for weights of another shape
            self._refuse(version, current.version if current else "", error)
            return False
        async with self._one_change:
            self._live = await asyncio.to_thread(self._live.without, self._evidence_min)
            await self._swap(scorer)
        self._swapped(version)
        self._metrics.swapped_at_s.set(time.time())
        self._metrics.snapshot_slide.set(-1 if scorer.slide is None else scorer.slide)
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
            if self._latest.current is not None:
                await self._swap_latest(self._latest.current)

    async def load(self, version: str) -> Scorer:
        """Return a snapshot's scorer; what serves already, or is being loaded for the other arm, is not loaded again.

        Raises:
            ValueError: If the snapshot cannot be used; RuntimeError, if its weights have another shape.
            OSError: If the registry cannot be reached.
        """
        for serving in (self._holder.current, self._latest.current):
            if serving is not None and serving.version == version:
                return serving
        if (loading := self._loading.get(version)) is None:
            loading = self._loading[version] = asyncio.create_task(asyncio.to_thread(self._load, version))
            loading.add_done_callback(lambda _: self._loading.pop(version))
        return await loading

    async def put_latest(self, scorer: Scorer | None) -> None:
        """Let a model serve beside the champion, with the live counts under it, or none."""
        async with self._one_change:
            if scorer is None:
                self._latest.swap(None)
            else:
                await self._swap_latest(scorer)

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

    async def _swap_latest(self, scorer: Scorer) -> None:
        champion = self._holder.current
        if champion is not None and champion.version == scorer.version:
            self._latest.swap(champion)  # held once
        else:
            self._latest.swap(await asyncio.to_thread(scorer.with_live_counts, self._live))

    def _load(self, version: str) -> Scorer:
        """Return a scorer that has proved itself on recent requests; the first call of a network is its slowest."""
        snapshot, _ = self._registry.load(version, fields=self._fields)
        try:
            scorer = Scorer.from_snapshot(snapshot)
            scores = np.concatenate([scorer.score(keys, time_s) for keys, time_s in _in_passing(self._samples())])
        except LookupError as error:
            rule = "hold every tensor that this release reads"
            raise SnapshotError(
                f"snapshot {version} must {rule}, got no {error}; use the release that wrote it"
            ) from error
        if not np.isfinite(scores).all():
            raise SnapshotError(f"snapshot {version} must give finite probabilities, got others on recent requests")
        return scorer


class PrerankRefresher(Follower):
    """Follows the announcements of a pre-ranker, or a creative ranker, and the catalog; see `apply_ads`."""

    def __init__(
        self,
        registry: Registry,
        holder: Holder[Preranker],
        catalog: Catalog,
        metrics: ServeMetrics,
        task: Literal["prerank", "creatives"],
        *,
        fields: Sequence[Field],
        samples: Callable[[], Sequence[tuple[Keys, Keys]]],
    ) -> None:
        """Begin without a snapshot.

        Args:
            registry: Where snapshots are.
            holder: Where the one that serves goes.
            catalog: The ads whose halves it holds.
            metrics: What is exported.
            task: Whether it holds ads as a pre-ranker reads them, or each of their creatives.
            fields: What these models read.
            samples: Keys of the values of some recent requests, (S,), and of some of their candidates, (K, S), for
                warming up.
        """
        super().__init__(registry, metrics, task)
        self._holder = holder
        self._catalog = catalog
        self._fields = fields
        self._samples = samples
        of_ads = catalog.table.encoder.fields
        self._slots = item_slots(of_ads) if task == "prerank" else np.arange(sum(slot_counts(of_ads)))
        self._numbers: dict[str, tuple[int, ...]] = {}  # by ad, of what halves are held of it
        self._one_change = asyncio.Lock()

    async def bring_in(self, version: str) -> bool:
        """See `Follower`."""
        current = self._holder.current
        if current is not None and current.version == version:
            return True
        async with self._one_change:
            try:
                preranker = await asyncio.to_thread(self._load, version, self._catalog.table.all_ads())
            except (ValueError, RuntimeError) as error:
                self._refuse(version, current.version if current else "", error)
                return False
            self._holder.swap(preranker)
        self._swapped(version)
        return True

    async def apply_ads(self, changed: Mapping[str, Held | None]) -> None:
        """Hold the halves of ads that changed in the catalog; None: an ad is not active any more."""
        async with self._one_change:
            if (current := self._holder.current) is not None and changed:
                self._holder.swap(await asyncio.to_thread(lambda: current.with_ads(self._keys_of(changed))))

    def _keys_of(self, ads: Mapping[str, Held | None]) -> dict[int, Keys | None]:
        """Return the keys that these models read of ads, by number; None for those to drop."""
        keys: dict[int, Keys | None] = {}
        for ad_id, held in ads.items():
            keys |= dict.fromkeys(self._numbers.pop(ad_id, ()))
            if held is not None:
                of_ad = self._of_ad(held)
                keys |= of_ad
                self._numbers[ad_id] = tuple(of_ad)
        return keys

    def _of_ad(self, held: Held) -> dict[int, Keys]:
        if self._task == "prerank":
            return {held.number: held.keys[self._slots]}
        numbers = held.creative_numbers.tolist()
        return {number: one.keys for number, one in zip(numbers, held.creatives, strict=True)}

    def _load(self, version: str, ads: Mapping[str, Held | None]) -> Preranker:
        """Return a pre-ranker that holds the ads and has proved itself on recent requests."""
        snapshot, _ = self._registry.load(version, fields=self._fields)
        self._numbers = {}
        try:
            preranker = Preranker.from_snapshot(snapshot).with_ads(self._keys_of(ads))
            scores = np.concatenate([self._try(preranker, *sample) for sample in _in_passing(self._samples())])
        except LookupError as error:
            rule = "hold every tensor that this release reads"
            raise SnapshotError(
                f"snapshot {version} must {rule}, got no {error}; use the release that wrote it"
            ) from error
        if not np.isfinite(scores).all():
            raise SnapshotError(f"snapshot {version} must give finite scores, got others on recent requests")
        return preranker

    def _try(self, preranker: Preranker, request: Keys, candidates: Keys) -> Scores:
        numbers = np.full(len(candidates), NO_NUMBER)
        return preranker.score(request, numbers, lambda places: candidates[places][:, self._slots])


def _in_passing(samples: Sequence[T]) -> Iterator[T]:
    """Yield samples with a pause before each and behind them: requests that are answered meanwhile hardly notice."""
    for sample in samples:
        time.sleep(PAUSE_S)
        yield sample
    time.sleep(PAUSE_S)
