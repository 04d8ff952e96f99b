import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluate import Evaluation, evaluate, grouped_auc

ROWS = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40
)


def slow_auc(rows: list[tuple[float, bool, int]]) -> float | None:
    clicked, other = [p for p, y, _ in rows if y], [p for p, y, _ in rows if not y]
    if not clicked or not other:
        return None
    return sum((p > q) + 0.5 * (p == q) for p in clicked for q in other) / (len(clicked) * len(other))


@given(ROWS)
def test_auc_and_grouped_auc_equal_a_count_of_pairs(rows: list[tuple[float, bool, int]]) -> None:
    p, y, group = (np.array(column) for column in zip(*rows, strict=True))
    got = evaluate(p, y.astype(np.int8), group)
    by_group = [[row for row in rows if row[2] == g] for g in set(group.tolist())]
    defined = [(slow_auc(own), len(own)) for own in by_group if slow_auc(own) is not None]
    assert got.auc == pytest.approx(slow_auc(rows)) or got.auc is slow_auc(rows)
    if not defined or got.auc is None:
        assert got.gauc is None
    else:
        assert got.gauc == pytest.approx(np.average([a for a, _ in defined], weights=[n for _, n in defined]))  # type: ignore[arg-type]


def test_figures_of_four_rows_by_hand() -> None:
    got = evaluate(np.array([0.8, 0.6, 0.4, 0.2]), np.array([1, 0, 1, 0]))
    logloss = -(math.log(0.8) + math.log(0.4) + math.log(0.4) + math.log(0.8)) / 4
    assert got.logloss == pytest.approx(logloss)
    assert got.ne == pytest.approx(logloss / math.log(2))
    assert got.auc == pytest.approx(0.75)
    assert got.calibration == pytest.approx(1.0)
    assert (got.rows, got.clicks, got.gauc) == (4, 2, None)


def test_no_rows_have_no_figures() -> None:
    assert evaluate(np.zeros(0), np.zeros(0), np.zeros(0, np.int64)) == Evaluation(0, 0)


@pytest.mark.parametrize("click", [0, 1])
def test_one_class_has_a_log_loss_and_no_ranking(click: int) -> None:
    got = evaluate(np.array([0.25, 0.75]), np.full(2, click), np.zeros(2, np.int64))
    assert got.logloss == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2)
    assert (got.auc, got.gauc, got.ne) == (None, None, None)
    assert got.calibration == (0.5 if click else None)


def test_a_sure_mistake_costs_a_finite_amount() -> None:
    got = evaluate(np.array([0.0, 1.0]), np.array([1, 0]))
    assert got.logloss == pytest.approx(-math.log(1e-7))


def test_groups_without_both_classes_do_not_count() -> None:
    assert grouped_auc(np.array([0.1, 0.9]), np.array([0.0, 1.0]), np.array([1, 2])) is None
