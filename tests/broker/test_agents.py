"""The agents over blocks: killed at any moment, counts equal a slow recount and digests a backtest's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.encode import encode
from infra.broker import BrokerInfo
from stream.announcement import decode_announcement
from stream.backtest import run_backtest
from stream.blocks import decode_block, decode_prior_update
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from tests.broker.deployment import Deployment, deploy, until

ROWS = 12_000
SLIDE_S = 1800.0


@pytest.fixture
async def settled(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> Deployment:
    """A deployment whose whole log stands in `examples`."""
    deployment = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=ROWS, slide_s=SLIDE_S)
    await deployment.replay()
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()
    return deployment


@pytest.mark.slow
async def test_kill_9_of_the_trainer_leaves_the_digests_of_a_backtest(settled: Deployment) -> None:
    arrivals = read_arrivals(settled.settings, [settled.data_dir], RowCounts())
    windows = run_backtest(settled.settings, arrivals)["windows"]
    expected = [(one["slide"], one["champion_version"], one["latest_version"]) for one in windows]
    for n_slides in (1, len(expected) // 2):
        with settled.role("worker", "train") as process:
            await until(settled.announced(n_slides), 60.0)
            process.kill()
            process.wait()
    with settled.role("worker", "train"):
        await until(settled.announced(len(expected)), 90.0)
    records = [decode_announcement(record.value or b"") for record in await settled.read("snapshots", 0)]
    assert [(one.slide, one.champion, one.latest) for one in records] == expected


@pytest.mark.slow
async def test_second_trainer_of_a_family_exits_and_says_why(settled: Deployment) -> None:
    with settled.role("worker", "train") as first:
        await until(settled.announced(1), 60.0)
        with settled.role("worker", "train") as second:
            assert await asyncio.to_thread(second.wait, 60.0) == 1
        assert first.poll() is None
    assert "one trainer per model family" in settled.log("train")


async def test_kill_9_of_the_priors_leaves_the_counts_of_a_slow_recount(settled: Deployment) -> None:
    with settled.role("worker", "priors") as process:
        await until(published(settled), 60.0)
        process.kill()
        process.wait()
    with settled.role("worker", "priors"):
        await until(caught_up(settled), 60.0)
    keys, at_s, n, c = await last_published(settled)
    expected_n, expected_c = await recount(settled, keys, at_s)
    np.testing.assert_allclose(n, expected_n, rtol=1e-9)
    np.testing.assert_allclose(c, expected_c, rtol=1e-9)
    assert len(keys) > 100


async def published(deployment: Deployment) -> AsyncIterator[bool]:
    while True:
        yield bool(await deployment.read("prior-updates", 0))


async def caught_up(deployment: Deployment) -> AsyncIterator[bool]:
    newest_s = float(max((await examples(deployment))["settled_s"]))
    while True:
        records = await deployment.read("prior-updates", 0)
        yield any(decode_prior_update(record.value or b"").at_s >= newest_s for record in records)


async def examples(deployment: Deployment) -> pl.DataFrame:
    frames = [
        decode_block(record.value or b"")[1]
        for partition in range(deployment.cluster.partitions)
        for record in await deployment.read("examples", partition)
    ]
    return pl.concat(frames)


Published = tuple[list[int], list[float], list[list[float]], list[list[float]]]


async def last_published(deployment: Deployment) -> Published:
    """The newest publication of each key: keys, their moments and their counts."""
    newest: dict[int, tuple[float, list[float], list[float]]] = {}
    for record in await deployment.read("prior-updates", 0):
        update = decode_prior_update(record.value or b"")
        for key, n, c in zip(update.keys.tolist(), update.n.tolist(), update.c.tolist(), strict=True):
            newest[key] = (update.at_s, n, c)
    at_s, n, c = zip(*newest.values(), strict=True)
    return list(newest), list(at_s), list(n), list(c)


async def recount(
    deployment: Deployment, keys: list[int], at_s: list[float]
) -> tuple[list[list[float]], list[list[float]]]:
    """The same counts by an obvious loop over all rows."""
    frame = await examples(deployment)
    rows: dict[int, list[tuple[float, int]]] = {}
    encoded = encode(frame, deployment.settings.fields).tolist()
    for row_keys, settled_s, click in zip(encoded, frame["settled_s"], frame["click"], strict=True):
        for key in row_keys:
            rows.setdefault(key, []).append((settled_s, click))
    n, c = [], []
    for key, moment_s in zip(keys, at_s, strict=True):
        halves = deployment.settings.priors.half_lives_s
        n.append([sum(2.0 ** ((s - moment_s) / half) for s, _ in rows[key]) for half in halves])
        c.append([sum(click * 2.0 ** ((s - moment_s) / half) for s, click in rows[key]) for half in halves])
    return n, c
