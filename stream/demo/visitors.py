"""The people of a simulated world at the ranking service: they ask, look at the list, click, and come again.

Owns the calls and the order in which what happens is reported. Must not know processes or screens.

Every request is answered three times: by the service, by the service as it was when the loop began, and at random. The
people react to all three; what comes of the service's list alone is reported to it. So the other arms cannot learn from
anybody's clicks, and they are compared on the same requests with the same luck (stream/audience.py).

Invariants: an impression is reported after its request was answered, a click once its time has come; within an hour
event time goes back by no more than a batch of requests; a boundary is ticked when all before it is in Kafka, in every
partition.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from freshrank.client import AsyncClient, Click, Impression, RankAnswer
from freshrank.schema import RankedAd
from models.serving.schema import RankedAd as ServedAd
from stream.audience import Audience, Choice
from stream.blocks import Counts
from stream.cascade import Cascade, Hour
from stream.demo.arms import ARMS, Arm, HourTally
from stream.demo.static import Ask
from stream.events import Tick, encode_event
from stream.logs.arrivals import time_of_watermark
from stream.outbox import Outbox
from stream.simulate import HOUR_S, NAMES, START_S, Ints

BATCH = 16  # requests that are asked at once: keeps the service busy, and event time in order within some minutes
EVENTS_MAX = 500  # of one report; the service takes 1,000
KINDS = ("requests", "impressions", "clicks")  # of events that must all be accounted for


class Visitors:
    """The people of one world.

    Attributes:
        sent: Requests, impressions and clicks so far, as the ledger is to count them.
        served: Versions that have answered, in order; one that comes back stands there again.
    """

    def __init__(
        self,
        cascade: Cascade,
        client: AsyncClient,
        events: Outbox,
        static: Ask,
        *,
        disorder_s: float,
    ) -> None:
        """Keep the parts; nobody asks yet.

        Args:
            client: Of the service.
            events: To the topic `events`, for ticks.
            static: The service that stays as it is.
            disorder_s: How far its watermark stays behind.
        """
        self.sent = Counts()
        self.served: list[str] = []
        self._cascade = cascade
        self._client = client
        self._events = events
        self._static = static
        self._disorder_s = disorder_s
        self._n_places = cascade.funnel.exposed
        self._waiting: list[tuple[float, int, Click]] = []  # clicks to come: a heap by time, then number
        self._number = itertools.count()

    async def live(self, hour: Hour) -> HourTally:
        """Let an hour pass; return what came of it in each arm.

        Raises:
            CallError: If the service cannot answer or take what happens.
            RuntimeError: If it refuses an event.
        """
        audience = Audience(self._cascade, hour)
        drawn = self._by_chance(audience)
        clicks, expected = ({arm: np.zeros(len(hour.user)) for arm in ARMS} for _ in range(2))

        def judge(arm: Arm, request: int, choices: Sequence[Choice]) -> list[tuple[int, float]]:
            reaction = audience.react(request, choices)
            clicks[arm][request], expected[arm][request] = reaction.clicked.sum(), reaction.expected.sum()
            return [(int(place), float(reaction.click_time_s[place])) for place in np.flatnonzero(reaction.clicked)]

        for first in range(0, len(hour.user), BATCH):
            batch = range(first, min(first + BATCH, len(hour.user)))
            answers = await asyncio.gather(*(self._ask(audience, request) for request in batch))
            shown: list[Impression | Click] = []
            for request, answer in zip(batch, answers, strict=True):
                clicked = judge("learning", request, _choices(answer.ads))
                shown += self._show(answer, float(hour.time_s[request]), clicked)
                unmoved = await self._static(msgspec.json.encode(self._body(audience, request)))
                judge("static", request, _choices(unmoved.ads))
                judge("random", request, [(ad_id, None) for ad_id in drawn[request]])
            await self._report(shown + self._due(float(hour.time_s[batch[-1]])))
        await self._report(self._due(START_S + HOUR_S * (hour.index + 1)))
        counted: dict[Arm, Ints] = {arm: values.astype(np.int64) for arm, values in clicks.items()}
        return HourTally(hour.index, counted, expected, audience.best(self._n_places))

    async def tick(self, boundary_s: float) -> float:
        """Say in every partition that all before a boundary has been reported; return the tick's event time."""
        await self._report(self._due(boundary_s))
        time_s = time_of_watermark(boundary_s, self._disorder_s)
        await self._events.put_everywhere(encode_event(Tick(time_s)))
        await self._events.finish()
        return time_s

    async def _ask(self, audience: Audience, request: int) -> RankAnswer:
        time_s = float(audience.hour.time_s[request])
        answer = await self._client.rank(**self._body(audience, request), time_s=time_s)
        self.sent.requests += 1
        if answer.snapshot not in self.served[-1:]:
            self.served.append(answer.snapshot)
        return answer

    def _body(self, audience: Audience, request: int) -> dict[str, Any]:
        hour = audience.hour
        return {
            "candidates": audience.candidates(request),
            "user": self._user(hour, request),
            "context": self._context(hour, request),
            "top": self._n_places,
            "request_id": f"loop-{hour.index}-{request}",
        }

    def _show(
        self, answer: RankAnswer, time_s: float, clicked: Sequence[tuple[int, float]]
    ) -> list[Impression | Click]:
        """Return the impressions of an answer; its clicks will be due."""
        for place, click_s in clicked:
            ad = answer.ads[place]
            click = Click(answer.request_id, ad.ad_id, ad.position, time_s=click_s, token=ad.token)
            heapq.heappush(self._waiting, (click_s, next(self._number), click))
        return [
            Impression(
                answer.request_id,
                ad.ad_id,
                ad.position,
                time_s=time_s,
                propensity=ad.propensity,
                token=ad.token,
            )
            for ad in answer.ads
        ]

    def _due(self, now_s: float) -> list[Impression | Click]:
        """Take the clicks whose time has come."""
        due: list[Impression | Click] = []
        while self._waiting and self._waiting[0][0] < now_s:
            due.append(heapq.heappop(self._waiting)[2])
        return due

    async def _report(self, events: Sequence[Impression | Click]) -> None:
        for first in range(0, len(events), EVENTS_MAX):
            part = events[first : first + EVENTS_MAX]
            answer = await self._client.events(part)
            if answer.rejected:
                refused = next(result.error for result in answer.results if result.error is not None)
                raise RuntimeError(f"the service must take every event, got {answer.rejected} refused: {refused}")
            n_clicks = sum(isinstance(event, Click) for event in part)
            self.sent.clicks += n_clicks
            self.sent.impressions += len(part) - n_clicks

    def _by_chance(self, audience: Audience) -> list[list[str]]:
        hour = audience.hour
        rng = np.random.default_rng([self._cascade.world.seed, 9, hour.index])
        mixed = rng.permuted(hour.market.number[hour.matched], axis=1)[:, : self._n_places]
        return [list(map(str, row)) for row in mixed.tolist()]

    def _user(self, hour: Hour, request: int) -> dict[str, str]:
        world, user = self._cascade.world, int(hour.user[request])
        return {"user_id": str(user), "age": str(world.age[user]), "gender": NAMES["gender"][world.gender[user]]}

    def _context(self, hour: Hour, request: int) -> dict[str, str]:
        return {"hour": str(hour.index % 24), "placement": NAMES["placement"][hour.placement[request]]}


def _choices(ads: Iterable[RankedAd | ServedAd]) -> list[Choice]:
    return [(ad.ad_id, ad.creative_id or None) for ad in ads]


def missing(counted: Counts, replayed: Mapping[str, Any], sent: Counts) -> dict[str, int]:
    """Return by how much the ledger's counts differ from what was sent, by kind of event; ticks are nobody's.

    Args:
        counted: By the ledger.
        replayed: Sent by the replay, as in its `--json`.
        sent: Sent by the visitors.
    """
    return {kind: getattr(counted, kind) - replayed[kind] - getattr(sent, kind) for kind in KINDS}
