"""One ranking request from its body to its answer: pre-rank, rank, order by eCPM, write down.

Owns the order of the steps, when one is left out, and what is remembered of a request for warming up. Must not know
HTTP or Kafka, and holds no maths: it is handed models, a catalog and a way to publish.

Invariants: one request is answered by one scorer and one pre-ranker, those it began with; what is left out to answer in
time is said and counted; the event that says what was shown, and on
which values, is written before the answer leaves, so that no impression can come before its request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import polars as pl

from features.fields import Field
from infra.metrics import ServeMetrics
from models.serving.bodies import RankReader
from models.serving.catalog import BID_MICROS, Catalog, Resolved
from models.serving.prerank import Preranker, prior_rates
from models.serving.rank import Scorer, Scores, best_first, candidate_frame
from models.serving.schema import Ad, Clean, ClientEvent, RankAnswer, RankedAd, RankQuery, Served
from models.swap import Holder

Publish = Callable[[Served | ClientEvent], Awaitable[None]]
"""Returns once the event is in the log; raises `Unavailable` within seconds, or `Rejected` if it is too large."""

Sign = Callable[[str, str, int, float], str]
"""Returns the token of (request_id, ad_id, position, event time of the request)."""


class Unavailable(Exception):
    """The service cannot do this now; the same call may well succeed later.

    Attributes:
        part: What is missing, from a closed list: `snapshot`, `catalog`, `log`.
    """

    def __init__(self, part: str, why: str) -> None:
        """Keep what the answer has to say."""
        self.part = part
        self.why = why
        super().__init__(f"{part} is not there: {why}")


class Rules(msgspec.Struct, frozen=True):
    """What the pipeline keeps to.

    Attributes:
        candidates_max: Candidates of a request.
        top: Ads of an answer when the request does not say.
        keep: Candidates that are ranked, when there are more.
        sample_rate: Share of those that were not ranked which the request's record holds beside those that were; None:
            it holds what was shown.
        deadline_s: After how much time ranking is left out; pre-ranking after half of it.
    """

    candidates_max: int
    top: int
    keep: int
    sample_rate: float | None
    deadline_s: float


class Pipeline:
    """Answers ranking requests.

    Attributes:
        sample: The frame of the last request and its time: what a new snapshot is warmed up on.
        prerank_sample: The values and the candidates of the last request that was pre-ranked, likewise.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        holder: Holder[Scorer],
        prerankers: Holder[Preranker],
        catalog: Catalog,
        publish: Publish,
        metrics: ServeMetrics,
        rules: Rules,
        now_s: Callable[[], float],
        new_id: Callable[[], str],
        sign: Sign,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Keep the parts.

        Args:
            now_s: Event time of what happens now.
            new_id: Makes a request_id that nobody has used.
            sign: Makes the token of a place in an answer.
            clock: Seconds that pass while a request is worked on.
        """
        self.sample: tuple[pl.DataFrame, float] = (candidate_frame(fields, {}, [Ad("", {})]), 0.0)
        self.prerank_sample: tuple[dict[str, Clean], list[Ad]] = ({}, [Ad("", {})])
        self._fields = fields
        self._holder = holder
        self._prerankers = prerankers
        self._catalog = catalog
        self._publish = publish
        self._metrics = metrics
        self._rules = rules
        self._now_s = now_s
        self._new_id = new_id
        self._sign = sign
        self._clock = clock
        self._reader = RankReader(fields, candidates_max=rules.candidates_max, top=rules.top)

    async def rank(self, body: bytes) -> RankAnswer:
        """Return the ranked ads of a request, best first.

        Raises:
            Rejected: If the body cannot be used.
            Unavailable: If there is no snapshot yet, or the request event cannot be written.
        """
        begun_s = self._clock()
        scorer, preranker = self._holder.current, self._prerankers.current
        if scorer is None:
            raise Unavailable("snapshot", "none has been announced yet, or none could be loaded")
        work = _Work(self._reader.read(body), scorer, preranker, self._now_s(), begun_s)
        self._metrics.candidates.observe(len(work.query.ads))
        served, answer = self._answer(work)
        for part in answer.degraded:
            self._metrics.degraded.labels(part).inc()
        scored_s = self._clock()
        if served.ads:
            await self._publish(served)
        self._metrics.rank_latency_s.labels("score").observe(scored_s - begun_s)
        self._metrics.rank_latency_s.labels("publish").observe(self._clock() - scored_s)
        return answer

    def _answer(self, work: _Work) -> tuple[Served, RankAnswer]:
        query = work.query
        request_id = query.request_id or self._new_id()
        found = self._catalog.resolve(query.ads)
        kept = self._prerank(work, found)
        ads = [found.ads[index] for index in kept]
        pctrs = self._rank(work, ads)
        bids = np.array([held.bid_micros if (held := found.held[index]) else BID_MICROS for index in kept], np.float64)
        order = best_first(pctrs * bids, query.top).tolist()
        ranked = [
            RankedAd(
                ad_id := ads[index].ad_id,
                position,
                float(pctrs[index]),
                known=found.held[kept[index]] is not None,
                bid_micros=int(bids[index]),
                ecpm_micros=float(pctrs[index] * bids[index] * 1000.0),
                token=self._sign(request_id, ad_id, position, work.time_s),
            )
            for position, index in enumerate(order)
        ]
        answer = RankAnswer(
            request_id,
            work.scorer.version,
            ranked,
            prerank=work.prerank,
            degraded=work.degraded,
            ignored_fields=query.ignored_fields,
            inactive=found.inactive,
        )
        served = Served(request_id, work.time_s, query.values, [ads[index] for index in order], work.scorer.version)
        return self._with_others(served, found.ads, kept, order), answer

    def _prerank(self, work: _Work, found: Resolved) -> list[int]:
        """Return which candidates are ranked; all, in the order asked, where they are few enough."""
        keep = max(self._rules.keep, work.query.top)
        if len(found.ads) <= keep:
            return [*range(len(found.ads))]
        begun_s = self._clock()
        preranker = work.preranker
        if preranker is not None and begun_s - work.begun_s > self._rules.deadline_s / 2.0:
            work.degraded.append("prerank")
            preranker = None
        if preranker is None:
            work.prerank = "prior"
            scores = prior_rates(work.scorer.table, self._fields, [ad.ad_id for ad in found.ads], work.time_s)
        else:
            work.prerank = preranker.version
            from_catalog = [
                held is not None and ad.values is held.values for ad, held in zip(found.ads, found.held, strict=True)
            ]
            scores = preranker.score(work.query.values, found.ads, from_catalog)
        self.prerank_sample = (work.query.values, found.ads)
        self._metrics.rank_latency_s.labels("prerank").observe(self._clock() - begun_s)
        kept: list[int] = best_first(scores, keep).tolist()
        return kept

    def _rank(self, work: _Work, ads: list[Ad]) -> Scores:
        """Return the click probability of each ad; what its counts alone say, if it is too late for more."""
        begun_s = self._clock()
        if begun_s - work.begun_s > self._rules.deadline_s:
            work.degraded.append("rank")
            return prior_rates(work.scorer.table, self._fields, [ad.ad_id for ad in ads], work.time_s)
        frame = candidate_frame(self._fields, work.query.values, ads)
        pctrs = work.scorer.score(frame, work.time_s)
        if ads:
            self.sample = (frame, work.time_s)
        self._metrics.rank_latency_s.labels("rank").observe(self._clock() - begun_s)
        return pctrs

    def _with_others(self, served: Served, ads: list[Ad], kept: list[int], order: list[int]) -> Served:
        """Return what was served with what was considered beside, where something learns from that."""
        rate = self._rules.sample_rate
        if rate is None:
            return served
        shown = {*order}
        ranked = [ads[index] for place, index in enumerate(kept) if place not in shown]
        rest = sorted({*range(len(ads))} - {*kept})
        drawn = np.random.default_rng(list(served.request_id.encode())).random(len(rest)) < rate
        sampled = [ads[index] for index, is_drawn in zip(rest, drawn, strict=True) if is_drawn]
        return msgspec.structs.replace(served, ranked=ranked, sampled=sampled, sample_rate=rate)


@dataclass
class _Work:
    """A request under way, with the two models that it began with."""

    query: RankQuery
    scorer: Scorer
    preranker: Preranker | None
    time_s: float
    begun_s: float
    prerank: str = ""
    degraded: list[str] = field(default_factory=list)
