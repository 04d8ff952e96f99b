"""How well a field alone tells clicks, by other rows alone.

Owns the score of a row: the click rate that other rows with the same value had. Must not know what is too good.

Invariants: a score never rests on its own row, so an id that appears once tells nothing, however well it would fit.

Shape legend: `N` rows.
"""

from __future__ import annotations

import numpy as np

from models.evaluate import grouped_auc
from models.leaks.table import Column, Floats, Ints

N_BINS = 64  # values of a number that are told apart, by quantile; a field with more is an id. Chosen by hand
PRIOR_ROWS = 5.0  # rows that the overall rate is worth beside a value's own; chosen by hand


def score_codes(column: Column) -> Ints:
    """Return the codes by which a field is scored, (N,): its values, or the bins of a number; missing ones are 0."""
    if column.kind != "number":
        return column.codes + 1
    assert column.numbers is not None
    return bins(column.numbers, N_BINS)


def bins(numbers: Floats, n_bins: int) -> Ints:
    """Return the quantile bin of each number from 1, missing ones 0, (N,); equal numbers are never parted."""
    present = np.isfinite(numbers)
    if not present.any():
        return np.zeros(len(numbers), np.int64)
    values, counts = np.unique(numbers[present], return_counts=True)
    rank = (np.cumsum(counts) - counts / 2.0) / counts.sum()
    of_value = np.unique(np.minimum((rank * n_bins).astype(np.int64), n_bins - 1), return_inverse=True)[1]
    if len(values) <= n_bins:
        of_value = np.arange(len(values))
    codes = np.zeros(len(numbers), np.int64)
    codes[present] = of_value[np.searchsorted(values, numbers[present])] + 1
    return codes


def rates(codes: Ints, labels: Floats, requests: Ints) -> tuple[Floats, Ints]:
    """Return per row the click rate of its value that other rows show, (N,), and how many those are, (N,).

    Those of a field with few values are the rows of the other half of the requests: rows with one value then score
    alike, and none is scored by its siblings. Those of an id are the earlier rows with it.
    """
    if int(codes.max(initial=0)) > N_BINS:
        return past_rates(codes, labels)
    out, counts = np.empty(len(codes)), np.empty(len(codes), np.int64)
    for half in (0, 1):
        scored = requests % 2 == half
        n_rows = np.bincount(codes[~scored], minlength=N_BINS + 1)
        n_clicks = np.bincount(codes[~scored], labels[~scored], minlength=N_BINS + 1)
        smoothed = (n_clicks + PRIOR_ROWS * labels.mean()) / (n_rows + PRIOR_ROWS)
        out[scored], counts[scored] = smoothed[codes[scored]], n_rows[codes[scored]]
    return out, counts


def past_rates(codes: Ints, labels: Floats) -> tuple[Floats, Ints]:
    """Return per row the smoothed rate of earlier rows with the same code, (N,), and how many those are, (N,).

    Source: prequential target encoding.
    """
    order = np.argsort(codes, kind="stable")
    code, label = codes[order], labels[order]
    starts = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]])) if len(code) else np.zeros(0, np.int64)
    start = np.repeat(starts, np.diff(np.append(starts, len(code))))
    before = np.cumsum(label) - label
    n_past = np.arange(len(code)) - start
    rates = (before - before[start] + PRIOR_ROWS * labels.mean()) / (n_past + PRIOR_ROWS)
    out, counts = np.empty(len(codes)), np.empty(len(codes), np.int64)
    out[order], counts[order] = rates, n_past
    return out, counts


def auc(scores: Floats, labels: Floats, groups: Ints | None = None) -> float:
    """Return the AUC, within groups when they are given; 0.5 where it is not defined."""
    found = grouped_auc(scores, labels, np.zeros(len(labels), np.int64) if groups is None else groups)
    return 0.5 if found is None else found
