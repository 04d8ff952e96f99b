import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.point_in_time import point_in_time
from features.priors import PriorTable, SettledRows, advance
from tests.features.counting import HALF_LIVES_S, SLOT_FIELD, WIDTHS, count, impressions, keys_of, rows_of

EMPTY = PriorTable.empty(HALF_LIVES_S, 2)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    n_rows=st.integers(0, 150),
    span_s=st.sampled_from([1.0, 100.0, 1e5, 1e9]),  # 1e9 s are 2e8 of the shortest half-lives
    counted=st.floats(0.0, 0.5),
    coarse=st.booleans(),
)
def test_it_equals_a_slow_loop_over_the_rows(
    seed: int, n_rows: int, span_s: float, counted: float, coarse: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows, asked = rows_of(rng, n_rows, span_s=span_s, coarse=coarse), keys_of(rng, 20)
    table = advance(EMPTY, rows.between(-np.inf, counted * span_s), counted * span_s, slot_field=SLOT_FIELD)
    time_s = rng.uniform(counted * span_s, 1.1 * span_s, 20)
    time_s[: min(5, n_rows)] = np.maximum(rows.settled_s[-5:], counted * span_s)[: min(5, n_rows)]  # at the very moment
    counts = point_in_time(table, rows.between(counted * span_s, np.inf), asked, time_s, WIDTHS)
    for i, at_s in enumerate(time_s.tolist()):
        for slot, key in enumerate(asked[i].tolist()):
            n, c = count(rows, key, at_s) if key else (0.0, 0.0)
            np.testing.assert_allclose(counts.n[i, slot], n, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(counts.c[i, slot], c, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(counts.root_n[i], count(rows, -1, at_s)[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(counts.root_c[i], count(rows, -1, at_s)[1], rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), n_rows=st.integers(1, 80))
def test_a_label_changes_nothing_that_was_shown_before_it_settled(seed: int, n_rows: int) -> None:
    rng = np.random.default_rng(seed)
    rows, asked, time_s = rows_of(rng, n_rows, span_s=100.0), keys_of(rng, 30), rng.uniform(0.0, 120.0, 30)
    which = int(rng.integers(n_rows))
    click = rows.click.copy()
    click[which] = 1.0 - click[which]
    before, after = (
        point_in_time(EMPTY, dataclasses.replace(rows, click=clicks), asked, time_s, WIDTHS)
        for clicks in (rows.click, click)
    )
    unaware = time_s < rows.settled_s[which]
    assert np.array_equal(before.c[unaware], after.c[unaware])
    assert np.array_equal(before.root_c[unaware], after.root_c[unaware])
    assert (before.root_c[~unaware] != after.root_c[~unaware]).any(axis=1).all()


def test_a_label_is_seen_from_the_very_moment_on_at_which_it_settles() -> None:
    rows = impressions(np.array([[1, 0, 0]], np.uint64), np.array([10.0]), np.ones(1))
    asked = np.array([[1, 0, 0]] * 2, np.uint64)
    counts = point_in_time(EMPTY, rows, asked, np.array([10.0, np.nextafter(10.0, 0.0)]), WIDTHS)
    assert counts.c[:, 0, 0].tolist() == [1.0, 0.0]


def test_a_long_run_of_one_value_keeps_its_precision() -> None:
    settled_s = np.linspace(0.0, 1e7, 20_000)  # 2 million of the shortest half-lives
    rows = impressions(np.ones((20_000, 1), np.uint64), settled_s, np.ones(20_000))
    table = PriorTable.empty(HALF_LIVES_S, 1)
    counts = point_in_time(table, rows, np.ones((1, 1), np.uint64), np.array([1e7]), (1,))
    wanted = (0.5 ** ((1e7 - settled_s[:, None]) / np.array(HALF_LIVES_S))).sum(axis=0)
    np.testing.assert_allclose(counts.n[0, 0], wanted, rtol=1e-12)
    assert np.array_equal(counts.n, counts.c)


def test_no_rows_and_nothing_settled_is_no_error() -> None:
    nothing = SettledRows.empty(3)
    assert point_in_time(EMPTY, nothing, np.zeros((0, 3), np.uint64), np.zeros(0), WIDTHS).n.shape == (0, 3, 3)
    assert not point_in_time(EMPTY, nothing, np.ones((4, 3), np.uint64), np.ones(4), WIDTHS).n.any()


def test_nobody_sees_nothing_in_the_shapes_of_everybody() -> None:
    rng = np.random.default_rng(0)
    rows, asked = rows_of(rng, 30, span_s=100.0), keys_of(rng, 1)
    some = point_in_time(EMPTY, rows, asked, np.array([50.0]), WIDTHS)
    none = point_in_time(EMPTY, rows, asked[:0], np.zeros(0), WIDTHS)
    for name in ("n", "c", "root_n", "root_c"):
        assert getattr(none, name).shape == (0, *getattr(some, name).shape[1:])


def test_rows_that_the_table_holds_already_cannot_be_counted_again() -> None:
    table = advance(EMPTY, SettledRows.empty(3), 10.0, slot_field=SLOT_FIELD)
    rows = impressions(np.ones((1, 3), np.uint64), np.array([10.0]), np.ones(1))
    with pytest.raises(ValueError, match=r"settled rows must be later than the table's 10.0, got 10.0"):
        point_in_time(table, rows, np.ones((1, 3), np.uint64), np.array([11.0]), WIDTHS)
