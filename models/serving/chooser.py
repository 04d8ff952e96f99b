"""When the creatives of a request are chosen: beside the ad ranker, before it or behind it.

Owns that order, and what is left out when it is late. Must not know how a choice is drawn (creatives.py), how ads are
ranked or where models come from.

Invariants: an ad is scored with a creative that it has; what a creative ranker says too late is not waited for, and the
prior's choice stands.

Source: the three orders are those of arXiv:2312.12750 (Peri-CR, Pre-CR, Post-CR); docs/creatives.md: what is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from features.encode import Keys
from features.fields import Field
from infra.metrics import ServeMetrics
from models.serving.ad_table import Held
from models.serving.creatives import Choice, choose_by_prior, choose_by_scores
from models.serving.prerank import Preranker
from models.serving.rank import Scores
from models.serving.samples import Samples
from models.serving.work import Work

Order = Literal["parallel", "pre", "post"]
Choices = Mapping[int, Held]
SAMPLED = 10  # creatives that a new ranker is warmed up on
AGAIN = 2  # the stream of a request's draws for creatives that are chosen again; record.py has another


class CreativeChooser:
    """Chooses creatives: `choose` before ads are ranked, `choose_again` behind.

    Attributes:
        samples: Keys of the values of some recent requests, (S,), and of some of their creatives, (K, S).
    """

    def __init__(
        self,
        fields: Sequence[Field],
        metrics: ServeMetrics,
        *,
        order: Order,
        explore: float,
        deadline_s: float,
        clock: Callable[[], float],
        nothing: tuple[Keys, Keys],
    ) -> None:
        """Keep the parts.

        Args:
            fields: Of the deployment.
            metrics: What is exported.
            order: When a creative ranker ranks.
            explore: Share of creatives that are drawn evenly.
            deadline_s: After how much time a creative ranker is left out.
            clock: Seconds that pass while a request is worked on.
            nothing: Keys of a request and a candidate without values.
        """
        self.samples: Samples[tuple[Keys, Keys]] = Samples(nothing)
        self._fields = fields
        self._metrics = metrics
        self._order = order
        self._explore = explore
        self._deadline_s = deadline_s
        self._clock = clock
        self._beside = ThreadPoolExecutor(1, "creatives")

    def choose(self, work: Work, kept: Sequence[int]) -> None:
        """Choose a creative for each candidate that has some: what its ad is scored with."""
        work.choices = dict(work.found.with_choice(kept))
        if not work.choices:
            return
        ranker, explore = work.models.creative_ranker, self._explore
        if ranker is not None and self._order == "pre":
            scores = self._scores(ranker, work, work.choices)
            _show_with(work, work.choices, choose_by_scores(scores, explore=explore, seed=work.seed))
            work.creatives = ranker.version
            return
        if ranker is not None and self._order == "parallel":
            work.pending = self._beside.submit(self._scores, ranker, work, work.choices)
        keys = [held.creative_keys for held in work.choices.values()]
        table = work.models.scorer.table
        choice = choose_by_prior(table, self._fields, keys, time_s=work.time_s, explore=explore, seed=work.seed)
        _show_with(work, work.choices, choice)
        work.creatives = "prior"

    def choose_again(self, work: Work, shown: Sequence[int]) -> None:
        """Let a ranker that ranks beside or behind the ads choose the creatives of those that are shown."""
        ranker = work.models.creative_ranker
        choices = {index: held for index in shown if (held := work.choices.get(index))}
        if ranker is None or not choices or self._order == "pre":
            return
        left_s = self._deadline_s - (self._clock() - work.begun_s)
        if (scores := self._ready(work, ranker, choices, left_s)) is None:
            work.degraded.append("creatives")
            return
        # Draws of its own: by the first ones ads were scored, so given that an ad is shown they are not even any more.
        _show_with(work, choices, choose_by_scores(scores, explore=self._explore, seed=(work.seed, AGAIN)))
        work.creatives = ranker.version

    def _ready(self, work: Work, ranker: Preranker, choices: Choices, left_s: float) -> list[Scores] | None:
        """Return what the ranker says of the creatives of some candidates, None if it is too late for that."""
        if work.pending is None:
            return None if left_s < 0.0 else self._scores(ranker, work, choices)
        try:
            of_all = work.pending.result(max(left_s, 0.0))
        except TimeoutError:
            work.pending.cancel()  # what has not begun would only keep the next requests waiting
            return None
        by_place = dict(zip(work.choices, of_all, strict=True))
        return [by_place[index] for index in choices]

    def _scores(self, ranker: Preranker, work: Work, choices: Choices) -> list[Scores]:
        """Return what the ranker says of each creative of some candidates."""
        begun_s, held = self._clock(), [*choices.values()]
        creatives = [creative for one in held for creative in one.creatives]

        def keys(at: Sequence[int]) -> Keys:
            return np.stack([creatives[index].keys for index in at])

        numbers = np.concatenate([one.creative_numbers for one in held])
        scores = ranker.score(work.keys, numbers, keys)
        self.samples.add((work.keys, keys(range(min(SAMPLED, len(numbers))))), len(numbers))
        ends = np.cumsum([len(one.creatives) for one in held])
        self._metrics.rank_latency_s.labels("creatives").observe(self._clock() - begun_s)
        return np.split(scores, ends[:-1])


def _show_with(work: Work, choices: Choices, choice: Choice) -> None:
    creatives = choice.creative.tolist()
    work.found.chosen |= {
        index: held.creatives[number] for (index, held), number in zip(choices.items(), creatives, strict=True)
    }
    work.propensities |= zip(choices, choice.propensity.tolist(), strict=True)
