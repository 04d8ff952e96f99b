"""The ranking service as it was: its pipeline, in this process, on one snapshot and its counts, without a pre-ranker.

Owns what stands still. Must not know HTTP, Kafka or who asks.

Invariants: nothing of it moves, not even by decay: every request is asked at the moment of the snapshot's counts; what
it answers is told to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import msgspec
from prometheus_client import CollectorRegistry

from infra.metrics import ServeMetrics
from infra.settings import Settings
from models.serving.catalog import Catalog
from models.serving.pipeline import Pipeline
from models.serving.rank import Scorer
from models.serving.schema import ClientEvent, RankAnswer, Served
from models.snapshot import Snapshot
from models.swap import Holder
from stream.logs.ads import read_ads
from stream.serve import to_rules

Ask = Callable[[bytes], Awaitable[RankAnswer]]
"""Answers the body of a ranking request, which must name the request and say no time."""


def static_service(settings: Settings, snapshot: Snapshot) -> Ask:
    """Return a service of a log's ads that never changes.

    Raises:
        LogError: If the files that describe the ads cannot be read.
    """
    assert settings.log is not None, "the demo has set up a log"
    catalog = Catalog(settings.fields)
    for ad_id, ad in read_ads(settings.log, settings.fields, []).ads.items():
        catalog.put(ad_id, msgspec.json.encode(ad))
    holder: Holder[Scorer] = Holder()
    holder.swap(Scorer.from_snapshot(snapshot))
    pipeline = Pipeline(
        settings.fields,
        holder=holder,
        prerankers=Holder(),
        creative_rankers=Holder(),
        catalog=catalog,
        publish=_tell_nobody,
        metrics=ServeMetrics(CollectorRegistry()),
        rules=msgspec.structs.replace(to_rules(settings), deadline_s=math.inf, sample_rate=None),
        now_s=lambda: snapshot.priors.as_of_s,
        new_id=str,
        sign=lambda *_: "",
    )
    return pipeline.rank


async def _tell_nobody(_: Served | ClientEvent) -> None:
    pass
