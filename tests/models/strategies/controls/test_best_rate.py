import numpy as np
import polars as pl
import pytest

from features.priors import Floats
from models.strategies.controls.best_rate import BestRate
from models.strategies.strategy import Probabilities, Rows


class Says:
    """A control that always says the same: its rate."""

    def __init__(self, rate: float) -> None:
        self.rate, self.learnt = rate, 0

    def predict(self, rows: Rows) -> Probabilities:
        return np.full(len(rows), self.rate)

    def learn(self, rows: Rows, clicks: Floats) -> None:
        assert len(rows) == len(clicks)
        self.learnt += len(rows)


def rows(n_rows: int, *, is_warmup: bool) -> Rows:
    none = np.zeros((n_rows, 0))
    columns = none.astype(np.uint64), none.astype(np.float32), np.zeros(n_rows)
    return Rows(0, pl.DataFrame(), *columns, is_warmup, np.zeros(n_rows, bool))


def test_the_warm_up_alone_chooses_and_one_goes_on() -> None:
    made: dict[float, Says] = {}

    def make(rate: float) -> Says:
        made[rate] = Says(rate)
        return made[rate]

    control = BestRate(make, [0.2, 0.5, 0.8])
    assert control.predict(rows(4, is_warmup=True)) == pytest.approx(0.5)  # nothing decides yet
    control.learn(rows(4, is_warmup=True), np.ones(4))
    assert control.predict(rows(1, is_warmup=True)) == pytest.approx(0.8)
    control.learn(rows(1, is_warmup=True), np.ones(1))
    for _ in range(20):  # later it may be wrong and is not replaced
        assert control.predict(rows(1, is_warmup=False)) == pytest.approx(0.8)
        control.learn(rows(1, is_warmup=False), np.zeros(1))
    assert control.rate == 0.8
    assert {rate: one.learnt for rate, one in made.items()} == {0.2: 5, 0.5: 5, 0.8: 25}


def test_without_a_warm_up_the_middle_rate_goes_on() -> None:
    control = BestRate(Says, [0.2, 0.4, 0.8])
    for _ in range(3):
        assert control.predict(rows(1, is_warmup=False)) == pytest.approx(0.4)
        control.learn(rows(1, is_warmup=False), np.ones(1))
