"""The live priors as real processes: killed, sharded, read by whoever starts late, and their users in a real store."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import psutil
import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from features.encode import encode
from features.live_priors import CountUpdate, PublishedCounts
from features.priors import PriorTable
from features.store import open_store
from infra.broker import BrokerInfo
from infra.settings import registry_url
from models.click_task import ClickTask
from models.registry import Registry
from models.snapshot import Snapshot
from models.update import Learner
from models.window import Window
from stream.announcement import encode_announcement
from stream.blocks import decode_block, decode_prior_update
from stream.kafka import BLOCK_BYTES_MAX
from stream.plan import new_plan
from stream.train_worker import to_announcement
from stream.wiring import new_slides
from tests.broker.deployment import Deployment, deploy, until
from tests.redis_server import redis_server

ROWS = 12_000
SLIDE_S = 1800.0


@pytest.fixture
async def settled(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> Deployment:
    """A deployment whose whole log stands in `examples`."""
    return await settle(deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=ROWS, slide_s=SLIDE_S))


async def settle(deployment: Deployment) -> Deployment:
    await deployment.replay()
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()
    return deployment


@pytest.mark.slow
async def test_kill_9_of_the_priors_leaves_the_counts_of_a_slow_recount(settled: Deployment) -> None:
    with settled.role("worker", "priors") as process:
        await until(published(settled), 60.0)
        process.kill()
        process.wait()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with settled.role("worker", "--metrics-port", port, "priors"):
        await until(caught_up(settled), 60.0)
        async with httpx.AsyncClient() as client:
            exported = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    counts, frame = told(settled, await updates(settled)).table, await examples(settled)
    assert_recounted(settled, counts, frame)
    samples = [sample for family in text_string_to_metric_families(exported) for sample in family.samples]
    metrics = {(sample.name, sample.labels.get("kind")): sample.value for sample in samples}
    assert metrics["freshrank_prior_rows_total", "clicked"] == (frame["kind"] == "clicked").sum()
    assert metrics["freshrank_prior_newest_timestamp_seconds", None] == counts.as_of_s
    assert metrics["freshrank_prior_table_values_count", None] == len(counts.keys)
    assert metrics["freshrank_prior_publish_lag_seconds_count", None] >= 1


@pytest.mark.slow
async def test_two_shards_publish_together_what_one_worker_publishes(settled: Deployment) -> None:
    with (
        settled.role("worker", "--shard", "1/2", "priors"),
        settled.role("worker", "--shard", "2/2", "priors"),
    ):
        await until(caught_up(settled, n_workers=2), 60.0)
    sharded = await updates(settled)
    of_field = [set(update.field.tolist()) for update in sharded]
    assert not any(one & other for one in of_field for other in of_field if one != other)
    with settled.role("worker", "priors"):
        await until(caught_up(settled, n_workers=3), 60.0)
    one, both = told(settled, (await updates(settled))[len(sharded) :]).table, told(settled, sharded).table
    assert one.as_of_s == both.as_of_s
    assert np.array_equal(one.keys, both.keys)
    for name in ("n", "c", "root_n", "root_c"):
        np.testing.assert_allclose(getattr(one, name), getattr(both, name), rtol=1e-12)
    assert_recounted(settled, both, await examples(settled))


@pytest.mark.slow
async def test_a_service_that_starts_late_on_an_old_champion_has_the_counts_of_a_slow_recount(
    settled: Deployment, tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    """While the priors are dead, values are touched for the last time, and the newest snapshot passes them."""
    (other := tmp_path / "other").mkdir()
    late = deploy(other, broker.bootstrap_servers, f"{topic_prefix}-late", slide_s=SLIDE_S)
    blocks = [(p, record.value or b"") for p in range(3) for record in await settled.read("examples", p)]
    start_s, end_s = float(min((await examples(settled))["settled_s"])), await newest_settled_s(settled)
    span_s = end_s - start_s
    early = [block for block in blocks if decode_block(block[1])[0].watermark_s <= start_s + 0.5 * span_s]
    await append(late, early)
    with late.role("worker", "priors") as process:
        await until(caught_up(late), 60.0)
        process.kill()
        process.wait()
    await append(late, [block for block in blocks if block not in early])
    champion = await learn(late, champion_s=start_s + 0.3 * span_s, latest_s=start_s + 0.8 * span_s)
    with late.role("worker", "priors"):
        await until(caught_up(late), 60.0)
    seen = told(late, await updates(late)).over(champion.priors)
    frame = await examples(late)
    assert_recounted(late, seen, frame)
    assert seen.as_of_s == frame["settled_s"].max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_users_reach_a_real_store_with_the_counts_of_a_slow_recount(
    kind: str, tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as address:
        url = address if kind == "redis" else ""
        store_lines = f'[store]\nkind = "feast"\npush_s = 0.5\nredis_url = "{url}"'
        deployment = deploy(
            tmp_path, broker.bootstrap_servers, topic_prefix, rows=1000, slide_s=SLIDE_S, kafka=store_lines
        )
        await settle(deployment)
        frame, newest_s = await examples(deployment), await newest_settled_s(deployment)
        ids = frame["field.user_id"].unique().to_list()
        store = open_store(
            deployment.settings.fields,
            prefix=deployment.settings.prefix,
            redis_url=url,
            directory=deployment.home / "state" / "store" / deployment.settings.prefix,
            max_age_s=1e9,
        )

        async def pushed() -> AsyncIterator[bool]:
            while True:
                yield len(store.read_users(ids, newest_s).users) == len(ids)

        with deployment.role("worker", "priors") as process:
            await until(pushed(), 90.0)
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            assert children
            _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10.0)
            assert not alive  # the store's process ends with the worker
        users = store.read_users(ids, newest_s).users
    half_lives_s = np.array(deployment.settings.priors.half_lives_s)
    for user_id, user in users.items():
        rows = frame.filter(pl.col("field.user_id") == user_id)
        weight = 0.5 ** ((user.as_of_s - rows["settled_s"].to_numpy()[:, None]) / half_lives_s)
        np.testing.assert_allclose(user.impressions, weight.sum(axis=0), rtol=1e-9)
        np.testing.assert_allclose(user.clicks, (weight * rows["click"].to_numpy()[:, None]).sum(axis=0), rtol=1e-9)
        assert user.values["age"] == rows["field.age"][-1]
        assert user.as_of_s == newest_s


async def append(deployment: Deployment, blocks: list[tuple[int, bytes]]) -> None:
    """Write blocks to `examples` as they are."""
    producer = AIOKafkaProducer(**deployment.cluster.options, max_request_size=BLOCK_BYTES_MAX)
    await producer.start()
    for partition, value in blocks:
        await producer.send_and_wait(deployment.cluster.topic("examples"), value, partition=partition)
    await producer.stop()


async def learn(deployment: Deployment, *, champion_s: float, latest_s: float) -> Snapshot:
    """Announce the snapshots of two moments as the trainer would, had it held since the first; return that one."""
    settings = deployment.settings
    window, learner = Window(3, new_slides(settings)), Learner(ClickTask(new_plan(settings)))
    for partition in range(3):
        for record in await deployment.read("examples", partition):
            header, frame = decode_block(record.value or b"")
            window.add(partition, record.offset, header.watermark_s, frame)
    registry, champion, report, positions = Registry(registry_url(settings)), None, None, {}
    for slide in window.closed():
        if slide.end_s > latest_s:
            break
        report = learner.learn(slide)
        champion = learner.latest if slide.end_s <= champion_s else champion
        positions = dict.fromkeys(range(3), 0)
    assert champion is not None
    assert report is not None
    for snapshot in (champion, learner.latest):
        registry.save(snapshot, {"positions": positions})
    announcement = to_announcement(settings.model.family, report, 0.0, None)
    producer = AIOKafkaProducer(**deployment.cluster.options)
    await producer.start()
    topic = deployment.cluster.topic("snapshots")
    await producer.send_and_wait(topic, encode_announcement(announcement), announcement.family.encode())
    await producer.stop()
    assert champion.version != announcement.latest
    return champion


async def published(deployment: Deployment) -> AsyncIterator[bool]:
    while True:
        yield bool(await updates(deployment))


async def caught_up(deployment: Deployment, n_workers: int = 1) -> AsyncIterator[bool]:
    """Tell again and again whether so many workers have published everything since now."""
    before = len(await updates(deployment)) if n_workers == 1 else 0
    newest_s = await newest_settled_s(deployment)
    while True:
        yield sum(update.at_s >= newest_s for update in (await updates(deployment))[before:]) >= n_workers


async def updates(deployment: Deployment) -> list[CountUpdate]:
    return [decode_prior_update(record.value or b"") for record in await deployment.read("prior-updates", 0)]


def told(deployment: Deployment, published: list[CountUpdate]) -> PublishedCounts:
    """What a service knows that has read these publications."""
    settings = deployment.settings
    return PublishedCounts.empty(settings.priors.half_lives_s, len(settings.fields)).updated(published)


async def examples(deployment: Deployment) -> pl.DataFrame:
    frames = [
        decode_block(record.value or b"")[1]
        for partition in range(deployment.cluster.partitions)
        for record in await deployment.read("examples", partition)
    ]
    return pl.concat(frames)


async def newest_settled_s(deployment: Deployment) -> float:
    return float(max((await examples(deployment))["settled_s"]))


def assert_recounted(deployment: Deployment, counts: PriorTable, frame: pl.DataFrame) -> None:
    """Every value of the examples is there, with what an obvious loop over all rows gives."""
    half_lives_s = deployment.settings.priors.half_lives_s
    rows: dict[int, list[tuple[float, int]]] = {}
    encoded = encode(frame, deployment.settings.fields).tolist()
    for row_keys, settled_s, click in zip(encoded, frame["settled_s"], frame["click"], strict=True):
        for key in {*row_keys} - {0}:
            rows.setdefault(key, []).append((settled_s, click))
    assert counts.keys.tolist() == sorted(rows)
    for key, n, c in zip(counts.keys.tolist(), counts.n.tolist(), counts.c.tolist(), strict=True):
        weights = [[2.0 ** ((s - counts.as_of_s) / half) for half in half_lives_s] for s, _ in rows[key]]
        expected_n = [sum(weight[h] for weight in weights) for h in range(len(half_lives_s))]
        expected_c = [
            sum(weight[h] * click for weight, (_, click) in zip(weights, rows[key], strict=True))
            for h in range(len(half_lives_s))
        ]
        np.testing.assert_allclose(n, expected_n, rtol=1e-9)
        np.testing.assert_allclose(c, expected_c, rtol=1e-9)
    assert len(rows) > 100
