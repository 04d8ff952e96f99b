"""The chaos run itself: it ends by itself, leaves nothing behind, and says so when a fault was not survived."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from stream.events import Click, Impression, Request, Tick
from tests.chaos.traffic import disturbed


@pytest.mark.slow
def test_chaos_survives_a_fault_and_leaves_nothing_behind(tmp_path: Path) -> None:
    report, home = tmp_path / "chaos.json", tmp_path / "tmp"
    home.mkdir()
    command = [sys.executable, "-m", "tests.chaos", "--faults", "kill", "--kills", "2", "--json", str(report)]
    done = subprocess.run(
        command, check=False, capture_output=True, env=os.environ | {"TMPDIR": str(home)}, timeout=180.0
    )
    assert done.returncode == 0, done.stdout
    assert b"all faults survived" in done.stdout
    result = msgspec.json.decode(report.read_bytes())
    (fault,) = result["faults"]
    assert result["survived"]
    assert (fault["times"], fault["audit"], fault["identical"], fault["wrong"]) == (2, True, True, [])
    assert not any(home.iterdir())
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(home) in " ".join(one.info["cmdline"] or ())]


@pytest.mark.slow
def test_chaos_that_is_cut_short_exits_with_1_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--faults", "sigterm", "--limit-s", "12"]
    done = subprocess.run(
        command, check=False, capture_output=True, env=os.environ | {"TMPDIR": str(tmp_path)}, timeout=90.0
    )
    assert done.returncode == 1
    assert b"NOT all faults survived" in done.stdout
    assert not any(tmp_path.iterdir())
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or ())]


def test_disturbed_traffic_repeats_and_delays_but_loses_nothing() -> None:
    events = [
        ("r", one)
        for number in range(2_000)
        for one in (
            Request(f"r{number}", number, []),
            Impression(f"r{number}", "a", 0, number),
            Click("r", "a", 0, 1.0),
        )
    ]
    ticks = [(None, Tick(5.0))]
    sent = list(disturbed([*events, *ticks], random.Random(1), 3, has_rubbish=True))
    assert sent == list(disturbed([*events, *ticks], random.Random(1), 3, has_rubbish=True))
    arrived = [one.event for one in sent if one.event is not None]
    assert {id(event) for event in arrived} == {id(event) for _, event in [*events, *ticks]}
    assert len(events) + 1 < len(arrived) < 1.1 * len(events)
    assert [event for _, event in events] != [event for event in arrived if not isinstance(event, Tick)][: len(events)]
    assert any(one.event is None for one in sent)
    assert all((one.partition is None) == isinstance(one.event, Tick) for one in sent)
