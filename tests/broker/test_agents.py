"""The agents over blocks: killed at any moment, counts equal a slow recount and digests a backtest's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.broker import BrokerInfo
from stream.announcement import decode_announcement
from stream.backtest import run_backtest
from stream.events import Request, decode_event
from stream.logs.ads import read_ads
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.partitioner import murmur2_partition
from tests.broker.deployment import Deployment, deploy, deploy_cascade, until
from tests.broker.test_serve import eventually, exports, serving

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


@pytest.mark.slow
async def test_every_family_learns_what_a_backtest_learns_also_when_the_trainer_is_killed(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    servers, creatives = broker.bootstrap_servers, 'network = "exposed-only"'
    some = deploy_cascade(tmp_path, servers, topic_prefix, hours=6, slide_s=SLIDE_S, creatives=creatives)
    result = run_backtest(some.settings, read_arrivals(some.settings, [some.data_dir], RowCounts()))
    kinds = {"prerank": "prerank", "creatives": "creatives", "ctr": "windows"}
    expected = {
        family: [(one["slide"], one["champion_version"], one["latest_version"]) for one in result[key]]
        for family, key in kinds.items()
    }
    assert min(map(len, expected.values())) >= 8
    await some.replay()
    with some.role("worker", "ledger"):
        with some.role("worker", "train") as process:
            await until(some.announced(3, "prerank"), 60.0)
            process.kill()
            process.wait()
        with some.role("worker", "train"):
            for family, slides in expected.items():
                await until(some.announced(len(slides), family), 90.0)
    records = [decode_announcement(record.value or b"") for record in await some.read("snapshots", 0)]
    for family, slides in expected.items():
        assert [(one.slide, one.champion, one.latest) for one in records if one.family == family] == slides
    assert result["prerank"][-1]["latest"]["auc"] > 0.7
    assert result["creatives"][-1]["latest"]["auc"] > 0.6


@pytest.mark.slow
async def test_what_the_pre_ranker_learnt_serves_and_what_it_served_is_what_it_learns_from(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    servers, creatives = broker.bootstrap_servers, 'network = "exposed-only"'
    some = deploy_cascade(tmp_path, servers, topic_prefix, hours=4, slide_s=SLIDE_S, creatives=creatives)
    await some.replay()
    ads = read_ads(some.settings.log, some.settings.fields, [some.data_dir]).ads  # type: ignore[arg-type]
    with some.role("worker", "ledger"), some.role("worker", "train"):
        for family in ("prerank", "creatives", "ctr"):
            await until(some.announced(4, family), 90.0)
    said = [decode_announcement(record.value or b"") for record in await some.read("snapshots", 0)]
    champion = {one.family: one.champion for one in said}
    async with serving(some.settings, broker) as client:
        for task in ("prerank", "creatives"):
            swapped = f'swaps_total{{outcome="swapped",task="{task}"}} 1.0'
            await eventually(lambda swapped=swapped: exports(client, swapped))
        body = {"request_id": "q1", "user": {"user_id": "1", "age": "2"}, "candidates": list(ads)[:300], "top": 10}
        answer = (await client.post("/v1/rank", json=body)).json()
    assert (answer["prerank"], answer["creatives"]) == (champion["prerank"], champion["creatives"])
    assert [ad["bid_micros"] for ad in answer["ads"]] == [ads[ad["ad_id"]].bid_micros for ad in answer["ads"]]
    partition = murmur2_partition(b"q1", some.cluster.partitions)
    *_, last = [decode_event(record.value) for record in await some.read("events", partition)]
    assert isinstance(last, Request)
    stages = [(one.stage, one.sample_rate) for one in last.candidates]
    assert stages[:200] == [("exposed", 1.0)] * 10 + [("rank_neg", 1.0)] * 190
    assert {*stages[200:]} == {("prerank_neg", 0.1)}
    assert [one.ad_id for one in last.candidates[:10]] == [ad["ad_id"] for ad in answer["ads"]]
    assert last.candidates[0].values["advertiser_id"]
    for ad, logged in zip(answer["ads"], last.candidates[:10], strict=True):
        creatives = [one.creative_id for one in ads[ad["ad_id"]].creatives]
        assert ad["creative_id"] in creatives
        assert ad["propensity"] in (pytest.approx(0.1 / len(creatives)), pytest.approx(0.9 + 0.1 / len(creatives)))
        assert logged.values["creative_id"] == ad["creative_id"]
