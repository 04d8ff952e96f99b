"""Recall over all candidates, by hand and as laws."""

from __future__ import annotations

import numpy as np
import pytest

from models.prerank.recall import agreement, recall

REQUESTS = np.array([7, 7, 7, 7, 3, 3, 3, 9, 9])
SCORES = np.array([0.1, 0.9, 0.5, 0.7, 0.2, 0.1, 0.3, 1.0, 2.0])
TARGETS = np.array([True, True, False, False, False, False, True, False, False])


def test_recall_is_the_mean_share_of_targets_among_the_first_of_requests_that_have_any() -> None:
    found = recall(SCORES, TARGETS, REQUESTS, [1, 2, 4])
    assert found.requests == 2
    assert found.at == {1: (0.5 + 1.0) / 2, 2: (0.5 + 1.0) / 2, 4: 1.0}


def test_a_model_that_scores_all_alike_recalls_nothing_by_the_order_of_the_rows() -> None:
    found = recall(np.zeros(9), TARGETS, REQUESTS, [1, 2, 3])
    assert found.at == {1: 0.0, 2: 0.0, 3: (0.5 + 1.0) / 2}


def test_without_a_target_there_is_nothing_to_recall() -> None:
    found = recall(SCORES, np.zeros(9, bool), REQUESTS, [1])
    assert (found.requests, found.at) == (0, {1: 0.0})


def test_the_order_of_the_candidates_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(9)
    assert recall(SCORES[order], TARGETS[order], REQUESTS[order], [1, 2]) == recall(SCORES, TARGETS, REQUESTS, [1, 2])


def test_agreement_is_the_share_of_the_rankers_best_that_the_pre_ranker_keeps() -> None:
    ranker = np.array([4.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 1.0, 2.0])
    assert agreement(ranker, ranker, REQUESTS, 2) == 1.0
    assert agreement(SCORES, ranker, REQUESTS, 2) == pytest.approx((1 / 2 + 1 / 2 + 1.0) / 3)
