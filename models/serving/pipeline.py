"""One ranking request from its body to its answer: pre-rank, rank, order by eCPM, write down.

Owns the order of the steps, when one is left out, and what is remembered of a request for warming up. Must not know
HTTP or Kafka, and holds no maths: it is handed models, a catalog and a way to publish.

Invariants: one request is answered by one scorer and one pre-ranker, those it began with; one is scored at a time, from
looking its candidates up to its record, so no ad changes meanwhile; what is left out to answer in time is said and
counted; the event that says what was shown, and on which values, is written before the answer leaves, so that no
impression can come before its request.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import xxhash

from features.encode import Keys, ValueEncoder, join_keys
from features.fields import Field, raw_fields
from features.priors import Floats
from infra.metrics import ServeMetrics
from models.serving.bodies import RankReader
from models.serving.catalog import Catalog
from models.serving.chooser import CreativeChooser, Order
from models.serving.explain import Trace, explain
from models.serving.explore import draw_list
from models.serving.prerank import Preranker, item_slots, prior_posterior, prior_rates
from models.serving.rank import Scorer, Scores, best_first
from models.serving.record import to_served
from models.serving.samples import Samples
from models.serving.schema import Clean, ClientEvent, ExplainAnswer, RankAnswer, RankedAd, RankQuery, Served
from models.serving.split import Split
from models.serving.users import Users
from models.serving.work import Models, Work
from models.swap import Holder

Publish = Callable[[Served | ClientEvent], Awaitable[None]]
"""Returns once the event is in the log; raises `Unavailable` within seconds, or `Rejected` if it is too large."""

Sign = Callable[[str, str, int, float], str]
"""Returns the token of (request_id, ad_id, position, event time of the request)."""


SAMPLED = 10  # candidates that a new pre-ranker is warmed up on: as the halves of the catalog's ads show the rest


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
        explore: Share of creatives that are drawn evenly.
        explore_ads: Share of requests whose list of ads is drawn; see models/serving/explore.py.
        creatives: When a creative ranker ranks: beside the ad ranker, before or behind it.
        deadline_s: After how much time ranking is left out; pre-ranking after half of it.
    """

    candidates_max: int
    top: int
    keep: int
    sample_rate: float | None
    explore: float
    explore_ads: float
    creatives: Order
    deadline_s: float


class _Completed(NamedTuple):
    values: dict[str, Clean]
    time_s: float
    is_without: bool


class Pipeline:
    """Answers ranking requests.

    Attributes:
        samples: Keys of the candidates of some recent requests, (K, S), and their times: what a new snapshot is warmed
            up on.
        prerank_samples: Keys of the values of some, (S,), and of some of their candidates, (K, S), likewise.
        chooser: Of creatives; it keeps such samples, too.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        holder: Holder[Scorer],
        prerankers: Holder[Preranker],
        creative_rankers: Holder[Preranker],
        catalog: Catalog,
        publish: Publish,
        metrics: ServeMetrics,
        rules: Rules,
        now_s: Callable[[], float],
        new_id: Callable[[], str],
        sign: Sign,
        is_replay: bool = False,
        users: Users | None = None,
        split: Split | None = None,
        latest: Holder[Scorer] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Keep the parts.

        Args:
            now_s: Event time of what happens now.
            is_replay: A request may say its event time.
            new_id: Makes a request_id that nobody has used.
            sign: Makes the token of a place in an answer.
            users: What is known of users beside what a caller says; None: nothing.
            split: The experiment; None: the champion answers everything.
            latest: What answers in its other arm.
            clock: Seconds that pass while a request is worked on.
        """
        self._fields = fields
        ads = catalog.table.encoder
        self._of_ads = ads.fields
        self._encoder = ValueEncoder([field for field in raw_fields(fields) if field.side in ("user", "context")])
        nothing = self._encoder.keys({}), ads.keys({})[None]
        self.samples: Samples[tuple[Keys, float]] = Samples((self._joined(*nothing), 0.0))
        self.prerank_samples: Samples[tuple[Keys, Keys]] = Samples(nothing)
        self._holder = holder
        self._prerankers = prerankers
        self._creative_rankers = creative_rankers
        self.chooser = CreativeChooser(
            fields,
            metrics,
            order=rules.creatives,
            explore=rules.explore,
            deadline_s=rules.deadline_s,
            clock=clock,
            nothing=nothing,
        )
        self._catalog = catalog
        self._item_slots = item_slots(ads.fields)
        self._publish = publish
        self._metrics = metrics
        self._rules = rules
        self._now_s = now_s
        self._new_id = new_id
        self._sign = sign
        self._users = users
        self._split = split or Split()
        self._turn = asyncio.Lock()
        self._latest: Holder[Scorer] = latest or Holder()
        self._clock = clock
        self._reader = RankReader(fields, candidates_max=rules.candidates_max, top=rules.top, is_replay=is_replay)

    async def rank(self, body: bytes) -> RankAnswer:
        """Return the ranked ads of a request, best first.

        Raises:
            Rejected: If the body cannot be used.
            Unavailable: If there is no snapshot yet, or the request event cannot be written.
        """
        begun_s = self._clock()
        models = self._models()
        query = self._reader.read(body)
        self._metrics.candidates.observe(len(query.ids))
        completed = await self._complete(query)
        async with self._turn:  # one after the other; a wait that is too long leaves out what `deadline_s` says
            work = self._begin(query, completed, models, begun_s)
            served, answer = self._answer(work)
            await asyncio.sleep(0)  # or those that are written would wait for the log's word until no more come
        for part in answer.degraded:
            self._metrics.degraded.labels(part).inc()
        if work.arm:
            self._metrics.arms.labels(work.arm).inc()
        scored_s = self._clock()
        if served.ads:
            await self._publish(served)
        self._metrics.rank_latency_s.labels("score").observe(scored_s - begun_s)
        self._metrics.rank_latency_s.labels("publish").observe(self._clock() - scored_s)
        return answer

    async def explain(self, body: bytes) -> ExplainAnswer:
        """Return why ads of a request have their scores; it is ranked, but nothing is written or left out for time.

        Raises:
            Rejected: If the body cannot be used.
            Unavailable: If there is no snapshot yet.
        """
        models = self._models()
        if self._rules.creatives != "pre":  # then its choice comes behind the scores, and changes none
            models = models._replace(creative_ranker=None)
        query, wanted = self._reader.read_explain(body)
        work = self._begin(query, await self._complete(query), models, math.inf)
        kept = self._prerank(work)
        asked_for, ranked = {*wanted}, {*kept}
        others = [n for n, ad_id in enumerate(work.found.ids) if ad_id in asked_for and n not in ranked]
        self.chooser.choose(work, others)
        self.chooser.choose(work, kept)  # by itself, as in a ranking: the draws are those of the ads in it
        trace = Trace(
            fields=self._fields,
            request_id=work.request_id,
            query=query,
            time_s=work.time_s,
            scorer=work.models.scorer,
            values=work.values,
            found=work.found,
            kept=kept,
            pctrs=self._rank(work, kept),
            prerank=work.prerank,
            prerank_scores=work.prerank_scores,
            degraded=work.degraded,
            keys=lambda places: self._joined(work.keys, work.found.keys(places)),
        )
        return explain(trace, wanted)

    def _models(self) -> Models:
        """Return what serves now.

        Raises:
            Unavailable: If nothing does.
        """
        scorer = self._holder.current
        if scorer is None:
            raise Unavailable("snapshot", "none has been announced yet, or none could be loaded")
        return Models(scorer, self._prerankers.current, self._creative_rankers.current)

    def _begin(self, query: RankQuery, completed: _Completed, models: Models, begun_s: float) -> Work:
        """Return a request that is to be worked on now: the ads that it found are not to change meanwhile."""
        values, time_s, is_without = completed
        arm, scorer = self._split.choose(query.values, models.scorer, self._latest.current)
        request_id = query.request_id or self._new_id()
        found, inactive = self._catalog.resolve(query.ids, query.own)
        return Work(
            query=query,
            values=values,
            keys=self._encoder.keys(values),
            models=models._replace(scorer=scorer),
            arm=arm,
            found=found,
            inactive=inactive,
            request_id=request_id,
            seed=xxhash.xxh3_64_intdigest(request_id.encode()),
            time_s=time_s,
            begun_s=begun_s,
            degraded=["users"] if is_without else [],
        )

    async def _complete(self, query: RankQuery) -> _Completed:
        """Return a request's time, its values with those of its user in the store, and whether it goes without them."""
        time_s = self._now_s() if query.time_s is None else query.time_s
        if self._users is None:
            return _Completed(query.values, time_s, is_without=False)
        begun_s = self._clock()
        values, is_without = await self._users.complete(query.values, time_s)
        self._metrics.rank_latency_s.labels("users").observe(self._clock() - begun_s)
        return _Completed(values, time_s, is_without)

    def _answer(self, work: Work) -> tuple[Served, RankAnswer]:
        found, kept = work.found, self._prerank(work)
        self.chooser.choose(work, kept)
        pctrs = self._rank(work, kept)
        bids = found.bids(kept)
        order, propensities = self._order(work, kept, pctrs * bids)
        shown = [kept[index] for index in order]
        ranked_with = found.chosen.copy()
        self.chooser.choose_again(work, shown)
        ranked = [
            RankedAd(
                ad_id := found.ids[kept[index]],
                position,
                float(pctrs[index]),
                known=found.held(kept[index]) is not None,
                bid_micros=int(bids[index]),
                ecpm_micros=float(pctrs[index] * bids[index] * 1000.0),
                creative_id=one.creative_id if (one := found.chosen.get(kept[index])) else "",
                propensity=propensities[position] * work.propensities.get(kept[index], 1.0),
                token=self._sign(work.request_id, ad_id, position, work.time_s),
            )
            for position, index in enumerate(order)
        ]
        answer = RankAnswer(
            work.request_id,
            work.models.scorer.version,
            ranked,
            prerank=work.prerank,
            creatives=work.creatives,
            degraded=work.degraded,
            ignored_fields=work.query.ignored_fields,
            inactive=work.inactive,
            arm=work.arm,
        )
        shown_at = {index: ad.pctr for index, ad in zip(shown, ranked, strict=True)}
        split, rate = self._split.name, self._rules.sample_rate
        return to_served(work, kept, shown_at, ranked_with, split=split, sample_rate=rate), answer

    def _prerank(self, work: Work) -> list[int]:
        """Return which candidates are ranked; all, in the order asked, where they are few enough."""
        found, keep = work.found, max(self._rules.keep, work.query.top)
        if len(found) <= keep:
            return [*range(len(found))]
        begun_s = self._clock()
        preranker = work.models.preranker
        if preranker is not None and begun_s - work.begun_s > self._rules.deadline_s / 2.0:
            work.degraded.append("prerank")
            preranker = None
        if preranker is None:
            work.prerank = "prior"
            scores = prior_rates(work.models.scorer.table, self._fields, found.id_keys(), work.time_s)
        else:
            work.prerank = preranker.version
            scores = preranker.score(work.keys, found.numbers, lambda at: found.keys(at)[:, self._item_slots])
        work.prerank_scores = scores
        self.prerank_samples.add((work.keys, found.keys([*range(SAMPLED)])), len(found))
        self._metrics.rank_latency_s.labels("prerank").observe(self._clock() - begun_s)
        kept: list[int] = best_first(scores, keep).tolist()
        return kept

    def _rank(self, work: Work, kept: list[int]) -> Scores:
        """Return the click probability of each candidate; what its counts alone say, if it is too late for more."""
        begun_s, found = self._clock(), work.found
        if begun_s - work.begun_s > self._rules.deadline_s:
            work.degraded.append("rank")
            return prior_rates(work.models.scorer.table, self._fields, found.id_keys(kept), work.time_s)
        if not kept:
            return np.zeros(0, np.float32)
        keys = self._joined(work.keys, found.keys(kept))
        pctrs = work.models.scorer.score(keys, work.time_s)
        self.samples.add((keys, work.time_s), len(keys))
        self._metrics.rank_latency_s.labels("rank").observe(self._clock() - begun_s)
        return pctrs

    def _joined(self, request: Keys, ads: Keys) -> Keys:
        """Return the keys of candidates, (K, S), of those of their request, and of the ads."""
        return join_keys(self._fields, [(self._encoder.fields, request), (self._of_ads, ads)])

    def _order(self, work: Work, kept: list[int], values: Floats) -> tuple[list[int], list[float]]:
        """Return which of the ranked candidates are shown, best first, and the propensity of each."""
        explore, posterior = self._rules.explore_ads, (np.zeros(0), np.zeros(0))
        if explore:
            id_keys = work.found.id_keys(kept)
            posterior = prior_posterior(work.models.scorer.table, self._fields, id_keys, work.time_s)
        order, propensities = draw_list(values, posterior, top=work.query.top, explore=explore, seed=work.seed)
        return order.tolist(), propensities.tolist()
