"""Policies: with which probability each candidate of a row would be chosen, from scores or from posteriors.

Owns the arithmetic of choosing one candidate of K. Must not know where scores, counts or candidates come from.

Invariants: probabilities are not negative and sum to 1 over the candidates; of equal scores the first is the best, as
in the ranking service.

Shape legend: `N` rows, `K` candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.priors import Floats

VALUES_MAX = 1_000_000  # drawn at a time: bounds the temporaries


def uniform(shape: tuple[int, int]) -> Floats:
    """Return the probabilities of choosing blindly, (N, K)."""
    return np.full(shape, 1.0 / shape[1])


def epsilon_greedy(scores: npt.NDArray[np.floating], epsilon: float) -> Floats:
    """Return the probabilities of choosing the best score, and blindly with probability `epsilon`, (N, K).

    With 0 it is greedy.

    Args:
        scores: (N, K).
        epsilon: In [0, 1].
    """
    chosen = np.full(scores.shape, epsilon / scores.shape[1])
    chosen[np.arange(len(scores)), scores.argmax(axis=1)] += 1.0 - epsilon
    return chosen


def thompson(clicks: Floats, others: Floats, *, draws: int, floor: float, rng: np.random.Generator) -> Floats:
    """Return the probabilities of choosing the best of one draw from each candidate's Beta posterior, (K,).

    They are counted over many draws. `floor` of the choices are blind, so that the policy evaluated is exactly this
    one: without it a candidate that no draw chose would have probability 0, which is not Thompson sampling's.

    Args:
        clicks: First parameter of each posterior, > 0, (K,).
        others: Second parameter, > 0, (K,).
        draws: How many.
        floor: Share of blind choices, in [0, 1].
        rng: Where the draws come from.

    Source: Thompson, On the likelihood that one unknown probability exceeds another (1933); counting draws is the usual
    Monte Carlo, the floor is ours.
    """
    counted, block = np.zeros(len(clicks)), max(VALUES_MAX // len(clicks), 1)
    for first in range(0, draws, block):
        best = rng.beta(clicks, others, (min(block, draws - first), len(clicks))).argmax(axis=1)
        counted += np.bincount(best, minlength=len(clicks))
    chosen: Floats = (1.0 - floor) * counted / draws + floor / len(clicks)
    return chosen
