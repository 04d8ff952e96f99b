"""The newest model beside the champion: it answers its arm, on the same live counts, or the champion does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from models.serving.latest import LatestFollower
from models.serving.rank import Scorer
from models.serving.schema import Served
from models.serving.split import CHAMPION, FALLBACK, LATEST, Split, draw
from models.swap import Holder
from tests.models.serving.service import BODY, Service
from tests.models.serving.test_rank import counted, update_from
from tests.models.serving.test_refresh import spoil, version
from tests.models.serving.trained import slide, two_snapshots

USERS = [f"u{number}" for number in range(40)]


class Experiment:
    """A service with an experiment, its champion the first of two snapshots."""

    def __init__(self, directory: Path) -> None:
        self.latest: Holder[Scorer] = Holder()
        self.service = Service(directory, split=Split("fresh", 0.5, "user_id"), latest=self.latest)
        self.follower = LatestFollower(self.service.registry, self.service.refresher, self.service.metrics)
        for snapshot in two_snapshots():
            self.service.registry.save(snapshot, {})

    async def ask(self) -> dict[str, set[tuple[str, str]]]:
        """Ask for every user; return arm and version that answered, by whether the user was drawn for the latest."""
        found: dict[str, set[tuple[str, str]]] = {CHAMPION: set(), LATEST: set()}
        for user in USERS:
            body = BODY | {"request_id": user, "user": {"user_id": user}}
            answer = await self.service.pipeline.rank(json.dumps(body).encode())
            served = self.service.log.events[-1]
            assert isinstance(served, Served)
            assert (served.arm, served.snapshot, served.split) == (answer.arm, answer.snapshot, "fresh")
            found[LATEST if draw("fresh", user) < 0.5 else CHAMPION].add((answer.arm, answer.snapshot))
        return found

    def counted(self, arm: str) -> float:
        return self.service.metric("freshrank_split_requests_total", arm=arm)


@pytest.fixture
async def split(tmp_path: Path) -> Experiment:
    split = Experiment(tmp_path)
    assert await split.service.refresher.bring_in(version(0))
    return split


async def test_each_arm_is_answered_by_its_model(split: Experiment) -> None:
    assert await split.follower.bring_in(version(1))
    assert await split.ask() == {CHAMPION: {(CHAMPION, version(0))}, LATEST: {(LATEST, version(1))}}
    n_latest = sum(draw("fresh", user) < 0.5 for user in USERS)
    assert (split.counted(LATEST), split.counted(CHAMPION)) == (n_latest, len(USERS) - n_latest)
    assert split.service.metric("freshrank_snapshot_swaps_total", task="latest", outcome="swapped") == 1.0


async def test_a_model_that_is_refused_leaves_its_arm_to_the_champion_until_the_next_one(
    split: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await split.follower.bring_in(version(1))
    assert not await split.follower.bring_in("ctr-000009-000000000000")
    assert await split.ask() == {CHAMPION: {(CHAMPION, version(0))}, LATEST: {(FALLBACK, version(0))}}
    assert split.counted(FALLBACK) == sum(draw("fresh", user) < 0.5 for user in USERS)
    assert "snapshot ctr-000009-000000000000 is refused, the champion goes on serving" in caplog.text
    spoil(tmp_path, version(1))
    assert not await split.follower.bring_in(version(1))  # it is loaded anew, as nothing serves it any more
    assert split.service.metric("freshrank_snapshot_swaps_total", task="latest", outcome="refused") == 2.0


async def test_while_the_registry_is_away_the_champion_answers(
    split: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> Scorer:
        raise OSError("no route to the registry")

    with monkeypatch.context() as patched:
        patched.setattr(split.service.refresher, "_load", away)
        with pytest.raises(OSError, match="no route"):
            await split.follower.bring_in(version(1))
        assert (await split.ask())[LATEST] == {(FALLBACK, version(0))}
    assert await split.follower.bring_in(version(1))
    assert (await split.ask())[LATEST] == {(LATEST, version(1))}


async def test_live_counts_are_under_both_models(split: Experiment) -> None:
    live = counted(slide(1), slide(2), slide(3))
    assert await split.follower.bring_in(version(1))
    await split.service.refresher.apply([update_from(live)])
    for scorer in (split.service.holder.current, split.latest.current):
        assert scorer is not None
        assert scorer.table.as_of_s == live.as_of_s


async def test_a_model_that_comes_after_the_counts_has_them_too(split: Experiment) -> None:
    live = counted(slide(1), slide(2), slide(3))
    await split.service.refresher.apply([update_from(live)])
    assert await split.follower.bring_in(version(1))
    assert split.latest.current is not None
    assert split.latest.current.table.as_of_s == live.as_of_s


async def test_a_model_in_both_arms_is_held_once(split: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await split.follower.bring_in(version(1))
    monkeypatch.setattr(split.service.refresher, "_load", None)  # so nothing is loaded again
    assert await split.service.refresher.bring_in(version(1))  # promoted
    await split.service.refresher.apply([])
    assert split.service.holder.current is split.latest.current
    assert await split.ask() == {CHAMPION: {(CHAMPION, version(1))}, LATEST: {(LATEST, version(1))}}


async def test_a_model_that_becomes_both_arms_at_once_is_loaded_once(
    split: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresher, loaded = split.service.refresher, []
    load = refresher._load
    monkeypatch.setattr(refresher, "_load", lambda one: loaded.append(one) or load(one))
    assert await asyncio.gather(refresher.bring_in(version(1)), split.follower.bring_in(version(1))) == [True, True]
    assert loaded == [version(1)]
    assert await split.ask() == {CHAMPION: {(CHAMPION, version(1))}, LATEST: {(LATEST, version(1))}}
    assert not refresher._loading


async def test_without_an_experiment_no_request_has_an_arm(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.holder.swap(Scorer.from_snapshot(two_snapshots()[0]))
    answer = await service.pipeline.rank(json.dumps(BODY).encode())
    (served,) = service.log.events
    assert isinstance(served, Served)
    assert (answer.arm, served.arm, served.split) == ("", "", "")
    assert np.isclose(service.metric("freshrank_split_requests_total", arm=CHAMPION), 0.0)
