"""The control `river`: its logistic regression on values, learnt row by row.

Owns the features of a row. Must not know slides or gates.

It reads values and the crosses that the configuration names, each as an indicator, and the size of numbers; no priors.
Source: river (riverml.xyz), `linear_model.LogisticRegression`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from river.linear_model import LogisticRegression
from river.optim import AdaGrad

from features.fields import Field
from features.priors import Floats
from models.plan import Plan
from models.strategies.controls.best_rate import BestRate
from models.strategies.controls.late import late_click_weight
from models.strategies.controls.numbers import log_numbers
from models.strategies.strategy import Probabilities, Rows

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of AdaGrad, which was better than plain descent on KuaiRand (log loss .603, .613)
HASH = np.uint64(2**22)  # indicators: bounds the weights, as many as the control `vw` has
SIZE_SCALE = 0.1  # brings the logarithm of usual numbers to the size of an indicator


class River:
    """One logistic regression with one learning rate."""

    def __init__(self, fields: Sequence[Field], rate: float) -> None:
        """Begin with nothing learnt."""
        self._fields = fields
        self._learner = LogisticRegression(AdaGrad(rate))

    def predict(self, rows: Rows) -> Probabilities:
        """Return the probabilities of one row after the other."""
        predict: Callable[[dict[int, float]], dict[bool, float]] = self._learner.predict_proba_one
        return np.array([predict(row)[True] for row in feature_rows(rows, self._fields)], np.float64)

    def learn(self, rows: Rows, clicks: Floats) -> None:
        """Learn one row after the other, in the order of time."""
        columns = feature_rows(rows, self._fields), clicks.tolist(), rows.corrects.tolist()
        for row, click, corrects in zip(*columns, strict=True):
            weight = late_click_weight(self._learner.predict_proba_one(row)[True]) if corrects else 1.0
            self._learner.learn_one(row, bool(click), weight)


def river(plan: Plan) -> BestRate:
    """Return river's logistic regression with the rate that does best during the warm-up."""
    return BestRate(lambda rate: River(plan.fields, rate), RATES)


def feature_rows(rows: Rows, fields: Sequence[Field]) -> Iterator[dict[int, float]]:
    """Yield the features of each row: 1 for the hash of every value it has; numbers that are there also by size."""
    hashed = (rows.keys % HASH).astype(np.int64)
    slots = np.where(rows.keys != 0, hashed, -1).tolist()
    sizes = (log_numbers(rows.frame, fields) * SIZE_SCALE).tolist()
    for values, numbers in zip(slots, sizes, strict=True):
        features = dict.fromkeys(values, 1.0)
        features.pop(-1, None)
        features |= {-2 - at: size for at, size in enumerate(numbers) if not math.isnan(size)}
        yield features
