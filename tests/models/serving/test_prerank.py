"""From many candidates to few: by a pre-ranker's snapshot or by the prior, the same wherever an ad's half was made."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from features.encode import Keys, ValueEncoder, field_key
from models.prerank.inputs import prerank_fields
from models.prerank.task import PrerankTask, chain_rows
from models.serving.ad_table import NO_NUMBER
from models.serving.pipeline import Pipeline, Rules
from models.serving.prerank import Preranker, prior_rates
from models.serving.refresh import PrerankRefresher
from models.serving.schema import NamedAd, RankAnswer, Served
from models.serving.users import Users
from models.snapshot import Snapshot
from models.update import Learner
from models.window import Slide
from tests.models.serving.asked import candidate_frame
from tests.models.serving.service import BODY, NOW_S, Service, ready_service
from tests.models.serving.test_refresh import spoil, spoilt_for
from tests.models.serving.trained import FIELDS, PLAN, two_snapshots

N_ADS = 20
VALUES: dict[str, Any] = {"user_id": "u1", "age": 30.0, "hour": 12.0}
READ = prerank_fields(FIELDS)
RULES = Rules(
    candidates_max=50,
    top=3,
    keep=6,
    sample_rate=0.5,
    explore=0.0,
    explore_ads=0.0,
    creatives="parallel",
    deadline_s=60.0,
)


def ad(number: int) -> NamedAd:
    return NamedAd(f"ad{number}", {"ad": f"ad{number}", "tags": [f"t{number % 2}", f"t{number % 5}"]})


@functools.cache
def prerank_snapshots() -> tuple[Snapshot, Snapshot]:
    """Snapshots after one slide and after two; what is exposed has a high number."""
    plan = dataclasses.replace(
        PLAN, fields=READ, family="prerank", network="ecm", hidden=(8, 4), levels=(), prior="frozen", ways=()
    )
    learner = Learner(PrerankTask(dataclasses.replace(plan, learning_rate=0.02), gate_penalty=0.0))
    found = []
    for index in (1, 2):
        rng = np.random.default_rng(index)
        request, number = np.divmod(np.arange(100 * N_ADS), N_ADS)
        settled_s = 1000.0 * index + 1.0 + request
        frame = pl.DataFrame(
            {
                "request_id": [f"r{one}" for one in request],
                "candidate": number.astype(np.int32),
                "time_s": settled_s - 1.0,
                "settled_s": settled_s,
                "label": np.where(number + rng.normal(0.0, 3.0, len(number)) > 15, "exposed", "unexposed"),
                "sample_rate": np.ones(len(number)),
                "source_partition": np.zeros(len(number), np.int32),
                "source_offset": request,
                "field.user_id": [f"u{one % 7}" for one in request],
                "field.age": (20.0 + request % 40).astype(np.float64),
                "field.hour": np.full(len(number), 12.0),
                "field.ad": [f"ad{one}" for one in number],
                "field.tags": [ad(int(one)).values["tags"] for one in number],
            }
        )
        learner.learn(Slide(index, 1000.0 * index, 1000.0 * (index + 1), chain_rows(frame)))
        found.append(learner.latest)
    return found[0], found[1]


OF_REQUEST = ValueEncoder([field for field in READ if field.side != "item"])
OF_AD = ValueEncoder([field for field in READ if field.side == "item"])


def keys_of(one: NamedAd) -> Keys:
    return OF_AD.keys(one.values)


def scores(preranker: Preranker, ads: list[NamedAd], *, known: bool = True) -> np.ndarray:
    numbers = np.array([number_of(one.ad_id) if known else NO_NUMBER for one in ads], np.int64)
    return preranker.score(OF_REQUEST.keys(VALUES), numbers, lambda at: np.stack([keys_of(ads[place]) for place in at]))


def number_of(ad_id: str) -> int:
    return int(ad_id.removeprefix("ad"))


def test_scores_are_those_of_the_task_that_learnt_it() -> None:
    snapshot = prerank_snapshots()[1]
    ads = [ad(number) for number in range(N_ADS)]
    frame = candidate_frame(READ, VALUES, ads).with_columns(
        request_id=pl.lit("r"), label=pl.lit("exposed"), sample_rate=pl.lit(1.0), settled_s=pl.lit(3000.0)
    )
    task = PrerankTask(dataclasses.replace(PLAN, fields=READ, network="ecm"), gate_penalty=0.0)
    expected = task.score(task.read(Slide(3, 0.0, 1.0, frame), snapshot), snapshot).scores
    found = scores(Preranker.from_snapshot(snapshot).with_ads({number_of(one.ad_id): keys_of(one) for one in ads}), ads)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.corrcoef(found, np.arange(N_ADS))[0, 1] > 0.8


def test_an_ads_half_is_the_same_from_the_catalog_and_from_the_request() -> None:
    ads = [ad(number) for number in range(N_ADS)]
    bare = Preranker.from_snapshot(prerank_snapshots()[0])
    held = bare.with_ads({number_of(one.ad_id): keys_of(one) for one in ads[::2]})
    np.testing.assert_allclose(scores(held, ads), scores(bare, ads), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scores(held, ads, known=False), scores(bare, ads), rtol=1e-6, atol=1e-6)
    assert scores(held, []).shape == (0,)


def test_ads_change_and_go_and_what_held_them_before_does_not_notice() -> None:
    before = Preranker.from_snapshot(prerank_snapshots()[0]).with_ads({n: keys_of(ad(n)) for n in range(N_ADS)})
    first, changed = scores(before, [ad(0), ad(1)]), NamedAd("ad0", ad(19).values)
    after = before.with_ads({0: keys_of(changed), 1: None})
    assert scores(after, [ad(0)])[0] == pytest.approx(scores(before, [changed], known=False)[0], abs=1e-6)
    np.testing.assert_array_equal(scores(before, [ad(0), ad(1)]), first)
    np.testing.assert_allclose(scores(after, [ad(5), ad(7)]), scores(before, [ad(5), ad(7)]))
    assert scores(after, [NamedAd("ad1", ad(19).values)])[0] == pytest.approx(scores(before, [ad(19)])[0], abs=0.5)


def test_the_prior_orders_ads_by_their_clicks_and_gives_new_ones_the_overall_rate() -> None:
    table = two_snapshots()[1].priors
    ids = [f"ad{number}" for number in range(N_ADS)]
    rates = prior_rates(table, FIELDS, id_keys(*ids, "never-seen"), NOW_S)
    assert ((rates > 0.0) & (rates < 1.0)).all()
    root = (table.root_c[-1] + 1.0) / (table.root_n[-1] + 2.0)
    assert rates[-1] == pytest.approx(root, rel=0.05)
    assert len({*rates.round(6)}) > 5


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = ready_service(tmp_path)
    service.pipeline = narrow(service)
    return service


def narrow(service: Service, clock: Any = None, users: Users | None = None, **changed: Any) -> Pipeline:
    """Return a pipeline that ranks fewer candidates than it is asked for."""
    return Pipeline(
        FIELDS,
        holder=service.holder,
        prerankers=service.prerankers,
        creative_rankers=service.creative_rankers,
        catalog=service.catalog,
        publish=service.log.publish,
        metrics=service.metrics,
        rules=msgspec.structs.replace(RULES, **changed),
        now_s=lambda: NOW_S,
        new_id=lambda: "made-id",
        sign=lambda *_: "",
        users=users,
        **({"clock": clock} if clock else {}),
    )


def id_keys(*ids: str) -> Keys:
    (item,) = (field for field in FIELDS if field.name == "ad")
    return np.array([field_key(item, ad_id) for ad_id in ids], np.uint64)


def hold(service: Service) -> Preranker:
    preranker = Preranker.from_snapshot(prerank_snapshots()[1]).with_ads(
        {held.number: held.keys for held in service.catalog.table.all_ads().values() if held}
    )
    service.prerankers.swap(preranker)
    return preranker


async def rank(service: Service, **changed: Any) -> tuple[RankAnswer, Served]:
    answer = await service.pipeline.rank(json.dumps({**BODY, **changed}).encode())
    served = service.log.events[-1]
    assert isinstance(served, Served)
    return answer, served


def ids_of(ads: list[bytes]) -> list[str]:
    return [json.loads(one + b"}")["ad_id"] for one in ads]


def shown_or_ranked(served: Served) -> list[str]:
    return [*(one.ad_id for one in served.ads), *ids_of(served.ranked)]


async def test_only_the_pre_rankers_best_are_ranked_and_the_record_says_what_became_of_all(service: Service) -> None:
    preranker = hold(service)
    answer, served = await rank(service, request_id="q7")
    best = np.argsort(-scores(preranker, [ad(number) for number in range(N_ADS)]), kind="stable")[:6]
    ranked = {*shown_or_ranked(served)}
    assert ranked == {f"ad{number}" for number in best}
    assert answer.prerank == preranker.version
    assert [one.ad_id for one in served.ads] == [one.ad_id for one in answer.ads]
    assert 0 < len(served.sampled) < N_ADS - 6
    assert not ranked & {*ids_of(served.sampled)}
    assert served.sample_rate == 0.5
    again = (await rank(service, request_id="q7"))[1]
    assert again.sampled == served.sampled, "a retry of the same request draws the same"


async def test_few_candidates_are_all_ranked_and_none_is_sampled(service: Service) -> None:
    hold(service)
    answer, served = await rank(service, candidates=["ad1", "ad2", "ad3", "ad4"])
    assert (answer.prerank, len(served.ads), len(served.ranked), served.sampled) == ("", 3, 1, [])


async def test_without_a_pre_ranker_the_prior_chooses_and_the_answer_says_so(service: Service) -> None:
    answer, served = await rank(service)
    rates = prior_rates(service.holder.current.table, FIELDS, id_keys(*(f"ad{n}" for n in range(N_ADS))), NOW_S)  # type: ignore[union-attr]
    best = {f"ad{number}" for number in np.argsort(-rates, kind="stable")[:6]}
    assert answer.prerank == "prior"
    assert {*shown_or_ranked(served)} == best
    assert answer.degraded == []


async def test_where_nothing_learns_from_it_the_record_holds_what_was_shown(service: Service) -> None:
    service.pipeline = narrow(service, sample_rate=None)
    served = (await rank(service))[1]
    assert (len(served.ads), served.ranked, served.sampled) == (3, [], [])


async def test_more_are_ranked_when_more_are_asked_for(service: Service) -> None:
    hold(service)
    assert len((await rank(service, top=10))[0].ads) == 10


class Clock:
    """Seconds that pass with each look."""

    def __init__(self, step_s: float) -> None:
        self._now_s, self._step_s = 0.0, step_s

    def __call__(self) -> float:
        self._now_s += self._step_s
        return self._now_s


@pytest.mark.parametrize(
    ("step_s", "degraded", "prerank"),
    [(0.001, [], True), (0.4, ["rank"], True), (0.6, ["prerank", "rank"], False), (20.0, ["prerank", "rank"], False)],
)
async def test_what_would_come_too_late_is_left_out_said_and_counted(
    service: Service, step_s: float, degraded: list[str], *, prerank: bool
) -> None:
    preranker = hold(service)
    service.pipeline = narrow(service, Clock(step_s), deadline_s=1.0)
    answer, served = await rank(service)
    assert answer.degraded == degraded
    assert answer.prerank == (preranker.version if prerank else "prior")
    assert len(answer.ads) == len(served.ads) == 3
    assert all(0.0 < one.pctr < 1.0 for one in answer.ads)
    assert served.pctrs == ([] if "rank" in degraded else [one.pctr for one in answer.ads])
    for part in ("prerank", "rank"):
        assert service.metric("freshrank_rank_degraded_total", part=part) == float(part in degraded)


async def test_ads_are_ordered_by_what_their_impressions_are_worth(service: Service) -> None:
    cheap = await rank(service, candidates=["ad1", "ad2", "ad3"])
    worst = cheap[0].ads[-1]
    value = {"ad_id": worst.ad_id, "values": ad(int(worst.ad_id[2:])).values, "bid_micros": 50_000_000}
    service.catalog.put(worst.ad_id, json.dumps(value).encode())
    answer, _ = await rank(service, candidates=["ad1", "ad2", "ad3", "never-seen"])
    assert answer.ads[0].ad_id == worst.ad_id
    assert answer.ads[0].ecpm_micros == pytest.approx(worst.pctr * 50_000_000 * 1000, rel=1e-5)
    assert [one.ecpm_micros for one in answer.ads] == sorted((one.ecpm_micros for one in answer.ads), reverse=True)
    assert {one.bid_micros for one in answer.ads[1:]} == {1_000_000}, "who says no bid bids like all others"


@pytest.fixture
def refresher(service: Service) -> PrerankRefresher:
    for snapshot in prerank_snapshots():
        service.registry.save(snapshot, {})
    return PrerankRefresher(
        service.registry,
        service.prerankers,
        service.catalog,
        service.metrics,
        "prerank",
        fields=READ,
        samples=lambda: service.pipeline.prerank_samples.held,
    )


def never_asked(_: Sequence[int]) -> Keys:
    raise AssertionError("it must be held")


async def test_a_pre_ranker_is_brought_in_with_the_catalogs_ads_and_follows_them(
    service: Service, refresher: PrerankRefresher
) -> None:
    assert await refresher.bring_in(prerank_snapshots()[0].version)
    assert service.metric("freshrank_snapshot_swaps_total", task="prerank", outcome="swapped") == 1.0
    first = service.prerankers.current
    assert first is not None
    service.catalog.put("ad0", json.dumps({"ad_id": "ad0", "values": {"tags": ["t1", "t4"]}}).encode())
    await refresher.apply_ads(service.catalog.take_changed())
    second = service.prerankers.current
    assert second is not None
    changed = NamedAd("ad0", {"ad": "ad0", "tags": ["t1", "t4"]})
    found, _ = service.catalog.resolve(["ad0"], {})
    held = second.score(OF_REQUEST.keys(VALUES), found.numbers, never_asked)
    assert held[0] == pytest.approx(scores(first, [changed], known=False)[0], abs=1e-6)
    await refresher.apply_ads(service.catalog.take_changed())
    assert service.prerankers.current is second, "nothing changed"
    assert await refresher.bring_in(prerank_snapshots()[1].version)
    assert (await rank(service))[0].prerank == prerank_snapshots()[1].version


async def test_a_pre_ranker_that_cannot_be_used_is_refused_and_the_one_before_goes_on(
    service: Service, refresher: PrerankRefresher, tmp_path: Path
) -> None:
    first, second = (snapshot.version for snapshot in prerank_snapshots())
    await refresher.bring_in(first)
    spoil(tmp_path, second)
    assert not await refresher.bring_in(second)
    assert not await refresher.bring_in(two_snapshots()[0].version), "another family's"
    assert service.prerankers.current is not None
    assert service.prerankers.current.version == first
    assert service.metric("freshrank_snapshot_swaps_total", task="prerank", outcome="refused") == 2.0


async def test_a_pre_ranker_that_fails_on_one_of_the_recent_requests_is_refused(
    service: Service, refresher: PrerankRefresher
) -> None:
    """Its row of one user is spoilt, whom only a request before the last one was from."""
    first, good = prerank_snapshots()
    await refresher.bring_in(first.version)
    for user in ("u1", "u2"):
        await rank(service, user={"user_id": user})
    (before, _), (last, _) = service.pipeline.prerank_samples.held
    bad = spoilt_for(good, before[None], last[None])
    service.registry.save(bad, {})
    assert not await refresher.bring_in(bad.version)
    assert service.prerankers.current is not None
    assert service.prerankers.current.version == first.version
    assert service.metric("freshrank_snapshot_swaps_total", task="prerank", outcome="refused") == 1.0
