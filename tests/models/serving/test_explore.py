"""Lists of ads that are drawn: who is shown how often is what the propensities say, and doubt decides who is tried."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.serving.explore import LISTS, draw_list
from tests.models.serving.service import BODY, ready_service

RATES = np.array([0.05, 0.049, 0.02, 0.02, 0.01])
SURE, IN_DOUBT = 100_000.0, 20.0  # impressions that a posterior is worth
CERTAIN = RATES * SURE, (1.0 - RATES) * SURE


def doubtful(which: int) -> tuple[np.ndarray, np.ndarray]:
    worth = np.where(np.arange(len(RATES)) == which, IN_DOUBT, SURE)
    return RATES * worth, (1.0 - RATES) * worth


def test_without_exploring_the_best_are_shown_for_certain() -> None:
    shown, propensities = draw_list(RATES, doubtful(3), top=2, explore=0.0, seed=1)
    assert shown.tolist() == [0, 1]
    assert propensities.tolist() == [1.0, 1.0]


def test_where_all_are_shown_there_is_nothing_to_draw() -> None:
    shown, propensities = draw_list(RATES, doubtful(3), top=5, explore=1.0, seed=1)
    assert (shown.tolist(), propensities.tolist()) == ([0, 1, 2, 3, 4], [1.0] * 5)


def test_who_is_in_doubt_is_tried_and_who_is_known_to_be_worse_is_not() -> None:
    drawn = [draw_list(RATES, doubtful(3), top=2, explore=1.0, seed=seed) for seed in range(400)]
    often = np.bincount(np.concatenate([shown for shown, _ in drawn]), minlength=5) / 400
    assert often[3] == pytest.approx(expected_share(3), abs=0.06)
    assert often[3] > 0.1
    assert often[2] == often[4] == 0.0


def expected_share(which: int) -> float:
    """Return how often a draw of one ad is above the second best, which is known."""
    clicks, others = (of_all[which] for of_all in doubtful(which))
    return float((np.random.default_rng(0).beta(clicks, others, 100_000) > 0.049).mean())


@pytest.mark.parametrize("explore", [0.3, 1.0])
def test_an_ad_is_shown_as_often_as_its_propensity_says(explore: float) -> None:
    """Over many requests, what was weighed by one over its propensity is counted once per request."""
    total = np.zeros(5)
    posterior = (RATES * 40.0, (1.0 - RATES) * 40.0)
    for seed in range(4000):
        shown, propensities = draw_list(RATES, posterior, top=2, explore=explore, seed=seed)
        assert len({*shown.tolist()}) == 2
        assert (propensities >= explore / LISTS - 1e-12).all()
        total[shown] += 1.0 / propensities
    assert total / 4000 == pytest.approx(np.ones(5), abs=0.1)


def test_a_list_stands_in_the_order_of_what_was_drawn_and_a_retry_draws_the_same() -> None:
    one, again, other = (draw_list(RATES, CERTAIN, top=3, explore=1.0, seed=seed) for seed in (7, 7, 8))
    assert one[0].tolist() == again[0].tolist()
    assert one[0][0] in (0, 1)
    assert any(
        draw_list(RATES, doubtful(3), top=3, explore=1.0, seed=seed)[0].tolist() != one[0].tolist()
        for seed in range(20)
    )
    assert other[1].tolist() == pytest.approx([1.0, 1.0, 0.5], abs=0.5)


async def test_an_answer_says_how_likely_each_ad_was_to_be_in_it(tmp_path: Path) -> None:
    service = ready_service(tmp_path)
    service.pipeline._rules = msgspec.structs.replace(service.pipeline._rules, explore_ads=1.0)
    seen: set[str] = set()
    for number in range(40):
        answer = await service.pipeline.rank(json.dumps({**BODY, "request_id": f"q{number}", "top": 3}).encode())
        assert all(1.0 / LISTS <= ad.propensity <= 1.0 for ad in answer.ads)
        seen |= {ad.ad_id for ad in answer.ads}
    assert len(seen) > 5
