import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.priors import PriorTable, SettledRows, advance, decay, lookup, set_counts, within
from tests.features.counting import HALF_LIVES_S, SLOT_FIELD, count, impressions, rows_of
from tests.frames import frame

EMPTY = PriorTable.empty(HALF_LIVES_S, 2)
ALL_KEYS = np.array([1, 2, 3, 11, 12, 13], np.uint64)
SPANS_S = st.sampled_from([1.0, 100.0, 1e5, 1e9])


def counted(rows: SettledRows, to_s: float, table: PriorTable = EMPTY) -> PriorTable:
    return advance(table, rows, to_s, slot_field=SLOT_FIELD)


def assert_same_counts(one: PriorTable, other: PriorTable) -> None:
    assert one.as_of_s == other.as_of_s
    assert one.keys.tolist() == other.keys.tolist()
    assert one.field.tolist() == other.field.tolist()
    for name in ("n", "c", "root_n", "root_c"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), n_rows=st.integers(0, 60), span_s=SPANS_S)
def test_a_table_equals_a_slow_count(seed: int, n_rows: int, span_s: float) -> None:
    rows = rows_of(np.random.default_rng(seed), n_rows, span_s=span_s)
    table = counted(rows, span_s)
    for i, key in enumerate(table.keys):
        n, c = count(rows, int(key), span_s)
        np.testing.assert_allclose(table.n[i], n, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(table.c[i], c, rtol=1e-9, atol=1e-9)
    assert set(table.keys.tolist()) == set(rows.keys[rows.keys > 0].tolist())
    np.testing.assert_allclose(table.root_n, count(rows, -1, span_s)[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table.root_c, count(rows, -1, span_s)[1], rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), cut=st.floats(0.0, 1.0), span_s=SPANS_S)
def test_counting_in_two_steps_equals_counting_in_one(seed: int, cut: float, span_s: float) -> None:
    rows = rows_of(np.random.default_rng(seed), 40, span_s=span_s)
    half_s = cut * span_s
    in_two = counted(rows.between(half_s, np.inf), span_s, counted(rows.between(-np.inf, half_s), half_s))
    assert_same_counts(in_two, counted(rows, span_s))


@given(seed=st.integers(0, 10**6), span_s=SPANS_S)
def test_rows_of_two_partitions_may_be_counted_in_either_order(seed: int, span_s: float) -> None:
    rng = np.random.default_rng(seed)
    one, other = rows_of(rng, 20, span_s=span_s), rows_of(rng, 20, span_s=span_s / 2)
    one_first = counted(other, span_s / 2, counted(one, span_s))
    other_first = counted(one, span_s, counted(other, span_s / 2))
    assert_same_counts(one_first, other_first)


def test_a_count_halves_with_each_half_life() -> None:
    table = counted(impressions(np.array([[1, 0, 0]], np.uint64), np.zeros(1), np.ones(1)), 0.0)
    counts = lookup(table, np.array([[1, 0, 0]], np.uint64), 10.0)
    np.testing.assert_allclose(counts.n[0, 0], [0.25, 0.5 ** (10 / 300), 0.5 ** (10 / 1e6)])
    np.testing.assert_allclose(counts.c, counts.n)


def test_what_is_left_is_a_power_of_two_and_nothing_at_all_once_it_is_negligible() -> None:
    half_lives_s = np.array([1.0, 3600.0])
    elapsed_s = np.array([0.0, 0.7, 63.9, 64.0, 64.1, 70.0, 1050.0, 2000.0, 1e9, np.inf])
    left = decay(elapsed_s[:, None], half_lives_s)
    exact = np.exp2(elapsed_s[:, None] / -half_lives_s)
    np.testing.assert_array_equal(left, np.where(exact < 2.0**-64, 0.0, exact))
    assert (left[:, 0] > 0.0).tolist() == [True] * 4 + [False] * 6


def test_a_late_correction_adds_its_click_from_its_own_moment_on_and_no_impression() -> None:
    keys = np.array([[1, 0, 0], [1, 0, 0]], np.uint64)
    rows = SettledRows(keys, np.array([0.0, 5.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    table = counted(rows, 5.0)
    np.testing.assert_allclose(table.n[0], 0.5 ** (5.0 / np.array(HALF_LIVES_S)))
    assert table.c[0].tolist() == table.root_c.tolist() == [1.0, 1.0, 1.0]
    assert table.root_n.tolist() == table.n[0].tolist()


def test_a_correction_of_a_value_that_was_forgotten_does_not_bring_it_back() -> None:
    rows = SettledRows(np.array([[1, 0, 0]], np.uint64), np.array([5.0]), np.ones(1), np.zeros(1))
    assert not len(advance(EMPTY, rows, 5.0, slot_field=SLOT_FIELD, evidence_min=0.1).keys)


def test_unknown_and_absent_keys_have_no_counts() -> None:
    table = counted(rows_of(np.random.default_rng(0), 30, span_s=10.0), 10.0)
    counts = lookup(table, np.array([[0, 999, 12]], np.uint64), 10.0)
    assert not counts.n[0, :2].any()
    assert counts.n[0, 2].all()


def test_a_table_cannot_be_asked_about_its_past() -> None:
    table = counted(rows_of(np.random.default_rng(0), 5, span_s=10.0), 10.0)
    with pytest.raises(ValueError, match=r"counts as of 10.0 must be asked for later moments, got 9.0"):
        lookup(table, np.zeros((2, 3), np.uint64), np.array([11.0, 9.0]))


def test_a_row_that_settles_later_than_the_moment_is_not_counted_yet() -> None:
    with pytest.raises(ValueError, match=r"rows must have settled by 5.0 to be added, got 10.0"):
        counted(impressions(np.zeros((1, 3), np.uint64), np.array([10.0]), np.ones(1)), 5.0)


def test_values_whose_evidence_has_decayed_are_forgotten() -> None:
    rows = impressions(np.array([[1, 0, 0], [2, 0, 0]], np.uint64), np.array([0.0, 3e6]), np.ones(2))
    table = advance(EMPTY, rows, 3e6, slot_field=SLOT_FIELD, evidence_min=0.5)
    assert table.keys.tolist() == [2]
    assert table.field.tolist() == [0]


def test_a_publication_replaces_what_was_counted_and_adds_new_values() -> None:
    table = counted(rows_of(np.random.default_rng(1), 30, span_s=10.0), 10.0)
    n, c = np.array([[8.0, 8.0, 8.0], [4.0, 4.0, 4.0]]), np.array([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    after = set_counts(table, np.array([12, 5], np.uint64), np.array([1, 0], np.int16), n, c, 15.0)
    assert after.as_of_s == 15.0
    assert after.keys.tolist() == sorted({*table.keys.tolist(), 5})
    counts = lookup(after, np.array([[12, 5, 13]], np.uint64), 15.0)
    np.testing.assert_allclose(counts.n[0, :2], n)
    np.testing.assert_allclose(counts.c[0, :2], c)
    np.testing.assert_allclose(counts.n[0, 2], lookup(table, np.array([[0, 0, 13]], np.uint64), 15.0).n[0, 2])


def test_a_publication_that_is_older_than_the_table_is_brought_to_its_moment() -> None:
    table = counted(rows_of(np.random.default_rng(1), 30, span_s=10.0), 20.0)
    after = set_counts(table, ALL_KEYS[:1], SLOT_FIELD[:1], np.ones((1, 3)), np.ones((1, 3)), 15.0)
    assert after.as_of_s == 20.0
    np.testing.assert_allclose(after.n[0, 0], 0.5)  # one half-life of 5 s


def test_a_publication_comes_twice_without_harm() -> None:
    table = counted(rows_of(np.random.default_rng(1), 30, span_s=10.0), 10.0)
    update = (ALL_KEYS, np.array([0, 0, 0, 1, 1, 1], np.int16), np.full((6, 3), 3.0), np.ones((6, 3)), 12.0)
    assert_same_counts(set_counts(set_counts(table, *update), *update), set_counts(table, *update))


def test_settled_rows_are_put_into_order() -> None:
    rows = SettledRows.from_frame(frame(time_s=[3.0, 1.0, 2.0], click=[1, 0, 1]), np.array([[3], [1], [2]], np.uint64))
    assert rows.settled_s.tolist() == [61.0, 62.0, 63.0]
    assert rows.keys[:, 0].tolist() == [1, 2, 3]
    assert rows.click.tolist() == [0.0, 1.0, 1.0]
    assert rows.impression.tolist() == [1.0, 1.0, 1.0]


def test_a_row_of_the_kind_late_corrected_is_no_impression() -> None:
    late = frame(time_s=[2.0, 1.0], click=[1, 0]).with_columns(kind=pl.Series(["late_corrected", "expired_negative"]))
    rows = SettledRows.from_frame(late, np.array([[2], [1]], np.uint64))
    assert rows.impression.tolist() == [1.0, 0.0]
    assert rows.between(61.0, 62.0).followed_by(rows).impression.tolist() == [0.0, 1.0, 0.0]


def test_rows_between_two_moments_exclude_the_first_and_include_the_last() -> None:
    rows = impressions(np.arange(4, dtype=np.uint64)[:, None], np.array([1.0, 2.0, 2.0, 3.0]), np.zeros(4))
    assert rows.between(1.0, 2.0).keys[:, 0].tolist() == [1, 2]
    assert rows.between(-np.inf, 1.0).followed_by(rows.between(1.0, np.inf)).keys.tolist() == rows.keys.tolist()


def test_where_there_are_too_many_values_those_with_the_least_evidence_are_forgotten() -> None:
    rng = np.random.default_rng(0)
    rows = impressions(rng.integers(1, 50, (200, 3)).astype(np.uint64), np.sort(rng.random(200)), np.ones(200))
    everything = advance(EMPTY, rows, 1.0, slot_field=SLOT_FIELD)
    table = within(everything, 10)
    order = np.argsort(-everything.evidence, kind="stable")
    assert table.keys.tolist() == sorted(everything.keys[order[:10]].tolist())
    assert table.root_n.tolist() == everything.root_n.tolist()
