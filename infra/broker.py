"""The embedded broker: the real Apache Kafka, one node in KRaft mode, on this machine alone.

Owns its process and its ports. Must not know topics, clients or freshrank's own settings file. What lies in a data
directory is said in infra/broker_files.py, jars and Java come from infra/broker_jars.py.

Invariants: one broker for one data directory; a process counts as the directory's broker only if its command line
names the directory (a pid may be another process by now); an owned broker never outlives its owner, and a detached
one is owned until it answers (infra/broker_guard.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from infra.broker_files import HOST, State, read_state, write_files, write_state
from infra.broker_jars import Java, find_jars, find_java, jars_dir

# The heap is chosen by hand; an idle broker touches 180 MB of memory in all. The quick compiler alone: 0.5 s less.
JVM_OPTIONS = [
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
]
# Without an AOT cache: the jars' bytes are checked against the lock, so Java need not prove them well-formed.
PLAIN_OPTIONS = ["-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote"]
AOT_VERSION_MIN = 25  # the first Java that makes an AOT cache by running the program once
AOT_CACHES_MAX = 3  # kept per set of jars, one for each Java that was used last
STARTS_MAX = 3  # tries, when a port was taken between choosing it and using it
POLL_S = 0.02
# Below Linux's ephemeral range: a client that reconnects to an ephemeral port while the broker is down can be given
# that very port as its own, connect to itself and keep the broker from coming back.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class BrokerInfo:
    """A running broker.

    Attributes:
        pid: Of the Java process.
        bootstrap_servers: host:port for clients.
        data_dir: Absolute.
        started_s: Seconds that its start took, from the process to the first answer.
    """

    pid: int
    bootstrap_servers: str
    data_dir: Path
    started_s: float


_guards: dict[int, subprocess.Popen[bytes]] = {}  # of the brokers that this process owns, by the broker's pid


def start(
    data_dir: Path,
    *,
    owned: bool,
    on_progress: Callable[[str], None] | None = None,
    timeout_s: float = 30.0,
    java: Java | None = None,
) -> BrokerInfo:
    """Start a broker on a data directory and return when it answers.

    Args:
        data_dir: Made when it is not there; data of an earlier broker is used again, on the same port if it is free.
        owned: The broker ends when this process does, however that happens; else it lives until `stop`.
        on_progress: Told a line now and then while the jars are downloaded, on first use.
        timeout_s: How long to wait for the first answer, downloads not counted.
        java: Which Java to run; default: see `find_java`.

    Raises:
        RuntimeError: If the directory has a broker, no Java or jars can be had, or the broker does not come up.
    """
    find_jars(on_progress)
    java = java or find_java()
    return _start(data_dir.resolve(), java, start_options(java), owned=owned, timeout_s=timeout_s)


def status(data_dir: Path) -> BrokerInfo | None:
    """Return the directory's broker if it runs and has answered once, else None."""
    data_dir = data_dir.resolve()
    state = read_state(data_dir)
    if state is None or not state.started_s or _process(state.pid, data_dir) is None:
        return None
    return BrokerInfo(state.pid, f"{HOST}:{state.port}", data_dir, state.started_s)


def stop(data_dir: Path, *, timeout_s: float = 10.0) -> bool:
    """Stop the directory's broker: SIGTERM, and SIGKILL after `timeout_s`. Its data stays.

    Returns:
        True if one was running.
    """
    data_dir = data_dir.resolve()
    state = read_state(data_dir)
    if state is None:
        return False
    process = _process(state.pid, data_dir)
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            if not _wait_gone(state.pid, data_dir, timeout_s):
                process.kill()
                _wait_gone(state.pid, data_dir, timeout_s)
    _release_guard(state.pid)
    write_state(data_dir, replace(state, pid=0, owner_pid=0, started_s=0.0))
    return process is not None


def prepare(on_progress: Callable[[str], None] | None = None) -> Path | None:
    """Do once what makes each later start quick: bring the jars, and run the broker once to make its AOT cache.

    Takes some 15 s of processor time; without it a start takes about twice as long.

    Returns:
        The cache; None where the Java cannot make one.

    Raises:
        RuntimeError: As in `start`.
    """
    find_jars(on_progress)
    java = find_java()
    cache = _aot_cache(java)
    if java.version < AOT_VERSION_MIN or cache.exists():
        return cache if cache.exists() else None
    if on_progress is not None:
        on_progress("the embedded broker's start is recorded, once on this machine")
    with tempfile.TemporaryDirectory(prefix="freshrank-broker-") as scratch:
        data_dir, made = Path(scratch).resolve(), Path(scratch) / "made.aot"
        _start(data_dir, java, [f"-XX:AOTCacheOutput={made}"], owned=True, timeout_s=60.0)
        stop(data_dir, timeout_s=120.0)  # Java writes the cache as it exits
        if not made.exists():
            return None
        _move(made, cache)
    caches = sorted(cache.parent.glob("*.aot"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in caches[AOT_CACHES_MAX:]:
        old.unlink(missing_ok=True)
    return cache


def start_options(java: Java) -> list[str]:
    """Return the options with which `java` starts the broker soonest."""
    cache = _aot_cache(java)
    if java.version >= AOT_VERSION_MIN and cache.exists():
        return [f"-XX:AOTCache={cache}"]
    return PLAIN_OPTIONS


def _aot_cache(java: Java) -> Path:
    """Return where this Java's cache is or would be; it serves only the files and options that it was made with."""
    built = java.path.stat()
    made_with = f"{java.path} {built.st_mtime_ns} {built.st_size} {JVM_OPTIONS}"
    key = hashlib.sha256(made_with.encode()).hexdigest()[:12]
    return jars_dir().with_name(f"{jars_dir().name}-{key}.aot")


def _start(data_dir: Path, java: Java, options: list[str], *, owned: bool, timeout_s: float) -> BrokerInfo:
    (data_dir / "logs").mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + timeout_s
    with _start_lock(data_dir):
        _refuse_second(data_dir)
        for n_tried in range(1, STARTS_MAX + 1):
            begun_s = time.monotonic()
            state = _spawn(data_dir, java, options, owned=owned)
            try:
                reason = _wait_answer(state, data_dir, deadline_s)
            except BaseException:
                stop(data_dir)
                raise
            if reason is None:
                return _announce(replace(state, started_s=time.monotonic() - begun_s), data_dir)
            stop(data_dir, timeout_s=2.0)
            if "Address already in use" not in reason or n_tried == STARTS_MAX:
                raise RuntimeError(
                    f"the embedded broker on {data_dir} must answer within {timeout_s:g} s, got: {reason};"
                    f" see {data_dir / 'logs'} for all that it said"
                )
    raise AssertionError("the last try returns or raises")


def _announce(state: State, data_dir: Path) -> BrokerInfo:
    """Let others see the broker, and let it live alone if nobody owns it."""
    write_state(data_dir, state)
    if not state.owner_pid:
        guard = _guards[state.pid]
        assert guard.stdin is not None
        guard.stdin.write(b"detach\n")
        _release_guard(state.pid)
    return BrokerInfo(state.pid, f"{HOST}:{state.port}", data_dir, state.started_s)


def _refuse_second(data_dir: Path) -> None:
    """Raise if the directory has a broker; one whose owner is dead is on its way out: wait for it."""
    state = read_state(data_dir)
    if state is None or _process(state.pid, data_dir) is None:
        return
    is_orphan = state.owner_pid != 0 and not psutil.pid_exists(state.owner_pid)
    if not _wait_gone(state.pid, data_dir, 10.0 if is_orphan else 0.5):  # killed a moment ago, it may need one to go
        raise RuntimeError(
            f"a data directory has one broker, {data_dir} has pid {state.pid} on {HOST}:{state.port} already;"
            " use that one, stop it with `freshrank broker stop` or choose another directory"
        )


@contextmanager
def _start_lock(data_dir: Path) -> Iterator[None]:
    with (data_dir / "start.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(
                f"a data directory has one broker, another process is starting one on {data_dir} right now;"
                " wait for that one or choose another directory"
            ) from error
        yield


def _spawn(data_dir: Path, java: Java, options: list[str], *, owned: bool) -> State:
    for pid in [pid for pid, guard in _guards.items() if guard.poll() is not None]:
        _release_guard(pid)  # its broker died of something else than `stop`
    last = read_state(data_dir)
    port, controller_port = _choose_ports(last)
    write_files(data_dir, port, controller_port, after_crash=last is not None and last.pid != 0)
    class_path = os.pathsep.join(str(path) for path in find_jars())
    command = [
        str(java.path),
        *JVM_OPTIONS,
        *options,
        "-Dlog4j2.configurationFile=log4j2.properties",
        _mark(data_dir),
        "-cp",
        class_path,
        "kafka.Kafka",
        "server.properties",
    ]
    mode = "owned" if owned else "detachable"
    guard_file = str(Path(__file__).with_name("broker_guard.py"))
    with (data_dir / "logs" / "java.log").open("wb") as log:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard_file, str(os.getpid()), mode, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=data_dir,
            start_new_session=True,
        )
    assert guard.stdout is not None
    pid = int(guard.stdout.readline() or 0)
    if not pid:
        guard.communicate()
        raise RuntimeError(f"the embedded broker needs a Java that runs, got {_last_words(data_dir)} for {java.path}")
    _guards[pid] = guard
    state = State(pid, os.getpid() if owned else 0, port, controller_port, 0.0)
    write_state(data_dir, state)
    return state


def _wait_answer(state: State, data_dir: Path, deadline_s: float) -> str | None:
    """Return None when the broker has answered, else why it never will."""
    while time.monotonic() < deadline_s:
        if _answers(state.port):
            return None
        if _process(state.pid, data_dir) is None and _guards[state.pid].poll() is not None:
            return _last_words(data_dir)
        time.sleep(POLL_S)
    return "silence"


def _answers(port: int) -> bool:
    """Ask for the cluster's metadata in Kafka's own protocol: no client is imported for one question."""
    request = struct.pack(">hhih9si", 3, 1, 1, 9, b"freshrank", 0)  # Metadata v1, correlation 1, no topics
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            head = connection.recv(12, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(head) == 12 and struct.unpack(">iii", head)[2] >= 1  # size, correlation, number of brokers


def _last_words(data_dir: Path) -> str:
    """Return the last line of the broker that says what went wrong."""
    lines: list[str] = []
    for name in ("java.log", "server.log"):
        path = data_dir / "logs" / name
        if path.exists():
            lines += path.read_text(errors="replace").splitlines()[-200:]
    causes = [
        line for line in lines if " FATAL " in line or " ERROR " in line or "Exception" in line or "Error" in line
    ]
    return (causes or lines or ["nothing"])[-1].strip()


def _choose_ports(state: State | None) -> tuple[int, int]:
    """Return the last ports if they are free, else others."""
    port, controller_port = (state.port, state.controller_port) if state is not None else (0, 0)
    deadline_s = time.monotonic() + 0.5
    while port and not _is_free(port) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)  # a killed broker's socket may need a moment
    while not port or not _is_free(port):
        port = random.SystemRandom().choice(PORTS)
    while controller_port in {0, port} or not _is_free(controller_port):
        controller_port = random.SystemRandom().choice(PORTS)
    return port, controller_port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: old connections do not count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _process(pid: int, data_dir: Path) -> psutil.Process | None:
    """Return the process if it is this directory's broker and alive."""
    try:
        process = psutil.Process(pid) if pid else None
        if process is None or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process if _mark(data_dir) in process.cmdline() else None
    except psutil.Error:
        return None


def _mark(data_dir: Path) -> str:
    """Return the argument by which a process is known as this directory's broker."""
    return f"-Dfreshrank.data_dir={data_dir}"


def _wait_gone(pid: int, data_dir: Path, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while _process(pid, data_dir) is not None:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _release_guard(pid: int) -> None:
    """Wait for the end of a guard that has nothing left to do."""
    guard = _guards.pop(pid, None)
    if guard is not None:
        with guard:
            assert guard.stdin is not None
            guard.stdin.close()


def _move(source: Path, target: Path) -> None:
    """Move a file over file systems so that the target appears whole."""
    part = target.with_suffix(".part")
    part.write_bytes(source.read_bytes())
    part.rename(target)
