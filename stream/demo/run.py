"""One run of the demo: the roles started in order, watched until the last slide is learnt, and asked.

Owns when a phase is over and what the screen is told. Must not know signals, or what the run is worth afterwards.

Invariants: the phases follow from the topics and the replay's own report alone; a role that dies is started again, the
replay is not (what it sent twice would be duplicates); a broker that dies comes back on its own port with its data.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from infra import broker
from models.window import Slides
from stream.announcement import Announcement
from stream.blocks import Counts
from stream.demo.panel import Role, SlideRow, View
from stream.demo.processes import DEATHS_MAX, ChildFailed, Children, find_line
from stream.demo.requests import Answer, ask, choose_visits, read_catalog
from stream.demo.screen import Screen
from stream.demo.setup import Setup, hold_back
from stream.demo.watcher import Watcher
from stream.roles import Cluster

TURN_S = 0.2  # how often the topics are looked at
MEASURE_S = 3.0  # how often memory is measured: it costs some milliseconds a process
QUIET_S = 30.0  # a trainer that has announced nothing and done nothing for so long has nothing left to learn
QUIET_CPU = 0.1  # share of a core that a trainer with nothing to do stays below
STALL_S = 120.0  # when nothing at all has moved for so long, something hangs
REQUESTS = 3
ROLES = ("ledger", "priors", "train")


@dataclass
class Seen:
    """What a run has shown, for the report.

    Attributes:
        replayed: What the replay said at its end, as in its `--json`.
        announcements: Of the trainer, one a slide.
        frozen: The last announcement of the warm-up, once there was a later one: what the static model is.
        stages: Wall time by stage, seconds.
        notes: What went wrong and was mended.
    """

    replayed: dict[str, Any] = field(default_factory=dict)
    announcements: list[Announcement] = field(default_factory=list)
    frozen: Announcement | None = None
    counts: Counts = field(default_factory=Counts)
    prior_values: int = 0
    prior_as_of_s: float | None = None
    answers: list[Answer] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
        self.seen = Seen()
        self.picture = View(setup.settings.name, "")
        self._setup = setup
        self._settings = setup.settings
        self._cluster = cluster
        self._children = children
        self._screen = screen
        self._begun_s = begun_s
        self._slides = Slides(slide_s=setup.settings.window.slide_s, edges=setup.settings.window.edges)
        self._watcher = Watcher(cluster, setup.settings.model.family)
        self._phase = "starting"
        self._broker_deaths = 0
        self._measured_s, self._active_s = 0.0, time.monotonic()  # last measurement; when something last moved

    async def watch(self, rows: int | None) -> Seen:
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
            await self._watcher.close()
        return self.seen

    @property
    def view(self) -> View:
        """What the screen shows."""
        watcher, now_s = self._watcher, time.time()
        learnt = {a.announcement.latest: (a.announcement.end_s, a.append_s) for a in watcher.announced}
        serving = watcher.announced[-1].announcement.champion if watcher.announced else ""
        end_s, append_s = learnt.get(serving, (None, None))
        event_s = watcher.watermark_s
        return View(
            title=self._settings.name,
            phase=self._phase,
            elapsed_s=time.monotonic() - self._begun_s,
            events_per_s=watcher.events_per_s,
            events_per_s_mean=watcher.events_per_s_mean,
            counts=watcher.counts,
            watermark_s=event_s,
            prior_values=watcher.prior_values,
            prior_as_of_s=watcher.prior_as_of_s,
            slides=[_slide_row(a.announcement) for a in watcher.announced],
            serving=serving,
            age_event_s=None if end_s is None or event_s is None else max(0.0, event_s - end_s),
            age_wall_s=None if append_s is None else now_s - append_s,
            roles=[self._role(name) for name in self._children.names()],
            memory_bytes=self._children.usage.memory_bytes,
            notes=self.seen.notes,
        )

    async def _run(self, rows: int | None) -> None:
        self._start_roles()
        n_rows, held_back = await self._read_log(rows)
        loop_s = time.monotonic()
        self.seen.stages["start"] = loop_s - self._begun_s
        await self._replay(n_rows)
        self.seen.stages["replay"] = time.monotonic() - loop_s
        await self._learn_rest()
        self.seen.stages["loop"] = time.monotonic() - loop_s
        self._measure()
        await self._ask(held_back)
        self._phase = "done"
        self._show()

    def _start_roles(self) -> None:
        config = str(self._setup.path)
        for role in ROLES:
            self._children.start(role, [*_CLI, "worker", role, config], is_service=True)
        self._children.start("serve", [*_CLI, "serve", config, "--port", "0"], is_service=True)

    async def _read_log(self, rows: int | None) -> tuple[int, pl.DataFrame]:
        """Return how many rows to replay and the ones after them; the roles start meanwhile."""
        n_rows, held_back = 0, pl.DataFrame()
        for n_rows, held_back in hold_back(self._settings, rows):  # noqa: B007 - the last is wanted
            self._phase = f"starting the roles, reading the log: {n_rows:,} rows"
            await self._turn(0.0)
        return n_rows, held_back

    async def _replay(self, n_rows: int) -> None:
        report = self._setup.path.with_name("replay.json")
        command = [*_CLI, "replay", str(self._setup.path), "--limit", str(n_rows), "--json", str(report)]
        self._children.start("replay", command, is_service=False)
        self._phase = f"replaying {n_rows:,} rows"
        while not self._children.has_ended("replay"):
            await self._turn()
        if not report.exists():
            raise ChildFailed(self._children.last_words("replay", "it ended early"))
        self.seen.replayed = msgspec.json.decode(report.read_bytes())
        self.picture = self.view

    async def _learn_rest(self) -> None:
        """Wait until the ledger has passed the last tick and the trainer has learnt the last slide that can close."""
        self._phase = "all is sent; learning what is left"
        end_s = self.seen.replayed["event_time_s"] - self._settings.ledger.disorder_s  # the last event is a tick
        while (self._watcher.watermark_s or 0.0) < self._slides.start_s(self._slides.index(end_s)):
            await self._turn()
        slides = [self._slides.index(settled_s) for settled_s in self._watcher.newest_settled_s()]
        # Beyond the last of given edges there is a slide that never closes.
        last = max((slide for slide in slides if math.isfinite(self._slides.end_s(slide))), default=math.inf)
        self._active_s = time.monotonic()
        while self._newest_slide() < last and time.monotonic() - self._active_s < QUIET_S:
            await self._turn()
        if not self._watcher.announced:
            raise ChildFailed(self._children.last_words("train", "it has learnt no slide"))

    def _newest_slide(self) -> float:
        announced = self._watcher.announced
        return announced[-1].announcement.slide if announced else -math.inf

    async def _ask(self, held_back: pl.DataFrame) -> None:
        """Ask the service about people whose next click is among the rows held back."""
        self._phase = "asking the ranking service"
        self._show()
        catalog = await read_catalog(self._cluster)
        visits = choose_visits(held_back, self._settings.fields, catalog, REQUESTS)
        url = None
        while (url := find_line(self._children.log_of("serve"), r"(http://\S+)")) is None:
            await self._turn()
        champion = self._watcher.announced[-1].announcement.champion
        self.seen.answers = await ask(url, visits, catalog, champion=champion)

    async def _turn(self, wait_s: float = TURN_S) -> None:
        """Look at everything once: topics, processes, memory; show it."""
        self._note(await self._watcher.poll(wait_s))
        self._mend_broker()
        self._note(self._children.check())
        if time.monotonic() - self._measured_s >= MEASURE_S:
            self._measure()
        self._take_in()
        self._show()

    def _take_in(self) -> None:
        """Take what the topics have said into `seen`."""
        seen, watcher = self.seen, self._watcher
        counts, n_announced = watcher.counts, len(watcher.announced)
        if n_announced > len(seen.announcements):
            seen.announcements = [one.announcement for one in watcher.announced]
            self._freeze()
            self._active_s = time.monotonic()
        if counts.records > seen.counts.records:
            seen.counts = counts
            self._active_s = time.monotonic()
        seen.prior_values, seen.prior_as_of_s = watcher.prior_values, watcher.prior_as_of_s
        if time.monotonic() - self._active_s > STALL_S:
            logs = self._setup.path.with_name("logs")
            raise RuntimeError(f"events and slides must move on, but nothing has for {STALL_S:g} s; see {logs}")

    def _freeze(self) -> None:
        """Keep the last snapshot of the warm-up from being pruned, once it is known to be the last."""
        announcements = self.seen.announcements
        warm = [one for one in announcements if one.decision == "warmup"]
        if self.seen.frozen is None and warm and len(warm) < len(announcements):
            registry, kept = Path(self._settings.registry.url), frozen_dir(self._setup)
            shutil.copytree(registry / warm[-1].latest, kept / warm[-1].latest, copy_function=os.link)
            self.seen.frozen = warm[-1]

    def _mend_broker(self) -> None:
        data_dir = self._setup.path.with_name("broker")
        if broker.status(data_dir) is not None:
            return
        self._broker_deaths += 1
        self._note(["the broker died and is started again"])
        if self._broker_deaths >= DEATHS_MAX:
            raise RuntimeError(f"the broker must go on, but it died {self._broker_deaths} times; see {data_dir}/logs")
        info = broker.start(data_dir, owned=True)
        if info.bootstrap_servers != self._cluster.bootstrap_servers:
            raise RuntimeError(
                f"the broker must come back on {self._cluster.bootstrap_servers}, but another process took the port;"
                " run the demo again"
            )

    def _measure(self) -> None:
        now_s, trained_s = time.monotonic(), self._children.usage.cpu_s.get("train", 0.0)
        info = broker.status(self._setup.path.with_name("broker"))
        usage = self._children.measure({} if info is None else {info.pid: "broker"})
        if usage.cpu_s.get("train", 0.0) - trained_s > QUIET_CPU * (now_s - self._measured_s):
            self._active_s = now_s
        self._measured_s = now_s

    def _note(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line not in self.seen.notes[-1:]:
                self.seen.notes.append(line)
                self._show()

    def _role(self, name: str) -> Role:
        deaths = self._children.deaths(name)
        if self._children.has_ended(name):
            return Role(name, "ended", deaths)
        return Role(name, "runs" if self._children.is_running(name) else "restarts", deaths)

    def _show(self) -> None:
        self._screen.show(self.view)


_CLI = (sys.executable, "-m", "stream.cli")


def frozen_dir(setup: Setup) -> Path:
    """Return the registry that keeps the frozen snapshot alone."""
    return setup.path.with_name("frozen")


def _slide_row(announcement: Announcement) -> SlideRow:
    return SlideRow(
        slide=announcement.slide,
        rows=int(announcement.evaluation["latest"]["rows"]),
        end_s=announcement.end_s,
        champion=announcement.evaluation["champion"],
        latest=announcement.evaluation["latest"],
        decision=announcement.decision,
        reason=announcement.reason,
    )
