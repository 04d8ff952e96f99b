"""sCTR, NSCTR and regret: by hand, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.creatives.metrics import SelectedCtr, regret, selected_ctr

ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 1)), min_size=1, max_size=40)


def of(rows: list[tuple[int, bool, int]]) -> SelectedCtr:
    ads, is_same, clicks = zip(*rows, strict=True)
    return selected_ctr(np.array(ads), np.array(is_same), np.array(clicks, np.float64))


def test_a_case_by_hand() -> None:
    # Ad 7: of 3 impressions 2 agree, 1 of them clicked. Ad 9: of 1 that agrees none. Ad 8: none of 4 agrees.
    rows = [(7, True, 1), (7, True, 0), (7, False, 1), (9, True, 0), *[(8, False, 1)] * 4]
    found = of(rows)
    assert found.rows == 3
    assert found.sctr == pytest.approx(1 / 3)
    assert found.nsctr == pytest.approx((1 / 2 * 3 + 0.0 * 1) / (3 + 1))
    assert found.coverage == pytest.approx(4 / 8)


def test_without_agreement_nothing_is_defined() -> None:
    assert of([(1, False, 1), (2, False, 0)]) == SelectedCtr(0, None, None, 0.0)


@given(ROWS)
def test_a_ranker_that_agrees_with_the_log_everywhere_has_its_click_rate(rows: list[tuple[int, bool, int]]) -> None:
    found = of([(ad, True, click) for ad, _, click in rows])
    rate = np.mean([click for _, _, click in rows])
    assert (found.rows, found.coverage) == (len(rows), 1.0)
    assert found.sctr == pytest.approx(rate)
    assert found.nsctr == pytest.approx(rate)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[tuple[int, bool, int]], random) -> None:
    mixed = random.sample(rows, len(rows))
    for one, other in zip(vars(of(rows)).values(), vars(of(mixed)).values(), strict=True):
        assert one == pytest.approx(other)


@given(ROWS)
def test_clicks_of_creatives_that_the_ranker_would_not_choose_change_nothing(rows: list[tuple[int, bool, int]]) -> None:
    assert of(rows) == of([(ad, same, click if same else 1 - click) for ad, same, click in rows])


def test_on_an_even_log_nsctr_is_the_rate_of_the_rankers_own_choice() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.05, 0.5, (20, 4))
    ads, logged = rng.integers(20, size=400_000), rng.integers(4, size=400_000)
    chosen = rng.integers(4, size=20)
    clicks = (rng.random(len(ads)) < rates[ads, logged]).astype(np.float64)
    found = selected_ctr(ads, logged == chosen[ads], clicks)
    assert found.nsctr == pytest.approx(rates[np.arange(20), chosen][ads].mean(), abs=0.005)


def test_regret_by_hand() -> None:
    rates = np.array([[0.1, 0.3, 0.0], [0.2, 0.2, 0.2]])
    np.testing.assert_allclose(regret(rates, np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])), [0.1, 0.0])


def test_the_best_creative_has_no_regret_and_every_other_choice_some() -> None:
    rates = np.random.default_rng(1).uniform(size=(50, 5))
    best = np.eye(5)[rates.argmax(axis=1)]
    assert not regret(rates, best).any()
    assert (regret(rates, 1.0 - best) > 0.0).all()
