"""A ranking request under way: what it began with, and what its steps have come to.

Owns no behaviour: the steps (pipeline.py, chooser.py) read and fill it. A request keeps the models that it began with.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from features.encode import Keys
from models.serving.ad_table import Held, Resolved
from models.serving.prerank import Preranker
from models.serving.rank import Scorer, Scores
from models.serving.schema import Clean, RankQuery


class Models(NamedTuple):
    """What answers a request: an ad ranker, and what there is of the other two."""

    scorer: Scorer
    preranker: Preranker | None
    creative_ranker: Preranker | None


@dataclass
class Work:
    """One request.

    Attributes:
        values: Of the request, the store's included.
        keys: Of those values, (S,).
        arm: Of the experiment; empty: there is none.
        found: The candidates that may be ranked.
        inactive: Ids of the others.
        seed: Decides all draws of the request.
        prerank: What chose those that are ranked; empty: all are.
        prerank_scores: Of all candidates; None: all are ranked.
        creatives: What chose the creatives; empty: there is nothing to choose.
        choices: The ranked candidates whose creative is chosen by us, by their places.
        propensities: With which probability each of those creatives was chosen, by place.
        pending: What a creative ranker says of their creatives, while ads are ranked.
        degraded: What was left out to answer in time.
    """

    query: RankQuery
    values: dict[str, Clean]
    keys: Keys
    models: Models
    arm: str
    found: Resolved
    inactive: list[str]
    request_id: str
    seed: int
    time_s: float
    begun_s: float
    prerank: str = ""
    prerank_scores: Scores | None = None
    creatives: str = ""
    choices: dict[int, Held] = field(default_factory=dict)
    propensities: dict[int, float] = field(default_factory=dict)
    pending: Future[list[Scores]] | None = None
    degraded: list[str] = field(default_factory=list)
