"""What the demo refuses before it starts anything."""

import fcntl
import signal
from pathlib import Path

import pytest

from stream.demo import run_closed_loop, run_demo
from stream.demo.arms import phases
from stream.demo.closed_loop import HOURS_MIN, WARMUP_H, drift_hour, new_world
from stream.demo.setup import CONFIGS_DIR


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "home"
    monkeypatch.setenv("FRESHRANK_HOME", str(directory))
    return directory


def test_a_place_that_the_object_cannot_be_written_to_is_said_before_anything_runs(home: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--json must name a file in a directory that is there, got .*missing/a\.json"
    ):
        run_demo(json_path=str(home / "missing" / "a.json"))
    assert not home.exists()


def test_a_second_demo_in_a_state_directory_leaves_the_first_alone(home: Path) -> None:
    (home / "demo").mkdir(parents=True)
    (home / "demo" / "config.toml").write_text("the first one's")
    with (home / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="one demo at a time in a state directory, another one runs in"):
            run_demo(config=CONFIGS_DIR / "simulated.toml")
    assert (home / "demo" / "config.toml").read_text() == "the first one's"


def test_a_configuration_that_cannot_be_used_is_said_and_the_signals_are_as_before(home: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    config = tmp_path / "mine.toml"
    config.write_text('name = "x"\nwindow = 3\n')
    with pytest.raises(ValueError, match=r"mine\.toml: "):
        run_demo(config=config)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert home.exists()


def test_a_loop_without_hours_before_and_after_the_drift_is_refused_before_anything_runs(home: Path) -> None:
    with pytest.raises(ValueError, match="--hours must be >= 6, to have some before the drift and after, got 5"):
        run_closed_loop(hours=5)
    assert not home.exists()


@pytest.mark.parametrize("hours", range(HOURS_MIN, HOURS_MIN + 4))
def test_the_shortest_loops_have_all_phases(hours: int) -> None:
    world = new_world(0, hours)
    found = list(phases(WARMUP_H + 1, drift_hour(world), world.n_hours).values())
    assert (found[0][0], found[-1][1]) == (WARMUP_H + 1, WARMUP_H + 1 + hours)
    assert all(first < end for first, end in found)
