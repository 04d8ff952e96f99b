"""The closed loop as a user types it: what is learnt from people is worth something to them, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

WAIT_S = 420.0  # a bound, not an expectation
HOURS = 8
PHASES = ["at first", "before the drift", "after the drift", "at last"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("closed-loop")


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    command = ["demo", "--closed-loop", "--hours", str(HOURS), "--json", str(home / "loop.json")]
    ran = subprocess.run(
        [sys.executable, "-m", "stream.cli", *command],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "FRESHRANK_HOME": str(home / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.fixture(scope="module")
def result(said: str, home: Path) -> dict[str, Any]:
    assert said
    found: dict[str, Any] = json.loads((home / "loop.json").read_text())
    return found


def test_every_event_is_accounted_for(result: dict[str, Any]) -> None:
    assert result["missing"] == {"requests": 0, "impressions": 0, "clicks": 0}
    assert result["violations"] == {"impressions": 0, "clicks": 0, "records": 0}
    ledger, sent = result["ledger"], result["sent"]
    assert sent["impressions"] == 10 * sent["requests"] > 10_000
    assert [ledger[kind] for kind in ("pending", "held", "orphan", "dead_letters", "duplicates")] == [0] * 5
    assert sum(slide["evaluation"]["latest"]["rows"] for slide in result["slides"]) == ledger["impressions"]
    assert result["notes"] == []


def test_what_the_people_clicked_became_the_models_that_answered_them(result: dict[str, Any]) -> None:
    assert len(result["hours"]) == HOURS
    assert result["swaps"] >= HOURS - 2
    assert result["snapshots"][0] == result["static"]
    assert set(result["snapshots"]) <= {slide["champion"] for slide in result["slides"]}


def test_what_the_service_showed_is_recomputed_by_the_trainer(result: dict[str, Any]) -> None:
    """How far apart depends on the machine: an hour passes in seconds, in all partitions at once."""
    assert 5_000 < result["skew"]["rows"] <= result["sent"]["impressions"]
    assert 0.0 < result["skew"]["mean"] <= result["skew"]["largest"] < 0.5


def test_who_learns_from_the_people_serves_them_better_than_chance(result: dict[str, Any]) -> None:
    """By true chances, over 1,000 requests: no luck of clicks is in it."""
    assert list(result["phases"]) == PHASES
    before = result["phases"]["before the drift"]["arms"]
    assert before["learning"]["regret"]["high"] < before["random"]["regret"]["low"]
    assert before["random"]["behind"]["low"] > 0.0
    for phase in result["phases"].values():
        assert phase["best_ctr"] > phase["arms"]["learning"]["expected_ctr"]


def test_the_table_says_it_all_and_there_is_a_picture(said: str, result: dict[str, Any]) -> None:
    for words in (
        *PHASES,
        "learning is ahead by",
        "swaps of snapshots",
        "training/serving skew of",
        "the ledger has counted every event sent",
    ):
        assert words in said
    assert Path(result["plot"]).read_bytes().startswith(b"\x89PNG")
