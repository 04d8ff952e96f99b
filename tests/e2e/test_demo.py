"""The demo as a user types it: from a log to served rankings, whatever dies on the way, and nothing left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from stream.demo.setup import CONFIGS_DIR, to_toml

pytestmark = pytest.mark.slow

WAIT_S = 240.0  # bounds, not expectations
GONE_S = 20.0
KEYS = {
    *("name", "config", "rows", "seconds", "stages", "events", "events_per_s", "ledger", "violations", "priors"),
    *("slides", "champion", "latest", "frozen", "summary", "requests", "memory_bytes_max", "memory_measure"),
    *("processes", "plot", "notes"),
}


class Demo:
    """A running `freshrank demo` with a state directory of its own."""

    def __init__(self, home: Path, rows: int) -> None:
        home.mkdir(parents=True)
        self.home = home
        raw = tomllib.loads((CONFIGS_DIR / "simulated.toml").read_text("utf-8"))
        raw["window"]["warmup_s"] = 7_200.0  # two of the five hours that 20,000 rows last
        self.config = home / "world.toml"
        self.config.write_text(to_toml(raw), "utf-8")
        self._said = (home / "said.txt").open("w")
        command = ["demo", str(self.config), "--rows", str(rows), "--json", str(home / "demo.json")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stream.cli", *command],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "FRESHRANK_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def said(self) -> str:
        return (self.home / "said.txt").read_text()

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not holds():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline_s, self.said
            time.sleep(0.05)

    def result(self) -> dict[str, Any]:
        assert self.process.wait(WAIT_S) == 0, self.said
        found: dict[str, Any] = json.loads((self.home / "demo.json").read_text())
        return found

    def pid_of(self, *words: str) -> int:
        """Return the pid of the role (or broker) whose command line holds these words."""
        found = []
        for process in self.below():
            with contextlib.suppress(psutil.Error):  # one that was killed a moment ago
                found += [process.pid] if set(words) <= set(process.cmdline()[:6]) else []
        return found[0]

    def below(self) -> list[psutil.Process]:
        """Return the processes of this demo but itself: all name its state directory."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.pid != self.process.pid and process.status() != psutil.STATUS_ZOMBIE
                if is_ours and any(str(self.home) in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()


@contextmanager
def running(home: Path, rows: int) -> Iterator[Demo]:
    demo = Demo(home, rows)
    try:
        yield demo
    finally:
        demo.end()


def assert_nothing_left(demo: Demo) -> None:
    deadline_s = time.monotonic() + GONE_S
    while left := demo.below():
        assert time.monotonic() < deadline_s, left
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with running(tmp_path_factory.mktemp("undisturbed") / "home", 20_000) as demo:
        result = demo.result()
        assert demo.below() == []
        return result | {"said": demo.said}


def test_everything_is_accounted_for(undisturbed: dict[str, Any]) -> None:
    assert set(undisturbed) - {"said"} == KEYS
    assert undisturbed["ledger"]["impressions"] == undisturbed["rows"]["used"] == 20_000
    assert undisturbed["violations"] == {"impressions": 0, "clicks": 0, "records": 0}
    assert undisturbed["ledger"]["pending"] == undisturbed["ledger"]["dead_letters"] == 0
    assert sum(slide["evaluation"]["latest"]["rows"] for slide in undisturbed["slides"]) == 20_000
    assert undisturbed["notes"] == []
    assert {name: one["deaths"] for name, one in undisturbed["processes"].items()} == dict.fromkeys(
        ("demo", "guards", "broker", "ledger", "priors", "train", "serve", "replay"), 0
    )
    assert all(one["cpu_s"] > 0.0 and one["memory_bytes_max"] > 0 for one in undisturbed["processes"].values())


def test_the_frozen_model_is_judged_on_the_slides_after_the_warm_up(undisturbed: dict[str, Any]) -> None:
    slides = undisturbed["slides"]
    warm = [slide["slide"] for slide in slides if slide["decision"] == "warmup"]
    assert undisturbed["frozen"]["slide"] == warm[-1]
    judged = [slide for slide in slides if slide["frozen"] is not None]
    assert [slide["slide"] for slide in judged] == [slide["slide"] for slide in slides[len(warm) :]]
    assert all(slide["frozen"]["rows"] == slide["evaluation"]["latest"]["rows"] for slide in judged)
    rows = {name: score["rows"] for name, score in undisturbed["summary"].items()}
    assert rows == dict.fromkeys(("frozen", "champion", "latest"), sum(slide["frozen"]["rows"] for slide in judged))
    # Ads come and go within a day here: who stops learning falls behind.
    assert undisturbed["summary"]["latest"]["logloss"] < undisturbed["summary"]["frozen"]["logloss"]


def test_the_service_has_ranked_for_people_whose_next_click_is_known(undisturbed: dict[str, Any]) -> None:
    assert len({answer["user"] for answer in undisturbed["requests"]}) == 3
    for answer in undisturbed["requests"]:
        assert answer["snapshot"] == undisturbed["champion"]
        assert len(answer["ranked"]) == 100
        assert answer["ranked"][answer["clicked_place"] - 1]["ad_id"] == answer["clicked"]
        pctrs = [row["pctr"] for row in answer["ranked"]]
        assert pctrs == sorted(pctrs, reverse=True)


def test_what_is_printed_is_plain_and_tells_it_all(undisturbed: dict[str, Any]) -> None:
    said = undisturbed["said"]
    assert "\x1b" not in said
    assert said.count("\nslide ") == len(undisturbed["slides"])
    for words in ("★ clicked next", "What learning on was worth", "the ledger's laws hold", undisturbed["plot"]):
        assert words in said
    assert Path(undisturbed["plot"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, "  replaying"), (signal.SIGTERM, "starting the roles"), (signal.SIGKILL, "\nslide ")],
)
def test_however_it_is_ended_no_process_stays_behind(tmp_path: Path, number: signal.Signals, words: str) -> None:
    with running(tmp_path / "home", 20_000) as demo:
        demo.wait_for(lambda: words in demo.said)
        assert len(demo.below()) > 4
        demo.process.send_signal(number)
        code = demo.process.wait(GONE_S)
        assert_nothing_left(demo)
        assert not (demo.home / "demo.json").exists()
        if number != signal.SIGKILL:
            assert code == 128 + number
            last = "stopping the roles and the broker\nstopped; no process is left behind\n"
            assert demo.said.endswith(last)


def test_a_broker_that_is_killed_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    with running(tmp_path / "home", 60_000) as demo:
        demo.wait_for(lambda: "  replaying" in demo.said and (demo.home / "demo" / "registry").exists())
        state = json.loads((demo.home / "demo" / "broker" / "broker.json").read_text())
        os.kill(state["pid"], signal.SIGKILL)
        result = demo.result()
        assert demo.below() == []
    assert "the broker died and is started again" in result["notes"]
    assert result["ledger"]["impressions"] == 60_000
    assert result["violations"] == {"impressions": 0, "clicks": 0, "records": 0}
    assert result["ledger"]["duplicates"] == 0
    assert sum(slide["evaluation"]["latest"]["rows"] for slide in result["slides"]) == 60_000
    assert len(result["requests"]) == 3


def test_roles_that_are_killed_come_back_and_learn_the_same(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    roles = ("ledger", "priors", "train")
    with running(tmp_path / "home", 20_000) as demo:
        demo.wait_for(lambda: "\nslide " in demo.said)
        for role in roles:
            os.kill(demo.pid_of("worker", role), signal.SIGKILL)
        result = demo.result()
        assert demo.below() == []
    assert {role: result["processes"][role]["deaths"] for role in roles} == dict.fromkeys(roles, 1)
    assert result["violations"] == {"impressions": 0, "clicks": 0, "records": 0}
    assert [slide["latest"] for slide in result["slides"]] == [slide["latest"] for slide in undisturbed["slides"]]
    assert (result["champion"], result["latest"]) == (undisturbed["champion"], undisturbed["latest"])
