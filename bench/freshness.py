"""From a click's arrival until a ranking request sees it: `python -m bench.freshness --json FILE`.

Real processes on the embedded broker with a live clock: ledger, priors, ranking service, users in Feast (SQLite). For
each probe an ad that nobody has seen is ranked, shown and clicked, over HTTP. A second ad without counts is ranked
beside it until their probabilities differ: then the click is under the scores.

To reach: p99 < wait_s + disorder_s + 2 s.

Also, from the topics' append times: from the block of examples that holds the click to the publication that holds its
counts, and to a read of its user from the store.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
from aiokafka import AIOKafkaProducer

from bench.report import machine, write_report
from features.encode import field_key
from features.store import UserStore, open_store
from infra import broker
from infra.settings import Settings, read_settings, registry_url
from models.click_task import ClickTask
from models.registry import Registry
from models.update import Learner, UpdateReport
from models.window import Slide
from stream.announcement import encode_announcement
from stream.blocks import decode_block, decode_prior_update
from stream.kafka import client_options, create_topics, read_range, topic_name
from stream.plan import new_plan
from stream.train_worker import to_announcement
from stream.wiring import new_slides

CONFIG = """
name = "freshness"
[[fields]]
name = "user_id"
side = "user"
[[fields]]
name = "ad_id"
side = "item"
[ledger]
wait_s = {wait_s}
grace_s = 10.0
disorder_s = 0.5
block_s = 0.2
[window]
slide_s = 3600.0
[priors]
half_lives_s = [3600.0, 86400.0]
publish_s = 0.2
[store]
kind = "feast"
push_s = 0.5
[kafka]
bootstrap_servers = "{bootstrap}"
clock = "live"
partitions = 2
[registry]
url = "{registry}"
"""
POLL_S = 0.05  # how fine a delay is seen
SEEN = 1e-3  # a relative difference of two probabilities that counts alone can make
GOAL_S = 2.0  # beyond wait_s + disorder_s


@dataclass
class Probe:
    """One click, and when it was seen where."""

    number: int
    clicked_s: float
    seen_s: float = 0.0
    store_s: float = 0.0

    @property
    def ad_id(self) -> str:
        return f"probe-{self.number}"

    @property
    def user_id(self) -> str:
        return f"probe-user-{self.number}"


@dataclass
class Probes:
    """All of them, and those that nobody has seen yet."""

    all: list[Probe] = field(default_factory=list)

    def waiting(self) -> list[Probe]:
        return [probe for probe in self.all if not probe.seen_s]

    def not_stored(self) -> list[Probe]:
        return [probe for probe in self.all if not probe.store_s]


def learnt(settings: Settings, now_s: float) -> tuple[Learner, UpdateReport]:
    """Return a learner that has seen a few hours of ads with click rates of their own, and its last report."""
    rng, learner, report = np.random.default_rng(0), Learner(ClickTask(new_plan(settings))), None
    rates, slides = rng.uniform(0.02, 0.6, 200), new_slides(settings)
    for index in range(slides.index(now_s) - 3, slides.index(now_s)):
        settled_s = np.sort(rng.uniform(slides.start_s(index), slides.end_s(index), 5000))
        ad = rng.integers(0, 200, 5000)
        click = (rng.random(5000) < rates[ad]).astype(np.int8)
        columns = {
            "request_id": [f"{index}-{i}" for i in range(5000)],
            "position": np.zeros(5000, np.int32),
            "kind": np.where(click == 1, "clicked", "expired_negative"),
            "time_s": settled_s - settings.ledger.wait_s,
            "settled_s": settled_s,
            "click": click,
            "field.user_id": [f"user-{user}" for user in rng.integers(0, 500, 5000)],
            "field.ad_id": [f"ad-{one}" for one in ad],
        }
        frame = pl.DataFrame(columns, schema_overrides={"kind": pl.String()})
        report = learner.learn(Slide(index, slides.start_s(index), slides.end_s(index), frame))
    assert report is not None
    return learner, report


async def announce(settings: Settings, options: dict[str, Any]) -> None:
    """Put a snapshot into the registry and say that it serves."""
    learner, report = learnt(settings, time.time())
    registry = Registry(registry_url(settings))
    for snapshot in (learner.champion, learner.latest):
        registry.save(snapshot, {"positions": {}})
    said = to_announcement(settings.model.family, report, 0.0, None)
    producer = AIOKafkaProducer(**options)
    await producer.start()
    topic = topic_name(settings.prefix, "snapshots")
    await producer.send_and_wait(topic, encode_announcement(said), said.family.encode())
    await producer.stop()


@contextmanager
def process(config: Path, home: Path, *command: str) -> Iterator[None]:
    """Run a role until the end of the block."""
    with (home / "bench.log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "stream.cli", *command, str(config)],
            env=os.environ | {"FRESHRANK_HOME": str(home)},
            stderr=log,
            stdout=log,
        )
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30.0)


async def probe(client: httpx.AsyncClient, probes: Probes, n_probes: int, every_s: float, number: int = 0) -> None:
    """Rank, show and click one new ad after the other, numbered on from `number`."""
    for index in range(number, number + n_probes):
        one = Probe(index, 0.0)
        ranked = await rank(client, one.user_id, [one.ad_id])
        shown = {"request_id": ranked["request_id"], "ad_id": one.ad_id, "position": 0, "time_s": time.time()}
        await post(client, [{"type": "impression"} | shown])
        one.clicked_s = time.time()
        await post(client, [{"type": "click"} | shown | {"time_s": one.clicked_s}])
        probes.all.append(one)
        await asyncio.sleep(every_s)


async def all_seen(probes: Probes, timeout_s: float) -> None:
    """Return once every probe was seen everywhere, or time is up."""
    deadline_s = time.monotonic() + timeout_s
    while (probes.waiting() or probes.not_stored()) and time.monotonic() < deadline_s:  # noqa: ASYNC110  # a bench
        await asyncio.sleep(0.2)


async def watch(client: httpx.AsyncClient, probes: Probes) -> None:
    """Note for each probe when its probability first differs from that of an ad without counts."""
    while True:
        waiting = probes.waiting()
        ranked = await rank(client, "watcher", ["never-shown", *(one.ad_id for one in waiting)])
        now_s = time.time()
        pctr = {ad["ad_id"]: ad["pctr"] for ad in ranked["ads"]}
        for one in waiting:
            if abs(pctr[one.ad_id] / pctr["never-shown"] - 1.0) > SEEN:
                one.seen_s = now_s
        await asyncio.sleep(POLL_S)


async def watch_store(store: UserStore, probes: Probes) -> None:
    """Note for each probe when its user is first read from the store."""
    while True:
        waiting = probes.not_stored()
        read = await asyncio.to_thread(store.read_users, [one.user_id for one in waiting], time.time())
        now_s = time.time()
        for one in waiting:
            if one.user_id in read.users:
                one.store_s = now_s
        await asyncio.sleep(POLL_S)


async def rank(client: httpx.AsyncClient, user_id: str, ads: list[str]) -> dict[str, Any]:
    body = {"user": {"user_id": user_id}, "candidates": ads, "top": len(ads)}
    answer = await client.post("/v1/rank", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def post(client: httpx.AsyncClient, events: list[dict[str, Any]]) -> None:
    answer = await client.post("/v1/events", json=events)
    answer.raise_for_status()


async def ready(client: httpx.AsyncClient) -> None:
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)
    raise TimeoutError("the ranking service is not ready within 60 s")


async def appended(settings: Settings, options: dict[str, Any]) -> tuple[dict[str, float], dict[int, float]]:
    """Return when the block with each probe's ad was appended, and when the first publication of each key was."""
    blocks: dict[str, float] = {}
    async for record in records(settings, options, "examples", settings.kafka.partitions):
        _, frame = decode_block(record.value)
        for ad_id in frame["ad_id"]:
            blocks.setdefault(ad_id, record.timestamp_ms / 1000.0)
    published: dict[int, float] = {}
    async for record in records(settings, options, "prior-updates", 1):
        for key in decode_prior_update(record.value).keys.tolist():
            published.setdefault(key, record.timestamp_ms / 1000.0)
    return blocks, published


async def records(settings: Settings, options: dict[str, Any], topic: str, partitions: int) -> AsyncIterator[Any]:
    for partition in range(partitions):
        reading = read_range(topic_name(settings.prefix, topic), partition, None, None, options=options)
        async with aclosing(reading) as found:
            async for record in found:
                yield record


async def measure(settings: Settings, config: Path, home: Path, n_probes: int, every_s: float) -> dict[str, Any]:
    options = client_options(settings.kafka.bootstrap_servers, {})
    await announce(settings, options)
    probes = Probes()
    store = open_store(
        settings.fields,
        prefix=settings.prefix,
        redis_url="",
        directory=home / "store" / settings.prefix,
        max_age_s=settings.store.max_age_s,
    )
    with (
        process(config, home, "worker", "ledger"),
        process(config, home, "worker", "priors"),
        process(config, home, "serve", "--port", "18097"),
    ):
        async with httpx.AsyncClient(base_url="http://127.0.0.1:18097", timeout=30.0) as client:
            await ready(client)
            watchers = [asyncio.create_task(watch(client, probes)), asyncio.create_task(watch_store(store, probes))]
            await probe(client, probes, 20, every_s)
            await all_seen(probes, 120.0)  # every process has done everything once, the import of Feast included
            probes.all.clear()
            await probe(client, probes, n_probes, every_s, number=20)
            await all_seen(probes, settings.ledger.wait_s + 30.0)
            for watcher in watchers:
                watcher.cancel()
            metrics = (await client.get("/metrics")).text
    blocks, published = await appended(settings, options)
    ad = next(one for one in settings.fields if one.name == "ad_id")
    delays = {
        "click_to_ranking": [one.seen_s - one.clicked_s for one in probes.all if one.seen_s],
        "click_to_examples": [blocks[one.ad_id] - one.clicked_s for one in probes.all],
        "examples_to_prior_updates": [published[field_key(ad, one.ad_id)] - blocks[one.ad_id] for one in probes.all],
        "examples_to_store_read": [one.store_s - blocks[one.ad_id] for one in probes.all if one.store_s],
    }
    goal_s = settings.ledger.wait_s + settings.ledger.disorder_s + GOAL_S
    return {
        "probes": len(probes.all),
        "unseen": len(probes.waiting()),
        "unstored": len(probes.not_stored()),
        "goal_s_p99": goal_s,
        "reached": not probes.waiting() and float(np.percentile(delays["click_to_ranking"], 99)) < goal_s,
        "delays_s": {
            name: {f"p{q}": float(np.percentile(values, q)) for q in (50, 99, 100)} for name, values in delays.items()
        },
        "service_metrics": [line for line in metrics.splitlines() if line.startswith("freshrank_prior_counts_delay")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--every", type=float, default=0.2, help="seconds between two probes")
    parser.add_argument("--wait", type=float, default=5.0, help="[ledger] wait_s")
    parser.add_argument("--runs", type=int, default=1, help="not used: a run holds many probes")
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as scratch:
        home = Path(scratch).resolve()
        os.environ["FRESHRANK_HOME"] = str(home)
        info = broker.start(home / "broker", owned=True, timeout_s=60.0)
        try:
            config = home / "freshness.toml"
            config.write_text(
                CONFIG.format(wait_s=arguments.wait, bootstrap=info.bootstrap_servers, registry=home / "registry")
            )
            settings = read_settings(config)
            create_topics(
                info.bootstrap_servers, prefix=settings.prefix, partitions=settings.kafka.partitions, security={}
            )
            figures = asyncio.run(measure(settings, config, home, arguments.probes, arguments.every))
        finally:
            broker.stop(home / "broker")
            sys.stderr.write((home / "bench.log").read_text() if (home / "bench.log").exists() else "")
    report = {"name": "freshness", "machine": machine(), "wait_s": arguments.wait, "disorder_s": 0.5} | figures
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
