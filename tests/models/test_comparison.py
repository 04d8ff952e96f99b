import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.comparison import Scored, blocks_of_time, compare, measure


def scored(n_rows: int = 8000, n_windows: int = 4, seed: int = 0) -> tuple[Scored, np.ndarray]:
    """Rows with known click probabilities; those and the rows."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.1, 0.9, n_rows)
    rows = Scored(
        window=np.sort(rng.integers(0, n_windows, n_rows)),
        start_s=np.arange(n_windows, dtype=float),
        end_s=np.arange(n_windows, dtype=float) + 1.0,
        clicks=(rng.random(n_rows) < truth).astype(float),
        requests=np.arange(n_rows),
        users=rng.integers(0, 50, n_rows),
        item_evidence=rng.choice([0.0, 5.0, 500.0], n_rows),
    )
    return rows, truth


def test_figures_by_window_and_slice_add_up_to_those_of_all_rows() -> None:
    rows, truth = scored()
    figures = measure(rows, truth)
    for parts in (figures.windows, tuple(figures.slices.values())):
        assert sum(part.rows for part in parts) == figures.overall.rows == 8000
        total = sum((part.logloss or 0.0) * part.rows for part in parts)
        assert total / 8000 == pytest.approx(figures.overall.logloss)
    assert set(figures.slices) == {"new", "rare", "common"}


def test_drift_alarms_fall_where_predictions_become_wrong() -> None:
    rows, truth = scored(n_rows=60_000, n_windows=10)
    wrong = np.where(rows.window >= 6, 1.0 - truth, truth)
    assert not any(measure(rows, truth).drift)
    found = measure(rows, wrong).drift
    assert len(found) == 10
    assert not any(found[:6])
    assert found[6]


def test_requests_of_one_row_are_grouped_by_user() -> None:
    rows, _ = scored()
    assert np.array_equal(rows.groups, rows.users)
    pairs = Scored(**{**vars(rows), "requests": np.arange(8000) // 2})
    assert np.array_equal(pairs.groups, pairs.requests)


def test_the_truth_is_better_than_a_blurred_copy_and_the_interval_says_so() -> None:
    rows, truth = scored()
    blurred = 0.5 * truth + 0.25
    found = compare(rows, [truth], [blurred, blurred])
    low, high = found.ci95
    assert low < found.delta_logloss < high < 0.0
    back = compare(rows, [blurred], [truth])
    assert back.delta_logloss == pytest.approx(-found.delta_logloss)


def test_a_strategy_differs_from_itself_by_nothing() -> None:
    rows, truth = scored()
    found = compare(rows, [truth], [truth])
    assert (found.delta_logloss, found.ci95) == (0.0, (0.0, 0.0))


def test_intervals_of_equals_hold_zero_about_as_often_as_they_should() -> None:
    hits = 0
    for seed in range(60):
        rows, truth = scored(2000, seed=seed)
        noise = np.random.default_rng(seed + 1000).normal(0.0, 0.05, (2, 2000))
        low, high = compare(rows, *[[np.clip(truth + one, 0.01, 0.99)] for one in noise]).ci95
        hits += low <= 0.0 <= high
    assert hits >= 50  # 57 of 60 on average; fewer than 50 by chance once in a thousand


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_blocks_are_runs_of_rows_within_one_window(sizes: list[int]) -> None:
    window = np.repeat(np.arange(len(sizes)), sizes)
    block = blocks_of_time(window)
    assert (np.diff(block) >= 0).all()
    assert set(np.diff(block).tolist()) <= {0, 1}
    for one in np.unique(block):
        assert len(np.unique(window[block == one])) == 1
    assert len(np.unique(block)) >= min(40, len(window)) or len(sizes) >= 40 or min(sizes) < 40
