"""What counts of creatives say of their rates."""

from __future__ import annotations

import numpy as np
import pytest

from models.creatives.tally import Tally, ad_rates, fit_strength, posteriors

PRESENT = np.array([[True, True, False], [True, True, True]])
STRENGTH = np.array([[10.0], [20.0]])  # of ads, of creatives


def counted() -> Tally:
    impressions = np.array([[100.0, 0.0, 0.0], [50.0, 50.0, 100.0]])
    clicks = np.array([[10.0, 0.0, 0.0], [0.0, 5.0, 5.0]])
    return Tally.empty(PRESENT).plus(impressions, clicks)


def test_a_creative_leans_on_its_ad_and_an_ad_on_all() -> None:
    root = (20.0 + 1.0) / (300.0 + 2.0)  # the overall rate leans on one half a little
    of_ad = (10.0 + 10.0 * root) / (100.0 + 10.0)
    clicks, others = posteriors(counted(), STRENGTH)
    assert clicks[0, :2] == pytest.approx([10.0 + 20.0 * of_ad, 20.0 * of_ad])
    assert (clicks + others)[0, :2] == pytest.approx([120.0, 20.0])
    assert ad_rates(counted(), STRENGTH)[0] == pytest.approx(of_ad)


def test_the_rates_of_some_ads_are_those_among_all() -> None:
    ads = np.array([1, 0, 1])
    np.testing.assert_allclose(
        posteriors(counted().take(ads), STRENGTH), np.array(posteriors(counted(), STRENGTH))[:, ads]
    )


def test_what_is_added_in_parts_is_what_is_added_at_once() -> None:
    impressions, clicks = counted().impressions, counted().clicks
    parts = Tally.empty(PRESENT).plus(impressions - 1.0 * PRESENT * (impressions > 0), clicks * 0.5)
    parts = parts.plus(1.0 * PRESENT * (impressions > 0), clicks * 0.5)
    np.testing.assert_allclose(parts.clicks, clicks)
    np.testing.assert_allclose(parts.impressions, impressions)
    assert (parts.root_impressions, parts.root_clicks) == (300.0, 20.0)


def test_what_is_not_there_cannot_be_counted() -> None:
    with pytest.raises(AssertionError, match="cannot have been shown"):
        Tally.empty(PRESENT).plus(np.ones((2, 3)), np.zeros((2, 3)))


def test_an_ad_without_creatives_is_refused() -> None:
    with pytest.raises(ValueError, match="an ad needs a creative, 1 of 2 have none"):
        Tally.empty(np.array([[True], [False]]))


@pytest.mark.parametrize("strength", [10.0, 1000.0])
def test_the_strength_that_creatives_were_drawn_with_is_found_again(strength: float) -> None:
    rng = np.random.default_rng(0)
    n_ads, n_creatives, n_rows = 2000, 5, 40_000
    of_ad = rng.beta(20.0, 80.0, (n_ads, 1))
    rates = rng.beta(of_ad * strength, (1.0 - of_ad) * strength, (n_ads, n_creatives))
    impressions = rng.integers(0, 200, rates.shape)
    tally = Tally.empty(np.ones(rates.shape, bool)).plus(
        impressions.astype(np.float64), rng.binomial(impressions, rates).astype(np.float64)
    )
    ad, creative = rng.integers(n_ads, size=n_rows), rng.integers(n_creatives, size=n_rows)
    clicks = (rng.random(n_rows) < rates[ad, creative]).astype(np.float64)
    seen = [
        (tally.rows(ad[i : i + 8000], creative[i : i + 8000]), clicks[i : i + 8000]) for i in range(0, n_rows, 8000)
    ]
    found = fit_strength(seen)
    assert found.shape == (2, 1)
    assert strength / 10.0**0.5 <= found[1, 0] <= strength * 10.0**0.5 * 1.001
