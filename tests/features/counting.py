"""Counting as slowly and plainly as it can be said: what the vectorised counting is held against."""

import numpy as np
import numpy.typing as npt

from features.priors import SettledRows

HALF_LIVES_S = (5.0, 300.0, 1e6)
WIDTHS = (1, 2)
SLOT_FIELD = np.array([0, 1, 1], np.int16)


def rows_of(rng: np.random.Generator, n_rows: int, *, span_s: float, coarse: bool = True) -> SettledRows:
    """Random settled rows of a field with one slot and a field with two; `coarse` times collide often.

    About a third of those that were not clicked are corrected at some later moment.
    """
    settled_s = rng.integers(0, 20, n_rows) * span_s / 20 if coarse else rng.uniform(0.0, span_s, n_rows)
    keys, click = keys_of(rng, n_rows), rng.integers(0, 2, n_rows).astype(np.float64)
    late = (click == 0) & (rng.random(n_rows) < 1 / 3)
    corrected_s = settled_s[late] + (span_s - settled_s[late]) * rng.random(late.sum())
    order = np.argsort(np.concatenate([settled_s, corrected_s]), kind="stable")
    return SettledRows(
        np.concatenate([keys, keys[late]])[order],
        np.concatenate([settled_s, corrected_s])[order],
        np.concatenate([click, np.ones(late.sum())])[order],
        np.concatenate([np.ones(n_rows), np.zeros(late.sum())])[order],
    )


def impressions(
    keys: npt.NDArray[np.uint64], settled_s: npt.NDArray[np.float64], click: npt.NDArray[np.float64]
) -> SettledRows:
    """Settled rows without corrections."""
    return SettledRows(keys, settled_s, click, np.ones(len(click)))


def keys_of(rng: np.random.Generator, n_rows: int) -> npt.NDArray[np.uint64]:
    """Random keys, some absent, never one twice in a row."""
    one = rng.integers(0, 4, (n_rows, 1))
    two = rng.permuted(np.tile([0, 11, 12, 13], (n_rows, 1)), axis=1)[:, :2]
    return np.concatenate([one, two], axis=1).astype(np.uint64)


def count(rows: SettledRows, key: int, at_s: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Impressions and clicks of a key at a moment, one row after the other; key -1 is every row."""
    n, c = np.zeros(len(HALF_LIVES_S)), np.zeros(len(HALF_LIVES_S))
    for keys, settled_s, click, impression in zip(rows.keys, rows.settled_s, rows.click, rows.impression, strict=True):
        if settled_s <= at_s and (key == -1 or key in keys):
            weight = 0.5 ** ((at_s - settled_s) / np.array(HALF_LIVES_S))
            n, c = n + weight * impression, c + weight * click
    return n, c
