"""People at a service that notes what it is told: what is asked and reported, when, and what the other arms show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from freshrank.client import AsyncClient
from models.serving.schema import RankAnswer, RankedAd
from stream.audience import Audience
from stream.blocks import Counts
from stream.cascade import Cascade, Funnel, Hour
from stream.demo.arms import ARMS, HourTally
from stream.demo.visitors import Visitors, missing
from stream.events import Tick, decode_event
from stream.simulate import HOUR_S, START_S

PLACES = 4


class OldService:
    """Likes ads with a high number, each with its first creative, whoever asks."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, body: bytes) -> RankAnswer:
        asked = json.loads(body)
        self.asked.append(asked)
        best = sorted(asked["candidates"], key=int, reverse=True)[: asked["top"]]
        return RankAnswer(asked["request_id"], "m-0", [ranked(ad, place) for place, ad in enumerate(best)])


def ranked(ad_id: str, place: int) -> RankedAd:
    return RankedAd(ad_id, place, 0.1, True, bid_micros=1, ecpm_micros=1.0, creative_id=f"{ad_id}-0")


class Ticks:
    """The topic `events`, for ticks."""

    n_partitions = 3

    def __init__(self) -> None:
        self.told: list[bytes] = []

    async def put_everywhere(self, value: bytes) -> None:
        self.told.append(value)

    async def finish(self) -> None:
        pass


class Service:
    """Answers with the first candidates, and keeps what it was sent; can refuse events."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.reports: list[list[dict[str, Any]]] = []
        self.refuses = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/events":
            self.reports.append(body)
            results = [{"accepted": True} for _ in body]
            if self.refuses:
                results[0] = {"accepted": False, "error": {"what": "time_s", "rule": "must be", "got": "1"}}
            n_refused = int(self.refuses)
            return httpx.Response(
                200, json={"accepted": len(body) - n_refused, "rejected": n_refused, "results": results}
            )
        self.asked.append(body)
        shown = body["candidates"][: body["top"]]
        ads = [{"ad_id": ad, "position": i, "pctr": 0.1, "known": True, "token": f"t{i}"} for i, ad in enumerate(shown)]
        return httpx.Response(200, json={"request_id": body["request_id"], "snapshot": "m-1", "ads": ads})


def a_world() -> tuple[Cascade, list[Hour]]:
    funnel = Funnel(matched=20, preranked=10, exposed=PLACES)
    cascade = Cascade(2, hours=2, funnel=funnel, n_ads=60, requests_per_hour=150.0)
    return cascade, list(cascade.hours())


@pytest.fixture
def service() -> Service:
    return Service()


def visitors_of(cascade: Cascade, service: Service, ticks: Ticks, model: OldService) -> Visitors:
    client = AsyncClient("http://service", transport=httpx.MockTransport(service))
    fake: Any = (ticks, model)
    return Visitors(cascade, client, *fake, disorder_s=1.0)


async def live(service: Service) -> tuple[Visitors, list[HourTally], list[Hour], Ticks, OldService]:
    cascade, hours = a_world()
    ticks, model = Ticks(), OldService()
    visitors = visitors_of(cascade, service, ticks, model)
    tallies = []
    for hour in hours:
        tallies.append(await visitors.live(hour))
        await visitors.tick(START_S + HOUR_S * (hour.index + 1))
    await visitors.tick(START_S + HOUR_S * 4)
    return visitors, tallies, hours, ticks, model


def clicks_of(reports: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [event for report in reports for event in report if event["type"] == "click"]


async def test_what_was_shown_is_reported_and_every_click_comes_once_and_in_its_time(service: Service) -> None:
    visitors, tallies, hours, _, _ = await live(service)
    n_requests = sum(len(hour.user) for hour in hours)
    n_clicks = int(sum(tally.clicks["learning"].sum() for tally in tallies))
    assert visitors.sent == Counts(requests=n_requests, impressions=n_requests * PLACES, clicks=n_clicks)
    clicks = clicks_of(service.reports)
    assert len({(one["request_id"], one["position"]) for one in clicks}) == len(clicks) == n_clicks > 20
    shown: dict[tuple[str, int], dict[str, Any]] = {}
    newest_s = 0.0
    for report in service.reports:
        for event in report:
            key = event["request_id"], event["position"]
            if event["type"] == "impression":
                shown[key] = event
                newest_s = max(newest_s, event["time_s"])
            else:
                assert (event["ad_id"], event["token"]) == (shown[key]["ad_id"], shown[key]["token"])
                assert shown[key]["time_s"] <= event["time_s"]


async def test_no_click_is_told_before_it_has_happened(service: Service) -> None:
    cascade, hours = a_world()
    visitors = visitors_of(cascade, service, Ticks(), OldService())
    await visitors.live(hours[0])
    newest_s = START_S
    for report in service.reports[:-1]:
        newest_s = max([newest_s, *(event["time_s"] for event in report if event["type"] == "impression")])
        assert all(event["time_s"] < newest_s for event in report if event["type"] == "click")
    assert all(one["time_s"] < START_S + HOUR_S for one in clicks_of(service.reports))


async def test_a_request_says_who_asks_when_and_for_what(service: Service) -> None:
    cascade, hours = a_world()
    visitors = visitors_of(cascade, service, Ticks(), OldService())
    await visitors.live(hours[1])
    audience, body = Audience(cascade, hours[1]), service.asked[0]
    request = int(body["request_id"].rpartition("-")[2])
    assert body["candidates"] == audience.candidates(request)
    assert body["time_s"] == hours[1].time_s[request]
    assert body["user"]["user_id"] == str(hours[1].user[request])
    assert body["user"]["gender"] in ("f", "m")
    assert body["context"]["hour"] == "1"
    assert body["top"] == PLACES
    assert visitors.served == ["m-1"]


async def test_the_other_arms_show_their_own_lists_to_the_same_people(service: Service) -> None:
    _, tallies, hours, _, model = await live(service)
    cascade, _ = a_world()
    audience = Audience(cascade, hours[0])
    for request in range(30):
        ads = audience.candidates(request)
        oldest = sorted(ads, key=int, reverse=True)[:PLACES]
        asked = model.asked[request]
        assert asked["candidates"] == ads
        assert "time_s" not in asked
        assert asked["user"]["user_id"] == str(hours[0].user[request])
        # The service under test names no creative, so the world draws one; the one that stays as it is names the first.
        for arm, shown in (
            ("learning", [(ad, None) for ad in ads[:PLACES]]),
            ("static", [(ad, f"{ad}-0") for ad in oldest]),
        ):
            found = audience.react(request, shown)
            assert tallies[0].clicks[arm][request] == found.clicked.sum()
            assert tallies[0].expected[arm][request] == found.expected.sum()
    best = audience.best(PLACES)
    assert all((tallies[0].expected[arm] <= best * 1.001).all() for arm in ARMS)
    assert len(np.unique(tallies[0].expected["random"])) > 30


async def test_boundaries_are_ticked_behind_everything_before_them(service: Service) -> None:
    *_, ticks, _ = await live(service)
    told = [decode_event(value) for value in ticks.told]
    assert told == [Tick(START_S + HOUR_S * hour + 1.0) for hour in (1, 2, 4)]


async def test_a_refused_event_is_no_small_matter(service: Service) -> None:
    cascade, hours = a_world()
    service.refuses = True
    with pytest.raises(RuntimeError, match="the service must take every event, got 1 refused"):
        await visitors_of(cascade, service, Ticks(), OldService()).live(hours[0])


def test_what_the_ledger_has_not_counted_is_missing() -> None:
    counted = Counts(requests=5, impressions=50, clicks=7, ticks=99)
    replayed = {"requests": 2, "impressions": 20, "clicks": 3, "ticks": 4}
    sent = Counts(requests=3, impressions=31, clicks=3)
    assert missing(counted, replayed, sent) == {"requests": 0, "impressions": -1, "clicks": 1}
