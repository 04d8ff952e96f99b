"""One closed loop: people ask the service, what they click becomes the next model, and that answers them.

Owns the order of the hours and who waits for whom. Must not know signals, how people answer, or what is printed.

An hour of the world is asked as fast as the service answers. Then the world stands still until the trainer has learnt
the hour and what it has decided on serves: a deployment needs seconds for that, and an hour has 3,600 of them. So how
far a model lags behind does not depend on the machine: by the hour that it was judged on, and by the wait for clicks.
What does depend on it are the live counts within an hour, which are as many seconds old as ever, but of faster time.

Invariants: the first hours are a log, shown by the cascade's own policy; the hour after them passes without a visitor,
while their last clicks are waited for; then every hour is lived by all arms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from aiokafka import AIOKafkaProducer

from freshrank.client import AsyncClient
from models.registry import Registry
from stream.blocks import Counts
from stream.cascade import Cascade, Funnel
from stream.demo.arms import HourTally, phases, score
from stream.demo.deployment import Deployment, Seen, Skew
from stream.demo.processes import Children
from stream.demo.screen import Screen
from stream.demo.setup import Setup
from stream.demo.static import static_service
from stream.demo.visitors import Visitors, missing
from stream.outbox import BATCH_BYTES, Outbox
from stream.roles import Cluster
from stream.simulate import HOUR_S, START_S

# Chosen by hand so that two cores need less than four minutes for `HOURS`.
FUNNEL = Funnel(matched=100, preranked=50, exposed=10)
N_ADS = 600
REQUESTS_PER_HOUR = 240.0
WARMUP_H, HOURS = 1, 28
HOURS_MIN = 6  # there must be two before the drift and two after it
CALL_S, CALL_RETRIES = 60.0, 20  # a broker that dies is back within seconds
SERVES_S_MAX = 30.0
_T = TypeVar("_T")


def new_world(seed: int, hours: int) -> Cascade:
    """Return a world whose tastes change abruptly half-way; it lasts for the log, the hour after it, and the loop."""
    n_hours = WARMUP_H + 1 + hours
    return Cascade(seed, "abrupt", hours=n_hours, funnel=FUNNEL, n_ads=N_ADS, requests_per_hour=REQUESTS_PER_HOUR)


def drift_hour(cascade: Cascade) -> int:
    """Return the first hour that passes with the new tastes from its beginning on."""
    return (cascade.n_hours + 1) // 2


@dataclass
class Outcome:
    """What a loop has shown, for the report.

    Attributes:
        static: Version of the model that stayed as it was.
        served: Versions that have answered, in order.
        sent: What the visitors have sent.
        skew: Of what the service showed, as the trainer recomputed it.
        missing: By how much the ledger's counts differ from all that was sent, by kind of event.
        stages: Wall time by stage, seconds.
    """

    seen: Seen
    static: str = ""
    tallies: list[HourTally] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    sent: Counts = field(default_factory=Counts)
    skew: Skew = field(default_factory=Skew)
    missing: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


class ClosedLoop:
    """Everything that happens while the roles are up."""

    def __init__(
        self,
        setup: Setup,
        cluster: Cluster,
        children: Children,
        screen: Screen,
        *,
        cascade: Cascade,
        begun_s: float,
    ) -> None:
        """Keep the parts; nothing starts yet.

        Args:
            cascade: The world that the log of `setup` is from.
            begun_s: When the demo began, monotonic clock.
        """
        self._settings = setup.settings
        self._cluster = cluster
        self._cascade = cascade
        self._begun_s = begun_s
        self._deployment = Deployment(setup, cluster, children, screen, begun_s=begun_s)
        self._outcome = Outcome(self._deployment.seen)
        self._phases = phases(WARMUP_H + 1, drift_hour(cascade), cascade.n_hours)

    async def watch(self) -> Outcome:
        """Run until the last hour is learnt; return what was seen.

        Raises:
            ChildFailed: If a role cannot go on.
            RuntimeError: If the broker or the service cannot.
        """
        try:
            await self._run()
        finally:
            await self._deployment.close()
        return self._outcome

    async def _run(self) -> None:
        deployment, outcome = self._deployment, self._outcome
        deployment.start_roles()
        await deployment.replay(None)
        await deployment.learn_rest(deployment.seen.replayed["event_time_s"])
        loop_s = time.monotonic()
        outcome.stages["warm-up"] = loop_s - self._begun_s
        outcome.static = deployment.champion
        snapshot, _ = Registry(self._settings.registry.url).load(outcome.static, fields=self._settings.fields)
        url, transport = await deployment.service_url(), httpx.AsyncHTTPTransport()  # no proxy of the environment
        producer = AIOKafkaProducer(**self._cluster.options, enable_idempotence=True, max_batch_size=BATCH_BYTES)
        async with producer, AsyncClient(url, timeout_s=CALL_S, retries=CALL_RETRIES, transport=transport) as client:
            visitors = Visitors(
                self._cascade,
                client,
                Outbox(producer, self._cluster.topic("events"), self._cluster.partitions),
                static_service(self._settings, snapshot),
                disorder_s=self._settings.ledger.disorder_s,
            )
            await self._live(visitors, client)
        outcome.stages["loop"] = time.monotonic() - loop_s
        outcome.sent, outcome.served = visitors.sent, visitors.served
        outcome.missing = missing(deployment.seen.counts, deployment.seen.replayed, visitors.sent)
        outcome.skew = deployment.skew
        deployment.measure()
        deployment.phase = "done"
        deployment.show()

    async def _live(self, visitors: Visitors, client: AsyncClient) -> None:
        """Let the hours pass, each learnt before the next one begins."""
        await self._serve_champion(client)
        for hour in self._cascade.hours():
            if hour.index <= WARMUP_H:
                continue
            self._deployment.phase = f"hour {hour.index + 1} of {self._cascade.n_hours}, {self._phase(hour.index)}"
            self._outcome.tallies.append(await self._meanwhile(visitors.live(hour)))
            self._deployment.world = self._so_far(hour.index)
            await self._deployment.settle(await visitors.tick(START_S + HOUR_S * (hour.index + 1)))
            await self._deployment.learn(START_S // HOUR_S + hour.index)
            await self._serve_champion(client)
        # The slide after the last hour holds what was still waiting for its clicks.
        await self._deployment.learn_rest(await visitors.tick(START_S + HOUR_S * (self._cascade.n_hours + 1)))

    async def _meanwhile(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what comes of some work, the deployment being watched meanwhile."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await self._deployment.turn()
            return await task
        finally:
            task.cancel()

    async def _serve_champion(self, client: AsyncClient) -> None:
        deadline_s = time.monotonic() + SERVES_S_MAX
        while (readiness := await client.ready()).snapshot != self._deployment.champion or not readiness.ready:
            if time.monotonic() >= deadline_s:
                said = f"must serve {self._deployment.champion} within {SERVES_S_MAX:g} s"
                raise RuntimeError(f"the service {said}, got {readiness}")
            await self._deployment.turn(0.05)

    def _phase(self, hour: int) -> str:
        return next(name for name, (first, end) in self._phases.items() if first <= hour < end)

    def _so_far(self, hour: int) -> str:
        """Return the click rates of the phase so far in a line."""
        first, _ = self._phases[self._phase(hour)]
        found = score([one for one in self._outcome.tallies if one.index >= first], n_places=FUNNEL.exposed)
        rates = ", ".join(f"{arm} {one.ctr.mean:.2%}" for arm, one in found.arms.items())
        return f"CTR {self._phase(hour)}: {rates}"
