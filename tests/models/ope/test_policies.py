"""With which probability a policy chooses."""

from __future__ import annotations

import numpy as np
import pytest

from models.ope.policies import epsilon_greedy, thompson, uniform

SCORES = np.array([[0.1, 0.3, 0.3, 0.2], [0.5, 0.0, 0.0, 0.0]])


def draw(clicks: list[float], others: list[float], *, floor: float = 0.0, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return thompson(np.array(clicks), np.array(others), draws=20_000, floor=floor, rng=rng).tolist()


def test_blind_choices_are_equally_likely() -> None:
    assert uniform((2, 4)).tolist() == [[0.25] * 4] * 2


def test_greedy_takes_the_first_of_the_best() -> None:
    assert epsilon_greedy(SCORES, 0.0).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_epsilon_is_shared_by_all_the_best_one_included() -> None:
    np.testing.assert_allclose(epsilon_greedy(SCORES, 0.2)[0], [0.05, 0.85, 0.05, 0.05])


def test_thompson_chooses_as_often_as_a_draw_is_the_best() -> None:
    assert draw([1.0, 2.0], [1.0, 1.0]) == pytest.approx([1 / 3, 2 / 3], abs=0.01)  # the larger of U and V squared
    assert draw([5.0, 5.0], [50.0, 50.0]) == pytest.approx([0.5, 0.5], abs=0.01)


def test_every_draw_is_counted_however_many_candidates_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.ope.policies.VALUES_MAX", 7)  # blocks of three draws, the last one of two
    assert sum(draw([1.0, 2.0], [1.0, 1.0])) == pytest.approx(1.0)


def test_a_candidate_that_no_draw_chose_keeps_its_share_of_the_blind_choices() -> None:
    assert draw([1.0, 900.0], [900.0, 1.0], floor=0.1) == pytest.approx([0.05, 0.95])


def test_the_same_seed_gives_the_same_probabilities_which_sum_to_1() -> None:
    one = draw([1.0, 2.0, 3.0], [9.0, 9.0, 9.0], floor=0.01)
    assert sum(one) == pytest.approx(1.0)
    assert one == draw([1.0, 2.0, 3.0], [9.0, 9.0, 9.0], floor=0.01)
    assert one != draw([1.0, 2.0, 3.0], [9.0, 9.0, 9.0], floor=0.01, seed=1)
