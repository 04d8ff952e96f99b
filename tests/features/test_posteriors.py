import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.fields import Field
from features.posteriors import (
    READ_ROWS,
    ROOT_INPUT,
    beta_posterior,
    dense_inputs,
    dense_width,
    parent_rates,
    posterior_rates,
    shares,
)
from features.priors import STRENGTH_DEFAULT, Counts, PriorTable

FINE, COARSE = Field("ad", "item"), Field("tags", "item", "categories", values_max=2)
FIELDS = (FINE, COARSE)
TABLE = PriorTable.empty((10.0, 1000.0), 2)
KEYS = np.array([[1, 11, 12]], np.uint64)


def counts_of(n: list[list[float]], c: list[list[float]], root: tuple[float, float] = (1000.0, 100.0)) -> Counts:
    """One row; n and c by slot and half-life."""
    root_n, root_c = (np.full((1, 2), value) for value in root)
    return Counts(np.array([n]), np.array([c]), root_n, root_c)


def logit(p: float) -> float:
    return float(np.log(p / (1.0 - p)))


def read(
    counts: Counts, keys: npt.NDArray[np.uint64] = KEYS, levels: tuple[str, ...] = (), table: PriorTable = TABLE
) -> npt.NDArray[np.float32]:
    return dense_inputs(counts, keys, table, FIELDS, levels)


NOTHING = [[0.0, 0.0]] * 3


def test_a_row_without_counts_says_the_overall_rate_and_nothing_else() -> None:
    [dense] = read(counts_of(NOTHING, NOTHING))
    assert dense[0] == 1.0
    assert dense[ROOT_INPUT] == pytest.approx(logit(101 / 1002))
    assert dense[2] == pytest.approx(logit((100 + 100 * 101 / 1002) / 1100) - logit(101 / 1002), abs=1e-5)
    np.testing.assert_allclose(dense[3:], 0.0, atol=1e-6)


def test_a_rate_leans_on_its_parent_by_its_strength() -> None:
    [dense] = read(counts_of([[0.0, 30.0], *NOTHING[1:]], [[0.0, 15.0], *NOTHING[1:]]))
    overall = 101 / 1002
    posterior = (15.0 + STRENGTH_DEFAULT * overall) / (30.0 + STRENGTH_DEFAULT)
    shorter, longer = dense[3:5]
    assert longer == pytest.approx(logit(posterior) - logit(overall), abs=1e-5)
    assert shorter == pytest.approx(0.0, abs=1e-6)  # no counts in the short memory: nothing beside the long one's


@pytest.mark.parametrize("clicks", [15.0, 40.0])  # more clicks than impressions by late ones: as many
def test_a_beta_posterior_holds_counts_and_prior_of_the_longest_memory(clicks: float) -> None:
    counts = counts_of([[9.0, 30.0], *NOTHING[1:]], [[9.0, clicks], *NOTHING[1:]])
    [of_clicks], [others] = beta_posterior(counts, KEYS, TABLE, FIELDS, (), of=FINE)
    assert of_clicks == pytest.approx(min(clicks, 30.0) + STRENGTH_DEFAULT * 101 / 1002)
    assert of_clicks + others == pytest.approx(30.0 + STRENGTH_DEFAULT)


def test_a_short_memory_leans_on_the_long_one_of_the_same_value() -> None:
    [dense] = read(counts_of([[20.0, 200.0], *NOTHING[1:]], [[10.0, 100.0], *NOTHING[1:]]))
    long = (100.0 + STRENGTH_DEFAULT * 101 / 1002) / (200.0 + STRENGTH_DEFAULT)
    short = (10.0 + STRENGTH_DEFAULT * long) / (20.0 + STRENGTH_DEFAULT)
    assert dense[3] == pytest.approx(logit(short) - logit(long), abs=1e-5)


def test_a_fine_level_leans_on_the_coarse_ones_mean() -> None:
    counts = counts_of([[0, 0], [0, 1000.0], [0, 1000.0]], [[0, 0], [0, 900.0], [0, 500.0]])
    [flat], [levelled] = read(counts), read(counts, levels=("ad", "tags"))
    np.testing.assert_allclose(flat, levelled, atol=1e-6)  # without counts of its own it says what its parent says
    own = counts_of([[0, 10.0], [0, 1000.0], [0, 1000.0]], [[0, 9.0], [0, 900.0], [0, 500.0]])
    [flat], [levelled] = read(own), read(own, levels=("ad", "tags"))
    assert 0.0 < levelled[4] < flat[4]  # its parents explain a part of its high rate


def test_the_rates_that_are_leant_on_come_in_the_tables_order_of_half_lives() -> None:
    counts = counts_of([[20.0, 200.0], *NOTHING[1:]], [[10.0, 100.0], *NOTHING[1:]])
    [parent] = parent_rates(counts, KEYS, TABLE, FIELDS, ())
    overall = 101 / 1002
    long = (100.0 + STRENGTH_DEFAULT * overall) / (200.0 + STRENGTH_DEFAULT)
    np.testing.assert_allclose(parent, [[long, overall], [overall, overall], [overall, overall]], atol=1e-9)
    swapped = Counts(*(array[..., ::-1] for array in (counts.n, counts.c, counts.root_n, counts.root_c)))
    [reversed_] = parent_rates(swapped, KEYS, PriorTable.empty((1000.0, 10.0), 2), FIELDS, ())
    np.testing.assert_allclose(reversed_, parent[:, ::-1])


def test_rates_come_in_the_tables_order_of_half_lives_and_are_what_the_shorter_ones_lean_on() -> None:
    counts = counts_of([[20.0, 200.0], *NOTHING[1:]], [[10.0, 100.0], *NOTHING[1:]])
    [own], [parent] = (of(counts, KEYS, TABLE, FIELDS, ()) for of in (posterior_rates, parent_rates))
    assert own[0, 1] == pytest.approx(parent[0, 0])
    short = (10.0 + STRENGTH_DEFAULT * parent[0, 0]) / (20.0 + STRENGTH_DEFAULT)
    assert own[0, 0] == pytest.approx(short)
    np.testing.assert_allclose(own[1:], parent[1:], err_msg="without counts it is what it leans on")


def test_several_values_are_averaged_over_those_present() -> None:
    n, c = [[0, 0], [0, 50.0], [0, 50.0]], [[0, 0], [0, 40.0], [0, 5.0]]
    [both], [first], [second] = (
        read(counts_of(n, c), np.array([keys], np.uint64)) for keys in ([1, 11, 12], [1, 11, 0], [1, 0, 12])
    )
    assert both[6] == pytest.approx((first[6] + second[6]) / 2, abs=1e-5)
    np.testing.assert_allclose(shares(np.array([[1, 11, 12], [0, 11, 0], [0, 0, 0]], np.uint64), FIELDS), _SHARES)


@given(
    st.lists(st.tuples(st.floats(0.0, 1e12), st.floats(0.0, 1.0)), min_size=8, max_size=8),
    st.floats(1.0, 1000.0),
)
def test_inputs_are_finite_and_bounded_whatever_the_counts(pairs: list[tuple[float, float]], strength: float) -> None:
    n = np.array([pair[0] for pair in pairs]).reshape(4, 2)
    c = n * np.array([pair[1] for pair in pairs]).reshape(4, 2)
    table = dataclasses.replace(TABLE, strength=np.full((2, 2), strength))
    dense = dense_inputs(Counts(n[None, :3], c[None, :3], n[3:], c[3:]), KEYS, table, FIELDS, ("ad", "tags"))
    assert np.isfinite(dense).all()
    assert np.abs(dense).max() <= 24.0


def test_inputs_do_not_depend_on_the_order_of_half_lives() -> None:
    rng = np.random.default_rng(0)
    n = rng.uniform(0.0, 50.0, (1, 3, 2))
    counts = Counts(n, n * 0.3, np.array([[100.0, 900.0]]), np.array([[10.0, 200.0]]))
    swapped = Counts(*(array[..., ::-1] for array in (counts.n, counts.c, counts.root_n, counts.root_c)))
    np.testing.assert_allclose(read(counts), read(swapped, table=PriorTable.empty((1000.0, 10.0), 2)), rtol=1e-6)


def test_more_rows_than_are_turned_at_a_time_get_the_same_inputs() -> None:
    n_rows = READ_ROWS + 5
    one = counts_of([[1.0, 2.0]] * 3, [[0.5, 1.0]] * 3)
    many = Counts(*(np.repeat(array, n_rows, axis=0) for array in (one.n, one.c, one.root_n, one.root_c)))
    dense = read(many, np.repeat(KEYS, n_rows, axis=0))
    assert dense.shape == (n_rows, dense_width(FIELDS, 2))
    np.testing.assert_array_equal(dense, np.repeat(read(one), n_rows, axis=0))


def test_inputs_do_not_depend_on_how_counts_lie_in_memory_or_on_the_rows_beside() -> None:
    rng = np.random.default_rng(0)
    n = rng.uniform(0.0, 50.0, (2 * READ_ROWS, 3, 2)) * rng.integers(0, 2, (2 * READ_ROWS, 3, 2))
    counts = Counts(n, n * 0.3, rng.uniform(500.0, 900.0, (len(n), 2)), rng.uniform(1.0, 90.0, (len(n), 2)))
    by_memory = Counts(*(np.asfortranarray(array) for array in (counts.n, counts.c, counts.root_n, counts.root_c)))
    keys = np.where(rng.random((len(n), 3)) < 0.3, 0, KEYS).astype(np.uint64)
    wanted = read(counts, keys, ("ad", "tags"))
    np.testing.assert_array_equal(read(by_memory, keys, ("ad", "tags")), wanted)
    for row in (0, 1, READ_ROWS - 1, READ_ROWS):
        alone = slice(row, row + 1)
        np.testing.assert_array_equal(read(counts.take(alone), keys[alone], ("ad", "tags")), wanted[alone])


_SHARES = [[1.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_clicks_added_late_count_for_no_more_than_what_is_left_of_their_impressions() -> None:
    n = [[3.0, 30.0], *NOTHING[1:]]
    late, bounded = (counts_of(n, [c, *NOTHING[1:]]) for c in ([9.0, 30.5], [3.0, 30.0]))
    np.testing.assert_array_equal(read(late), read(bounded))


def test_an_overall_rate_whose_clicks_exceed_its_impressions_is_one_of_clicks_alone() -> None:
    late, bounded = (
        Counts(np.zeros((1, 3, 2)), np.zeros((1, 3, 2)), np.full((1, 2), 5.0), np.full((1, 2), c)) for c in (7.0, 5.0)
    )
    np.testing.assert_array_equal(read(late), read(bounded))
