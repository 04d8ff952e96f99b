"""Users are drawn into arms evenly, for good, and independently of every other experiment."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from models.serving.rank import Scorer
from models.serving.split import CHAMPION, FALLBACK, LATEST, Split, draw
from tests.models.serving.trained import two_snapshots

USERS = [f"u{number}" for number in range(20_000)]
SPLIT = Split("fresh", 0.3, "user_id")
DRAWN, DRAWN_ACCENT = 0.6565348347314278, 0.9113636088353088


@pytest.fixture(scope="module")
def scorers() -> tuple[Scorer, Scorer]:
    first, second = two_snapshots()
    return Scorer.from_snapshot(first), Scorer.from_snapshot(second)


def test_users_are_drawn_evenly() -> None:
    counts = np.bincount([int(draw("fresh", user) * 20) for user in USERS], minlength=20)
    expected = len(USERS) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square of 19 degrees of freedom at 0.001


def test_a_user_is_drawn_alike_in_every_process() -> None:
    code = "from models.serving.split import draw; print(draw('fresh', 'u1'), draw('fresh', 'é'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60.0)
    assert said.stdout.split() == [str(draw("fresh", "u1")), str(draw("fresh", "é"))]
    assert (draw("fresh", "u1"), draw("fresh", "é")) == (DRAWN, DRAWN_ACCENT)  # and by every release


def test_another_name_draws_independently() -> None:
    first, second = (np.array([draw(name, user) for user in USERS]) for name in ("fresh", "fresh2"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.0 / np.sqrt(len(USERS))
    assert draw("a", "bc") != draw("ab", "c")


def test_the_share_of_the_users_gets_the_newest_model_and_keeps_it_when_the_share_grows(
    scorers: tuple[Scorer, Scorer],
) -> None:
    champion, latest = scorers
    arms = {user: SPLIT.choose({"user_id": user}, champion, latest) for user in USERS}
    assert set(arms.values()) == {(CHAMPION, champion), (LATEST, latest)}
    in_latest = {user for user, (arm, _) in arms.items() if arm == LATEST}
    assert abs(len(in_latest) / len(USERS) - 0.3) < 4.0 * np.sqrt(0.3 * 0.7 / len(USERS))
    wider = Split("fresh", 0.5, "user_id")
    assert all(wider.choose({"user_id": user}, champion, latest)[0] == LATEST for user in in_latest)


def test_who_is_not_known_is_the_champions(scorers: tuple[Scorer, Scorer]) -> None:
    champion, latest = scorers
    nearly_all = Split("fresh", 0.999999, "user_id")
    for values in ({}, {"user_id": None}, {"other": "u1"}):
        assert nearly_all.choose(values, champion, latest) == (CHAMPION, champion)


def test_without_the_newest_model_the_champion_answers_and_the_arm_says_so(scorers: tuple[Scorer, Scorer]) -> None:
    champion, _ = scorers
    arms = {SPLIT.choose({"user_id": user}, champion, None) for user in USERS[:100]}
    assert arms == {(CHAMPION, champion), (FALLBACK, champion)}


def test_without_a_share_there_is_no_arm(scorers: tuple[Scorer, Scorer]) -> None:
    champion, latest = scorers
    assert {Split(name="fresh", user="user_id").choose({"user_id": user}, champion, latest) for user in USERS[:50]} == {
        ("", champion)
    }
