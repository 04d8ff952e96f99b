"""The trainer on Kafka: `examples` and `chains` in, snapshots in the registry and their announcement out.

Owns the fence (one trainer per model family), the resume from the newest snapshot and the order save, then announce.
Must not learn or decide anything: models/update.py does. A Faust agent over blocks for each family; learning runs off
the event loop.

Invariants: a slide is learnt once all partitions have passed it, so its bits depend on the log alone; what people ask
for is done as soon as it is read, between two slides, and announced by itself; what is announced is in the registry;
after a crash anywhere the same slides give the same snapshots again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import faust
import mode
import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client import CollectorRegistry

from infra.metrics import TrainMetrics
from infra.settings import Settings, registry_url
from models.registry import Registry
from models.skew import Skew, served_rows
from models.snapshot import Snapshot
from models.train import resolve_device, use_threads
from models.update import Learner, UpdateReport
from models.window import Slide, Window
from stream.announcement import Announcement, Promotion, encode_announcement, newest_announcement
from stream.commands import Command, read_commands
from stream.families import Family, families_of
from stream.feed import Block, BlockFeed, saved_positions
from stream.follow import follow
from stream.kafka import Record
from stream.roles import SESSION_S, Cluster, RoleError, delivered, find_cluster, log, make_app, run_app
from stream.wiring import new_slides

SKEW_LINE = "train: slide %d: %d rows served and recomputed: mean difference %.1e, largest %.1e"  # the demo reads it
TAKEOVER_S = SESSION_S + 4.0  # how long a killed trainer may still be a member of the group


def run_train_worker(settings: Settings, *, registry: CollectorRegistry | None = None) -> None:
    """Train the model families of a deployment until the process is told to stop.

    Args:
        settings: Of the deployment.
        registry: Where the metrics go.

    Raises:
        ValueError: If the device that is asked for is missing.
    """
    resolve_device(settings.update.device)  # says what is missing before anything is taken
    cluster = find_cluster(settings)
    app = make_app(cluster, f"train-{settings.model.family}")
    metrics = TrainMetrics(registry or CollectorRegistry())
    learners = [(family, TrainService(settings, cluster, family, metrics)) for family in families_of(settings)]
    for topic in sorted({family.topic for family, _ in learners}):
        taken_by = [service for family, service in learners if family.topic == topic]
        app.agent(app.topic(cluster.topic(topic)), name=f"learn-{topic}")(_learning(taken_by))
    run_app(app, *(service for _, service in learners))


def _learning(services: Sequence[TrainService]) -> Callable[[faust.StreamT[bytes]], Awaitable[None]]:
    async def learn(stream: faust.StreamT[bytes]) -> None:
        async for partition, record in delivered(stream):
            await asyncio.gather(*(service.take(partition, record) for service in services))  # each has its thread

    return learn


def trainer_group(settings: Settings, cluster: Cluster) -> str:
    """Return the consumer group of the trainer: all its families are in one process."""
    return f"{cluster.prefix}.train-{settings.model.family}"


class TrainService(mode.Service):
    """The learner, the window of open slides, and the fenced producer of announcements."""

    def __init__(self, settings: Settings, cluster: Cluster, family: Family, metrics: TrainMetrics) -> None:
        """Prepare; the lineage is restored when the service starts."""
        super().__init__()
        self._settings = settings
        self._cluster = cluster
        self._family = family
        self._registry = Registry(registry_url(settings))
        self._metrics = metrics
        self._skew = Skew(self._load) if family.kind == "click" else None
        self._producer: AIOKafkaProducer | None = None
        self._turn = asyncio.Lock()  # learning a slide, or doing what people ask for
        self._news = asyncio.Event()  # somebody asked for something
        self._thread = ThreadPoolExecutor(1, "learner", initializer=use_threads, initargs=(settings.update.threads,))

    async def on_start(self) -> None:
        """Take the fence, restore the newest snapshot, and learn what has settled since."""
        await self._wait_alone()
        self._producer = self._new_producer()
        await self._producer.start()  # fences a trainer that was only frozen
        positions = await self._restore()
        self._feed = BlockFeed(self._cluster, positions, self._family.topic, self._family.decode)
        async for block in self._feed.catch_up():
            await self._add(block)

    @mode.Service.task
    async def _follow_commands(self) -> None:
        async def take(records: list[Record]) -> None:
            if any(record.key == self._family.name.encode() for record in records):
                self._news.set()

        topic, options = self._cluster.topic("commands"), self._cluster.options
        await follow(topic, take, options=options, at_end=lambda: None, failed=lambda: None)

    @mode.Service.task
    async def _heed_news(self) -> None:
        while not self.should_stop:
            await self._news.wait()
            self._news.clear()
            async with self._turn:
                await self._heed()

    async def on_stop(self) -> None:
        """Leave; the slides that are still open are read again by the next trainer."""
        if self._producer is not None:
            await self._producer.stop()
        self._thread.shutdown(wait=True)

    async def take(self, partition: int, record: Record) -> None:
        """Take a delivered block, with those that are missing before it; learn the slides that this completes."""
        async for block in self._feed.take(partition, record):
            await self._add(block)

    async def _wait_alone(self) -> None:
        """Return once no trainer of this family lives; one that was killed is a member until its session ends."""
        admin = AIOKafkaAdminClient(**self._cluster.options)
        await admin.start()
        try:
            deadline_s = time.monotonic() + TAKEOVER_S
            group = trainer_group(self._settings, self._cluster)
            while members := await group_members(admin, group):
                if time.monotonic() > deadline_s:
                    raise RoleError(
                        f"one trainer per model family: {group} must have no member, got {members};"
                        " stop the other trainer, or give this one another [model] family"
                    )
                await asyncio.sleep(0.5)
        finally:
            await admin.close()

    async def _restore(self) -> dict[int, int]:
        """Set the learner and the window as the newest announcement says; return where to read each partition."""
        family, slides, partitions = self._family, new_slides(self._settings), self._cluster.partitions
        newest = self._newest = await newest_announcement(self._cluster, family.name)
        self._commands = newest.commands if newest else 0
        self._positions: dict[int, int] = {}
        if newest is None:
            self._learner = Learner(family.task)
            self._window = Window(partitions, slides, identity=family.identity)
            return self._positions
        latest, manifest = self._registry.load(newest.latest, fields=family.fields)
        champion, _ = self._registry.load(newest.champion, fields=family.fields)
        former = self._registry.load(newest.former, fields=family.fields)[0] if newest.former else None
        assert latest.slide is not None
        self._learner = Learner.resume(family.task, latest, champion, former)
        self._window = Window(partitions, slides, first_open=latest.slide + 1, identity=family.identity)
        log.info("train: resumes after slide %d from %s", latest.slide, newest.latest)
        self._positions = saved_positions(manifest)
        return self._positions

    async def _add(self, block: Block) -> None:
        header = block.header
        self._window.add(header.partition, block.offset, self._family.complete_s(header), block.frame)
        for slide in self._window.closed():
            await self._learn(slide)

    async def _learn(self, slide: Slide) -> None:
        positions = self._window.positions()
        async with self._turn:
            await self._heed()
            loop = asyncio.get_running_loop()
            await self._announce(await loop.run_in_executor(self._thread, self._learn_and_save, slide, positions))
            await loop.run_in_executor(self._thread, self._compare_served, slide)  # nobody waits for that

    async def _heed(self) -> Announcement | None:
        """Do what people asked for since the newest announcement, and announce it; None where nothing was done."""
        commands = await read_commands(self._cluster, self._family.name, self._commands)
        if not commands:
            return None
        announcement = await asyncio.get_running_loop().run_in_executor(self._thread, self._obey_and_save, commands)
        if announcement is not None:
            await self._announce(announcement)
        return announcement

    async def obey_alone(self) -> Announcement | None:
        """Take the fence, do what people asked for since the newest announcement, and announce it; learn nothing.

        Returns None where nothing was asked for, or nothing of it could be done.

        Raises:
            RoleError: If a trainer lives: it does what is asked for.
        """
        await self._wait_alone()
        self._producer = self._new_producer()
        await self._producer.start()
        try:
            await self._restore()
            return await self._heed()
        finally:
            await self._producer.stop()
            self._thread.shutdown(wait=True)

    def _new_producer(self) -> AIOKafkaProducer:
        fence = f"{self._cluster.prefix}.train-{self._family.name}"
        return AIOKafkaProducer(**self._cluster.options, transactional_id=fence)

    async def _announce(self, announcement: Announcement) -> None:
        assert self._producer is not None
        async with self._producer.transaction():
            await self._producer.send(
                self._cluster.topic("snapshots"), encode_announcement(announcement), announcement.family.encode()
            )
        said = announcement
        log.info("train: %s, slide %d, %s: %s", said.family, said.slide, said.decision, said.reason)

    def _learn_and_save(self, slide: Slide, positions: dict[int, int]) -> Announcement:
        started_s = time.perf_counter()
        judged = self._learner.latest.version
        self._rows = self._learner.score(slide)
        report = self._learner.learn(slide)
        learn_s = time.perf_counter() - started_s
        announcement = to_announcement(self._family.name, report, learn_s, self._newest)
        announcement = msgspec.structs.replace(announcement, commands=self._commands)
        if report.drift:
            log.warning("train: slide %d: drift, says %s", report.slide, " and ".join(report.drift))
        self._warn_of_overload(report, learn_s)
        if warning := limit_warning(report, self._settings):
            log.warning("train: slide %d: %s", report.slide, warning)
        self._metrics.learnt(
            self._family.kind,
            announcement.evaluation,
            decision=report.decision,
            drift=report.drift,
            left_out=report.left_out,
            values={"counted": report.counted, "with_row": report.values},
            evicted={"counts_max": report.counts_evicted, "values_max": report.rows_evicted},
            start_s=report.start_s,
            end_s=report.end_s,
            learn_s=learn_s,
        )
        context = {"positions": positions, "judged": judged} | msgspec.to_builtins(announcement)
        for snapshot in (self._learner.champion, self._learner.latest):
            self._registry.save(snapshot, context)
        self._registry.prune(self._settings.registry.keep, protect=versions_in_use(announcement))
        self._newest, self._positions = announcement, positions
        return announcement

    def _compare_served(self, slide: Slide) -> None:
        """Measure the training/serving skew of a slide that was learnt; what fails here is said, and does no harm."""
        if self._skew is None:
            return
        learner = self._learner
        held = [one for one in (learner.champion, learner.latest, learner.former) if one is not None]
        try:
            found = self._skew.measure(slide, self._rows, held)
        except Exception:  # noqa: BLE001  # whatever it is, learning goes on
            log.exception("train: slide %d: what was served could not be compared", slide.index)
            self._metrics.compared([], {"failed": len(served_rows(slide.frame))})
            return
        self._metrics.compared(found.differences.tolist(), found.left_out)
        if n_rows := len(found.differences):
            mean, largest = found.differences.mean(), found.differences.max()
            log.info(SKEW_LINE, slide.index, n_rows, mean, largest)

    def _load(self, version: str) -> Snapshot:
        return self._registry.load(version, fields=self._family.fields)[0]

    def _warn_of_overload(self, report: UpdateReport, learn_s: float) -> None:
        length_s = report.end_s - report.start_s
        if report.left_out:
            log.warning("train: slide %d: %d of %d rows left out", report.slide, report.left_out, report.rows)
        if self._settings.kafka.clock == "live" and learn_s > length_s:
            took = f"{length_s:.0f} s were learnt in {learn_s:.0f} s"
            section = "update" if self._family.kind == "click" else self._family.kind
            log.warning("train: slide %d: cannot keep up, %s; set [%s] rows_max", report.slide, took, section)

    def _obey_and_save(self, commands: list[tuple[int, Command]]) -> Announcement | None:
        before, asked = self._newest, self._obey_all(commands)
        if before is None or asked is None:
            return None
        learner = self._learner
        announcement = to_answer(
            before,
            asked,
            champion=learner.champion.version,
            latest=learner.latest.version,
            former=learner.former.version if learner.former else "",
            commands=self._commands,
        )
        for snapshot in (learner.champion, learner.latest):
            self._registry.save(snapshot, {"positions": self._positions} | msgspec.to_builtins(announcement))
        self._newest = announcement
        return announcement

    def _obey_all(self, commands: list[tuple[int, Command]]) -> Command | None:
        """Do what people asked for, in their order; return the last that could be done."""
        asked = None
        for offset, command in commands:
            asked = command if self._obey(command) else asked
            self._commands = offset + 1
        return asked

    def _obey(self, command: Command) -> bool:
        """Do what a person asked for; return whether it could be done."""
        try:
            snapshot, _ = self._registry.load(command.version, fields=self._family.fields)
            (self._learner.promote if command.action == "promote" else self._learner.roll_back)(snapshot)
        except ValueError as error:
            log.warning("train: %s %s was asked for and cannot be done: %s", command.action, command.version, error)
            return False
        log.info("train: %s %s as asked for", command.action, command.version)
        return True


def limit_warning(report: UpdateReport, settings: Settings) -> str:
    """Return what is to be said of the values that limits took in a slide; nothing if they took none."""
    said = []
    if report.counts_evicted:
        said.append(
            f"[priors] counts_max = {settings.priors.counts_max} took the counts of {report.counts_evicted} values;"
            " raise it, or have less counted (a higher evidence_min, shorter half_lives_s)"
        )
    if report.rows_evicted:
        said.append(
            f"[model] values_max = {settings.model.values_max} left {report.rows_evicted} values without an embedding"
            " row; raise it, or admit fewer (a higher admit_min and forget_min)"
        )
    return "; ".join(said)


def versions_in_use(announcement: Announcement) -> set[str]:
    """Return the snapshots that must stay: what serves, learns, is watched, and served before."""
    named = {announcement.champion, announcement.latest, announcement.former}
    return (named | ({announcement.since.former} if announcement.since else set())) - {""}


def to_announcement(family: str, report: UpdateReport, learn_s: float, before: Announcement | None) -> Announcement:
    """Return what is announced about one step.

    Args:
        family: The model family.
        report: Of the step.
        learn_s: Wall time that it took.
        before: The announcement before.
    """
    evidence, guards = asdict(report.evidence), [asdict(guard) for guard in report.guards]
    since = before.since if before else None
    if before is None or report.champion_version != before.champion:
        former = before.champion if before else ""
        since = Promotion(report.slide, report.decision, report.reason, evidence, guards, former)
    return Announcement(
        family=family,
        slide=report.slide,
        champion=report.champion_version,
        latest=report.latest_version,
        decision=report.decision,
        reason=report.reason,
        evaluation={"champion": asdict(report.champion), "latest": asdict(report.latest)},
        evidence=evidence,
        guards=guards,
        former=report.former_version,
        since=since,
        start_s=report.start_s,
        end_s=report.end_s,
        lost=list(report.lost),
        drift=list(report.drift),
        left_out=report.left_out,
        learn_s=learn_s,
    )


def to_answer(
    before: Announcement, asked: Command, *, champion: str, latest: str, former: str, commands: int
) -> Announcement:
    """Return what is announced once something that a person asked for is done: the slide is that of `before`.

    Args:
        before: The announcement before.
        asked: What was done; the last, if it was more.
        champion: What serves now.
        latest: What learns now.
        former: What is watched in the shadow now.
        commands: Offset after the last record that was heeded.
    """
    reason = f"asked for: {asked.note}" if asked.note else "asked for"
    return msgspec.structs.replace(
        before,
        champion=champion,
        latest=latest,
        former=former,
        decision=asked.action,
        reason=reason,
        guards=[],
        lost=[],
        since=Promotion(before.slide, asked.action, reason, {}, [], before.champion),
        commands=commands,
    )


async def group_members(admin: AIOKafkaAdminClient, group: str) -> list[str]:
    """Return the members of a consumer group."""
    (answer,) = await admin.describe_consumer_groups([group])
    (described,) = answer.groups
    return [member[1] for member in described[5]]
