"""With which probability a policy chooses each creative, and that choices follow it."""

from __future__ import annotations

import numpy as np
import pytest

from models.creatives.policies import EpsilonGreedy, LinUcb, Policy, Thompson, Uniform, choose
from models.creatives.tally import Tally

STRENGTH = np.array([[20.0], [20.0]])
PRESENT = np.array([[True, True, True, False], [False, True, False, True], [False, False, True, False]])
POLICIES: dict[str, Policy] = {
    "uniform": Uniform(),
    "greedy": EpsilonGreedy(0.0, STRENGTH),
    "epsilon-greedy": EpsilonGreedy(0.3, STRENGTH),
    "thompson": Thompson(STRENGTH, draws=2000),
    "linucb": LinUcb(np.broadcast_to(np.eye(4), (3, 4, 4)), 0.1),
}


def counted() -> Tally:
    """Return the third creative of the first ad ahead, and the fourth of the second."""
    impressions = np.array([[100.0, 100.0, 100.0, 0.0], [0.0, 80.0, 0.0, 80.0], [0.0, 0.0, 9.0, 0.0]])
    clicks = np.array([[5.0, 5.0, 15.0, 0.0], [0.0, 2.0, 0.0, 20.0], [0.0, 0.0, 0.0, 0.0]])
    return Tally.empty(PRESENT).plus(impressions, clicks)


def probabilities(name: str, tally: Tally, seed: int = 0) -> np.ndarray:
    return POLICIES[name].probabilities(tally, np.random.default_rng(seed))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("tally", [Tally.empty(PRESENT), counted()], ids=["nothing known", "counted"])
def test_probabilities_are_of_the_creatives_that_there_are_and_sum_to_1(name: str, tally: Tally) -> None:
    found = probabilities(name, tally)
    assert (found >= 0.0).all()
    assert not found[~PRESENT].any()
    np.testing.assert_allclose(found.sum(axis=1), 1.0)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "uniform"])
def test_what_is_ahead_is_chosen_most(name: str) -> None:
    assert probabilities(name, counted()).argmax(axis=1).tolist() == [2, 3, 2]


def test_blind_choices_are_equally_likely() -> None:
    assert probabilities("uniform", counted()).tolist() == [[1 / 3, 1 / 3, 1 / 3, 0], [0, 0.5, 0, 0.5], [0, 0, 1, 0]]


def test_epsilon_is_shared_by_all_creatives_that_there_are() -> None:
    np.testing.assert_allclose(probabilities("epsilon-greedy", counted())[0], [0.1, 0.1, 0.8, 0.0])


def test_thompson_explores_less_the_more_is_known() -> None:
    explored = 1.0 - probabilities("thompson", counted())[0].max()
    tally = counted().plus(counted().impressions * 9.0, counted().clicks * 9.0)
    assert 1.0 - probabilities("thompson", tally)[0].max() < explored


def test_thompson_follows_the_exact_probability_of_two_posteriors() -> None:
    # Strengths of 2 around one half are uniform posteriors; one click on the first: P(Beta(2, 1) > Beta(1, 1)) = 2/3.
    tally = Tally(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), np.array([[True, True]]), 1e9, 0.5e9)
    policy = Thompson(np.array([[1e9], [2.0]]), draws=20_000, floor=0.0)
    assert policy.probabilities(tally, np.random.default_rng(0))[0] == pytest.approx([2 / 3, 1 / 3], abs=0.01)


def test_linucb_by_hand() -> None:
    # Indicators: a creative's weight is c / (n + 1), its width 1 / sqrt(n + 1): 0.4 and 0.2, 0.5 and 0.1.
    tally = Tally.empty(np.ones((1, 2), bool)).plus(np.array([[24.0, 99.0]]), np.array([[10.0, 50.0]]))
    features = np.eye(2)[None]
    rng = np.random.default_rng(0)
    assert LinUcb(features, 1.1).probabilities(tally, rng).tolist() == [[1, 0]]
    assert LinUcb(features, 0.9).probabilities(tally, rng).tolist() == [[0, 1]]


def test_linucb_knows_a_creative_that_was_never_shown_by_what_it_shares() -> None:
    features = np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    present = np.array([[True, False, True]])  # the second has gone, its counts are still there
    tally = Tally(np.array([[50.0, 50.0, 0.0]]), np.array([[5.0, 20.0, 0.0]]), present)
    assert LinUcb(features, 0.0).probabilities(tally, np.random.default_rng(0)).tolist() == [[0, 0, 1]]


def test_choices_come_as_often_as_their_propensity_says() -> None:
    probability = np.array([0.2, 0.0, 0.5, 0.3])
    chosen, propensity = choose(np.tile(probability, (20_000, 1)), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / len(chosen), probability, atol=0.01)
    np.testing.assert_array_equal(propensity, probability[chosen])


class Largest:
    """Draws the largest number below 1 that a generator can."""

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        return np.full(shape, 1.0 - 2.0**-53)


def test_rounding_never_chooses_what_has_no_probability() -> None:
    short = np.array([[0.1] * 3 + [0.7 - 1e-12, 0.0]])
    chosen, propensity = choose(short, Largest())  # type: ignore[arg-type]  # all that choose asks of it
    assert (chosen.tolist(), propensity.tolist()) == ([3], [0.7 - 1e-12])
