"""Sums over slides."""

import pytest

from stream.demo.comparison import Score, to_score, total


def test_the_total_weighs_slides_by_what_they_hold() -> None:
    scores = [
        Score(rows=100, clicks=20, logloss=0.5, auc=0.8, calibration=1.0),
        Score(rows=300, clicks=20, logloss=0.7, auc=0.6, calibration=2.0),
    ]
    both = total(scores)
    assert (both.rows, both.clicks) == (400, 40)
    assert both.logloss == pytest.approx((100 * 0.5 + 300 * 0.7) / 400)
    assert both.auc == pytest.approx((100 * 0.8 + 300 * 0.6) / 400)
    # Predicted clicks over clicks: (20 * 1 + 20 * 2) / 40.
    assert both.calibration == pytest.approx(1.5)


def test_a_slide_with_one_class_counts_where_it_is_defined() -> None:
    scores = [
        Score(rows=100, clicks=20, logloss=0.5, auc=0.8, calibration=1.0),
        Score(rows=100, clicks=0, logloss=0.1, auc=None, calibration=None),
    ]
    both = total(scores)
    assert both.logloss == pytest.approx(0.3)
    assert both.auc == pytest.approx(0.8)
    assert both.calibration == pytest.approx(1.0)


def test_nothing_to_judge_is_not_defined() -> None:
    assert total([]) == Score(0, 0, None, None, None)


def test_an_announced_evaluation_may_hold_more_than_is_compared() -> None:
    evaluation = {"rows": 3, "clicks": 1, "logloss": 0.5, "ne": 0.9, "auc": 0.7, "gauc": None, "calibration": 1.0}
    assert to_score(evaluation) == Score(3, 1, 0.5, 0.7, 1.0)
