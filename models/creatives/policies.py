"""Policies: the probability of each of an ad's creatives, from what was counted so far.

Owns the ways to choose. Must not know where counts come from or what is done with a choice. A policy is a plain value:
its state is the tally, `Tally.plus` its update, `choose` draws from its probabilities.

Invariants: probabilities are not negative, sum to 1 over an ad's creatives and are 0 for a creative that it does not
have; a choice is drawn from the very probabilities that are logged, so a propensity is exact also where it was counted
over draws; of equally good creatives the first is the best.

Shape legend: `A` ads, `C` creatives of an ad at most, `D` features of a creative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from features.priors import Floats, Ints
from models.creatives.tally import Flags, Tally, posteriors
from models.ope.policies import epsilon_greedy, thompson


class Policy(Protocol):
    """A way to choose one of each ad's creatives."""

    def probabilities(self, tally: Tally, rng: np.random.Generator) -> Floats:
        """Return with which probability each creative is chosen, (A, C)."""


def choose(probabilities: Floats, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Return the creative drawn for each ad and its propensity, (A,) each."""
    passed = rng.random((len(probabilities), 1)) < np.cumsum(probabilities, axis=1)
    # The sum of an ad's probabilities may fall short of 1 by rounding: then it is the last that has any.
    last = probabilities.shape[1] - 1 - (probabilities[:, ::-1] > 0.0).argmax(axis=1)
    chosen = np.where(passed.any(axis=1), passed.argmax(axis=1), last)
    return chosen, np.take_along_axis(probabilities, chosen[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Uniform:
    """Blindly."""

    def probabilities(self, tally: Tally, rng: np.random.Generator) -> Floats:  # noqa: ARG002  # a Policy's signature
        """See `Policy`."""
        return blindly(tally.present)


@dataclass(frozen=True)
class EpsilonGreedy:
    """The best posterior mean, and blindly with probability `epsilon`; with 0 it is greedy.

    Attributes:
        epsilon: In [0, 1].
        strength: As for `posteriors`.
    """

    epsilon: float
    strength: Floats

    def probabilities(self, tally: Tally, rng: np.random.Generator) -> Floats:  # noqa: ARG002
        """See `Policy`."""
        clicks, others = posteriors(tally, self.strength)
        return best_or_blindly(clicks / (clicks + others), tally.present, self.epsilon)


@dataclass(frozen=True)
class Thompson:
    """As often as a draw from its posterior is the best, counted over `draws` draws, and blindly with `floor`.

    Attributes:
        strength: As for `posteriors`.
        draws: How many.
        floor: Share of blind choices, in [0, 1]: so no creative has probability 0 because no draw chose it.
    """

    strength: Floats
    draws: int = 200  # chosen by hand: a share of one half is known to 0.035
    floor: float = 0.01

    def probabilities(self, tally: Tally, rng: np.random.Generator) -> Floats:
        """See `Policy`."""
        chosen = np.zeros(tally.present.shape)
        for row, present, clicks, others in zip(chosen, tally.present, *posteriors(tally, self.strength), strict=True):
            row[present] = thompson(clicks[present], others[present], draws=self.draws, floor=self.floor, rng=rng)
        return chosen


@dataclass(frozen=True)
class LinUcb:
    """The largest upper bound of a linear rate: one ridge regression of clicks on features for each ad.

    With one indicator per creative as features it is a UCB on each creative's own rate.

    Attributes:
        features: (A, C, D).
        alpha: Widths of the bound, >= 0.

    Source: Li, Chu, Langford, Schapire, arXiv:1003.0146, Algorithm 1, with a model per ad in place of one per arm; the
    ridge is 1, as there.
    """

    features: Floats
    alpha: float

    def probabilities(self, tally: Tally, rng: np.random.Generator) -> Floats:  # noqa: ARG002
        """See `Policy`."""
        x = self.features
        gram = np.eye(x.shape[2]) + np.einsum("ac,acd,ace->ade", tally.impressions, x, x)
        inverse = np.linalg.inv(gram)  # (A, D, D)
        weights = np.einsum("ade,ac,ace->ad", inverse, tally.clicks, x)
        width = np.sqrt(np.einsum("acd,ade,ace->ac", x, inverse, x))
        return best_or_blindly(np.einsum("acd,ad->ac", x, weights) + self.alpha * width, tally.present, 0.0)


def blindly(present: Flags) -> Floats:
    """Return equal probabilities of an ad's creatives, (A, C)."""
    shares: Floats = present / present.sum(axis=1, keepdims=True)
    return shares


def best_or_blindly(scores: Floats, present: Flags, epsilon: float) -> Floats:
    """Return the probabilities of choosing an ad's best creative, and blindly with probability `epsilon`, (A, C).

    Args:
        scores: (A, C); what is not present does not count.
        present: Which creatives there are, (A, C).
        epsilon: In [0, 1].
    """
    best = epsilon_greedy(np.where(present, scores, -np.inf), 0.0)
    return (1.0 - epsilon) * best + epsilon * blindly(present)
