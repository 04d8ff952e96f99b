"""`freshrank serve`: the ranking service on Kafka.

Owns the followers of `snapshots`, `catalog` and `prior-updates`, and the life of the process. Must not know how an ad
is scored or what HTTP says.

Invariants: a broker that goes away takes no snapshot, count or ad with it; what is read twice changes nothing, so each
topic is read from its beginning and no offset is kept; the first signal to end lets open requests finish.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from prometheus_client import CollectorRegistry

from features.fields import id_field
from infra.metrics import ServeMetrics
from infra.settings import Settings, api_key_hashes, registry_url
from models.prerank.inputs import creative_fields, prerank_fields
from models.registry import Registry
from models.serving.admission import Admission
from models.serving.app import make_app
from models.serving.catalog import Catalog
from models.serving.connection import Connection
from models.serving.latest import LatestFollower
from models.serving.pipeline import Pipeline, Rules, Sign
from models.serving.prerank import Preranker
from models.serving.rank import Scorer
from models.serving.refresh import PrerankRefresher, Refresher
from models.serving.schema import Limits, Readiness
from models.serving.split import Split
from models.serving.users import Users
from models.swap import Holder
from models.train import use_threads
from stream.announcement import Announcement, decode_announcement
from stream.blocks import BlockError, decode_prior_update
from stream.event_writer import EventWriter
from stream.events import EVENT_BYTES_MAX
from stream.follow import Take, follow
from stream.kafka import check_broker, client_options, topic_name
from stream.kafka_log import Record
from stream.user_push import open_users, users_directory
from stream.wiring import new_tokens

log = logging.getLogger("freshrank.serve")

STOP_WAIT_S = 5.0
READY_LOOK_S = 0.05
REPLAY_AHEAD_S = 3.15e9  # a replay's counts are behind its events; a hundred years, which catches milliseconds
_FOLLOWED = ("snapshots", "catalog", "prior-updates")


async def serve(
    settings: Settings,
    bootstrap: str,
    *,
    port: int | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Of the deployment.
        bootstrap: host:port of the broker.
        port: Instead of the settings' one; 0 lets the system choose.
        announce: Is told the line with the address, once requests are taken; None: it is printed.

    Raises:
        ValueError: If the broker, a topic or the address cannot be had.
    """
    with listening(settings.serve.host, settings.serve.port if port is None else port) as listener:
        host, port = listener.getsockname()[:2]
        say = announce or functools.partial(print, flush=True)

        async def answer(_: _Service, server: _Server) -> None:
            server.tell = lambda: say(f"freshrank serves on http://{host}:{port}")
            await server.serve(sockets=[listener])

        await _serve(settings, bootstrap, answer, ServeMetrics(CollectorRegistry()))


async def serve_beside(
    settings: Settings,
    bootstrap: str,
    address: tuple[str, int],
    *,
    is_let: Callable[[], bool],
    tell: Callable[[str], None],
) -> None:
    """Serve as one of several processes until SIGTERM or SIGINT (servers.py).

    Args:
        settings: Of the deployment.
        bootstrap: host:port of the broker.
        address: Where all of them listen.
        is_let: Says whether this one may answer before it can rank.
        tell: Is told `answers`, and `ranks` once it can rank.

    Raises:
        ValueError: If the broker, a topic or the address cannot be had.
    """

    async def answer(service: _Service, server: _Server) -> None:
        async def until(is_so: Callable[[], bool]) -> None:
            while not (server.should_exit or is_so()):  # noqa: ASYNC110  # it is seldom, and nobody waits for it
                await asyncio.sleep(READY_LOOK_S)

        def can_rank() -> bool:
            return service.readiness().ready

        await until(lambda: can_rank() or is_let())
        with listening(*address, reuse_port=True) as listener:
            server.tell = lambda: tell("answers")
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            await until(lambda: can_rank() or serving.done())
            if not (server.should_exit or serving.done()):
                tell("ranks")
            await serving

    await _serve(settings, bootstrap, answer, ServeMetrics(CollectorRegistry(), is_shared=True))


async def _serve(
    settings: Settings, bootstrap: str, answer: Callable[[_Service, _Server], Awaitable[None]], metrics: ServeMetrics
) -> None:
    """Put the service together, and run it until it ends; `answer` lets it take requests."""
    await asyncio.to_thread(check_broker, bootstrap, security=settings.kafka.security)
    use_threads(settings.update.threads)
    gc.set_threshold(50_000, 20, 100)  # what a request makes is many, small and free of cycles
    options = client_options(bootstrap, settings.kafka.security)
    await _check_topics(settings, options)
    async with _producer(options) as producer:
        await _check_partitions(settings, producer)
        writer = EventWriter(producer, topic_name(settings.prefix, "events"), settings.kafka.partitions, metrics)
        service = _Service(settings, writer, metrics)
        server = _Server(service.app)
        await _run(service, options, server, functools.partial(answer, service, server))


def _signer(settings: Settings) -> Sign:
    tokens = new_tokens(settings)
    if tokens is None:
        return lambda *_: ""
    return lambda request_id, ad_id, position, time_s: tokens.sign(request_id, ad_id, position, time_s=time_s)


def _admission(settings: Settings, metrics: ServeMetrics) -> Admission:
    return Admission(
        metrics,
        concurrent_max=settings.serve.concurrent_max,
        queue_max=settings.serve.queue_max,
        stale_s=settings.serve.stale_s,
    )


def _users(settings: Settings, metrics: ServeMetrics) -> Users | None:
    if settings.store.kind == "none":
        return None
    opens = functools.partial(open_users, settings, users_directory(settings))
    return Users(opens, settings.fields, metrics, wait_s=settings.store.read_s)


def to_rules(settings: Settings) -> Rules:
    """Return what a deployment's pipeline keeps to."""
    return Rules(
        candidates_max=settings.serve.candidates_max,
        top=settings.serve.top,
        keep=settings.prerank.keep,
        sample_rate=settings.prerank.sample_rate if settings.prerank.network else None,
        explore=settings.serve.explore,
        explore_ads=settings.serve.explore_ads,
        creatives=settings.creatives.order,
        deadline_s=settings.serve.deadline_s,
    )


def _split(settings: Settings) -> Split:
    user = id_field(settings.fields, "user")
    return Split(settings.split.name, settings.split.share, user.name if user else "")


def _limits(settings: Settings) -> Limits:
    return Limits(
        candidates_max=settings.serve.candidates_max,
        top=settings.serve.top,
        events_max=settings.serve.events_max,
        body_bytes_max=settings.serve.body_bytes_max,
        ahead_max_s=settings.kafka.max_ahead_s if settings.kafka.clock == "live" else REPLAY_AHEAD_S,
    )


class _Service:
    """The parts of the service, put together, and what they take from the followed topics."""

    def __init__(self, settings: Settings, writer: EventWriter, metrics: ServeMetrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._unread = set(_FOLLOWED)
        self._field_names = tuple(field.name for field in settings.fields)
        self._holder: Holder[Scorer] = Holder()
        self._prerankers: Holder[Preranker] = Holder()
        self._creative_rankers: Holder[Preranker] = Holder()
        self._catalog = Catalog(settings.fields)
        self.users = _users(settings, metrics)
        self._said: dict[str, Announcement] = {}  # by family, the newest
        registry = Registry(registry_url(settings))
        latest: Holder[Scorer] = Holder()
        self._pipeline = self._new_pipeline(writer, latest)
        self.prerank_refresher = PrerankRefresher(
            registry,
            self._prerankers,
            self._catalog,
            metrics,
            "prerank",
            fields=prerank_fields(settings.fields),
            samples=lambda: self._pipeline.prerank_samples.held,
        )
        self.creative_refresher = PrerankRefresher(
            registry,
            self._creative_rankers,
            self._catalog,
            metrics,
            "creatives",
            fields=creative_fields(settings.fields),
            samples=lambda: self._pipeline.chooser.samples.held,
        )
        self.refresher = Refresher(
            registry,
            self._holder,
            metrics,
            fields=settings.fields,
            half_lives_s=settings.priors.half_lives_s,
            evidence_min=settings.priors.evidence_min,
            counts_max=settings.priors.counts_max,
            samples=lambda: self._pipeline.samples.held,
            latest=latest,
        )
        self.latest_follower = LatestFollower(registry, self.refresher, metrics)
        self.followers = (self.refresher, self.prerank_refresher, self.creative_refresher, self.latest_follower)
        self.app = make_app(
            self._pipeline,
            writer.publish,
            metrics,
            _admission(settings, metrics),
            fields=settings.fields,
            limits=_limits(settings),
            key_hashes=api_key_hashes(settings),
            readiness=self.readiness,
            now_s=self.now_s,
        )

    def _new_pipeline(self, writer: EventWriter, latest: Holder[Scorer]) -> Pipeline:
        settings = self.settings
        return Pipeline(
            settings.fields,
            holder=self._holder,
            prerankers=self._prerankers,
            creative_rankers=self._creative_rankers,
            catalog=self._catalog,
            publish=writer.publish,
            metrics=self.metrics,
            rules=to_rules(settings),
            now_s=self.now_s,
            new_id=lambda: uuid.uuid4().hex,
            sign=_signer(settings),
            is_replay=settings.kafka.clock == "replay",
            users=self.users,
            split=_split(settings),
            latest=latest,
        )

    def now_s(self) -> float:
        """Return the event time of what happens now: where a replay has come to, or the clock's."""
        if self.settings.kafka.clock == "live":
            return time.time()
        scorer = self._holder.current
        return 0.0 if scorer is None else max(0.0, scorer.table.as_of_s)

    def readiness(self) -> Readiness:
        """Return which parts are not there yet: topics not read to their end, and the snapshot."""
        scorer = self._holder.current
        missing = sorted(self._unread) + ([] if scorer else ["snapshot"])
        return Readiness(ready=not missing, missing=missing, snapshot=scorer.version if scorer else None)

    async def follow(self, name: str, options: Mapping[str, Any], take: Take) -> None:
        """Take what stands in a topic and what comes, for ever."""
        topic = topic_name(self.settings.prefix, name)
        failed = self.metrics.failures.labels(name).inc
        await follow(topic, take, options=options, at_end=lambda: self._has_read(name), failed=failed)

    async def take_snapshots(self, records: list[Record]) -> None:
        """Want the newest champion; old ones, read at the start, may no longer be in the registry."""
        for record in records:
            try:
                said = decode_announcement(record.value or b"")
            except ValueError as error:
                self._refuse("snapshots", record, error)
                continue
            self.metrics.records.labels("snapshots", "applied").inc()
            self._said[said.family] = said
        if "snapshots" not in self._unread:
            self._want_models()

    async def take_ads(self, records: list[Record]) -> None:
        """Put the ads into the catalog."""
        for record in records:
            try:
                self._catalog.put((record.key or b"").decode(), record.value)
            except ValueError as error:
                self._refuse("catalog", record, error)
            else:
                self.metrics.records.labels("catalog", "applied").inc()
        self.metrics.catalog_ads.set(len(self._catalog))
        changed = self._catalog.take_changed()
        await self.prerank_refresher.apply_ads(changed)
        await self.creative_refresher.apply_ads(changed)

    async def take_counts(self, records: list[Record]) -> None:
        """Put the counts on top of the snapshot's."""
        updates, published_s = [], []
        for record in records:
            try:
                updates.append(decode_prior_update(record.value or b"").under(self._field_names))
            except BlockError as error:
                self._refuse("prior-updates", record, error)
            else:
                published_s.append(record.timestamp_ms / 1000.0)
        await self.refresher.apply(updates)
        if "prior-updates" not in self._unread:  # what stood there at the start was late for other reasons
            self._observe_delays(published_s, [update.at_s for update in updates])

    def _observe_delays(self, published_s: list[float], settled_s: list[float]) -> None:
        now_s, delay_s = time.time(), self.metrics.counts_delay_s
        for moment_s in published_s:
            delay_s.labels("published").observe(max(0.0, now_s - moment_s))
        if self.settings.kafka.clock == "live":
            for moment_s in settled_s:
                delay_s.labels("settled").observe(max(0.0, now_s - moment_s))

    def _has_read(self, topic: str) -> None:
        self._unread.discard(topic)
        if topic == "snapshots":
            self._want_models()
        if not self._unread:
            gc.freeze()  # the ads and counts that are there stay: no request is to wait while they are scanned

    def _want_models(self) -> None:
        """Want the champion, and of the other families and the newest model what the settings ask for."""
        if said := self._said.get(self.settings.model.family):
            self.refresher.want(said.champion)
            if self.settings.split.share:
                self.latest_follower.want(said.latest)
        if self.settings.prerank.network and (said := self._said.get(self.settings.prerank.family)):
            self.prerank_refresher.want(said.champion)
        if self.settings.creatives.network and (said := self._said.get(self.settings.creatives.family)):
            self.creative_refresher.want(said.champion)

    def _refuse(self, topic: str, record: Record, error: Exception) -> None:
        self.metrics.records.labels(topic, "refused").inc()
        log.warning("[serve] %s offset %d is left out: %s", topic, record.offset, error)


async def _run(
    service: _Service, options: Mapping[str, Any], server: _Server, answer: Callable[[], Awaitable[None]]
) -> None:
    takes = {
        "snapshots": service.take_snapshots,
        "catalog": service.take_ads,
        "prior-updates": service.take_counts,
    }
    background = [asyncio.create_task(one.run()) for one in service.followers]
    opening = asyncio.create_task(service.users.open()) if service.users else None
    background += [asyncio.create_task(service.follow(name, options, take)) for name, take in takes.items()]
    serving = asyncio.ensure_future(answer())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.end)
    try:
        await asyncio.wait([serving, *background], return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.end()
        await asyncio.wait([serving])
        if service.users and opening:
            opening.cancel()
            service.users.close()
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    for task in (serving, *background):
        if not task.cancelled():
            task.result()  # raises what ended it


class _Server(uvicorn.Server):
    """Uvicorn inside our loop; the signals are ours, because it would send itself each one again at the end."""

    tell: Callable[[], None]  # is called once requests are taken

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=int(STOP_WAIT_S),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.tell()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        self.should_exit = True


@contextmanager
def listening(host: str, port: int, **options: bool) -> Iterator[socket.socket]:
    """Listen until the end of the block; the options are those of `socket.create_server`.

    What is accepted sends at once: asyncio sees to that only for sockets whose protocol was named, and these have none.
    Else the body of an answer, sent behind its header, waits 40 ms for the caller's delayed acknowledgement.

    Raises:
        ValueError: If the address cannot be had.
    """
    try:
        listener = socket.create_server((host, port), backlog=2048, **options)
    except OSError as error:
        raise ValueError(f"[serve] host and port must be free to listen on, got {host}:{port}: {error}") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


async def _check_topics(settings: Settings, options: Mapping[str, Any]) -> None:
    """Check that the topics are there: asking for one that is not would make it, with the broker's rules."""
    consumer = AIOKafkaConsumer(**options, group_id=None)
    await consumer.start()
    try:
        there = await consumer.topics()
    finally:
        await consumer.stop()
    for name in ("events", *_FOLLOWED):
        if (topic := topic_name(settings.prefix, name)) not in there:
            raise ValueError(f"topic {topic} must exist, got none of that name; run `freshrank topics create`")


async def _check_partitions(settings: Settings, producer: AIOKafkaProducer) -> None:
    """Check that keys go to the partitions that the ledger computes for them."""
    topic, wanted = topic_name(settings.prefix, "events"), settings.kafka.partitions
    if (count := len(await producer.partitions_for(topic))) != wanted:
        raise ValueError(f"[kafka] partitions must be what topic {topic} has, {count}, got {wanted}; set it back")


@asynccontextmanager
async def _producer(options: Mapping[str, Any]) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**options, enable_idempotence=True, linger_ms=0, max_request_size=2 * EVENT_BYTES_MAX)
    await producer.start()
    try:
        yield producer
    finally:
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                await producer.stop()
        except TimeoutError:
            log.warning("[serve] events that Kafka had not taken within %g s are given up", STOP_WAIT_S)
