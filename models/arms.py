"""How the two arms of an experiment compare, when users were drawn into them.

Owns the click rate of an arm, its interval, the difference of two and the check of the draw. Must not know where
impressions come from.

Users were drawn, not impressions: a user's impressions depend on each other, so all figures come from sums per user. A
click rate is a ratio of two such sums, R = sum x / sum y over the N users of an arm, with the variance

    Var(R) = N / (N - 1) * sum (x - R y)^2 / (sum y)^2

(delta method). Arms hold different users, so variances add. The relative difference has its interval on the scale of
logarithms, where it is nearer to normal and cannot fall below -100 %.

Source: Deng, Knoblich, Lu, Applying the delta method in metric analytics (2018), section 3; the check of the draw:
Fabijan et al., Diagnosing sample ratio mismatch in online controlled experiments (2019).

Invariants: a figure that is not defined is None, never NaN; intervals hold for one look, not for whoever looks until
something shows.

Shape legend: `N` users of an arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from models.ope.estimates import ratio_variance

Floats = npt.NDArray[np.float64]

ALPHA = 0.05  # intervals of 95 %
_Z = NormalDist().inv_cdf(1.0 - ALPHA / 2.0)
MISMATCH = 0.001  # chosen as those who check every experiment do: at 0.05 each twentieth would be suspected wrongly


@dataclass(frozen=True)
class Users:
    """What the users of an arm were shown and clicked.

    Attributes:
        impressions: Of each, > 0, (N,).
        clicks: Of each, (N,).
    """

    impressions: Floats
    clicks: Floats


@dataclass(frozen=True)
class Interval:
    """A figure and between what it lies; None where it is not defined."""

    mean: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Difference:
    """How much more one arm is clicked than the other.

    Attributes:
        absolute: Difference of the click rates.
        relative: The same as a share of the control's.
        p_value: Probability of so large a difference, either way, if there is none; None where it is not defined.
    """

    absolute: Interval
    relative: Interval
    p_value: float | None


@dataclass(frozen=True)
class Draw:
    """Whether as many users are in each arm as were to be.

    Attributes:
        expected: Share of the users that were to be in the treatment.
        observed: Share that is.
        chi2: Pearson's statistic, one degree of freedom.
        p_value: Probability of one so large if users were drawn as they were to be.
        passes: It is not suspiciously small.
    """

    expected: float
    observed: float
    chi2: float
    p_value: float
    passes: bool


def click_rate(users: Users) -> Interval:
    """Return the click rate of an arm with its interval."""
    if not users.impressions.sum():
        return Interval(None, None, None)
    rate, variance = _ratio(users)
    if variance is None:
        return Interval(rate, None, None)
    reach = _Z * math.sqrt(variance)
    return Interval(rate, max(rate - reach, 0.0), rate + reach)


def compare(control: Users, treatment: Users) -> Difference:
    """Return by how much the treatment's click rate is above the control's; both must have impressions."""
    (rate, variance), (other, other_variance) = _ratio(control), _ratio(treatment)
    absolute = other - rate
    relative = other / rate - 1.0 if rate else None
    if variance is None or other_variance is None:
        return Difference(Interval(absolute, None, None), Interval(relative, None, None), None)
    error = math.sqrt(variance + other_variance)
    p_value = math.erfc(abs(absolute) / error / math.sqrt(2.0)) if error else None
    around = Interval(absolute, absolute - _Z * error, absolute + _Z * error)
    if not rate or not other:
        return Difference(around, Interval(relative, None, None), p_value)
    reach = _Z * math.sqrt(variance / rate**2 + other_variance / other**2)
    ends = (other / rate * math.exp(-reach) - 1.0, other / rate * math.exp(reach) - 1.0)
    return Difference(around, Interval(relative, *ends), p_value)


def check_draw(n_control: int, n_treatment: int, share: float) -> Draw:
    """Return whether users, one or more, were drawn into the treatment with a share in (0, 1)."""
    n_users = n_control + n_treatment
    chi2 = (n_treatment - share * n_users) ** 2 / (n_users * share * (1.0 - share))
    p_value = math.erfc(math.sqrt(chi2 / 2.0))
    return Draw(share, n_treatment / n_users, chi2, p_value, p_value >= MISMATCH)


def _ratio(users: Users) -> tuple[float, float | None]:
    """Return the click rate and its variance, None with a single user."""
    total = float(users.impressions.sum())
    rate = float(users.clicks.sum()) / total
    if len(users.impressions) < 2:
        return rate, None
    return rate, ratio_variance(users.clicks - rate * users.impressions, total)
