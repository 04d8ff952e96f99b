import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from fsspec.implementations.local import LocalFileSystem

from features.encode import encode
from features.priors import lookup
from models.batch import Predictor
from models.click_task import ClickTask, initial_snapshot
from models.registry import FORMAT, MANIFEST, TENSORS, Registry
from models.snapshot import Snapshot, SnapshotError
from models.update import Learner
from tests.frames import FIELDS, plan, world
from tests.models.learnt import learnt, slide

SNAPSHOT = learnt()[0].latest


def scores(snapshot: Snapshot) -> list[float]:
    keys = encode(world(100, seed=8), FIELDS)
    return list(Predictor(snapshot)(keys, lookup(snapshot.priors, keys, snapshot.end_s)).tolist())


@contextmanager
def disk_that_takes(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: writing fails with the error of a full disk's kind."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_saved_snapshot_scores_alike_bit_by_bit(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {"positions": {"0": 12}, "decision": "hold"})
    back, manifest = registry.load(version, fields=FIELDS)
    assert scores(back) == scores(SNAPSHOT)
    assert (back.version, back.digest) == (version, SNAPSHOT.digest)
    assert manifest["context"] == {"positions": {"0": 12}, "decision": "hold"}
    assert (manifest["parent"], manifest["slide"]) == (SNAPSHOT.parent, 3)


def test_a_learner_goes_on_from_the_disk_with_the_same_bits(tmp_path: Path) -> None:
    registry, learner = Registry(str(tmp_path)), learnt()[0]
    saved = [registry.load(registry.save(snapshot, {}))[0] for snapshot in (learner.latest, learner.champion)]
    one, other = (
        Learner.resume(ClickTask(plan()), *saved),
        Learner.resume(ClickTask(plan()), learner.latest, learner.champion),
    )
    assert one.learn(slide(4)) == other.learn(slide(4))


def test_the_initial_snapshot_can_be_kept_too(tmp_path: Path) -> None:
    registry, first = Registry(str(tmp_path)), initial_snapshot(plan())
    back, _ = registry.load(registry.save(first, {}))
    assert back.digest == first.digest
    assert back.slide is None


def test_saving_twice_keeps_what_is_there(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {"first": True})
    assert registry.save(SNAPSHOT, {"first": False}) == version
    assert registry.manifest(version)["context"] == {"first": True}
    assert registry.versions() == [version]


def test_any_file_system_of_fsspec_will_do() -> None:
    registry = Registry("memory://snapshots")
    version = registry.save(SNAPSHOT, {})
    assert registry.load(version)[0].digest == SNAPSHOT.digest
    assert registry.versions() == [version]
    fsspec.filesystem("memory").rm("/snapshots", recursive=True)


@pytest.mark.parametrize("n_bytes", [10, 3000])
def test_a_disk_that_is_full_leaves_the_old_snapshot_and_no_half_one(tmp_path: Path, n_bytes: int) -> None:
    registry = Registry(str(tmp_path))
    old = registry.save(learnt()[0].champion, {})
    with (
        disk_that_takes(n_bytes),
        pytest.raises(SnapshotError, match=rf"{SNAPSHOT.version} must be written whole to .*, got: File too large"),
    ):
        registry.save(SNAPSHOT, {})
    assert registry.versions() == [old]
    assert registry.load(old)[0].digest == learnt()[0].champion.digest
    assert [path.name for path in tmp_path.iterdir()] == [old]
    assert registry.save(SNAPSHOT, {}) == SNAPSHOT.version  # once there is room again


def test_a_save_that_was_killed_half_way_is_invisible_and_can_be_repeated(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    half = tmp_path / SNAPSHOT.version
    half.mkdir()
    (half / f"{TENSORS}.part").write_bytes(b"half")
    assert registry.versions() == []
    with pytest.raises(SnapshotError, match=rf"{SNAPSHOT.version} must have a manifest.json"):
        registry.load(SNAPSHOT.version)
    registry.save(SNAPSHOT, {})
    assert registry.load(SNAPSHOT.version)[0].digest == SNAPSHOT.digest


@pytest.mark.parametrize("survived", [0, 1])
def test_a_crash_between_write_and_rename_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    registry, rename, renamed = Registry(str(tmp_path)), LocalFileSystem.mv, []

    def crash(self: LocalFileSystem, path1: str, path2: str, **options: object) -> None:
        if len(renamed) == survived:
            raise KeyboardInterrupt
        renamed.append(path2)
        rename(self, path1, path2, **options)

    monkeypatch.setattr(LocalFileSystem, "mv", crash)
    with pytest.raises(KeyboardInterrupt):
        registry.save(SNAPSHOT, {})
    assert registry.versions() == []


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {})
    path = tmp_path / version / TENSORS
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(
        SnapshotError, match=rf"snapshot {version} must have \d+ bytes of tensors, got \d+; it is damaged"
    ):
        registry.load(version)


@pytest.mark.parametrize("where", [0.0, 0.02, 0.5, 0.999])
@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path: Path, name: str, where: float) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {"positions": {"0": 1234}})
    path = tmp_path / version / name
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0b1
    path.write_bytes(content)
    rule = "have tensors of sha256" if name == TENSORS else "have"
    with pytest.raises(SnapshotError, match=rf"snapshot {version} must {rule}"):
        registry.load(version)


def rewritten(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {})
    rewritten(tmp_path / version / MANIFEST, format=FORMAT + 1)
    with pytest.raises(SnapshotError, match=rf"snapshot {version} must have format {FORMAT}, got format {FORMAT + 1}"):
        registry.load(version)


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("prior", "future", r"Invalid enum value 'future' - at `\$\.prior`"),
        ("ways", ["dense", "deep"], r"Invalid enum value 'deep' - at `\$\.ways"),
        ("ways", None, r"Expected `array`, got `null` - at `\$\.ways`"),
        ("former", None, r"Expected `str`, got `null` - at `\$\.former`"),
        ("digest", None, r"Expected `str`, got `null` - at `\$\.digest`"),
    ],
)
def test_what_another_release_means_by_the_same_format_is_refused_by_name(
    tmp_path: Path, name: str, value: object, got: str
) -> None:
    """Sealed as it should be: so not damaged, but not ours."""
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {})
    reseal(tmp_path / version, **{name: value})
    with pytest.raises(SnapshotError, match=f"snapshot {version} must hold everything of format {FORMAT}, got {got}"):
        registry.load(version)


@pytest.mark.parametrize("array", [None, np.ones(30, np.int64)])
@pytest.mark.parametrize("name", ["shadow.counts", "shadow.evidence", "times"])
def test_arrays_that_are_missing_or_of_another_form_are_refused_by_name(
    tmp_path: Path, name: str, array: npt.NDArray[np.int64] | None
) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {})
    path = tmp_path / version / TENSORS
    arrays = safetensors.numpy.load(path.read_bytes())
    del arrays[name]
    content = safetensors.numpy.save(arrays if array is None else arrays | {name: array})
    path.write_bytes(content)
    reseal(tmp_path / version, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(SnapshotError, match=f"snapshot {version} must"):
        registry.load(version)


def reseal(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST
    manifest = json.loads(path.read_text()) | changes
    del manifest["seal"]
    manifest["seal"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def test_a_changed_manifest_is_refused_by_name(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {"positions": {"0": 12}})
    rewritten(tmp_path / version / MANIFEST, context={"positions": {"0": 13}})
    with pytest.raises(SnapshotError, match=rf"snapshot {version} must have the manifest that was saved"):
        registry.load(version)


def test_other_fields_are_refused_by_name(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {})
    other = (*FIELDS[:3], msgspec.structs.replace(FIELDS[3], name="cost"), FIELDS[4])
    with pytest.raises(
        SnapshotError, match=rf"{version} must have the fields user_id, ad_id, tags, cost.*got user_id, ad_id"
    ):
        registry.load(version, fields=other)


def test_a_snapshot_of_another_name_is_refused(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = registry.save(SNAPSHOT, {})
    (tmp_path / version).rename(tmp_path / "ctr-000009-000000000000")
    with pytest.raises(SnapshotError, match="snapshot ctr-000009-000000000000 must have the digest"):
        registry.load("ctr-000009-000000000000")


def test_only_old_snapshots_of_the_protected_families_are_removed(tmp_path: Path) -> None:
    registry, snapshots = Registry(str(tmp_path)), {}
    for family in ("ctr", "ctr-b"):
        for index in (9, 10, 11, 12):
            snapshots[family, index] = registry.save(replace(SNAPSHOT, family=family, slide=index), {})
    removed = registry.prune(2, protect={snapshots["ctr", 9]})
    assert removed == [snapshots["ctr", 10]]
    assert registry.versions() == [v for key, v in snapshots.items() if key != ("ctr", 10)]
    assert not (tmp_path / snapshots["ctr", 10]).exists()


def test_versions_stand_in_the_order_of_their_slides(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    assert registry.versions() == []
    wanted = [registry.save(snapshot, {}) for snapshot in (initial_snapshot(plan()), learnt(1)[0].latest, SNAPSHOT)]
    assert registry.versions() == wanted
