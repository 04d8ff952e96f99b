"""The whole service on a small real snapshot, with a log in memory and a clock that stands still."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from infra.metrics import ServeMetrics
from models.registry import Registry
from models.serving.admission import Admission
from models.serving.app import make_app
from models.serving.catalog import Catalog
from models.serving.connection import Connection
from models.serving.pipeline import Pipeline, Rules
from models.serving.prerank import Preranker
from models.serving.rank import Scorer
from models.serving.refresh import Refresher
from models.serving.schema import Limits, Readiness
from models.serving.split import Split
from models.swap import Holder
from tests.fakes import EventLog
from tests.models.serving.trained import FIELDS, PLAN, two_snapshots

NOW_S = 3000.0
LIMITS = Limits(candidates_max=50, top=5, events_max=10, body_bytes_max=20_000, ahead_max_s=60.0)
USER = {"user_id": "u1", "age": 30}
BODY = {"request_id": "q1", "user": USER, "context": {"hour": 12}, "candidates": [f"ad{i}" for i in range(20)]}


class ToldHolder(Holder[Scorer]):
    """A holder that tells when something serves."""

    def __init__(self) -> None:
        super().__init__()
        self.is_set = asyncio.Event()

    def swap(self, new: Scorer | None) -> Scorer | None:
        self.is_set.set()
        return super().swap(new)


class Service:
    """Its parts, within reach."""

    def __init__(
        self,
        registry_dir: Path,
        counts_max: int = 1_000_000,
        *,
        key_hashes: Sequence[bytes] = (),
        concurrent_max: int = 8,
        queue_max: int = 100,
        stale_s: float = 60.0,
        split: Split | None = None,
        latest: Holder[Scorer] | None = None,
    ) -> None:
        self.log = EventLog()
        self.holder = ToldHolder()
        self.prerankers: Holder[Preranker] = Holder()
        self.creative_rankers: Holder[Preranker] = Holder()
        self.catalog = Catalog(FIELDS)
        for i in range(20):
            values = {"tags": [f"t{i % 2}", f"t{i % 5}"]}
            self.catalog.put(f"ad{i}", json.dumps({"ad_id": f"ad{i}", "values": values}).encode())
        self.metrics = ServeMetrics(CollectorRegistry())
        self.registry = Registry(str(registry_dir))
        self.pipeline = Pipeline(
            FIELDS,
            holder=self.holder,
            prerankers=self.prerankers,
            creative_rankers=self.creative_rankers,
            catalog=self.catalog,
            publish=self.log.publish,
            metrics=self.metrics,
            now_s=lambda: NOW_S,
            new_id=lambda: "made-id",
            sign=lambda *_: "",
            rules=Rules(
                candidates_max=LIMITS.candidates_max,
                top=LIMITS.top,
                keep=LIMITS.candidates_max,
                sample_rate=None,
                explore=0.0,
                explore_ads=0.0,
                creatives="parallel",
                deadline_s=60.0,
            ),
            split=split,
            latest=latest,
        )
        self.refresher = Refresher(
            self.registry,
            self.holder,
            self.metrics,
            fields=FIELDS,
            half_lives_s=PLAN.half_lives_s,
            evidence_min=0.01,
            counts_max=counts_max,
            samples=lambda: self.pipeline.samples.held,
            latest=latest,
        )
        self.admission = Admission(self.metrics, concurrent_max=concurrent_max, queue_max=queue_max, stale_s=stale_s)
        self.app = make_app(
            self.pipeline,
            self.log.publish,
            self.metrics,
            self.admission,
            fields=FIELDS,
            limits=LIMITS,
            key_hashes=key_hashes,
            readiness=self.readiness,
            now_s=lambda: NOW_S,
        )

    def readiness(self) -> Readiness:
        scorer = self.holder.current
        missing = [] if scorer else ["snapshot"]
        return Readiness(ready=not missing, missing=missing, snapshot=scorer.version if scorer else None)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


def ready_service(registry_dir: Path, **changed: Any) -> Service:
    """Return a service whose snapshot is the first of two."""
    service = Service(registry_dir, **changed)
    service.holder.swap(Scorer.from_snapshot(two_snapshots()[0]))
    return service


class _Server(uvicorn.Server):
    def __init__(self, app: ASGIApp, http: type[Connection]) -> None:
        super().__init__(uvicorn.Config(app, http=http, log_config=None, lifespan="off", ws="none"))
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@asynccontextmanager
async def listening(app: Any, http: type[Connection] = Connection) -> AsyncIterator[tuple[str, int]]:
    """A real HTTP server around an app, on a port that was free."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(app, http)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.is_up.wait()
        try:
            yield listener.getsockname()[:2]
        finally:
            server.should_exit = True
            await serving
