"""The broker's jars and Java: nothing unchecked is installed, and what is missing is said."""

import hashlib
import re
from pathlib import Path

import pytest

from infra import broker_jars
from infra.broker_jars import Jar, find_jars, find_java, jars_dir, read_lock, system_java


def bring(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let every download bring `content`."""

    def fetch(jar: Jar, repository: Path) -> Path:
        repository.mkdir(exist_ok=True)
        path = repository / jar.name
        path.write_bytes(content)
        return path

    monkeypatch.setattr(broker_jars, "_fetch", fetch)


def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Lock two jars with the hash of `content`."""
    digest = hashlib.sha256(content).hexdigest()
    tables = [
        f'[[dependencies]]\ngroupId = "g"\nartifactId = "{name}"\nversion = "1"\nsha256 = "{digest}"\n' for name in "ab"
    ]
    (tmp_path / "kafka.lock").write_text("".join(tables))
    monkeypatch.setattr(broker_jars, "LOCK_FILE", tmp_path / "kafka.lock")


def test_the_lock_holds_a_hash_for_each_jar_and_no_address() -> None:
    jars = read_lock()
    assert any(jar.coordinate == broker_jars.KAFKA for jar in jars)
    assert jars[-1].coordinate == broker_jars.LOG_BINDING
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert "://" not in broker_jars.LOCK_FILE.read_text()


def test_jars_are_installed_whole_with_progress_and_then_found_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(tmp_path, monkeypatch, b"jar")
    bring(monkeypatch, b"jar")
    lines: list[str] = []
    paths = find_jars(lines.append, cache_dir=tmp_path / "cache")
    assert [path.name for path in paths] == ["a-1.jar", "b-1.jar"]
    assert lines == ["Kafka 4.4.0: 1 of 2 jars", "Kafka 4.4.0: 2 of 2 jars"]
    bring(monkeypatch, b"not wanted")
    assert find_jars(lines.append, cache_dir=tmp_path / "cache") == paths
    assert len(lines) == 2


def test_a_jar_with_another_hash_is_never_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(tmp_path, monkeypatch, b"jar")
    bring(monkeypatch, b"altered")
    with pytest.raises(RuntimeError, match=r"g:.:1 must have the SHA-256 of infra/kafka\.lock, \w+, got \w+;"):
        find_jars(cache_dir=tmp_path / "cache")
    assert not jars_dir(tmp_path / "cache").exists()


def test_jars_that_cannot_be_downloaded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(tmp_path, monkeypatch, b"jar")

    def offline(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("jgo.maven.MavenContext", offline)
    with pytest.raises(RuntimeError, match=r"on first use; g:.:1 could not be, got: network is unreachable; connect"):
        find_jars(cache_dir=tmp_path / "cache")


def test_without_any_java_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_jars, "packaged_java", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"needs Java >= 17, got neither .* or name a cluster in \[kafka\]"):
        find_java()


@pytest.mark.parametrize(("says", "version"), [('openjdk version "17.0.15" 2025', 17), ('java version "1.8.0_401"', 0)])
def test_a_java_on_the_path_counts_from_17_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, version: int
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = system_java()
    assert (found.version if found else 0) == version
