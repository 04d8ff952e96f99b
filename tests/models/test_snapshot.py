import dataclasses

import msgspec
import numpy as np
import pytest
import torch

from features.priors import SettledRows
from models.click_task import initial_snapshot
from models.evidence import Evidence
from models.shadow import Shadow
from models.snapshot import from_arrays, schema_digest, to_arrays
from tests.frames import FIELDS, plan
from tests.models.learnt import learnt

SHADOW = Shadow("ctr-000001", (2, 3), Evidence(3, 1.0, 0.5, 2.0, 0.25, 0.125), alarms=1, wait=2)
SNAPSHOT = dataclasses.replace(learnt()[0].latest, shadow=SHADOW)
REST = ("family", "slide", "parent", "fields", "levels", "network", "dim", "hidden", "prior", "ways", "learnt")


def test_arrays_and_the_rest_give_the_snapshot_back() -> None:
    snapshot = SNAPSHOT
    back = from_arrays(to_arrays(snapshot), {name: getattr(snapshot, name) for name in REST}, "ctr-000001")
    assert back.digest == snapshot.digest
    assert {name: getattr(back, name) for name in REST} == {name: getattr(snapshot, name) for name in REST}
    assert back.shadow == SHADOW
    assert (back.evidence, back.end_s, back.origin_s) == (snapshot.evidence, snapshot.end_s, snapshot.origin_s)


@pytest.mark.parametrize("name", sorted(to_arrays(SNAPSHOT)))
def test_the_digest_covers_every_array(name: str) -> None:
    snapshot = SNAPSHOT
    arrays = to_arrays(snapshot)
    changed = np.array(arrays[name])
    changed[...] = changed + np.ones((), changed.dtype)
    rest = {attribute: getattr(snapshot, attribute) for attribute in REST}
    assert from_arrays({**arrays, name: changed}, rest).digest != snapshot.digest


def test_the_digest_does_not_cover_lineage() -> None:
    snapshot = learnt()[0].latest
    assert dataclasses.replace(snapshot, parent="another", learnt=(7,)).digest == snapshot.digest


def test_a_version_names_family_slide_and_digest() -> None:
    snapshot = learnt()[0].latest
    assert snapshot.version == f"ctr-000003-{snapshot.digest[:12]}"
    assert initial_snapshot(plan()).version.startswith("ctr-initial-")


def test_its_priors_hold_all_that_had_settled_by_its_end() -> None:
    snapshot = learnt()[0].latest
    assert len(snapshot.recent.settled_s) > 0
    assert snapshot.priors.as_of_s == snapshot.end_s
    longest = snapshot.priors.root_n[1]
    assert (
        longest
        > dataclasses.replace(snapshot, recent=SettledRows.empty(snapshot.recent.keys.shape[1])).priors.root_n[1]
    )


def test_a_built_network_has_its_weights() -> None:
    snapshot = learnt()[0].latest
    for name, tensor in snapshot.build().state_dict().items():
        assert torch.equal(tensor, snapshot.tensors[f"network.{name}"])


def test_fields_that_read_values_otherwise_have_another_schema() -> None:
    other = (*FIELDS[:2], msgspec.structs.replace(FIELDS[2], values_max=2), *FIELDS[3:])
    assert schema_digest(FIELDS) == schema_digest(tuple(FIELDS))
    assert schema_digest(other) != schema_digest(FIELDS)
