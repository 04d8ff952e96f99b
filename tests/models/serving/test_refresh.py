"""New snapshots and counts: swapped in whole, or the old ones go on serving."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from features.encode import Keys, encode
from features.live_priors import CountUpdate
from features.priors import PriorTable
from models.click_task import initial_snapshot
from models.registry import Registry
from models.serving.rank import Scorer, Scores
from models.serving.schema import Ad
from models.snapshot import Snapshot, SnapshotError
from tests.models.serving.asked import candidate_frame
from tests.models.serving.service import BODY, NOW_S, Service
from tests.models.serving.test_rank import counted, published, update_from
from tests.models.serving.trained import FIELDS, PLAN, slide, two_snapshots

KEYS = encode(candidate_frame(FIELDS, {"user_id": "u1"}, [Ad(f"ad{i}", {"ad": f"ad{i}"}) for i in range(20)]), FIELDS)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = Service(tmp_path)
    for snapshot in two_snapshots():
        service.registry.save(snapshot, {})
    return service


def serving(service: Service) -> Scorer:
    scorer = service.holder.current
    assert scorer is not None
    return scorer


def version(index: int) -> str:
    return two_snapshots()[index].version


def spoil(registry_dir: Path, snapshot: str) -> None:
    (tensors,) = registry_dir.rglob(f"{snapshot}/*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-8] ^= 0xFF
    tensors.write_bytes(bytes(content))


async def test_a_good_snapshot_serves_and_scores_as_it_did_before_it_was_saved(service: Service) -> None:
    assert await service.refresher.bring_in(version(1))
    assert serving(service).version == version(1)
    expected = Scorer.from_snapshot(two_snapshots()[1]).score(KEYS, NOW_S)
    np.testing.assert_array_equal(serving(service).score(KEYS, NOW_S), expected)
    assert service.metric("freshrank_snapshot_swaps_total", task="click", outcome="swapped") == 1.0
    assert service.metric("freshrank_snapshot_slide_count") == 2.0


async def test_the_snapshot_that_serves_is_not_loaded_again(service: Service) -> None:
    await service.refresher.bring_in(version(0))
    before = serving(service)
    assert await service.refresher.bring_in(version(0))
    assert serving(service) is before


async def test_a_broken_snapshot_is_refused_and_the_old_one_serves(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await service.refresher.bring_in(version(0))
    spoil(tmp_path, version(1))
    assert not await service.refresher.bring_in(version(1))
    assert serving(service).version == version(0)
    assert service.metric("freshrank_snapshot_swaps_total", task="click", outcome="refused") == 1.0
    assert f"snapshot {version(1)} is refused, {version(0)} goes on serving" in caplog.text


def directory_of(registry_dir: Path, snapshot: str) -> Path:
    (manifest,) = registry_dir.rglob(f"{snapshot}/manifest.json")
    return manifest.parent


def truncate(directory: Path) -> None:
    path = directory / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text()[:50])


def make_newer(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    ("harm", "got"),
    [
        (truncate, "bytes of tensors, got "),
        (cut_manifest, "must have a manifest in JSON with its format"),
        (make_newer, "got format 99; use the release that wrote it"),
    ],
)
async def test_a_snapshot_that_cannot_be_read_is_refused_by_name_and_the_old_one_serves(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], got: str
) -> None:
    await service.refresher.bring_in(version(0))
    harm(directory_of(tmp_path, version(1)))
    assert not await service.refresher.bring_in(version(1))
    assert serving(service).version == version(0)
    assert f"snapshot {version(1)} is refused, {version(0)} goes on serving" in caplog.text
    assert got in caplog.text
    assert len(serving(service).score(KEYS, NOW_S)) == len(KEYS)


async def test_a_snapshot_of_other_fields_or_without_what_is_needed_is_refused_by_name(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await service.refresher.bring_in(version(0))
    good = two_snapshots()[1]
    other = initial_snapshot(dataclasses.replace(PLAN, fields=FIELDS[:-1]))
    tensors = {name: tensor for name, tensor in good.tensors.items() if name != "calibration.weight"}
    for bad in (other, dataclasses.replace(good, tensors=tensors)):
        service.registry.save(bad, {})
        assert not await service.refresher.bring_in(bad.version)
        assert serving(service).version == version(0)
        assert f"snapshot {bad.version} is refused" in caplog.text
    assert "must have the fields user_id, age, hour, ad, tags, user_tags as they are configured" in caplog.text
    assert "must hold every tensor that this release reads, got no 'calibration.weight'" in caplog.text


async def test_a_snapshot_that_is_not_there_is_refused(service: Service) -> None:
    assert not await service.refresher.bring_in("ctr-000009-000000000000")
    assert service.holder.current is None


async def test_a_snapshot_whose_probabilities_are_not_finite_is_refused(service: Service) -> None:
    good = two_snapshots()[1]
    spoilt = {
        name: tensor * float("nan") if tensor.is_floating_point() else tensor for name, tensor in good.tensors.items()
    }
    bad = Snapshot(**{**vars_of(good), "tensors": spoilt})
    service.registry.save(bad, {})
    assert not await service.refresher.bring_in(bad.version)


def vars_of(snapshot: Snapshot) -> dict[str, object]:
    return {name: getattr(snapshot, name) for name in Snapshot.__dataclass_fields__}


def spoilt_for(good: Snapshot, keys: Keys, others: Keys) -> Snapshot:
    """Return the snapshot with what it learnt of the values that are in the first keys alone made useless."""
    rows = [*set(good.vocabulary.rows(keys).ravel()) - set(good.vocabulary.rows(others).ravel())]
    assert rows, "a value has an embedding row of its own"
    embedding = good.tensors["embedding.rows"].clone()
    embedding[rows] = float("nan")
    return Snapshot(**{**vars_of(good), "tensors": good.tensors | {"embedding.rows": embedding}})  # type: ignore[arg-type]


async def test_a_new_snapshot_is_warmed_up_on_recent_requests_of_different_sizes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.refresher.bring_in(version(0))
    for size in (20, 3, 20, 7):
        await service.pipeline.rank(json.dumps(BODY | {"candidates": BODY["candidates"][:size]}).encode())
    tried: list[tuple[int, float]] = []
    score = Scorer.score

    def counting(scorer: Scorer, keys: Keys, time_s: float) -> Scores:
        tried.append((len(keys), time_s))
        return score(scorer, keys, time_s)

    monkeypatch.setattr(Scorer, "score", counting)
    assert await service.refresher.bring_in(version(1))
    assert tried == [(20, NOW_S), (3, NOW_S), (20, NOW_S), (7, NOW_S)]


async def test_a_snapshot_that_fails_on_one_of_the_recent_requests_is_refused(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row of one ad is spoilt, which only a request before the last one held."""
    await service.refresher.bring_in(version(0))
    for candidates in (["ad3", "ad4"], ["ad4", "ad5"]):
        await service.pipeline.rank(json.dumps(BODY | {"candidates": candidates}).encode())
    (before, _), (last, _) = service.pipeline.samples.held
    bad = spoilt_for(two_snapshots()[1], before, last)
    service.registry.save(bad, {})
    assert not await service.refresher.bring_in(bad.version)
    assert serving(service).version == version(0)
    assert service.metric("freshrank_snapshot_swaps_total", task="click", outcome="refused") == 1.0
    assert "must give finite probabilities, got others on recent requests" in caplog.text


class _AwayOnce(Registry):
    """A registry whose store cannot be reached the first time."""

    asked = 0

    def load(self, version: str, **kwargs: object) -> tuple[Snapshot, dict[str, object]]:
        self.asked += 1
        if self.asked == 1:
            raise OSError("no route to the store")
        return super().load(version, **kwargs)


async def test_a_registry_that_was_away_is_asked_again(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.serving.refresh.RETRY_FIRST_S", 0.0)
    service.refresher._registry = _AwayOnce(str(tmp_path))
    running = asyncio.create_task(service.refresher.run())
    service.refresher.want(version(1))
    async with asyncio.timeout(10.0):
        await service.holder.is_set.wait()
    running.cancel()
    assert service.metric("freshrank_snapshot_swaps_total", task="click", outcome="unreachable") == 1.0


async def test_the_newest_wish_counts(service: Service) -> None:
    service.refresher.want(version(0))
    service.refresher.want(version(1))
    running = asyncio.create_task(service.refresher.run())
    async with asyncio.timeout(10.0):
        await service.holder.is_set.wait()
    running.cancel()
    assert serving(service).version == version(1)
    assert service.metric("freshrank_snapshot_swaps_total", task="click", outcome="swapped") == 1.0


async def test_counts_that_came_before_the_snapshot_are_under_its_scores(service: Service) -> None:
    live = counted(slide(1), slide(2), slide(3))
    await service.refresher.apply([update_from(live)])
    await service.refresher.bring_in(version(1))
    assert serving(service).table.as_of_s == live.as_of_s
    assert service.metric("freshrank_prior_counts_timestamp_seconds") == live.as_of_s


async def test_published_counts_stay_within_their_limit_and_what_it_took_is_exported(tmp_path: Path) -> None:
    service, live = Service(tmp_path, counts_max=10), counted(slide(1))
    await service.refresher.apply([update_from(live)])
    assert service.metric("freshrank_prior_values_evicted_total") == len(live.keys) - 10
    service.registry.save(initial_snapshot(PLAN), {})
    await service.refresher.bring_in(initial_snapshot(PLAN).version)
    assert service.metric("freshrank_prior_values_count") == 10
    await service.refresher.apply([])
    assert service.metric("freshrank_prior_values_evicted_total") == len(live.keys) - 10


async def test_counts_stay_when_the_snapshot_changes(service: Service) -> None:
    await service.refresher.bring_in(version(0))
    live = counted(slide(1), slide(2), slide(3))
    await service.refresher.apply([update_from(live)])
    await service.refresher.bring_in(version(1))
    expected = Scorer.from_snapshot(two_snapshots()[1]).with_live_counts(published(live)).score(KEYS, 4000.0)
    np.testing.assert_allclose(serving(service).score(KEYS, 4000.0), expected, atol=1e-6)


async def test_a_request_never_sees_half_an_update(service: Service) -> None:
    await service.refresher.bring_in(version(0))
    held = serving(service)
    before = held.score(KEYS, 4000.0)
    await service.refresher.apply([update_from(counted(slide(1), slide(2), slide(3)))])
    np.testing.assert_array_equal(held.score(KEYS, 4000.0), before)
    assert np.abs(serving(service).score(KEYS, 4000.0) - before).max() > 1e-4


async def test_counts_of_another_shape_are_refused_and_the_others_taken(service: Service) -> None:
    await service.refresher.bring_in(version(0))
    live = counted(slide(1), slide(2), slide(3))
    one = PriorTable.empty(PLAN.half_lives_s[:1], len(FIELDS))
    odd = CountUpdate(9e9, live.keys, live.field, live.n[:, :1], live.c[:, :1], one.root_n, one.root_c)
    await service.refresher.apply([odd, update_from(live)])
    assert serving(service).table.as_of_s == live.as_of_s
    assert service.metric("freshrank_followed_records_total", topic="prior-updates", outcome="refused") == 1.0


def test_a_refusal_names_the_snapshot(service: Service) -> None:
    with pytest.raises(SnapshotError, match="ctr-000009"):
        service.registry.load("ctr-000009-000000000000")
