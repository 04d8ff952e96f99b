"""One run of the demo: a log from its first event to the last slide learnt, and three questions to the service.

Owns the order of the phases and the snapshot that is left as it was. Must not know signals, or what the run is worth
afterwards.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from stream.announcement import Announcement
from stream.demo.deployment import Deployment, Seen
from stream.demo.panel import View
from stream.demo.processes import Children
from stream.demo.requests import Answer, ask, choose_visits, read_catalog
from stream.demo.screen import Screen
from stream.demo.setup import Setup, hold_back
from stream.roles import Cluster

REQUESTS = 3


@dataclass
class Outcome:
    """What a run has shown, for the report.

    Attributes:
        seen: What the deployment has.
        frozen: The last announcement of the warm-up, once there was a later one: what the static model is.
        stages: Wall time by stage, seconds.
    """

    seen: Seen
    frozen: Announcement | None = None
    answers: list[Answer] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)


class DemoRun:
    """Everything that happens while the roles are up.

    Attributes:
        picture: What the screen showed when the last event had been sent, for a picture.
    """

    def __init__(self, setup: Setup, cluster: Cluster, children: Children, screen: Screen, *, begun_s: float) -> None:
        """Keep the parts; nothing starts yet.

        Args:
            begun_s: When the demo began, monotonic clock.
        """
        self.picture = View(setup.settings.name, "")
        self._setup = setup
        self._cluster = cluster
        self._begun_s = begun_s
        self._deployment = Deployment(setup, cluster, children, screen, begun_s=begun_s, on_announced=self._freeze)
        self._outcome = Outcome(self._deployment.seen)

    async def watch(self, rows: int | None) -> Outcome:
        """Run until the last slide is learnt and the service has answered; return what was seen.

        Args:
            rows: How many rows are to be replayed; None: all but those held back.

        Raises:
            ChildFailed: If a role cannot go on.
            RuntimeError: If the broker cannot, or the service does not answer.
        """
        try:
            await self._run(rows)
        finally:
            await self._deployment.close()
        return self._outcome

    async def _run(self, rows: int | None) -> None:
        deployment, stages = self._deployment, self._outcome.stages
        deployment.start_roles()
        n_rows, held_back = await self._read_log(rows)
        loop_s = time.monotonic()
        stages["start"] = loop_s - self._begun_s
        await deployment.replay(n_rows)
        self.picture = deployment.view
        stages["replay"] = time.monotonic() - loop_s
        await deployment.learn_rest(deployment.seen.replayed["event_time_s"])  # the last event is a tick
        stages["loop"] = time.monotonic() - loop_s
        deployment.measure()
        await self._ask(held_back)
        deployment.phase = "done"
        deployment.show()

    async def _read_log(self, rows: int | None) -> tuple[int, pl.DataFrame]:
        """Return how many rows to replay and the ones after them; the roles start meanwhile."""
        n_rows, held_back = 0, pl.DataFrame()
        for n_rows, held_back in hold_back(self._setup.settings, rows):  # noqa: B007 - the last is wanted
            self._deployment.phase = f"starting the roles, reading the log: {n_rows:,} rows"
            await self._deployment.turn(0.0)
        return n_rows, held_back

    async def _ask(self, held_back: pl.DataFrame) -> None:
        """Ask the service about people whose next click is among the rows held back."""
        self._deployment.phase = "asking the ranking service"
        self._deployment.show()
        catalog = await read_catalog(self._cluster)
        visits = choose_visits(held_back, self._setup.settings.fields, catalog, REQUESTS)
        url = await self._deployment.service_url()
        self._outcome.answers = await ask(url, visits, catalog, champion=self._deployment.champion)

    def _freeze(self) -> None:
        """Keep the last snapshot of the warm-up from being pruned, once it is known to be the last."""
        announcements = self._deployment.seen.announcements
        warm = [one for one in announcements if one.decision == "warmup"]
        if self._outcome.frozen is None and warm and len(warm) < len(announcements):
            registry, kept = Path(self._setup.settings.registry.url), frozen_dir(self._setup)
            shutil.copytree(registry / warm[-1].latest, kept / warm[-1].latest, copy_function=os.link)
            self._outcome.frozen = warm[-1]


def frozen_dir(setup: Setup) -> Path:
    """Return the registry that keeps the frozen snapshot alone."""
    return setup.path.with_name("frozen")
