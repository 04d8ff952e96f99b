"""A creative ranker beside, before and behind the ad ranker: everybody sees what they like, and late ones are out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from prometheus_client import CollectorRegistry

from features.fields import Field
from infra.metrics import ServeMetrics
from models.click_task import ClickTask
from models.prerank.inputs import creative_fields
from models.prerank.task import PrerankTask, exposed_rows
from models.registry import Registry
from models.serving.catalog import Catalog
from models.serving.pipeline import Pipeline, Rules
from models.serving.prerank import Preranker
from models.serving.rank import Scorer
from models.serving.refresh import PrerankRefresher
from models.serving.schema import RankAnswer, Served
from models.snapshot import Snapshot
from models.swap import Holder
from models.update import Learner
from models.window import Slide
from tests.fakes import EventLog
from tests.models.serving.trained import PLAN

FIELDS = (Field("user_id", "user"), Field("ad", "item"), Field("image", "creative"), Field("animal", "creative"))
NOW_S = 9_000.0
ADS = [f"ad{number}" for number in range(6)]
ANIMALS = ("cat", "dog", "cow")
LIKES = {0: "cat", 1: "dog"}  # by the user's number, even or odd


@functools.cache
def snapshots() -> tuple[Snapshot, ...]:
    """Return what has learnt who clicks on which animal, slide by slide."""
    plan = dataclasses.replace(
        PLAN,
        fields=creative_fields(FIELDS),
        family="creatives",
        network="two-tower-exposed",
        hidden=(16, 8),
        levels=(),
        prior="frozen",
        ways=(),
        learning_rate=0.01,
        embedding_learning_rate=0.3,
        batch_rows=64,
        rows_max=0,
    )
    learner, found = Learner(PrerankTask(plan, gate_penalty=0.0)), []
    rng = np.random.default_rng(0)
    for index in range(4):
        n_rows = 4000
        user, ad, animal = (rng.integers(0, end, n_rows) for end in (20, len(ADS), len(ANIMALS)))
        likes = np.array([LIKES[one % 2] == ANIMALS[two] for one, two in zip(user, animal, strict=True)])
        frame = pl.DataFrame(
            {
                "request_id": [f"{index}-{row}" for row in range(n_rows)],
                "position": np.zeros(n_rows, np.int64),
                "kind": ["exposed"] * n_rows,
                "settled_s": 1000.0 * index + np.sort(rng.random(n_rows)) * 1000.0,
                "click": (rng.random(n_rows) < np.where(likes, 0.6, 0.05)).astype(np.int8),
                "source_partition": np.zeros(n_rows, np.int32),
                "source_offset": np.arange(n_rows),
                "field.user_id": [f"u{one}" for one in user],
                "field.ad": [ADS[one] for one in ad],
                "field.image": [f"{ADS[one]}-{ANIMALS[two]}" for one, two in zip(ad, animal, strict=True)],
                "field.animal": [ANIMALS[one] for one in animal],
            }
        )
        learner.learn(Slide(index, 1000.0 * index, 1000.0 * (index + 1), exposed_rows(frame)))
        found.append(learner.latest)
    return tuple(found)


def catalog() -> Catalog:
    found = Catalog(FIELDS)
    for ad in ADS:
        creatives = [{"creative_id": f"{ad}-{one}", "values": {"animal": one}} for one in ANIMALS]
        found.put(ad, json.dumps({"ad_id": ad, "creatives": creatives}).encode())
    return found


class Ranking:
    """A pipeline on a click model that has learnt nothing, with its log and metrics."""

    def __init__(self, order: str, explore: float = 0.0, clock: Any = None) -> None:
        self.log, self.catalog = EventLog(), catalog()
        self.rankers: Holder[Preranker] = Holder()
        self.metrics = ServeMetrics(CollectorRegistry())
        holder: Holder[Scorer] = Holder()
        holder.swap(Scorer.from_snapshot(ClickTask(dataclasses.replace(PLAN, fields=FIELDS, levels=())).initial()))
        self.pipeline = Pipeline(
            FIELDS,
            holder=holder,
            prerankers=Holder(),
            creative_rankers=self.rankers,
            catalog=self.catalog,
            publish=self.log.publish,
            metrics=self.metrics,
            rules=Rules(50, 3, 50, None, explore, 0.0, order, 1.0),  # type: ignore[arg-type]
            now_s=lambda: NOW_S,
            new_id=lambda: "made-id",
            sign=lambda *_: "",
            **({"clock": clock} if clock else {}),
        )

    def hold(self) -> Preranker:
        refresher = self.refresher(Registry("memory://"))
        ranker = Preranker.from_snapshot(snapshots()[-1]).with_ads(refresher._keys_of(self.catalog.table.all_ads()))
        self.rankers.swap(ranker)
        return ranker

    def refresher(self, registry: Registry) -> PrerankRefresher:
        return PrerankRefresher(
            registry,
            self.rankers,
            self.catalog,
            self.metrics,
            "creatives",
            fields=creative_fields(FIELDS),
            samples=lambda: self.pipeline.chooser.samples.held,
        )

    async def rank(self, user: int, request_id: str = "q1") -> tuple[RankAnswer, Served]:
        body = {"request_id": request_id, "user": {"user_id": f"u{user}"}, "candidates": ADS}
        answer = await self.pipeline.rank(json.dumps(body).encode())
        served = self.log.events[-1]
        assert isinstance(served, Served)
        return answer, served


@pytest.mark.parametrize("order", ["parallel", "pre", "post"])
async def test_each_user_is_shown_the_creative_that_a_ranker_expects_them_to_click(order: str) -> None:
    ranking = Ranking(order)
    ranker = ranking.hold()
    for user in range(4):
        answer, served = await ranking.rank(user)
        assert [one.creative_id for one in answer.ads] == [f"{one.ad_id}-{LIKES[user % 2]}" for one in answer.ads]
        assert [ad.values["animal"] for ad in served.ads] == [LIKES[user % 2]] * 3
        assert (answer.creatives, answer.degraded) == (ranker.version, [])
        assert {one.propensity for one in answer.ads} == {1.0}


@pytest.mark.parametrize("order", ["parallel", "pre", "post"])
async def test_an_ad_is_not_said_to_be_served_with_the_probability_of_another_creative(order: str) -> None:
    ranking = Ranking(order)
    by_prior = [one.creative_id for one in (await ranking.rank(0))[0].ads]
    ranking.hold()
    kept = 0
    for user in range(2):
        answer, served = await ranking.rank(user)
        is_scored = [order == "pre" or ad.creative_id in by_prior for ad in answer.ads]
        assert served.pctrs == [ad.pctr if is_so else None for ad, is_so in zip(answer.ads, is_scored, strict=True)]
        kept += sum(is_scored)
    assert kept == 6 if order == "pre" else kept < 6


async def test_without_a_ranker_the_prior_chooses_for_everybody_alike() -> None:
    ranking = Ranking("parallel")
    one, other = (await ranking.rank(0))[0], (await ranking.rank(1))[0]
    assert [ad.creative_id for ad in one.ads] == [ad.creative_id for ad in other.ads]
    assert one.creatives == "prior"


@pytest.mark.parametrize("order", ["parallel", "pre", "post"])
async def test_other_creatives_are_tried_as_often_as_the_propensity_says(order: str) -> None:
    ranking = Ranking(order, explore=0.6)
    ranking.hold()
    shown = [ad for number in range(120) for ad in (await ranking.rank(0, f"q{number}"))[0].ads]
    is_best = np.array([ad.creative_id.endswith("cat") for ad in shown])
    assert is_best.mean() == pytest.approx(0.6, abs=0.08)
    assert [ad.propensity for ad in shown] == pytest.approx(np.where(is_best, 0.6, 0.2))


@pytest.mark.parametrize("order", ["parallel", "post"])
async def test_a_creative_is_drawn_independently_of_the_one_that_its_ad_was_scored_with(order: str) -> None:
    """Else the first draw, which decides who is shown, would decide the second, and no propensity would hold."""
    by_prior, by_ranker = Ranking(order, explore=1.0), Ranking(order, explore=1.0)
    by_ranker.hold()
    is_same = []
    for number in range(120):
        scored, shown = [(await one.rank(0, f"q{number}"))[0].ads for one in (by_prior, by_ranker)]
        is_same += [one.creative_id == other.creative_id for one, other in zip(scored, shown, strict=True)]
    assert np.mean(is_same) == pytest.approx(1.0 / len(ANIMALS), abs=0.08)


@pytest.mark.parametrize("order", ["parallel", "post"])
async def test_a_ranker_that_comes_too_late_is_left_out_said_and_counted(order: str) -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 0.6
        return now_s

    ranking = Ranking(order, clock=clock)
    by_prior = [ad.creative_id for ad in (await Ranking(order).rank(0))[0].ads]
    ranking.hold()
    if order == "parallel":
        ranking.pipeline.chooser._scores = never_ready(ranking.pipeline)  # type: ignore[method-assign]
    answer, _ = await ranking.rank(0)
    assert answer.creatives == "prior"
    assert "creatives" in answer.degraded
    assert [ad.creative_id for ad in answer.ads] == by_prior
    assert ranking.metrics.registry.get_sample_value("freshrank_rank_degraded_total", {"part": "creatives"}) == 1.0


def never_ready(pipeline: Pipeline) -> Any:
    def wait(*_: Any) -> Any:
        time.sleep(0.5)
        return pipeline

    return wait


async def test_what_nobody_waits_for_any_more_is_not_worked_on_either() -> None:
    """Else, once rankers are late, each request would make the next one later."""
    n_begun, is_over = 0, threading.Event()

    def wait(*_: Any) -> Any:
        nonlocal n_begun
        n_begun += 1
        is_over.wait(10.0)
        return []

    ranking = Ranking("parallel", clock=itertools.count(0.0, 0.6).__next__)
    ranking.hold()
    chooser = ranking.pipeline.chooser
    chooser._scores = wait  # type: ignore[method-assign]
    for number in range(5):
        assert "creatives" in (await ranking.rank(0, f"q{number}"))[0].degraded
    is_over.set()
    chooser._beside.shutdown(wait=True)
    assert n_begun <= 1


async def test_halves_of_creatives_follow_the_catalog(tmp_path: Path) -> None:
    ranking, registry = Ranking("post"), Registry(str(tmp_path))
    registry.save(snapshots()[-1], {})
    refresher = ranking.refresher(registry)
    ranking.catalog.take_changed()
    assert await refresher.bring_in(snapshots()[-1].version)
    first = ranking.rankers.current
    assert first is not None
    assert len(first.numbers) == len(ADS) * len(ANIMALS)
    gone = {number for ad in ("ad0", "ad1") for number in numbers_of(ranking, ad)}
    record = {"ad_id": "ad0", "creatives": [{"creative_id": "new", "values": {"animal": "dog"}}]}
    ranking.catalog.put("ad0", json.dumps(record).encode())
    ranking.catalog.put("ad1", None)
    await refresher.apply_ads(ranking.catalog.take_changed())
    second = ranking.rankers.current
    assert second is not None
    assert len(gone) == 2 * len(ANIMALS)
    (new,) = numbers_of(ranking, "ad0")
    assert {*second.numbers.tolist()} == {*first.numbers.tolist()} - gone | {new}
    assert (await ranking.rank(1))[0].creatives == snapshots()[-1].version


def numbers_of(ranking: Ranking, ad_id: str) -> list[int]:
    held = ranking.catalog.table.get(ad_id)
    assert held is not None
    numbers: list[int] = held.creative_numbers.tolist()
    return numbers
