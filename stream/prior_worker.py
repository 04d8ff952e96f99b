"""The live priors on Kafka: `examples` in, `prior-updates` out.

Owns the running table of counts and when its changes are published. Must not do the arithmetic: features/priors.py
does. A Faust agent over blocks; at its start it takes the counts of the newest snapshot and reads the blocks since.

Invariants: an impression counts once, when it settles; what is published are absolute counts, so a publication that
comes twice, or that a reader missed and the next one corrects, does no harm.
"""

from __future__ import annotations

import time

import faust
import mode
import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaProducer

from features.encode import encode, slot_fields
from features.priors import PriorTable, SettledRows, advance, lookup
from infra.settings import Settings, registry_url
from stream.announcement import newest_announcement
from stream.blocks import PriorUpdate, encode_prior_update
from stream.feed import Block, BlockFeed, saved_positions
from stream.kafka import BLOCK_BYTES_MAX, Record
from stream.roles import Cluster, delivered, find_cluster, log, make_app, run_app
from stream.wiring import new_slides


def run_prior_worker(settings: Settings) -> None:
    """Keep the live priors of a deployment until the process is told to stop."""
    cluster = find_cluster(settings)
    app = make_app(cluster, "priors")
    service = PriorService(settings, cluster)

    @app.agent(app.topic(cluster.topic("examples")))
    async def count(stream: faust.StreamT[bytes]) -> None:
        async for partition, record in delivered(stream):
            await service.take(partition, record)

    run_app(app, service)


class PriorService(mode.Service):
    """The table, where it stands in the log, and the producer that publishes its changes."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        """Prepare; the table is restored when the service starts."""
        super().__init__()
        self._settings = settings
        self._cluster = cluster
        self._slides = new_slides(settings)
        self._slot_field = slot_fields(settings.fields)
        self._table = PriorTable.empty(settings.priors.half_lives_s, len(settings.fields))
        self._counted_slide: int | None = None  # rows of this slide and those before it are in the snapshot
        self._touched: list[npt.NDArray[np.uint64]] = []
        self._published_s = time.monotonic()
        self._producer: AIOKafkaProducer | None = None

    async def on_start(self) -> None:
        """Restore the counts of the newest snapshot, then count what has settled since."""
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
            self._table, self._counted_slide = snapshot.priors, snapshot.slide
            positions = saved_positions(manifest)
        self._feed = BlockFeed(self._cluster, positions)
        async for block in self._feed.catch_up():
            self._count(block)
        await self._publish()
        log.info("priors: %d values, from slide %s on", len(self._table.keys), self._counted_slide)

    async def on_stop(self) -> None:
        """Publish what has changed, then leave."""
        if self._producer is not None:
            await self._publish()
            await self._producer.stop()

    async def take(self, partition: int, record: Record) -> None:
        """Count a delivered block, with those that are missing before it."""
        async for block in self._feed.take(partition, record):
            self._count(block)
        if time.monotonic() - self._published_s >= self._settings.priors.publish_s:
            await self._publish()

    @mode.Service.task
    async def _publish_when_idle(self) -> None:
        while not self.should_stop:
            await self.sleep(self._settings.priors.publish_s)
            if time.monotonic() - self._published_s >= self._settings.priors.publish_s:
                await self._publish()

    def _count(self, block: Block) -> None:
        frame = block.frame
        if self._counted_slide is not None:
            is_new = self._slides.indices(frame["settled_s"].to_numpy()) > self._counted_slide
            frame = frame.filter(is_new)
        if frame.is_empty():
            return
        keys = encode(frame, self._settings.fields)
        rows = SettledRows.from_frame(frame, keys)
        to_s = max(self._table.as_of_s, float(rows.settled_s[-1]))
        evidence_min = self._settings.priors.evidence_min
        self._table = advance(self._table, rows, to_s, slot_field=self._slot_field, evidence_min=evidence_min)
        self._touched.append(np.unique(keys[keys > 0]))

    async def _publish(self) -> None:
        self._published_s = time.monotonic()
        if not self._touched:
            return
        assert self._producer is not None
        touched = np.unique(np.concatenate(self._touched))
        self._touched = []
        table = self._table
        place = np.searchsorted(table.keys, touched[np.isin(touched, table.keys)])  # some may be forgotten already
        counts = lookup(table, table.keys[place][:, None], table.as_of_s)
        update = PriorUpdate(
            at_s=table.as_of_s,
            keys=table.keys[place],
            field=table.field[place],
            n=counts.n[:, 0],
            c=counts.c[:, 0],
            root_n=table.root_n,
            root_c=table.root_c,
        )
        await self._producer.send_and_wait(self._cluster.topic("prior-updates"), encode_prior_update(update))
