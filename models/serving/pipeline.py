"""One ranking request from its body to its answer.

Owns the order of the steps and what is remembered of a request for warming up. Must not know HTTP or Kafka, and holds
no maths: it is handed a scorer, a catalog and a way to publish.

Invariants: one request is answered by one scorer, the one it began with; the event that says what was shown, and on
which values, is written before the answer leaves, so that no impression can come before its request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import polars as pl

from features.fields import Field
from infra.metrics import ServeMetrics
from models.serving.bodies import RankReader
from models.serving.catalog import Catalog
from models.serving.rank import Scorer, best_first, candidate_frame
from models.serving.schema import Ad, ClientEvent, RankAnswer, RankedAd, Served
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


class Pipeline:
    """Answers ranking requests.

    Attributes:
        sample: The frame of the last request and its time: what a new snapshot is warmed up on.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        holder: Holder[Scorer],
        catalog: Catalog,
        publish: Publish,
        metrics: ServeMetrics,
        *,
        now_s: Callable[[], float],
        new_id: Callable[[], str],
        sign: Sign,
        candidates_max: int,
        top: int,
    ) -> None:
        """Keep the parts.

        Args:
            now_s: Event time of what happens now.
            new_id: Makes a request_id that nobody has used.
            sign: Makes the token of a place in an answer.
        """
        self.sample: tuple[pl.DataFrame, float] = (candidate_frame(fields, {}, [Ad("", {})]), 0.0)
        self._fields = fields
        self._holder = holder
        self._catalog = catalog
        self._publish = publish
        self._metrics = metrics
        self._now_s = now_s
        self._new_id = new_id
        self._sign = sign
        self._reader = RankReader(fields, candidates_max=candidates_max, top=top)

    async def rank(self, body: bytes) -> RankAnswer:
        """Return the ranked ads of a request, best first.

        Raises:
            Rejected: If the body cannot be used.
            Unavailable: If there is no snapshot yet, or the request event cannot be written.
        """
        begun_s = time.perf_counter()
        scorer = self._holder.current
        if scorer is None:
            raise Unavailable("snapshot", "none has been announced yet, or none could be loaded")
        served, answer = self._answer(body, scorer)
        scored_s = time.perf_counter()
        if served.ads:
            await self._publish(served)
        self._metrics.rank_latency_s.labels("score").observe(scored_s - begun_s)
        self._metrics.rank_latency_s.labels("publish").observe(time.perf_counter() - scored_s)
        return answer

    def _answer(self, body: bytes, scorer: Scorer) -> tuple[Served, RankAnswer]:
        query = self._reader.read(body)
        self._metrics.candidates.observe(len(query.ads))
        request_id = query.request_id or self._new_id()
        time_s = self._now_s()
        found = self._catalog.resolve(query.ads)
        frame = candidate_frame(self._fields, query.values, found.ads)
        scores = scorer.score(frame, time_s)
        order = best_first(scores, query.top).tolist()
        if order:
            self.sample = (frame, time_s)
        ads = [
            RankedAd(
                ad_id := found.ads[index].ad_id,
                position,
                float(scores[index]),
                known=found.held[index] is not None,
                token=self._sign(request_id, ad_id, position, time_s),
            )
            for position, index in enumerate(order)
        ]
        shown = [found.ads[index] for index in order]
        answer = RankAnswer(
            request_id, scorer.version, ads, ignored_fields=query.ignored_fields, inactive=found.inactive
        )
        return Served(request_id, time_s, query.values, shown, scorer.version), answer
