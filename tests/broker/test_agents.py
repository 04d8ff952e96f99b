"""The agents over blocks: killed at any moment, counts equal a slow recount and digests a backtest's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.broker import BrokerInfo
from stream.announcement import decode_announcement
from stream.backtest import run_backtest
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


@pytest.mark.slow
async def test_an_overloaded_trainer_learns_some_of_every_slide_and_says_so(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    """What it keeps follows from the log alone: the backtest keeps the same."""
    update = "rows_max = 500"
    some = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=ROWS, slide_s=SLIDE_S, update=update)
    windows = run_backtest(some.settings, read_arrivals(some.settings, [some.data_dir], RowCounts()))["windows"]
    await some.replay()
    with some.role("worker", "ledger"), some.role("worker", "train"):
        await until(some.announced(len(windows)), 120.0)
    found = [decode_announcement(record.value or b"") for record in await some.read("snapshots", 0)]
    assert [(one.slide, one.latest, one.left_out) for one in found] == [
        (one["slide"], one["latest_version"], one["left_out"]) for one in windows
    ]
    assert max(one.left_out for one in found) > 500
    assert f"{windows[1]['left_out']} of {windows[1]['rows']} rows left out" in some.log("train")
