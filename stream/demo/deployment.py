"""The roles of the demo's deployment: started in order, fed with its log, watched, and mended.

Owns when a log is sent and learnt, what is done about roles and brokers that die, and what the screen is told. Must not
know what else a run does with the deployment, or what it is worth afterwards.

Invariants: that something is over follows from the topics and the replay's own report alone; a role that dies is
started again, the replay is not (what it sent twice would be duplicates); a broker that dies comes back on its own port
with its data.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from infra import broker
from models.window import Slides
from stream.announcement import Announcement
from stream.blocks import Counts
from stream.demo.panel import Role, SlideRow, View
from stream.demo.processes import DEATHS_MAX, ChildFailed, Children, find_line
from stream.demo.screen import Screen
from stream.demo.setup import Setup
from stream.demo.watcher import Watcher
from stream.roles import Cluster

TURN_S = 0.2  # how often the topics are looked at
MEASURE_S = 3.0  # how often memory is measured: it costs some milliseconds a process
QUIET_S = 30.0  # a trainer that has announced nothing and done nothing for so long has nothing left to learn
QUIET_CPU = 0.1  # share of a core that a trainer with nothing to do stays below
STALL_S = 120.0  # when nothing at all has moved for so long, something hangs
ROLES = ("ledger", "priors", "train")


@dataclass
class Seen:
    """What a deployment has shown.

    Attributes:
        replayed: What the replay said at its end, as in its `--json`.
        announcements: Of the trainer, one a slide.
        notes: What went wrong and was mended.
    """

    replayed: dict[str, Any] = field(default_factory=dict)
    announcements: list[Announcement] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    prior_values: int = 0
    prior_as_of_s: float | None = None
    notes: list[str] = field(default_factory=list)


class Skew(NamedTuple):
    """Training/serving skew: rows compared, and the mean and the largest difference; none without rows."""

    rows: int = 0
    mean: float | None = None
    largest: float | None = None


class Deployment:
    """The roles while they are up.

    Attributes:
        seen: What they have shown so far.
        phase: What is going on, in a few words, for the screen.
        world: What those who are served do, in a line, for the screen; empty: nobody asks.
    """

    def __init__(
        self,
        setup: Setup,
        cluster: Cluster,
        children: Children,
        screen: Screen,
        *,
        begun_s: float,
        on_announced: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep the parts; nothing starts yet.

        Args:
            begun_s: When the demo began, monotonic clock.
            on_announced: Called when the trainer has announced something new.
        """
        self.seen = Seen()
        self.phase = "starting"
        self.world = ""
        self._setup = setup
        self._settings = setup.settings
        self._cluster = cluster
        self._children = children
        self._screen = screen
        self._begun_s = begun_s
        self._on_announced = on_announced
        self._slides = Slides(slide_s=setup.settings.window.slide_s, edges=setup.settings.window.edges)
        self._watcher = Watcher(cluster, setup.settings.model.family)
        self._broker_deaths = 0
        self._measured_s, self._active_s = 0.0, time.monotonic()  # last measurement; when something last moved

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
            phase=self.phase,
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
            world=self.world,
            roles=[self._role(name) for name in self._children.names()],
            memory_bytes=self._children.usage.memory_bytes,
            notes=self.seen.notes,
        )

    @property
    def skew(self) -> Skew:
        """What the trainer that runs now has said of what was served, over all slides."""
        said = [(int(n), float(mean), float(most)) for n, mean, most in _SKEW.findall(self._children.log_of("train"))]
        n_rows = sum(n for n, _, _ in said)
        if not n_rows:
            return Skew()
        return Skew(n_rows, sum(n * mean for n, mean, _ in said) / n_rows, max(most for _, _, most in said))

    @property
    def champion(self) -> str:
        """What is to serve by the newest announcement, of which there must be one."""
        return self.seen.announcements[-1].champion

    def start_roles(self) -> None:
        """Start all roles, the ranking service included."""
        config = str(self._setup.path)
        for role in ROLES:
            self._children.start(role, [*_CLI, "worker", role, config], is_service=True)
        self._children.start("serve", [*_CLI, "serve", config, "--port", "0"], is_service=True)

    async def replay(self, n_rows: int | None) -> None:
        """Send rows of the log, None: all of them, and return when they are in Kafka."""
        report = self._setup.path.with_name("replay.json")
        command = [*_CLI, "replay", str(self._setup.path), "--json", str(report)]
        command += [] if n_rows is None else ["--limit", str(n_rows)]
        self._children.start("replay", command, is_service=False)
        self.phase = "replaying the log" if n_rows is None else f"replaying {n_rows:,} rows"
        while not self._children.has_ended("replay"):
            await self.turn()
        if not report.exists():
            raise ChildFailed(self._children.last_words("replay", "it ended early"))
        self.seen.replayed = msgspec.json.decode(report.read_bytes())

    async def learn_rest(self, ticked_s: float) -> None:
        """Wait until the ledger has passed the last tick and the trainer has learnt the last slide that can close.

        Args:
            ticked_s: Event time of that tick.
        """
        self.phase = "all is sent; learning what is left"
        await self.settle(ticked_s)
        slides = [self._slides.index(settled_s) for settled_s in self._watcher.newest_settled_s()]
        # Beyond the last of given edges there is a slide that never closes.
        last = max((slide for slide in slides if math.isfinite(self._slides.end_s(slide))), default=math.inf)
        await self.learn(last)
        if not self._watcher.announced:
            raise ChildFailed(self._children.last_words("train", "it has learnt no slide"))

    async def settle(self, ticked_s: float) -> None:
        """Wait until the ledger has passed the slide boundary that a tick stands at."""
        end_s = ticked_s - self._settings.ledger.disorder_s
        while (self._watcher.watermark_s or 0.0) < self._slides.start_s(self._slides.index(end_s)):
            await self.turn()

    async def learn(self, slide: float) -> None:
        """Wait until a slide is learnt, or the trainer has nothing left to do."""
        self._active_s = time.monotonic()
        while self._newest_slide() < slide and time.monotonic() - self._active_s < QUIET_S:
            await self.turn()

    async def service_url(self) -> str:
        """Return the address of the ranking service, once it says one."""
        while (url := find_line(self._children.log_of("serve"), r"(http://\S+)")) is None:
            await self.turn()
        return url

    async def turn(self, wait_s: float = TURN_S) -> None:
        """Look at everything once: topics, processes, memory; show it."""
        self._note(await self._watcher.poll(wait_s))
        self._mend_broker()
        self._note(self._children.check())
        if time.monotonic() - self._measured_s >= MEASURE_S:
            self.measure()
        self._take_in()
        self.show()

    def measure(self) -> None:
        """Measure what the processes take."""
        now_s, trained_s = time.monotonic(), self._children.usage.cpu_s.get("train", 0.0)
        info = broker.status(self._setup.path.with_name("broker"))
        usage = self._children.measure({} if info is None else {info.pid: "broker"})
        if usage.cpu_s.get("train", 0.0) - trained_s > QUIET_CPU * (now_s - self._measured_s):
            self._active_s = now_s
        self._measured_s = now_s

    def show(self) -> None:
        """Show how things stand."""
        self._screen.show(self.view)

    async def close(self) -> None:
        """Let go of Kafka."""
        await self._watcher.close()

    def _newest_slide(self) -> float:
        announced = self._watcher.announced
        return announced[-1].announcement.slide if announced else -math.inf

    def _take_in(self) -> None:
        """Take what the topics have said into `seen`."""
        seen, watcher = self.seen, self._watcher
        counts, n_announced = watcher.counts, len(watcher.announced)
        if n_announced > len(seen.announcements):
            seen.announcements = [one.announcement for one in watcher.announced]
            self._on_announced()
            self._active_s = time.monotonic()
        if counts.records > seen.counts.records:
            seen.counts = counts
            self._active_s = time.monotonic()
        seen.prior_values, seen.prior_as_of_s = watcher.prior_values, watcher.prior_as_of_s
        if time.monotonic() - self._active_s > STALL_S:
            logs = self._setup.path.with_name("logs")
            raise RuntimeError(f"events and slides must move on, but nothing has for {STALL_S:g} s; see {logs}")

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

    def _note(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line not in self.seen.notes[-1:]:
                self.seen.notes.append(line)
                self.show()

    def _role(self, name: str) -> Role:
        deaths = self._children.deaths(name)
        if self._children.has_ended(name):
            return Role(name, "ended", deaths)
        return Role(name, "runs" if self._children.is_running(name) else "restarts", deaths)


_CLI = (sys.executable, "-m", "stream.cli")
_SKEW = re.compile(r"(\d+) rows served and recomputed: mean difference (\S+), largest (\S+)")  # as the trainer says it


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
