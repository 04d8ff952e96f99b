"""Whether a field foretells even the chance in what comes after it.

Owns one idea. Each group (the rows of one ad, say) is cut in two: what the field says at the first quarter of its rows,
and the clicks of the rest. However good an honest field is, it knows click probabilities at most, so the clicks of the
rest scatter about any forecast made from it by at least the binomial variance n·p·(1 − p). A statistic that has seen
those clicks leaves less. The ratio of the two is 1 or more for honest fields and near 0 for the click rate over the
whole log; scale, shape and smoothing of the statistic do not matter, since the forecast is fitted.

Must not know fields by name, or what is done about them. Source: ours (index of dispersion of a fitted binomial rate).

Invariants: a group's forecast is fitted on other groups; clicks that are even by design (one in each request, say)
scatter little without the field as well and are no evidence against it.

Shape legend: `N` rows, `K` groups, `P` regressors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.leaks.table import Floats, Ints

FOLDS = 5  # the forecast of a group is fitted on the other four fifths
GROUPS_MIN = 30  # below it chance alone can look as even; chosen by hand
GROUPS_MAX = 5_000  # more change nothing but the time it takes; every i-th group is taken
GROUPS_RICH = 200  # from here on the forecast may bend; eight groups a regressor
KNOTS, KNOTS_FEW = 5, 1  # where it may bend
ROWS_MIN = 4  # of a group: one to look at, three to foretell
BINS = 100  # levels of a prediction that are calibrated on their own


@dataclass(frozen=True)
class Scatter:
    """How far later clicks scatter about a forecast.

    Attributes:
        ratio: Squared errors over binomial variance; at least about 1 for an honest field.
        ratio_without: The same for a forecast without the field, but at most 1.
        z: Standard errors by which the squared errors fall below what is expected.
        groups: How many groups it rests on.
    """

    ratio: float
    ratio_without: float
    z: float
    groups: int

    def is_too_even(self, ratio_max: float, z_min: float) -> bool:
        """Return whether the field takes away more than `ratio_max` leaves, beyond doubt."""
        return self.ratio < ratio_max * self.ratio_without and self.z >= z_min


class Groups:
    """Rows in the order (key, time), cut into groups of consecutive rows."""

    def __init__(self, order: Ints, labels: Floats, key_starts: Ints, starts: Ints) -> None:
        """Cut.

        Args:
            order: The rows by (key, time), (N,).
            labels: 0 or 1 in the table's order, (N,).
            key_starts: Where a key begins in `order`.
            starts: Where a group begins in `order`; every key's start is one.
        """
        self.order = order
        self.starts = starts
        self.sizes = np.diff(np.append(starts, len(order)))
        self._label_sums = _sums(labels[order])
        self._labels = labels[order]
        usable = np.flatnonzero(self.sizes >= ROWS_MIN)
        kept = usable[:: max(1, -(-len(usable) // GROUPS_MAX))]
        start, size = starts[kept], self.sizes[kept]
        key_start = key_starts[np.searchsorted(key_starts, start, side="right") - 1]
        self._start, self._n_first = start, np.maximum(size // 4, 1)
        self._first_end, self._end = start + self._n_first, start + size
        self._n_before = start - key_start
        self._c_before = self._label_sums[start] - self._label_sums[key_start]

    def foretold(self, numbers: Floats) -> Scatter | None:
        """Return how far the clicks after the first quarter of each group scatter, None with too few groups.

        Args:
            numbers: The field in the table's order, NaN where missing, (N,).
        """
        x = numbers[self.order]
        present = np.isfinite(x)
        n_seen = np.diff(_sums(present.astype(np.float64))[np.stack([self._start, self._first_end])], axis=0)[0]
        total = np.diff(_sums(np.where(present, x, 0.0))[np.stack([self._start, self._first_end])], axis=0)[0]
        use = n_seen > 0
        if use.sum() < GROUPS_MIN:
            return None
        level = total[use] / n_seen[use]
        if np.ptp(level) == 0.0:
            return None
        at = np.stack([self._start, self._first_end, self._end])[:, use]
        c_first, c_rest = np.diff(self._label_sums[at], axis=0)
        n_first, n_rest = np.diff(at, axis=0).astype(np.float64)
        known = np.stack([np.ones(len(level)), n_rest, n_first, c_first])
        before = np.stack([self._n_before[use].astype(np.float64), self._c_before[use]])
        bends = _hinges(level, KNOTS if len(level) >= GROUPS_RICH else KNOTS_FEW)
        scale = [np.ones(len(level)), n_rest + n_first]
        if before[0].any():
            known = np.concatenate([known, before])
            scale.append(before[0])
        with_field = np.concatenate([known, *(bends * by for by in scale)])
        variance = c_rest * (n_rest - c_rest) / (n_rest - 1.0) / n_rest
        if variance.sum() <= 0.0:
            return None
        errors = _errors(with_field, c_rest, n_rest) / n_rest
        errors_without = _errors(known, c_rest, n_rest) / n_rest
        return _compare(errors, errors_without, variance)

    def residual(self, numbers: Floats) -> Scatter | None:
        """Return how far the sum of residuals of each group scatters about 0, given the field at each of its rows.

        This is for predictions that differ from row to row of a group.
        """
        x = numbers[self.order]
        group = np.repeat(np.arange(len(self.starts)), self.sizes)
        errors = self._labels - _calibrated(x, self._labels, group)
        base = self._labels - self._labels.mean()
        use = (self.sizes >= ROWS_MIN) & (np.add.reduceat(base**2, self.starts) > 0.0)
        if use.sum() < GROUPS_MIN:
            return None
        size = self.sizes[use].astype(np.float64)
        sums = [np.add.reduceat(values, self.starts)[use] ** 2 / size for values in (errors, base)]
        variance = [np.add.reduceat(values**2, self.starts)[use] / size for values in (errors, base)]
        without = min(1.0, float(sums[1].sum() / variance[1].sum()))
        return _compare(sums[0], sums[1], variance[0], without)


def cut(order: Ints, codes: Ints, by: Ints | None = None) -> tuple[Ints, Ints]:
    """Return where keys and where groups begin in `order`; groups are keys, or their runs of equal `by`."""
    code = codes[order]
    is_key = np.concatenate([[True], code[1:] != code[:-1]])
    if by is None:
        starts = np.flatnonzero(is_key)
        return starts, starts
    part = by[order]
    is_group = is_key | np.concatenate([[True], part[1:] != part[:-1]])
    return np.flatnonzero(is_key), np.flatnonzero(is_group)


def _sums(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _hinges(x: Floats, n_knots: int) -> Floats:
    """Return a basis of piecewise linear functions of x, scaled to [0, 1], (n_knots + 1, K)."""
    knots = np.unique(np.quantile(x, np.arange(1, n_knots + 1) / (n_knots + 1)))
    spread = np.ptp(x)
    return np.stack([(x - x.min()) / spread, *(np.maximum(x - knot, 0.0) / spread for knot in knots)])


def _errors(regressors: Floats, clicks: Floats, rows: Floats) -> Floats:
    """Return the squared errors of least squares, each group forecast by the others, (K,)."""
    weight = 1.0 / np.sqrt(rows)
    design, target = (regressors * weight).T, clicks * weight
    scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
    design = design / scale
    gram, moment = design.T @ design, design.T @ target
    ridge = 1e-9 * np.eye(len(gram)) * np.trace(gram) / len(gram)  # holds regressors that repeat each other apart
    fold = np.arange(len(clicks)) % FOLDS
    errors = np.empty(len(clicks))
    for one in range(FOLDS):
        held = fold == one
        part = design[held]
        fitted = np.linalg.solve(gram - part.T @ part + ridge, moment - part.T @ target[held])
        forecast = np.clip(part @ fitted / weight[held], 0.0, rows[held])
        errors[held] = (clicks[held] - forecast) ** 2
    return errors


def _compare(errors: Floats, errors_without: Floats, variance: Floats, without: float | None = None) -> Scatter:
    if without is None:
        without = min(1.0, float(errors_without.sum() / variance.sum()))
    gaps = without * variance - errors
    z = float(gaps.sum() / max(np.sqrt((gaps**2).sum()), 1e-300))
    return Scatter(float(errors.sum() / variance.sum()), without, z, len(errors))


def _calibrated(x: Floats, labels: Floats, group: Ints) -> Floats:
    """Return the click rate at each level of x, from the groups of the other parity, (N,)."""
    level = np.zeros(len(x), np.int64)
    present = np.isfinite(x)
    edges = np.unique(np.quantile(x[present], np.arange(1, BINS) / BINS)) if present.any() else np.zeros(0)
    level[present] = np.searchsorted(edges, x[present], side="right") + 1
    n_levels = int(level.max()) + 1
    rates = np.empty(len(x))
    for parity in (0, 1):
        inside = group % 2 == parity
        n_rows = np.bincount(level[~inside], minlength=n_levels)
        clicks = np.bincount(level[~inside], labels[~inside], minlength=n_levels)
        rates[inside] = ((clicks + labels.mean()) / (n_rows + 1.0))[level[inside]]
    return rates
