"""Snapshots on disk or in an object store: a directory each, whole or not there at all.

Owns the format (manifest.json and tensors.safetensors, never pickle), its checks and which directories are kept. Must
not know what a snapshot is used for; which one serves is said by the topic `snapshots`, not here.

Invariants: a snapshot is visible when its manifest is, and that is written last, in one rename; whatever is not what
was saved (cut, flipped, of another format, with other fields) is refused with its version, the rule and what was found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import posixpath
from collections.abc import Collection, Sequence
from typing import Any

import fsspec
import msgspec
import numpy as np
import polars as pl
import safetensors.numpy
import torch
from safetensors import SafetensorError

from features.fields import Field
from models.networks.network import Way
from models.snapshot import FeaturePrior, Snapshot, SnapshotError, from_arrays, schema_digest, to_arrays

FORMAT = 5  # 1: buckets as evidence; 2: no losses of strengths; 3: a calibration of the network alone; 4: half a level
MANIFEST, TENSORS = "manifest.json", "tensors.safetensors"

Manifest = dict[str, Any]


class _Rest(msgspec.Struct, frozen=True):
    """What a manifest says of a snapshot beside its arrays."""

    family: str
    slide: int | None
    parent: str
    fields: tuple[Field, ...]
    levels: tuple[str, ...]
    network: str
    dim: int
    hidden: tuple[int, ...]
    prior: FeaturePrior
    ways: tuple[Way, ...]
    learnt: tuple[int, ...]


class _Sealed(_Rest, frozen=True):
    """The same with what proves the arrays, and the champion in the shadow."""

    former: str
    digest: str
    bytes: int
    sha256: str


class Registry:
    """The snapshots under one URL."""

    def __init__(self, url: str) -> None:
        """Name the place.

        Args:
            url: A path, or any URL that fsspec knows; made when the first snapshot is saved.
        """
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._url = url

    def save(self, snapshot: Snapshot, context: Manifest) -> str:
        """Write a snapshot and return its version; one that is there already stays as it is.

        Args:
            snapshot: What to write.
            context: Anything JSON that belongs beside it: positions, evaluation, decision.

        Raises:
            SnapshotError: If it cannot be written whole (disk full, no permission); nothing of it is visible then.
        """
        version = snapshot.version
        if version in self.versions():
            return version
        tensors = safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in to_arrays(snapshot).items()})
        directory = posixpath.join(self._root, version)
        manifest = _seal(_manifest(snapshot, tensors, context))
        try:
            self._files.makedirs(directory, exist_ok=True)
            self._write(posixpath.join(directory, TENSORS), tensors)
            self._write(posixpath.join(directory, MANIFEST), json.dumps(manifest, indent=1).encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._files.rm(directory, recursive=True)
            raise SnapshotError(
                f"snapshot {version} must be written whole to {self._url}, got: {error.strerror or error};"
                " the earlier ones stay; make room or check the permissions"
            ) from error
        return version

    def load(self, version: str, *, fields: Sequence[Field] | None = None) -> tuple[Snapshot, Manifest]:
        """Return a snapshot and its manifest, every byte checked.

        Args:
            version: Which one.
            fields: The fields that it must have been made with, when the reader has some.

        Raises:
            SnapshotError: If it is not there or not what was saved.
        """
        manifest = self.manifest(version)
        if fields is not None and manifest["schema"] != schema_digest(fields):
            got = ", ".join(field["name"] for field in manifest["fields"])
            wanted = ", ".join(field.name for field in fields)
            raise _refused(version, f"have the fields {wanted} as they are configured", got, "restore the fields")
        tensors = self._read(version, TENSORS)
        try:
            sealed = msgspec.convert(manifest, _Sealed)
        except msgspec.ValidationError as error:
            raise _refused(version, f"hold everything of format {FORMAT}", str(error), _AGAIN) from error
        if len(tensors) != sealed.bytes:
            raise _refused(version, f"have {sealed.bytes} bytes of tensors", f"{len(tensors)}", _AGAIN)
        if hashlib.sha256(tensors).hexdigest() != sealed.sha256:
            raise _refused(version, f"have tensors of sha256 {sealed.sha256}", "other bytes", _AGAIN)
        try:
            rest = {name: getattr(sealed, name) for name in _Rest.__struct_fields__}
            snapshot = from_arrays(safetensors.numpy.load(tensors), rest, sealed.former)
        except (
            SafetensorError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # an array is missing, or of another form
            raise _refused(version, f"hold everything of format {FORMAT}", f"{error!r}", _AGAIN) from error
        if snapshot.digest != sealed.digest or snapshot.version != version:
            raise _refused(version, f"have the digest {sealed.digest}", snapshot.digest, _AGAIN)
        return snapshot, manifest

    def manifest(self, version: str) -> Manifest:
        """Return the checked manifest of a snapshot.

        Raises:
            SnapshotError: If it is not there, of an unknown format, or not what was saved.
        """
        text = self._read(version, MANIFEST)
        try:
            manifest = json.loads(text)
            written = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise _refused(version, "have a manifest in JSON with its format", f"{error!r}", _AGAIN) from error
        if written != FORMAT:
            raise _refused(version, f"have format {FORMAT}", f"format {written}", "use the release that wrote it")
        if _seal(manifest) != manifest:
            raise _refused(version, "have the manifest that was saved", "another one", _AGAIN)
        return dict(manifest)

    def versions(self) -> list[str]:
        """Return the versions that are there, by family and slide."""
        found = self._files.glob(posixpath.join(self._root, "*", MANIFEST))
        return sorted((posixpath.basename(posixpath.dirname(path)) for path in found), key=_order)

    def prune(self, keep: int, protect: Collection[str]) -> list[str]:
        """Remove all but the newest snapshots of each family that has a protected one; return what was removed.

        Args:
            keep: How many of a family stay.
            protect: Versions that stay in any case: what serves, what learns. Families without one are left alone.
        """
        families = {_order(version)[0] for version in protect}
        removed: list[str] = []
        for family in sorted(families):
            versions = [version for version in self.versions() if _order(version)[0] == family]
            removed += [version for version in versions[:-keep] if version not in protect]
        for version in removed:
            directory = posixpath.join(self._root, version)
            self._files.rm(posixpath.join(directory, MANIFEST))  # first of all it is not there any more
            self._files.rm(directory, recursive=True)
        return removed

    def _write(self, path: str, content: bytes) -> None:
        part = f"{path}.part"
        with self._files.open(part, "wb") as file:
            file.write(content)
        self._files.mv(part, path)

    def _read(self, version: str, name: str) -> bytes:
        try:
            content: bytes = self._files.cat_file(posixpath.join(self._root, version, name))
        except FileNotFoundError as error:
            raise _refused(version, f"have a {name} in {self._url}", "none", "check the version") from error
        return content


def _manifest(snapshot: Snapshot, tensors: bytes, context: Manifest) -> Manifest:
    return {
        "format": FORMAT,
        "version": snapshot.version,
        **{name: getattr(snapshot, name) for name in _Rest.__struct_fields__},
        "former": snapshot.shadow.former,
        "fields": msgspec.to_builtins(snapshot.fields),
        "schema": schema_digest(snapshot.fields),
        "digest": snapshot.digest,
        "bytes": len(tensors),
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "libraries": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "polars": pl.__version__,
            "torch": torch.__version__,
        },
        "threads": torch.get_num_threads(),
        "context": context,
    }


def _seal(manifest: Manifest) -> Manifest:
    """Return the manifest with a digest of everything else in it."""
    body = {name: value for name, value in manifest.items() if name != "seal"}
    text = json.dumps(json.loads(json.dumps(body)), sort_keys=True)
    return {**body, "seal": hashlib.sha256(text.encode()).hexdigest()}


def _order(version: str) -> tuple[str, int, str]:
    """Return family, slide (-1: before the first) and digest of a version."""
    family, slide, digest = version.rsplit("-", 2) if version.count("-") >= 2 else (version, "", "")
    return family, int(slide) if slide.isdecimal() else -1, digest


def _refused(version: str, rule: str, got: str, hint: str) -> SnapshotError:
    return SnapshotError(f"snapshot {version} must {rule}, got {got}; {hint}")


_AGAIN = "it is damaged: take another version or let the trainer write it again"
