"""Training/serving skew on a real broker: what a service answered, through the ledger, as the trainer recomputes it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from infra.broker import BrokerInfo
from stream import event_writer
from stream.announcement import newest_announcement
from stream.audit.proof import audit
from stream.blocks import decode_block
from stream.event_writer import to_event
from stream.events import Request, Tick, decode_event, encode_event
from tests.broker.deployment import Deployment, deploy, until
from tests.broker.test_serve import serving

ROWS, SLIDE_S, WAIT_S = 9_000, 1800.0, 600.0
N_REQUESTS, N_ADS = 30, 10
TOLERANCE = 1e-6
WRONG_BY = 0.01


async def metrics(url: str) -> dict[tuple[str, str], float]:
    """Return what a process exports, by name and the value of its one label."""
    async with httpx.AsyncClient(trust_env=False) as client:
        exported = (await client.get(f"{url}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(exported) for sample in family.samples]
    return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in samples}


@dataclasses.dataclass
class Running:
    """A deployment with everything up and a log that was replayed.

    Attributes:
        client: Of the service, which is in this process.
        trainer: Where the trainer's metrics are.
        now_s: Event time; nothing is settled of what is asked from here on.
        asked: Requests so far.
    """

    deployment: Deployment
    client: httpx.AsyncClient
    trainer: str
    now_s: float
    asked: int = 0

    async def visit(self, candidates: list[str], name: str = "q") -> None:
        """Ask, see all that is shown, and click on some."""
        for number in range(N_REQUESTS):
            time_s, self.asked = self.now_s + 1.3 * number, self.asked + 1
            ads = [candidates[(number * 7 + at * 3) % len(candidates)] for at in range(N_ADS)]
            user = {"user_id": str(number % 11), "age": "25-34", "gender": "f"}
            context = {"hour": str(number % 24), "placement": "top"}
            body = {"request_id": f"{name}{self.asked}", "time_s": time_s, "candidates": ads, "top": N_ADS}
            answer = await self.client.post("/v1/rank", json=body | {"user": user, "context": context})
            shown = [
                {"request_id": f"{name}{self.asked}", "ad_id": ad["ad_id"], "position": ad["position"]}
                for ad in answer.raise_for_status().json()["ads"]
            ]
            events = [{"type": "impression", "time_s": time_s + 0.4, **one} for one in shown]
            events += [{"type": "click", "time_s": time_s + 4.0, **one} for one in shown[: number % 3]]
            assert (await self.client.post("/v1/events", json=events)).json()["accepted"] == len(events)

    async def pass_time(self, seconds: float) -> None:
        """Let all partitions reach a moment; return once what settled by then is under the scores."""
        self.now_s += seconds
        for time_s in (self.now_s, self.now_s + 5.0):  # the second closes the block that the first has filled
            await self._tick(time_s)
            await asyncio.sleep(1.2 * self.deployment.settings.ledger.block_s)
        self.now_s += 20.0
        await self.deployment.wait_settled()
        await until(self.is_served(), 60.0)

    async def end_slide(self) -> None:
        """Let all partitions pass the end of the slide."""
        self.now_s = (self.now_s // SLIDE_S + 1) * SLIDE_S + 20.0
        await self._tick(self.now_s)
        self.now_s += 20.0

    async def _tick(self, time_s: float) -> None:
        async with AIOKafkaProducer(**self.deployment.cluster.options) as producer:
            for partition in range(self.deployment.cluster.partitions):
                topic = self.deployment.cluster.topic("events")
                await producer.send_and_wait(topic, encode_event(Tick(time_s)), partition=partition)

    async def is_served(self) -> AsyncIterator[bool]:
        """Tell again and again whether the newest champion serves, on counts of all that has settled."""
        counts = "freshrank_prior_counts_timestamp_seconds"
        while True:
            newest = await newest_announcement(self.deployment.cluster, "ctr")
            serving = (await self.client.get("/readyz")).json()["snapshot"]
            served_s = (await metrics(str(self.client.base_url)))[counts, ""]
            yield newest is not None and serving == newest.champion and served_s >= await self.newest_settled_s()

    async def newest_settled_s(self) -> float:
        blocks = [
            decode_block(record.value or b"")[1]["settled_s"].max()
            for partition in range(self.deployment.cluster.partitions)
            for record in await self.deployment.read("examples", partition)
        ]
        return max(float(one) for one in blocks if one is not None)

    async def skew(self, n_rows: int) -> dict[tuple[str, str], float]:
        """Return what the trainer exports of it, once so many rows were looked at."""
        found: dict[tuple[str, str], float] = {}

        async def looked_at() -> AsyncIterator[bool]:
            while True:
                found.update(await metrics(self.trainer))
                yield sum(v for (name, _), v in found.items() if name == "freshrank_train_skew_rows_total") >= n_rows

        await until(looked_at(), 90.0)
        return found

    async def requests(self) -> list[Request]:
        partitions = range(self.deployment.cluster.partitions)
        records = [record for at in partitions for record in await self.deployment.read("events", at)]
        events = [decode_event(record.value) for record in records]
        return [event for event in events if isinstance(event, Request) and event.snapshot]


@pytest.mark.slow
async def test_what_was_served_is_what_the_trainer_recomputes_and_what_was_not_is_seen(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=ROWS, slide_s=SLIDE_S)
    replayed = await deployment.replay()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with (
        deployment.role("worker", "ledger"),
        deployment.role("worker", "priors"),
        deployment.role("worker", "--metrics-port", port, "train"),
    ):
        await deployment.wait_settled()
        async with serving(deployment.settings, broker) as client:
            last_s = max(header.watermark_s for header in await deployment.headers() if header)
            running = Running(deployment, client, f"http://127.0.0.1:{port}", max(last_s, replayed.event_time_s) + 30.0)
            await until(running.is_served(), 90.0)
            ads = [decode_ad(record.value or b"") for at in range(1) for record in await deployment.read("catalog", at)]
            for _ in range(3):  # on the counts of the log, and then on what came of the answers before
                await running.visit(ads)
                await running.pass_time(WAIT_S + 60.0)
            await running.end_slide()
            n_rows = 3 * N_REQUESTS * N_ADS
            found = await running.skew(n_rows)
            assert found["freshrank_train_skew_rows_total", "compared"] == n_rows
            assert found["freshrank_train_skew_ratio_bucket", "1e-06"] == n_rows
            assert found["freshrank_train_skew_max_ratio", ""] <= TOLERANCE
            moments = {(event.snapshot, event.counts_s) for event in await running.requests()}
            assert len({counts_s for _, counts_s in moments if counts_s is not None}) >= 2

            monkeypatch.setattr(event_writer, "to_event", with_first_wrong)
            await running.visit(ads, "wrong")
            await running.pass_time(WAIT_S + 60.0)
            await running.end_slide()
            found = await running.skew(n_rows + N_REQUESTS * N_ADS)
            assert found["freshrank_train_skew_rows_total", "compared"] == n_rows + N_REQUESTS * N_ADS
            assert found["freshrank_train_skew_ratio_bucket", "1e-06"] == n_rows + N_REQUESTS * (N_ADS - 1)
            assert found["freshrank_train_skew_max_ratio", ""] == pytest.approx(WRONG_BY, abs=TOLERANCE)
    assert all(proof.equal for proof in await audit(deployment.settings, deployment.cluster, lambda _: None))


def decode_ad(value: bytes) -> str:
    ad_id: str = msgspec.json.decode(value)["ad_id"]
    return ad_id


def with_first_wrong(event: Any) -> Any:
    """Return an event of the log, the best ad of a request being said to have had a higher probability."""
    made = to_event(event)
    if not isinstance(made, Request):
        return made
    first, *others = made.candidates
    assert first.pctr is not None
    return msgspec.structs.replace(
        made, candidates=[msgspec.structs.replace(first, pctr=first.pctr + WRONG_BY), *others]
    )
