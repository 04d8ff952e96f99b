"""How good predictions were: log loss, its normalised form, AUC, grouped AUC and calibration.

Owns the definitions. Must not know models or what a figure is used for.

Invariants: a figure that is not defined (no rows, one class only) is None, never NaN or a made-up number; the order of
the rows changes nothing beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PROBABILITY_MIN = 1e-7  # predictions are clipped to [this, 1 - this]: one sure mistake must not make log loss infinite


@dataclass(frozen=True)
class Evaluation:
    """How good the predictions of some rows were.

    Attributes:
        rows: How many rows.
        clicks: How many of them were clicked.
        logloss: Mean log loss in nats; None without rows.
        ne: Log loss over the entropy of the click rate; None with one class only.
        auc: Probability that a click is scored above a non-click, ties count one half; None with one class only.
        gauc: AUC within groups, averaged by their rows; None when no group has both classes.
        calibration: Mean prediction over click rate; None without clicks.
    """

    rows: int
    clicks: int
    logloss: float | None = None
    ne: float | None = None
    auc: float | None = None
    gauc: float | None = None
    calibration: float | None = None


def evaluate(
    probabilities: npt.NDArray[np.floating], clicks: npt.NDArray[np.generic], groups: Ints | None = None
) -> Evaluation:
    """Return how good predictions were.

    Args:
        probabilities: Predicted click probabilities, (N,).
        clicks: 0 or 1, (N,).
        groups: Whose rows are compared with each other for `gauc`, (N,): users, or requests.
    """
    p, y = probabilities.astype(np.float64), clicks.astype(np.float64)
    n_rows, n_clicks = len(y), int(y.sum())
    if not n_rows:
        return Evaluation(0, 0)
    losses = log_losses(p, y)
    logloss, rate = float(losses.mean()), n_clicks / n_rows
    if n_clicks in (0, n_rows):
        return Evaluation(n_rows, n_clicks, logloss, calibration=float(p.mean()) / rate if n_clicks else None)
    entropy = -(rate * np.log(rate) + (1.0 - rate) * np.log(1.0 - rate))
    return Evaluation(
        rows=n_rows,
        clicks=n_clicks,
        logloss=logloss,
        ne=logloss / float(entropy),
        auc=grouped_auc(p, y, np.zeros(n_rows, np.int64)),
        gauc=None if groups is None else grouped_auc(p, y, groups),
        calibration=float(p.mean()) / rate,
    )


def log_losses(probabilities: Floats, clicks: Floats, probability_min: float = PROBABILITY_MIN) -> Floats:
    """Return the log loss of each row in nats, predictions clipped to [probability_min, 1 - probability_min]."""
    p = np.clip(probabilities, probability_min, 1.0 - probability_min)
    return -np.log(np.where(clicks > 0.0, p, 1.0 - p))


def grouped_auc(probabilities: Floats, clicks: Floats, groups: Ints) -> float | None:
    """Return the AUC within groups, averaged by their rows; None when no group has both classes."""
    _, group = np.unique(groups, return_inverse=True)
    order = np.lexsort((probabilities, group))
    group, p, y = group[order], probabilities[order], clicks[order]
    n_rows = np.bincount(group)
    rank = _mean_ranks(group, p) - (np.cumsum(n_rows) - n_rows)[group]  # within the group, from 1
    n_clicks = np.bincount(group, y)
    pairs = n_clicks * (n_rows - n_clicks)
    both = pairs > 0
    if not both.any():
        return None
    above = np.bincount(group, rank * y) - n_clicks * (n_clicks + 1.0) / 2.0
    return float(np.average(above[both] / pairs[both], weights=n_rows[both]))


def _mean_ranks(group: Ints, p: Floats) -> Floats:
    """Return the ranks from 1 of rows sorted by (group, p); equals share the mean of their ranks."""
    starts = np.flatnonzero(np.concatenate([[True], (group[1:] != group[:-1]) | (p[1:] != p[:-1])]))
    lengths = np.diff(np.append(starts, len(p)))
    return np.repeat(starts + (lengths + 1.0) / 2.0, lengths)
