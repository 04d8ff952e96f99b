"""How people answer what they are shown: by the truth, once and for all, and never better than the best list."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from stream.audience import Audience, Reaction
from stream.cascade import Cascade, Funnel, Hour, at_position

FUNNEL = Funnel(matched=6, preranked=4, exposed=3)


def an_audience(seed: int = 5, requests_per_hour: float = 1200.0) -> Audience:
    cascade = Cascade(seed, hours=1, funnel=FUNNEL, n_ads=40, requests_per_hour=requests_per_hour)
    return Audience(cascade, next(cascade.hours()))


AUDIENCE = an_audience()


def truth(request: int, ad_id: str) -> np.ndarray:
    """Return the logit at the top of each creative of a candidate, from the cascade itself."""
    cascade = Cascade(5, hours=1, funnel=FUNNEL, n_ads=40, requests_per_hour=1200.0)
    hour: Hour = next(cascade.hours())
    ad = int(np.flatnonzero(hour.market.number == int(ad_id))[0])
    return cascade.click_logit(hour, np.array([request]), np.array([ad]))[0, : hour.market.n_creatives[ad]]


def shown(audience: Audience, request: int, *, reverse: bool = False) -> Reaction:
    ads = audience.candidates(request)[:3]
    return audience.react(request, [(ad_id, None) for ad_id in (reversed(ads) if reverse else ads)])


def test_chances_are_the_truth_of_creative_and_place() -> None:
    ads = AUDIENCE.candidates(7)
    assert len(ads) == len(set(ads)) == 6
    found = AUDIENCE.react(7, [(ads[2], None), (ads[0], f"{ads[0]}-1"), (ads[4], None)])
    by_hand = [
        at_position(truth(7, ads[2]), 0).mean(),
        at_position(truth(7, ads[0])[1], 1),
        at_position(truth(7, ads[4]), 2).mean(),
    ]
    assert found.expected == pytest.approx(by_hand, rel=1e-12)
    assert found.creative[1] == 1
    assert found.creative[0] < len(truth(7, ads[2]))


def test_clicks_come_as_often_as_the_truth_says_and_after_the_request() -> None:
    several = [shown(AUDIENCE, request) for request in range(len(AUDIENCE.hour.user))]
    expected = np.concatenate([one.expected for one in several])
    clicked = np.concatenate([one.clicked for one in several])
    assert clicked.sum() == pytest.approx(expected.sum(), abs=4 * np.sqrt((expected * (1 - expected)).sum()))
    assert clicked.sum() > 50
    delay_s = np.concatenate([one.click_time_s - AUDIENCE.hour.time_s[index] for index, one in enumerate(several)])
    assert (np.isnan(delay_s) == ~clicked).all()
    assert (delay_s[clicked] >= 0.0).all()
    assert 5.0 < np.median(delay_s[clicked]) < 20.0  # four of five wait 8 s on average, the others 120 s


def test_the_same_list_gets_the_same_answer_and_another_world_another_one() -> None:
    again, other = an_audience(), an_audience(seed=6)
    for request in range(50):
        one, same = shown(AUDIENCE, request), shown(again, request)
        assert (one.clicked == same.clicked).all()
        assert (one.creative == same.creative).all()
        np.testing.assert_array_equal(one.click_time_s, same.click_time_s)
    assert any((shown(AUDIENCE, r).creative != shown(other, r).creative).any() for r in range(50))


def test_who_would_click_lower_down_clicks_further_up_too() -> None:
    """The draw belongs to the candidate: what changes with the place is its chance alone."""
    n_more = 0
    for request in range(len(AUDIENCE.hour.user)):
        below, above = shown(AUDIENCE, request).clicked[2], shown(AUDIENCE, request, reverse=True).clicked[0]
        assert above >= below
        n_more += above > below
    assert n_more > 0


def test_no_list_is_better_than_the_best_one() -> None:
    found = AUDIENCE.best(3)
    for request in range(3):
        ads = AUDIENCE.candidates(request)
        best = {ad: f"{ad}-{np.argmax(truth(request, ad))}" for ad in ads}
        own = max(
            AUDIENCE.react(request, [(ad, best[ad]) for ad in some]).expected.sum() for some in permutations(ads, 3)
        )
        assert found[request] == pytest.approx(own, rel=1e-12)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ([("99999", None)], "request 0 must be answered with its candidates, got ad 99999"),
        ([("A", None), ("A", None)], "request 0 must be answered with each ad once"),
        ([("A", "99999-0")], "must be shown with a creative of its own, got 99999-0"),
        ([("A", "A-99")], "must be shown with a creative of its own"),
        ([("A", "A-x")], "must be shown with a creative of its own"),
    ],
)
def test_what_cannot_be_shown_is_said(choices: list[tuple[str, str | None]], words: str) -> None:
    first = AUDIENCE.candidates(0)[0]
    named = [(ad.replace("A", first), creative and creative.replace("A", first)) for ad, creative in choices]
    with pytest.raises(ValueError, match=words):
        AUDIENCE.react(0, named)
