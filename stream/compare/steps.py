"""One strategy over the slides of a log: predict, then learn, and how long either took.

Owns the clock of a run. Must not know what is done with the predictions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from features.priors import Floats
from models.plan import Plan
from models.strategies.build import build_strategy
from models.strategies.strategy import Probabilities
from stream.compare.store import SlideStore


@dataclass(frozen=True)
class Step:
    """One slide.

    Attributes:
        is_warmup: Whether it teaches only.
        probabilities: Of its examples, (N,).
        clicks: 0 or 1 as they settled, (N,).
        predict_s: Wall time of predicting.
        train_s: Wall time of learning.
    """

    is_warmup: bool
    probabilities: Probabilities
    clicks: Floats
    predict_s: float
    train_s: float


def run_steps(name: str, plan: Plan, store: SlideStore, *, warmup_only: bool = False) -> Iterator[Step]:
    """Yield after each slide what was predicted before it was learnt."""
    strategy = build_strategy(name, plan)
    for cut, slide in store.read(warmup_only=warmup_only):
        begun_s = time.perf_counter()
        probabilities, examples = strategy.predict(slide)
        predicted_s = time.perf_counter()
        strategy.learn(slide)
        learnt_s = time.perf_counter()
        yield Step(cut.is_warmup, probabilities, examples.clicks, predicted_s - begun_s, learnt_s - predicted_s)
