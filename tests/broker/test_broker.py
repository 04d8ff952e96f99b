"""The embedded broker as a process: it starts, survives kill -9, and never stays behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from infra import broker as embedded
from infra.broker import BrokerInfo
from infra.broker_jars import Java, find_java
from stream.kafka import check_broker, create_topics

ROOT = Path(__file__).parents[2]
GONE_S = 15.0  # a bound, not an expectation: the guard notices within 0.2 s and gives the broker 5 s


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state, with ümlauts" / "broker"
    yield directory
    embedded.stop(directory)


def run_owner(data_dir: Path, *, owned: bool) -> "subprocess.Popen[str]":
    """Start another process that starts a broker, says its pid and guard's and waits to be killed."""
    code = (
        "import pathlib, signal; from infra import broker as embedded;"
        f"info = embedded.start(pathlib.Path({str(data_dir)!r}), owned={owned});"
        "print(info.pid, flush=True); signal.pause()"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_gone(pid: int) -> bool:
    deadline_s = time.monotonic() + GONE_S
    while time.monotonic() < deadline_s:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True  # nobody reaps orphans in some containers
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_status_tells_where_the_running_broker_is(broker: BrokerInfo) -> None:
    assert embedded.status(broker.data_dir) == broker
    check_broker(broker.bootstrap_servers, security={})


def test_a_directory_has_one_broker(broker: BrokerInfo) -> None:
    with pytest.raises(RuntimeError, match=f"has pid {broker.pid} on {broker.bootstrap_servers} already"):
        embedded.start(broker.data_dir, owned=True)


def test_a_killed_broker_comes_back_with_its_data_on_its_port_and_a_stopped_one_is_gone(data_dir: Path) -> None:
    first = embedded.start(data_dir, owned=True)
    assert len(create_topics(first.bootstrap_servers, prefix="kept", partitions=2, security={})) == 8
    os.kill(first.pid, signal.SIGKILL)
    second = embedded.start(data_dir, owned=True)
    assert second.pid != first.pid
    assert second.bootstrap_servers == first.bootstrap_servers
    assert create_topics(second.bootstrap_servers, prefix="kept", partitions=2, security={}) == []
    assert embedded.stop(data_dir)
    assert wait_gone(second.pid)
    assert embedded.status(data_dir) is None
    assert not embedded.stop(data_dir)


@pytest.mark.parametrize(
    "victim", ["owner", pytest.param("guard", marks=pytest.mark.skipif("sys.platform != 'linux'"))]
)
def test_an_owned_broker_ends_when_its_owner_or_its_guard_is_killed(data_dir: Path, victim: str) -> None:
    with run_owner(data_dir, owned=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        guard = psutil.Process(pid).parent()
        assert guard is not None
        os.kill(owner.pid if victim == "owner" else guard.pid, signal.SIGKILL)
        assert wait_gone(pid)
        assert embedded.status(data_dir) is None
        owner.kill()


def test_a_detached_broker_outlives_the_process_that_started_it(data_dir: Path) -> None:
    with run_owner(data_dir, owned=False) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.kill()
    info = embedded.status(data_dir)
    assert info is not None
    assert info.pid == pid
    check_broker(info.bootstrap_servers, security={})
    assert embedded.stop(data_dir)
    assert wait_gone(pid)


def test_a_detached_broker_that_never_answered_ends_with_its_starter(data_dir: Path) -> None:
    with run_owner(data_dir, owned=False) as starter:
        deadline_s = time.monotonic() + 30.0
        while not (data_dir / "broker.json").exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        starter.kill()
    state = json.loads((data_dir / "broker.json").read_text())
    assert state["started_s"] == 0.0
    assert wait_gone(state["pid"])


def test_of_two_starts_at_once_one_wins_and_one_says_why_not(data_dir: Path) -> None:
    def start(_: int) -> BrokerInfo | str:
        try:
            return embedded.start(data_dir, owned=True)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        won, lost = sorted(pool.map(start, range(2)), key=lambda answer: isinstance(answer, str))
    assert isinstance(won, BrokerInfo)
    assert isinstance(lost, str)
    assert "a data directory has one broker" in lost


def test_a_pid_that_is_another_process_by_now_is_no_broker_and_a_taken_port_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir(parents=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stale = {"pid": os.getpid(), "owner_pid": 0, "port": port, "controller_port": port, "started_s": 1.0}
        (data_dir / "broker.json").write_text(json.dumps(stale))
        assert embedded.status(data_dir) is None
        assert not embedded.stop(data_dir)
        info = embedded.start(data_dir, owned=True)
        assert info.bootstrap_servers != f"127.0.0.1:{port}"


def test_a_java_that_cannot_run_is_said(data_dir: Path) -> None:
    with pytest.raises(RuntimeError, match=r"must answer within 30 s, got: nothing; see .*logs"):
        embedded.start(data_dir, owned=True, java=Java(Path("/bin/false"), 17))
    assert embedded.status(data_dir) is None


def test_a_broker_that_does_not_answer_in_time_is_ended(data_dir: Path) -> None:
    with pytest.raises(RuntimeError, match=r"must answer within 0\.05 s, got: silence"):
        embedded.start(data_dir, owned=True, timeout_s=0.05)
    assert json.loads((data_dir / "broker.json").read_text())["pid"] == 0


@pytest.mark.slow
def test_a_prepared_start_uses_the_recorded_one() -> None:
    cache = embedded.prepare()
    java = find_java()
    if java.version < 25:
        assert cache is None
    else:
        assert cache is not None
        assert embedded.start_options(java) == [f"-XX:AOTCache={cache}"]
