"""The embedded broker: the real Apache Kafka, one node in KRaft mode, on this machine alone.

Owns its process, its ports on 127.0.0.1, its data directory and its settings. Must not know topics, clients or
freshrank's own settings file. Jars and Java come from infra/broker_jars.py.

A data directory holds: `log/` Kafka's data, `logs/` what the broker says, `broker.json` what runs or ran here (the
ports are kept, so that clients find the broker again), `server.properties` and `log4j2.properties`, written anew at
each start.

Invariants: one broker for one data directory; a process counts as the directory's broker only if its command line
names the directory (a pid may be another process by now); an owned broker never outlives its owner, and a detached
one is owned until it answers (infra/broker_guard.py).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from infra.broker_jars import CACHE_DIR, Java, find_jars, find_java, jars_dir

HOST = "127.0.0.1"
HEAP_MB = 512  # chosen by hand; an idle broker touches 180 MB of memory in all
MESSAGE_BYTES_MAX = 8_388_608  # a block of 8 MB with its batch header
AOT_VERSION_MIN = 25  # the first Java that makes an AOT cache by running the program once
AOT_CACHES_MAX = 3  # kept per set of jars, one for each Java that was used last
STARTS_MAX = 3  # tries, when a port was taken between choosing it and using it
POLL_S = 0.02
# Below the ephemeral range of Linux: a client that reconnects to an ephemeral port while the broker is down can be given
# that very port as its own, connect to itself and keep the broker from coming back.
PORTS = range(20_000, 32_000)

PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",  # transactions need one that the broker itself can reach
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "log.message.timestamp.type": "LogAppendTime",
    "auto.create.topics.enable": "false",
    "message.max.bytes": MESSAGE_BYTES_MAX,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 4,
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 4,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1_000,
    "broker.session.timeout.ms": 3_000,
    "broker.heartbeat.interval.ms": 250,
    # How often transactions of dead producers are looked for; at the default of 10 s they block readers twice as long.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
    # The default of 128 MB is allocated at the start, more than everything else together: 315 MB in all against 180.
    "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
    "num.network.threads": 2,
    "num.io.threads": 4,
}

# The controller refuses a killed broker's successor until the session of the first has ended: 4.8 s to the first answer
# after kill -9 at 3 s, 2.6 s at 1 s. Not for every start: a session this short may end on a starved machine.
PROPERTIES_AFTER_CRASH = {"broker.session.timeout.ms": 1_000}

LOG4J = """\
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=logs/server.log
appender.file.filePattern=logs/server.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %m (%c)%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
"""


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


@dataclass(frozen=True)
class _State:
    """What `broker.json` holds; pid 0 when stopped."""

    pid: int
    owner_pid: int
    port: int
    controller_port: int
    started_s: float  # 0 until it answers


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
    state = _read_state(data_dir)
    if state is None or not state.started_s or _process(state.pid, data_dir) is None:
        return None
    return BrokerInfo(state.pid, f"{HOST}:{state.port}", data_dir, state.started_s)


def stop(data_dir: Path, *, timeout_s: float = 10.0) -> bool:
    """Stop the directory's broker: SIGTERM, and SIGKILL after `timeout_s`. Its data stays.

    Returns:
        True if one was running.
    """
    data_dir = data_dir.resolve()
    state = _read_state(data_dir)
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
    _write_state(data_dir, replace(state, pid=0, owner_pid=0, started_s=0.0))
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
    # The jars' bytes are checked against the lock, so Java need not prove them well-formed: 0.5 s less.
    return ["-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote"]


def _aot_cache(java: Java) -> Path:
    """Return where this Java's cache is or would be; a cache serves only the very files that it was made from."""
    built = (java.path.parent.parent / "lib" / "modules").stat()
    key = uuid.uuid5(uuid.NAMESPACE_URL, f"{java.path} {built.st_mtime_ns} {built.st_size}").hex[:12]
    return jars_dir(CACHE_DIR).with_name(f"{jars_dir(CACHE_DIR).name}-{key}.aot")


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


def _announce(state: _State, data_dir: Path) -> BrokerInfo:
    """Let others see the broker, and let it live alone if nobody owns it."""
    _write_state(data_dir, state)
    if not state.owner_pid:
        guard = _guards[state.pid]
        assert guard.stdin is not None
        guard.stdin.write(b"detach\n")
        _release_guard(state.pid)
    return BrokerInfo(state.pid, f"{HOST}:{state.port}", data_dir, state.started_s)


def _refuse_second(data_dir: Path) -> None:
    """Raise if the directory has a broker; one whose owner is dead is on its way out: wait for it."""
    state = _read_state(data_dir)
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


def _spawn(data_dir: Path, java: Java, options: list[str], *, owned: bool) -> _State:
    for pid in [pid for pid, guard in _guards.items() if guard.poll() is not None]:
        _release_guard(pid)  # its broker died of something else than `stop`
    last = _read_state(data_dir)
    port, controller_port = _choose_ports(last)
    is_after_crash = last is not None and last.pid != 0
    _write_files(data_dir, port, controller_port, PROPERTIES_AFTER_CRASH if is_after_crash else {})
    class_path = os.pathsep.join(str(path) for path in find_jars())
    command = [
        str(java.path),
        f"-Xmx{HEAP_MB}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
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
    state = _State(pid, os.getpid() if owned else 0, port, controller_port, 0.0)
    _write_state(data_dir, state)
    return state


def _wait_answer(state: _State, data_dir: Path, deadline_s: float) -> str | None:
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
        with socket.create_connection((HOST, port), timeout=2.0) as connection:
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


def _choose_ports(state: _State | None) -> tuple[int, int]:
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


def _write_files(data_dir: Path, port: int, controller_port: int, more: dict[str, int]) -> None:
    properties = (
        PROPERTIES
        | more
        | {
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
            "log.dirs": "log",  # under the working directory: a path here may hold neither commas nor umlauts
        }
    )
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    (data_dir / "server.properties").write_text(text)
    (data_dir / "log4j2.properties").write_text(LOG4J)
    meta = data_dir / "log" / "meta.properties"
    if not meta.exists():  # by hand what Kafka's format tool takes a second Java for
        meta.parent.mkdir(exist_ok=True)
        ids = f"cluster.id={_kafka_id()}\nnode.id=1\ndirectory.id={_kafka_id()}\n"
        (meta.with_suffix(".part")).write_text(f"version=1\n{ids}")
        meta.with_suffix(".part").rename(meta)


def _kafka_id() -> str:
    """Return a random id in Kafka's form: 16 bytes, URL-safe base64; it may not begin with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


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


def _read_state(data_dir: Path) -> _State | None:
    try:
        return _State(**json.loads((data_dir / "broker.json").read_text()))
    except (OSError, ValueError, TypeError):  # none yet, or of another version of freshrank
        return None


def _write_state(data_dir: Path, state: _State) -> None:
    part = data_dir / "broker.json.part"
    part.write_text(json.dumps(asdict(state)))
    part.rename(data_dir / "broker.json")


def _move(source: Path, target: Path) -> None:
    """Move a file over file systems so that the target appears whole."""
    part = target.with_suffix(".part")
    part.write_bytes(source.read_bytes())
    part.rename(target)
