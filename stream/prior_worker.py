"""The live priors on Kafka: `examples` in, `prior-updates` out, and users into the store.

Owns the running counts and when their changes are published. Must not do the arithmetic: features/live_priors.py does.
A Faust agent over blocks; at its start it takes the counts of the newest snapshot and reads the blocks since.

Invariants: an example counts once, when it settles; what is published are absolute counts, so a publication that comes
twice, or that a reader missed and the next one corrects, does no harm. Every value is published again at each start and
several times within the topic's retention: so whoever reads the topic from its beginning knows all values, whatever
snapshot they start from. Several workers share the fields (`--shard`); each reads all blocks and publishes its own.
"""

from __future__ import annotations

import asyncio
import re
import time

import faust
import mode
from aiokafka import AIOKafkaProducer
from prometheus_client import CollectorRegistry

from features.live_priors import LivePriors
from infra.metrics import PriorMetrics
from infra.settings import Settings, registry_url
from stream.announcement import newest_announcement
from stream.blocks import encode_prior_update
from stream.families import example_decoder
from stream.feed import Block, BlockFeed, saved_positions
from stream.kafka import BLOCK_BYTES_MAX, Record
from stream.roles import Cluster, delivered, find_cluster, log, make_app, run_app
from stream.user_push import UserPush, open_user_push
from stream.wiring import new_slides

REPUBLISH_SHARE = 0.25  # of the topic's retention: a value is there at any time, also after a missed turn
UPDATE_BYTES_MAX = BLOCK_BYTES_MAX // 2  # chosen by hand: room for headers, and for what does not compress

Shard = tuple[int, int]  # which one from 0 on, of how many


def run_prior_worker(settings: Settings, *, shard: Shard = (0, 1), registry: CollectorRegistry | None = None) -> None:
    """Keep the live priors of a deployment, or of a share of its fields, until the process is told to stop.

    Args:
        settings: Of the deployment.
        shard: Which share.
        registry: Where the metrics go.
    """
    cluster = find_cluster(settings)
    app = make_app(cluster, "priors" if shard == (0, 1) else f"priors-{shard[0] + 1}-of-{shard[1]}")
    service = PriorService(settings, cluster, PriorMetrics(registry or CollectorRegistry()), shard=shard)

    @app.agent(app.topic(cluster.topic("examples")))
    async def count(stream: faust.StreamT[bytes]) -> None:
        async for partition, record in delivered(stream):
            await service.take(partition, record)

    run_app(app, service)


def parse_shard(text: str) -> Shard:
    """Return the shard that "i/n" names, 1/n being the first.

    Raises:
        ValueError: If it names none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f'--shard must be i/n with 1 <= i <= n, e.g. 1/3, got "{text}"')
    return int(found[1]) - 1, int(found[2])


class PriorService(mode.Service):
    """The counts, where they stand in the log, and the producer that publishes their changes."""

    def __init__(self, settings: Settings, cluster: Cluster, metrics: PriorMetrics, *, shard: Shard) -> None:
        """Prepare; the counts are restored when the service starts.

        Raises:
            ValueError: If there are more shards than fields.
        """
        super().__init__()
        self._settings = settings
        self._cluster = cluster
        self._metrics = metrics
        self._slides = new_slides(settings)
        self._priors = LivePriors(
            settings.fields,
            settings.priors.half_lives_s,
            evidence_min=settings.priors.evidence_min,
            counts_max=settings.priors.counts_max,
            shard=shard[0],
            n_shards=shard[1],
        )
        self._evicted = 0  # of the values that the limit took, those that are in the metrics
        self._users: UserPush | None = open_user_push(settings, self._priors, metrics)
        self._values_max = UPDATE_BYTES_MAX // (10 + 16 * len(settings.priors.half_lives_s))
        self._counted_slide: int | None = None  # rows of this slide and those before it are in the snapshot
        self._oldest_append_s: float | None = None  # of the blocks counted since the last publication
        self._published_s = self._republished_s = time.monotonic()
        self._one_publication = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None

    async def on_start(self) -> None:
        """Restore the counts of the newest snapshot, count what has settled since, and publish everything."""
        self._producer = AIOKafkaProducer(
            **self._cluster.options, enable_idempotence=True, max_request_size=BLOCK_BYTES_MAX
        )
        await self._producer.start()
        positions: dict[int, int] = {}
        newest = await newest_announcement(self._cluster, self._settings.model.family)
        if newest is not None:
            from models.registry import Registry  # torch, only where there is a snapshot to start from

            registry = Registry(registry_url(self._settings))
            snapshot, manifest = registry.load(newest.latest, fields=self._settings.fields)
            self._priors.restore(snapshot.priors)
            self._counted_slide = snapshot.slide
            positions = saved_positions(manifest)
        self._feed = BlockFeed(self._cluster, positions, "examples", example_decoder(self._settings.fields))
        async for block in self._feed.catch_up():
            self._count(block)
        await self._republish()
        log.info(
            "priors: %d values of %d fields, from slide %s on",
            len(self._priors.table.keys),
            self._priors.n_fields,
            self._counted_slide,
        )

    async def on_stop(self) -> None:
        """Publish what has changed, then leave."""
        if self._producer is not None:
            await self._publish()
            await self._producer.stop()
        if self._users is not None:
            await self._users.stop()

    async def take(self, partition: int, record: Record) -> None:
        """Count a delivered block, with those that are missing before it."""
        async for block in self._feed.take(partition, record):
            self._count(block)
        if time.monotonic() - self._published_s >= self._settings.priors.publish_s:
            await self._publish()

    @mode.Service.task
    async def _publish_when_idle(self) -> None:
        publish_s = self._settings.priors.publish_s
        while not self.should_stop:
            await self.sleep(max(0.0, self._published_s + publish_s - time.monotonic()))
            if time.monotonic() - self._republished_s >= REPUBLISH_SHARE * self._settings.kafka.retention_s:
                await self._republish()
            elif time.monotonic() - self._published_s >= publish_s:
                await self._publish()

    @mode.Service.task
    async def _push_users(self) -> None:
        if self._users is not None:
            await self._users.run(self.sleep, lambda: self.should_stop)

    def _count(self, block: Block) -> None:
        frame = block.frame
        if self._counted_slide is not None:
            is_new = self._slides.indices(frame["settled_s"].to_numpy()) > self._counted_slide
            frame = frame.filter(is_new)
        if frame.is_empty():
            return
        self._priors.count(frame)
        if self._users is not None:
            self._users.add(frame)
        if self._oldest_append_s is None:
            self._oldest_append_s = block.append_s
        for kind, rows in frame["kind"].value_counts().iter_rows():
            self._metrics.rows.labels(kind).inc(rows)

    async def _republish(self) -> None:
        self._republished_s = time.monotonic()
        self._priors.republish()
        await self._publish()

    async def _publish(self) -> None:
        async with self._one_publication:  # else an older part could come behind a newer one
            self._published_s = time.monotonic()
            oldest_append_s, self._oldest_append_s = self._oldest_append_s, None
            assert self._producer is not None
            for part in list(self._priors.changes(self._values_max)):
                topic = self._cluster.topic("prior-updates")
                await self._producer.send_and_wait(topic, encode_prior_update(part))
                self._metrics.published.inc(len(part.keys))
            table = self._priors.table
            self._metrics.newest_s.set(max(0.0, table.as_of_s))
            self._metrics.values.set(len(table.keys))
            self._metrics.evicted.inc(self._priors.evicted - self._evicted)
            self._evicted = self._priors.evicted
            if oldest_append_s is not None:
                self._metrics.publish_lag_s.observe(max(0.0, time.time() - oldest_append_s))
