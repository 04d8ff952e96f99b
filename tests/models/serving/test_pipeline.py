"""One request: ranked by the scorer it began with, and in the log before its answer leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.encode import encode
from features.live_priors import PublishedCounts
from models.serving.pipeline import Unavailable
from models.serving.rank import Scorer
from models.serving.schema import Ad, ClientEvent, Rejected, Served
from tests.models.serving.asked import candidate_frame
from tests.models.serving.service import BODY, NOW_S, Service, ready_service
from tests.models.serving.test_rank import update_from
from tests.models.serving.trained import FIELDS, PLAN, two_snapshots


def body(**changed: Any) -> bytes:
    return json.dumps({**BODY, **changed}).encode()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return ready_service(tmp_path)


async def test_the_log_says_what_each_ad_that_is_shown_was_served_with(service: Service) -> None:
    scorer = service.holder.current
    assert scorer is not None
    at_s = scorer.table.as_of_s + 5.0
    answers = [await service.pipeline.rank(body())]
    update = dataclasses.replace(update_from(scorer.table), at_s=at_s)
    service.holder.swap(
        scorer.with_live_counts(PublishedCounts.empty(PLAN.half_lives_s, len(FIELDS)).updated([update]))
    )
    answers.append(await service.pipeline.rank(body(request_id="q2")))
    logged = [event for event in service.log.events if isinstance(event, Served)]
    assert [one.pctrs for one in logged] == [[ad.pctr for ad in one.ads] for one in answers]
    assert [one.counts_s for one in logged] == [None, at_s]


async def test_the_answer_holds_the_best_ads_in_order_with_their_snapshot(service: Service) -> None:
    answer = await service.pipeline.rank(body())
    ads = [Ad(f"ad{i}", {"ad": f"ad{i}", "tags": [f"t{i % 2}", f"t{i % 5}"]}) for i in range(20)]
    frame = candidate_frame(FIELDS, {"user_id": "u1", "age": 30.0, "hour": 12.0}, ads)
    scores = Scorer.from_snapshot(two_snapshots()[0]).score(encode(frame, FIELDS), NOW_S)
    assert answer.snapshot == two_snapshots()[0].version
    assert [ad.ad_id for ad in answer.ads] == [f"ad{i}" for i in np.argsort(-scores, kind="stable")[:5]]
    assert [ad.position for ad in answer.ads] == [0, 1, 2, 3, 4]
    assert [ad.pctr for ad in answer.ads] == pytest.approx(sorted(scores, reverse=True)[:5])
    assert all(ad.known and ad.propensity == 1.0 for ad in answer.ads)
    assert answer.degraded == []


async def test_what_was_shown_and_on_which_values_is_in_the_log(service: Service) -> None:
    answer = await service.pipeline.rank(body(top=2, user={"user_id": 1, "shoe": 42}))
    (event,) = service.log.events
    assert isinstance(event, Served)
    assert (event.request_id, event.time_s, event.snapshot) == ("q1", NOW_S, answer.snapshot)
    assert event.values == {"user_id": "1", "hour": 12.0}
    assert [ad.ad_id for ad in event.ads] == [ad.ad_id for ad in answer.ads]
    assert event.ads[0].values["ad"] == event.ads[0].ad_id
    assert answer.ignored_fields == ["user.shoe"]


async def test_an_unknown_ad_is_ranked_by_its_id_and_marked(service: Service) -> None:
    answer = await service.pipeline.rank(body(candidates=["ad2", "never-seen"]))
    assert {ad.ad_id: ad.known for ad in answer.ads} == {"ad2": True, "never-seen": False}


async def test_an_inactive_ad_is_left_out(service: Service) -> None:
    service.catalog.put("ad2", b'{"ad_id": "ad2", "active": false}')
    answer = await service.pipeline.rank(body(candidates=["ad2", "ad3"]))
    assert ([ad.ad_id for ad in answer.ads], answer.inactive) == (["ad3"], ["ad2"])


async def test_a_request_that_shows_nothing_writes_nothing(service: Service) -> None:
    service.catalog.put("ad2", b'{"ad_id": "ad2", "active": false}')
    answer = await service.pipeline.rank(body(candidates=["ad2"]))
    assert (answer.ads, service.log.events) == ([], [])


async def test_a_missing_request_id_is_made(service: Service) -> None:
    answer = await service.pipeline.rank(json.dumps({"candidates": ["ad1"]}).encode())
    assert answer.request_id == "made-id"


async def test_without_a_snapshot_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await Service(tmp_path).pipeline.rank(body())
    assert caught.value.part == "snapshot"


async def test_a_request_that_cannot_be_logged_is_not_answered(service: Service) -> None:
    service.log.is_away = True
    with pytest.raises(Unavailable):
        await service.pipeline.rank(body())


async def test_a_refused_body_writes_nothing(service: Service) -> None:
    with pytest.raises(Rejected):
        await service.pipeline.rank(b"{}")
    assert service.log.events == []


async def test_a_request_keeps_the_scorer_it_began_with(service: Service) -> None:
    is_waiting, may_go = asyncio.Event(), asyncio.Event()

    async def wait(event: Served | ClientEvent) -> None:
        is_waiting.set()
        await may_go.wait()
        await service.log.publish(event)

    service.pipeline._publish = wait
    asked = asyncio.create_task(service.pipeline.rank(body()))
    await is_waiting.wait()
    service.holder.swap(Scorer.from_snapshot(two_snapshots()[1]))
    may_go.set()
    answer = await asked
    (event,) = service.log.events
    assert isinstance(event, Served)
    assert answer.snapshot == event.snapshot == two_snapshots()[0].version


async def test_who_is_scored_hears_of_the_log_before_all_others_are_scored(service: Service) -> None:
    said: list[str] = []

    async def publish(event: Served | ClientEvent) -> None:
        said.append(f"{event.request_id} scored")
        for _ in range(3):  # as many turns of the loop as a client of the log may need
            await asyncio.sleep(0)
        said.append(f"{event.request_id} written")

    service.pipeline._publish = publish
    await asyncio.gather(*(service.pipeline.rank(body(request_id=f"q{number}")) for number in range(10)))
    assert said.index("q0 written") < said.index("q9 scored")
    assert [one for one in said if one.endswith("scored")] == [f"q{number} scored" for number in range(10)]


async def test_ads_that_change_while_a_request_waits_are_as_they_are_when_it_is_scored(service: Service) -> None:
    async with service.pipeline._turn:
        asked = asyncio.create_task(service.pipeline.rank(body(candidates=["ad3", "ad4"])))
        for _ in range(3):
            await asyncio.sleep(0)
        service.catalog.put("ad3", None)
        service.catalog.put("another", b'{"ad_id": "another", "values": {"tags": ["t9"]}, "bid_micros": 9000000}')
    answer = await asked
    served = service.log.events[-1]
    assert isinstance(served, Served)
    assert {one.ad_id: one.known for one in answer.ads} == {"ad3": False, "ad4": True}
    assert {one.ad_id: one.bid_micros for one in answer.ads}["ad3"] == 1_000_000
    assert {one.ad_id: one.values for one in served.ads}["ad3"] == {"ad": "ad3"}
