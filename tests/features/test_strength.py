"""How strongly rates lean on their parents: what would have predicted best."""

import dataclasses

import numpy as np
import pytest

from features.fields import Field
from features.posteriors import parent_rates
from features.priors import STRENGTH_DEFAULT, Counts, PriorTable
from features.strength import (
    CANDIDATES,
    MEMORY_ROWS,
    READ_ROWS,
    add_losses,
    best_strength,
    fit_strength,
    initial_losses,
)

FIELDS = (Field("user", "user"), Field("ad", "item"))
TABLE = PriorTable.empty((1000.0,), 2)
NEAREST = CANDIDATES[np.abs(np.log(CANDIDATES / STRENGTH_DEFAULT)).argmin()]


def rows(strength: float, n_rows: int = 20_000, mean: float = 0.2, seed: int = 0) -> tuple[Counts, np.ndarray, ...]:
    """Return rows of ads whose rates were drawn with a strength; users were never counted."""
    rng = np.random.default_rng(seed)
    rate = rng.beta(mean * strength, (1.0 - mean) * strength, n_rows)
    n = rng.integers(0, 60, n_rows).astype(np.float64)
    c = rng.binomial(n.astype(np.int64), rate).astype(np.float64)
    counted = np.stack([np.zeros(n_rows), n], axis=1)[:, :, None]
    clicks = np.stack([np.zeros(n_rows), c], axis=1)[:, :, None]
    root = np.full((n_rows, 1), 1e6)
    keys = np.stack([np.ones(n_rows), np.arange(2, n_rows + 2)], axis=1).astype(np.uint64)
    return Counts(counted, clicks, root, root * mean), keys, (rng.random(n_rows) < rate).astype(np.float64)


@pytest.mark.parametrize("strength", CANDIDATES[[1, 3, 5]])
def test_the_strength_that_rates_were_drawn_with_is_found_again(strength: float) -> None:
    fitted = fit_strength(*rows(strength), TABLE, FIELDS, ()).strength
    assert fitted[1, 0] == pytest.approx(strength, rel=2.2)  # it or a neighbour
    assert fitted[1, 0] >= strength / 3.2
    assert fitted[0, 0] == NEAREST  # a field that was never counted


def test_counts_that_mislead_are_hardly_believed() -> None:
    counts, keys, clicks = rows(10.0)
    shuffled = np.random.default_rng(1).permutation(clicks)  # what was counted of an ad says nothing of its next click
    assert fit_strength(counts, keys, shuffled, TABLE, FIELDS, ()).strength[1, 0] >= CANDIDATES[-2]


def test_losses_are_summed_row_by_row_however_many_are_judged_at_a_time_and_however_counts_lie_in_memory() -> None:
    counts, keys, clicks = rows(10.0, 2 * READ_ROWS + 7)
    parent = parent_rates(counts, keys, TABLE, FIELDS, ())
    losses = initial_losses(2, 1)
    wanted = losses * 0.5 ** (len(keys) / MEMORY_ROWS)
    for g, strength in enumerate(CANDIDATES):
        rate = (counts.c + strength * parent) / (counts.n + strength)
        gained = np.log(np.where(clicks[:, None, None] > 0.0, rate, 1.0 - rate)) * (counts.n > 0.0)
        added = np.zeros((2, 1))
        for of_row in gained:
            added -= of_row
        wanted[:, :, g] += added
    by_memory = Counts(*(np.asfortranarray(array) for array in (counts.n, counts.c, counts.root_n, counts.root_c)))
    for one in (counts, by_memory):
        np.testing.assert_array_equal(add_losses(losses, one, keys, clicks, TABLE, FIELDS, ()), wanted)


def test_no_rows_change_nothing() -> None:
    losses, (counts, keys, clicks) = initial_losses(2, 1), rows(10.0, 0)
    np.testing.assert_array_equal(add_losses(losses, counts, keys, clicks, TABLE, FIELDS, ()), losses)
    assert best_strength(losses).tolist() == [[NEAREST], [NEAREST]]


def test_what_was_true_once_is_forgotten() -> None:
    losses = initial_losses(2, 1)
    for strength in (CANDIDATES[1], CANDIDATES[5]):
        for seed in range(int(8 * MEMORY_ROWS / 8_192)):
            part = rows(strength, 8_192, seed=seed)
            losses = add_losses(losses, *part, TABLE, FIELDS, ())
        assert best_strength(losses)[1, 0] in CANDIDATES[np.abs(np.log10(CANDIDATES / strength)) < 0.6]


def test_clicks_beyond_the_impressions_count_as_those() -> None:
    counts, keys, clicks = rows(10.0, 100)
    late = dataclasses.replace(counts, c=counts.c + counts.n)
    bounded = dataclasses.replace(counts, c=counts.n)
    both = [add_losses(initial_losses(2, 1), one, keys, clicks, TABLE, FIELDS, ()) for one in (late, bounded)]
    np.testing.assert_array_equal(*both)
    assert np.isfinite(both).all()
