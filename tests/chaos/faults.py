"""The faults: what is done to the processes of a deployment while events come in, at moments from a seed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from infra import broker as embedded
from infra.broker import BrokerInfo
from stream.roles import SESSION_S
from tests.chaos.roles import Roles, Worker

OWNS = "ledger: partition"  # what a ledger worker logs when it has taken a partition
FENCED = "is given up for"  # and when it finds, as it commits, that another one has it
START_S_MAX = 60.0
WRITE_S_MAX = 15.0
Act = Callable[["Scene", int], Awaitable[int]]


@dataclass
class Scene:
    """What a fault works on."""

    roles: Roles
    rng: random.Random
    broker: BrokerInfo
    tell: Callable[[str], None]
    notes: list[str] = field(default_factory=list)  # what shows that the fault hit


@dataclass(frozen=True)
class Fault:
    """A fault: what is done in words, how often by default, and what to do; it returns how often it was done."""

    did: str
    times: int
    act: Act
    role: str = "ledger"  # which role's results are compared
    is_alone: bool = False  # nothing else can run beside it


async def _owning(scene: Scene, worker: Worker) -> Worker:
    """Return a ledger worker that has taken partitions; another one if this one ends."""
    while not await worker.wait_said(OWNS, START_S_MAX):
        if not scene.roles.died(worker):
            raise AssertionError(
                f"a ledger worker must take partitions within {START_S_MAX:g} s: {worker.last_words()}"
            )
        worker = scene.roles.start(worker.role)
    return worker


async def _writes_more(scene: Scene) -> bool:
    """Return True once blocks have been written in every partition, False if that takes long."""
    numbers = await _numbers(scene)
    deadline_s = time.monotonic() + WRITE_S_MAX
    while time.monotonic() < deadline_s:
        if all(now > before for now, before in zip(await _numbers(scene), numbers, strict=True)):
            return True
        await asyncio.sleep(0.1)
    return False


async def _numbers(scene: Scene) -> list[int]:
    return [header.number if header else -1 for header in await scene.roles.deployment.headers()]


async def kill_ledger(scene: Scene, times: int) -> int:
    """Kill it anywhere: on its way up, while it resumes, between transactions and inside them."""
    n_owning = n_writing = 0
    for number in range(times):
        worker = scene.roles.start("ledger")
        dice = scene.rng.random()
        if dice < 0.25:
            await asyncio.sleep(scene.rng.uniform(0.2, 9.0))
        else:
            worker = await _owning(scene, worker)
            if dice > 0.6:
                n_writing += await _writes_more(scene)
            await asyncio.sleep(scene.rng.uniform(0.0, 2.0))
        worker.kill()
        n_owning += worker.said(OWNS)
        scene.tell(f"{number + 1} of {times} kills")
    scene.notes.append(f"{n_owning} of {times} kills came after it had taken partitions, {n_writing} while it wrote")
    return times


async def stop_ledger(scene: Scene, times: int) -> int:
    """Stop it as an update does, and start it again."""
    for number in range(times):
        worker = await _owning(scene, scene.roles.start("ledger"))
        await asyncio.sleep(scene.rng.uniform(0.0, 3.0))
        code = await worker.stop()
        assert code == 0, f"SIGTERM must end a ledger worker with 0, got {code}: {worker.last_words()}"
        scene.tell(f"{number + 1} of {times} restarts")
    return times


async def rebalance(scene: Scene, times: int) -> int:
    """One worker, then three, then one: those that leave are stopped, or killed in every second round."""
    first = await _owning(scene, scene.roles.start("ledger"))
    for number in range(times):
        others = [scene.roles.start("ledger") for _ in range(2)]
        others = [await _owning(scene, worker) for worker in others]
        await asyncio.sleep(scene.rng.uniform(1.0, 4.0))
        for worker in others:
            if number % 2:
                worker.kill()
            else:
                await worker.stop()
        await asyncio.sleep(SESSION_S + scene.rng.uniform(2.0, 4.0))
        if scene.roles.died(first):
            first = await _owning(scene, scene.roles.start("ledger"))
        scene.tell(f"{number + 1} of {times} times 1 → 3 → 1")
    await first.stop()
    return times


async def freeze_ledger(scene: Scene, times: int) -> int:
    """Freeze a worker until its session has ended and the other one has its partitions; then wake it."""
    workers = [await _owning(scene, scene.roles.start("ledger"))]
    workers.append(await _owning(scene, scene.roles.start("ledger")))
    n_fenced = 0
    for number in range(times):
        frozen = workers[number % 2]
        n_before = frozen.times_said(FENCED)
        frozen.signal(signal.SIGSTOP)
        await asyncio.sleep(SESSION_S + scene.rng.uniform(3.0, 6.0))
        frozen.signal(signal.SIGCONT)
        await asyncio.sleep(scene.rng.uniform(4.0, 7.0))
        n_fenced += frozen.times_said(FENCED) > n_before
        for place, worker in enumerate(workers):
            if scene.roles.died(worker):
                workers[place] = await _owning(scene, scene.roles.start("ledger"))
        scene.tell(f"{number + 1} of {times} freezes")
    scene.notes.append(f"{n_fenced} of {times} were fenced in the middle of a commit when they woke")
    for worker in workers:
        await worker.stop()
    return times


async def kill_broker(scene: Scene, times: int) -> int:
    """Kill the broker under a ledger worker that runs; it comes back on the same data a little later."""
    async with scene.roles.supervised("ledger"):
        for number in range(times):
            await asyncio.sleep(scene.rng.uniform(5.0, 9.0))
            os.kill(scene.broker.pid, signal.SIGKILL)
            await asyncio.sleep(scene.rng.uniform(0.3, 3.0))
            directory = scene.broker.data_dir
            await asyncio.to_thread(embedded.stop, directory)  # what is left of it: its guard, its entry
            servers = scene.broker.bootstrap_servers
            scene.broker = await asyncio.to_thread(embedded.start, directory, owned=True, timeout_s=60.0)
            assert scene.broker.bootstrap_servers == servers, "a broker that comes back must have its port again"
            scene.tell(f"{number + 1} of {times} kills of the broker")
        await asyncio.sleep(3.0)
    return times


async def kill_priors(scene: Scene, times: int) -> int:
    """Kill the priors anywhere: on their way up, while they catch up, between publications."""
    return await _kill_beside_the_ledger(scene, "priors", times)


async def kill_train(scene: Scene, times: int) -> int:
    """Kill the trainer anywhere: on its way up, while it resumes, learns, saves or announces."""
    return await _kill_beside_the_ledger(scene, "train", times)


async def _kill_beside_the_ledger(scene: Scene, role: str, times: int) -> int:
    async with scene.roles.supervised("ledger"):
        for number in range(times):
            worker = scene.roles.start(role)
            # Both take some seconds to start; the trainer waits until the one before has left its group.
            await asyncio.sleep(scene.rng.uniform(1.0, 6.0) if number % 3 == 0 else scene.rng.uniform(6.0, 16.0))
            scene.roles.died(worker)
            worker.kill()
            scene.tell(f"{number + 1} of {times} kills")
    return times


FAULTS = {
    "kill": Fault("kill -9 of the ledger", 25, kill_ledger),
    "sigterm": Fault("SIGTERM and a new start of the ledger", 5, stop_ledger),
    "rebalance": Fault("1 → 3 → 1 ledger workers", 2, rebalance),
    "freeze": Fault(f"a ledger worker frozen past its session ({SESSION_S:g} s)", 3, freeze_ledger),
    "broker": Fault("kill -9 of the broker", 3, kill_broker, is_alone=True),
    "priors": Fault("kill -9 of the priors", 6, kill_priors, role="priors"),
    "train": Fault("kill -9 of the trainer", 6, kill_train, role="train"),
}
