"""The queue in front of ranking: its order, its limits, and what becomes of who waits too long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from infra.metrics import ADMISSIONS, ServeMetrics
from models.serving.admission import Admission, Overloaded
from models.serving.schema import ClientEvent, Served
from tests.models.serving.service import BODY, Service, ready_service


class Desk:
    """An admission and those who hold its places until they are told to leave."""

    def __init__(self, *, concurrent_max: int = 1, queue_max: int = 2, stale_s: float = 60.0) -> None:
        self.metrics = ServeMetrics(CollectorRegistry())
        limits = {"concurrent_max": concurrent_max, "queue_max": queue_max, "stale_s": stale_s}
        self.admission = Admission(self.metrics, **limits)  # type: ignore[arg-type]
        self.working: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}

    async def come(self, name: str) -> asyncio.Task[None]:
        self.leave[name] = asyncio.Event()
        task = asyncio.create_task(self._work(name))
        await asyncio.sleep(0)
        return task

    async def _work(self, name: str) -> None:
        async with asyncio.timeout(5.0), self.admission.place():
            self.working.append(name)
            await self.leave[name].wait()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def outcomes(self) -> list[float]:
        return [self.count("freshrank_rank_admissions_total", outcome=outcome) for outcome in ADMISSIONS]


async def test_who_comes_first_is_first_and_no_more_are_worked_on_than_may_be() -> None:
    desk = Desk(concurrent_max=2)
    tasks = [await desk.come(name) for name in "abcd"]
    assert desk.working == ["a", "b"]
    assert desk.count("freshrank_rank_queue_count") == 2.0
    for name, working in (("b", "abc"), ("a", "abcd")):
        desk.leave[name].set()
        async with asyncio.timeout(5.0):
            while desk.working != list(working):  # noqa: ASYNC110  # until the loop has come to it
                await asyncio.sleep(0)
    for name in "cd":
        desk.leave[name].set()
    await asyncio.gather(*tasks)
    assert desk.outcomes() == [4.0, 0.0, 0.0]
    assert desk.count("freshrank_rank_queue_count") == 0.0


async def test_one_more_than_may_wait_is_sent_away_at_once() -> None:
    desk = Desk(queue_max=1)
    tasks = [await desk.come(name) for name in "ab"]
    with pytest.raises(Overloaded, match="must be one of at most 1 that wait, got a full queue"):
        await (await desk.come("c"))
    assert desk.outcomes() == [1.0, 1.0, 0.0]
    for name in "ab":
        desk.leave[name].set()
    await asyncio.gather(*tasks)
    free = await desk.come("d")
    desk.leave["d"].set()
    await free


async def test_without_a_queue_a_free_place_is_still_given() -> None:
    desk = Desk(queue_max=0)
    task = await desk.come("a")
    with pytest.raises(Overloaded):
        await (await desk.come("b"))
    desk.leave["a"].set()
    await task


async def test_who_has_waited_too_long_gets_no_place() -> None:
    desk = Desk(stale_s=0.01)
    task = await desk.come("a")
    with pytest.raises(Overloaded, match=r"must have its turn within 0\.01 s"):
        await (await desk.come("b"))
    desk.leave["a"].set()
    await task
    assert desk.working == ["a"]
    assert desk.outcomes() == [1.0, 0.0, 1.0]


async def test_a_place_that_comes_too_late_is_given_back() -> None:
    """Scoring holds up the loop: a place can be given before the time-out of who waits, and be taken long after it."""
    desk = Desk(stale_s=0.01)
    task = await desk.come("a")
    late = await desk.come("b")
    desk.leave["a"].set()
    asyncio.get_running_loop().call_soon(time.sleep, 0.02)  # scoring, between the giving and the taking
    await task
    with pytest.raises(Overloaded):
        await late
    assert desk.outcomes() == [1.0, 0.0, 1.0]
    free = await desk.come("c")
    desk.leave["c"].set()
    await free
    assert desk.working == ["a", "c"]


@pytest.mark.parametrize("moment", ["waiting", "working"])
async def test_who_leaves_takes_no_place_along(moment: str) -> None:
    desk = Desk()
    tasks = [await desk.come(name) for name in "ab"]
    leaving = tasks[moment == "waiting"]
    leaving.cancel()
    await asyncio.wait([leaving])
    for name in "ab":
        desk.leave[name].set()
    await asyncio.wait(tasks)
    free = await desk.come("c")
    desk.leave["c"].set()
    await free
    assert desk.working[-1] == "c"


async def test_the_service_sends_away_what_it_cannot_do_and_goes_on(tmp_path: Path) -> None:
    service: Service = ready_service(tmp_path, concurrent_max=1, queue_max=1)
    release, begun = asyncio.Event(), asyncio.Event()

    async def publish_later(_: Served | ClientEvent) -> None:
        begun.set()
        await release.wait()

    service.pipeline._publish = publish_later
    async with service.client() as client:
        working = asyncio.create_task(client.post("/v1/rank", json=BODY))
        await begun.wait()
        waiting = asyncio.create_task(client.post("/v1/rank", json=BODY))
        while service.metric("freshrank_rank_queue_count") == 0.0:  # noqa: ASYNC110  # the metric is what is tested
            await asyncio.sleep(0)
        refused = await client.post("/v1/rank", json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["what"] == "request"
        assert (await client.get("/healthz")).status_code == 200
        release.set()
        assert [answer.status_code for answer in await asyncio.gather(working, waiting)] == [200, 200]
    assert service.metric("freshrank_rank_admissions_total", outcome="full") == 1.0
