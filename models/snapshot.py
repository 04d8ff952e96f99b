"""The snapshot: everything that a learner knows after a slide, as one plain value.

Owns what belongs to it, its digest and its version. Must not know where snapshots are kept or what time it is.

Invariants: a snapshot never changes; equal states have equal digests, whatever machine, worker or speed made them; the
digest covers every array (weights, optimiser state, vocabulary, counts, gate evidence) and nothing else.

Counts lie in two parts: `base`, as of a little before the slide's end, and `recent`, the rows that settled since. So a
row shown just before the boundary and settled after it can still be given what had settled when it was shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from features.encode import slot_fields
from features.fields import Field
from features.priors import PriorTable, SettledRows, advance
from features.vocabulary import Vocabulary
from models.evidence import Evidence
from models.networks.build import build_network
from models.networks.network import Network, Way
from models.shadow import Shadow

Arrays = dict[str, npt.NDArray[Any]]
FeaturePrior = Literal["none", "frozen", "live"]
"""Which counts a row sees: none but the overall rate, those at the slide's start, or those as of its request."""

_EVIDENCE = tuple(field.name for field in dataclasses.fields(Evidence))


class SnapshotError(ValueError):
    """A snapshot that cannot be used or saved; the message names it, the rule and what was found."""


@dataclass(frozen=True)
class Snapshot:
    """The state of one lineage of models after a slide.

    Attributes:
        family: The lineage.
        slide: The last slide seen; None before the first.
        parent: Version of the snapshot that it came from, empty for the first.
        fields: What its keys are made of.
        levels: Back-off of the priors, fine to coarse.
        network: Name of the architecture.
        dim: Width of an embedding row.
        hidden: Widths of the hidden layers.
        prior: Which counts a row sees.
        ways: How they get into the network.
        tensors: On the CPU: `network.*`, `base.*`, `embedding.rows`, `embedding.squares`, `adam.*`.
        vocabulary: Which value owns which embedding row.
        base: Counts of what settled up to its moment.
        recent: Rows that settled after that, up to `end_s`.
        end_s: Event time up to which it has learnt; -inf before the first slide.
        origin_s: When the first row of all settled; inf before the first.
        evidence: What the gate has gathered.
        learnt: Slides learnt since the state that the champion has; they are lost when this lineage is rejected.
        shadow: The former champion that is watched against what serves, and what follows from rollbacks.
    """

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
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary
    base: PriorTable
    recent: SettledRows
    end_s: float
    origin_s: float
    evidence: Evidence
    learnt: tuple[int, ...] = ()
    shadow: Shadow = dataclasses.field(default_factory=Shadow)

    @cached_property
    def priors(self) -> PriorTable:
        """The counts of everything that had settled by `end_s`: what serving starts from."""
        return advance(self.base, self.recent, self.end_s, slot_field=slot_fields(self.fields))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all arrays, names and shapes included, in hex."""
        digest = hashlib.sha256()
        for name, array in sorted(to_arrays(self).items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def version(self) -> str:
        """Its name: family, slide and the head of its digest."""
        slide = "initial" if self.slide is None else f"{self.slide:06d}"
        return f"{self.family}-{slide}-{self.digest[:12]}"

    def build(self, device: str = "cpu") -> Network:
        """Return the network with this snapshot's weights, ready to predict."""
        n_half_lives = len(self.base.half_lives_s)
        network = build_network(
            self.network, self.fields, dim=self.dim, hidden=self.hidden, ways=self.ways, n_half_lives=n_half_lives
        )
        prefix = "network."
        network.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        )
        return network.to(device).eval()


def schema_digest(fields: Sequence[Field]) -> str:
    """Return a digest of the fields: two snapshots with the same one read the same values the same way."""
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def to_arrays(snapshot: Snapshot) -> Arrays:
    """Return every array of a snapshot by name; `from_arrays` takes them back."""
    base, recent = snapshot.base, snapshot.recent
    arrays: Arrays = {f"tensors.{name}": tensor.numpy() for name, tensor in snapshot.tensors.items()}
    arrays |= {f"base.{field.name}": np.atleast_1d(getattr(base, field.name)) for field in dataclasses.fields(base)}
    arrays |= {f"recent.{field.name}": getattr(recent, field.name) for field in dataclasses.fields(recent)}
    arrays["vocabulary.keys"] = snapshot.vocabulary.keys
    arrays["evidence"] = _evidence_array(snapshot.evidence)
    arrays["shadow.evidence"] = _evidence_array(snapshot.shadow.evidence)
    arrays["shadow.counts"] = np.array([snapshot.shadow.alarms, snapshot.shadow.wait], np.int64)
    arrays["shadow.learnt"] = np.array(snapshot.shadow.learnt, np.int64)
    arrays["times"] = np.array([snapshot.end_s, snapshot.origin_s])
    return arrays


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]], rest: Mapping[str, Any], former: str = "") -> Snapshot:
    """Return the snapshot with these arrays and, by attribute name, everything that is no array.

    Args:
        arrays: Those of `to_arrays`.
        rest: Attributes that are neither arrays nor the shadow.
        former: Version of the champion in the shadow.

    Raises:
        KeyError: If an array is missing.
    """
    base: dict[str, Any] = {field.name: arrays[f"base.{field.name}"] for field in dataclasses.fields(PriorTable)}
    base["as_of_s"] = float(base["as_of_s"][0])
    alarms, wait = arrays["shadow.counts"].tolist()
    return Snapshot(
        tensors={
            name.removeprefix("tensors."): torch.from_numpy(np.array(array))
            for name, array in arrays.items()
            if name.startswith("tensors.")
        },
        vocabulary=Vocabulary(arrays["vocabulary.keys"]),
        base=PriorTable(**base),
        recent=SettledRows(**{field.name: arrays[f"recent.{field.name}"] for field in dataclasses.fields(SettledRows)}),
        end_s=float(arrays["times"][0]),
        origin_s=float(arrays["times"][1]),
        evidence=_evidence(arrays["evidence"]),
        shadow=Shadow(
            former=former,
            learnt=tuple(arrays["shadow.learnt"].tolist()),
            evidence=_evidence(arrays["shadow.evidence"]),
            alarms=alarms,
            wait=wait,
        ),
        **rest,
    )


def _evidence_array(evidence: Evidence) -> npt.NDArray[np.float64]:
    return np.array([getattr(evidence, name) for name in _EVIDENCE], np.float64)


def _evidence(array: npt.NDArray[Any]) -> Evidence:
    pieces, *sums = array.tolist()
    return Evidence(int(pieces), *sums)
