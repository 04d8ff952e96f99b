"""Child processes: started again when they die, gone when we are."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from stream.demo import processes
from stream.demo.processes import DEATHS_MAX, ChildFailed, Children, find_line

ROOT = Path(__file__).parents[3]
WAIT_S = 20.0  # a bound, not an expectation
SLEEPER = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)"]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def pid_of(children: Children, name: str) -> int:
    """Return a child's pid: the one below its guard."""
    wait_until(lambda: bool(children.log_of(name)))
    found = [process for process in psutil.Process().children(recursive=True) if process.cmdline() == SLEEPER]
    assert len(found) == 1, name
    return found[0].pid


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody reaps orphans in some containers
    except psutil.NoSuchProcess:
        return True


def test_a_service_that_is_killed_is_started_again_and_that_is_told(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start("one", SLEEPER, is_service=True)
        first = pid_of(children, "one")
        os.kill(first, signal.SIGKILL)
        lines: list[str] = []
        wait_until(lambda: bool(lines.extend(children.check()) or lines))
        assert lines == ["one died and is started again (up)"]
        assert (children.is_running("one"), children.deaths("one")) == (False, 1)
        wait_until(lambda: children.check() == [] and children.is_running("one"))
        assert pid_of(children, "one") != first


def test_a_service_that_dies_again_and_again_fails_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PAUSE_S", 0.0)
    with Children(tmp_path, {}) as children:
        children.start("one", [sys.executable, "-S", "-c", "raise SystemExit('no such topic')"], is_service=True)
        with pytest.raises(
            ChildFailed, match=rf"one must go on, but it died {DEATHS_MAX} times; .*\n    no such topic"
        ):
            wait_until(lambda: bool(children.check() and False))
        assert (tmp_path / "one.log").read_text().count("no such topic") == DEATHS_MAX


def test_a_child_that_has_done_its_work_has_ended_and_is_not_started_again(tmp_path: Path) -> None:
    with Children(tmp_path, {"GREETING": "hello"}) as children:
        code = "import os; print(os.environ['GREETING'])"
        children.start("one", [sys.executable, "-S", "-c", code], is_service=False)
        wait_until(lambda: children.check() == [] and children.has_ended("one"))
        assert children.log_of("one") == "hello\n"
        assert children.deaths("one") == 0


def test_after_the_block_no_child_is_left(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)  # other tests' broker, perhaps
    with Children(tmp_path, {}) as children:
        children.start("one", SLEEPER, is_service=True)
        pid = pid_of(children, "one")
    assert is_gone(pid)
    assert set(psutil.Process().children(recursive=True)) <= set(before)


def test_a_child_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal; from stream.demo.processes import Children;"
        f"children = Children(pathlib.Path({str(tmp_path)!r}), {{}});"
        f"children.start('one', {SLEEPER!r}, is_service=True);"
        "print('started', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started\n"
        below = psutil.Process(owner.pid).children(recursive=True)
        assert len(below) == 2  # the guard and the child
        owner.kill()
    for process in below:
        wait_until(lambda process=process: is_gone(process.pid))  # type: ignore[misc]


def test_a_program_that_cannot_be_run_is_said(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children, pytest.raises(ChildFailed, match="must be a program that runs"):
        children.start("one", [str(tmp_path / "missing")], is_service=True)


def test_memory_and_processor_time_are_summed_over_all_processes(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start("one", SLEEPER, is_service=True)
        pid_of(children, "one")
        usage = children.measure({})
        assert set(usage.sizes) == {"demo", "guards", "one"}
        assert usage.memory_bytes == sum(usage.sizes.values())
        assert usage.memory_bytes > 10_000_000
        before_s = usage.cpu_s["demo"]
        assert children.measure({}).cpu_s["demo"] >= before_s > 0.0
    assert children.measure({}).memory_bytes_max >= usage.memory_bytes


def test_the_report_holds_every_process_and_how_often_it_died(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start("one", SLEEPER, is_service=True)
        pid = pid_of(children, "one")
        usage = children.measure({})
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: bool(children.check()))
        report = children.report()
    assert (report["memory_bytes_max"], report["memory_measure"]) == (usage.memory_bytes_max, usage.measure)
    assert {name: one["deaths"] for name, one in report["processes"].items()} == {"demo": 0, "guards": 0, "one": 1}
    assert report["processes"]["one"]["memory_bytes_max"] == usage.sizes["one"]


def test_the_last_match_in_a_log_counts() -> None:
    text = "serves on http://127.0.0.1:1\n...\nserves on http://127.0.0.1:2\n"
    assert find_line(text, r"(http://\S+)") == "http://127.0.0.1:2"
    assert find_line("nothing yet", r"(http://\S+)") is None
