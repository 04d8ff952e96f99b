"""The control `lightgbm`: gradient boosted trees on the live priors, trained anew on all history.

Owns its inputs, its history and when it trains. Must not know slides or gates.

It reads what the network's base reads, the live priors; beside them numbers and the fields of few values, as values.
Source: Ke et al., LightGBM, NeurIPS 2017. Its parameters were compared on rows that a backtest also judges: if that
favours anyone, then this control.

Shape legend: `N` rows, `X` inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightgbm
import numpy as np
import numpy.typing as npt

from features.encode import Keys
from features.fields import Field, field_slots
from features.priors import Floats
from models.plan import Plan
from models.strategies.controls.numbers import log_numbers
from models.strategies.strategy import Probabilities, Rows
from models.window import impression_ids

ROUNDS = 150  # of 50, 100, 150 and 200 the best for MovieLens-1M and KuaiRand together, trained on half of each
PARAMETERS = {  # chosen by hand; 63 leaves and a rate of 0.03 gained nothing
    "objective": "binary",
    "num_leaves": 31,
    "learning_rate": 0.05,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "max_bin": 63,
    "lambda_l2": 1.0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
GROWTH = 0.1  # it trains anew once its history has grown by this share: a long log would train for hours otherwise
CATEGORIES_MAX = 64  # values of a field that trees may split by; a field with more speaks through its priors


class Codes:
    """Small numbers for the values of one field, in the order in which they came; none once they are too many."""

    def __init__(self) -> None:
        """Begin without values."""
        self._codes: dict[int, int] = {0: 0}

    @property
    def is_small(self) -> bool:
        """Whether the field has few values so far."""
        return len(self._codes) <= CATEGORIES_MAX

    def learn(self, keys: Keys) -> None:
        """Number the values that are new, (N,)."""
        if self.is_small:
            for key in np.unique(keys).tolist():
                self._codes.setdefault(key, len(self._codes))

    def __call__(self, keys: Keys) -> npt.NDArray[np.float32]:
        """Return the number of each value, (N,), NaN for those never learnt."""
        distinct, at = np.unique(keys, return_inverse=True)
        return np.array([self._codes.get(key, np.nan) for key in distinct.tolist()], np.float32)[at]


class LightGbm:
    """Trees that are grown anew, with the history that they are grown on."""

    learns_late = True

    def __init__(self, plan: Plan) -> None:
        """Begin with no history."""
        self._parameters = PARAMETERS | {"seed": plan.seed}
        self._fields = plan.fields
        self._codes = {slot: Codes() for slot in _category_slots(plan.fields)}
        self._inputs: list[npt.NDArray[np.float32]] = []
        self._clicks: list[npt.NDArray[np.float32]] = []
        self._ids: list[npt.NDArray[np.int64]] = []
        self._trained_rows = 0
        self._trees: lightgbm.Booster | None = None

    def predict(self, rows: Rows) -> Probabilities:
        """Return what the trees say; one half before there are any."""
        if self._trees is None:
            return np.full(len(rows), 0.5)
        return np.asarray(self._trees.predict(self._read(rows)), np.float64)

    def learn(self, rows: Rows, clicks: Floats) -> None:
        """Keep the rows, give those that are kept their final label, and train once there are enough new ones."""
        late = impression_ids(rows.frame)[rows.corrects]
        rows, clicks = rows.take(~rows.corrects), clicks[~rows.corrects]
        for slot, codes in self._codes.items():
            codes.learn(rows.keys[:, slot])
        self._inputs.append(self._read(rows))
        self._clicks.append(clicks.astype(np.float32))
        self._ids.append(impression_ids(rows.frame))
        for ids, known in zip(self._ids, self._clicks, strict=True):
            known[np.isin(ids, late)] = 1.0
        n_rows = sum(len(part) for part in self._clicks)
        n_clicks = sum(float(part.sum()) for part in self._clicks)
        if 0 < n_clicks < n_rows and n_rows >= (1.0 + GROWTH) * self._trained_rows:
            self._trees, self._trained_rows = self._train(), n_rows

    def _read(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return the inputs, (N, X): priors, numbers, then the codes of categories."""
        coded = [codes(rows.keys[:, slot])[:, None] for slot, codes in self._codes.items()]
        return np.concatenate([rows.dense, log_numbers(rows.frame, self._fields), *coded], axis=1, dtype=np.float32)

    def _train(self) -> lightgbm.Booster:
        inputs, n_codes = np.concatenate(self._inputs), len(self._codes)
        first_code = inputs.shape[1] - n_codes
        is_small = np.array([codes.is_small for codes in self._codes.values()], bool)
        inputs[:, first_code:][:, ~is_small] = 0.0  # says nothing, so no tree asks for it
        categories = [first_code + at for at in range(n_codes)]
        data = lightgbm.Dataset(inputs, np.concatenate(self._clicks), categorical_feature=categories)
        return lightgbm.train(self._parameters, data, num_boost_round=ROUNDS)


def _category_slots(fields: Sequence[Field]) -> list[int]:
    """Return the slots of the fields that hold one category a row."""
    return [
        slots.start
        for field, slots in zip(fields, field_slots(fields), strict=True)
        if field.kind == "category" and field.side != "cross"
    ]
