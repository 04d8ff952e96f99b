"""How fast does the ranking service answer? `python -m bench.serve --json FILE`.

The real service as a process, on the embedded broker, with a click model and a pre-ranker that learnt a simulated
cascade; but for `orders` creatives are chosen by their prior. The load generator and the broker share its two cores. A
request names 2,000 candidates of a catalog of about 12,000 ads by their ids; 200 of them are ranked, 20 answered, and
the record of the request (what was shown, ranked, and a tenth of the rest, with their values) is in Kafka before the
answer leaves. Requests are sent on a fixed schedule, whatever has been answered, and a latency counts from when a
request was due: so the load generator's own time is in it, and its timer's, which is up to a millisecond late.

Reported: latencies at a rate, as medians of the runs; `max_rate_p99_10ms`, the highest rate tried at which p99 stays
within 10 ms; `goodput_2x`, good answers a second at twice that rate; latencies as candidates grow; and what the service
itself says of its stages. `processes`: the same load, and one that a single process cannot carry, on one process and on
two, in turns. `orders`: the same requests to four services in turn, one that ranks no creatives (the prior chooses) and
one for each `[creatives] order`, as ratios to the first of the same round. `swaps`: 100 swaps between two snapshots of
the click model and then 10 rollbacks, while one request is asked again and again: each answer must be, whole, what one
of the snapshots says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer

from bench.report import machine, write_report
from infra import broker
from infra.settings import Settings, read_settings, registry_url
from models.registry import Registry
from models.serving.catalog import CatalogAd
from models.update import Learner
from stream.announcement import Announcement, encode_announcement
from stream.backtest import Backtest, Step
from stream.cascade import Cascade, Funnel
from stream.kafka import client_options, create_topics, topic_name
from stream.logs.ads import read_ads
from stream.logs.reader import RowCounts
from stream.logs.simulated import write_cascade
from stream.logs.source import read_arrivals
from stream.train_worker import to_announcement

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cascade.toml"
HOURS = 8
P99_MAX_MS = 10.0
RATES = (50, 75, 100, 125, 150, 175, 200, 250, 300, 400)
REQUEST_S_MAX = 10.0
CREATIVES = 'network = "exposed-only"'
SERVE = "candidates_max = 10000"
HEAVY_PER_S = 150.0  # more than one process answers on the machines that this was written on
PARTS = ("rate", "grow", "processes", "orders", "swaps")
N_SWAPS, N_ROLLBACKS, SWAP_S = 100, 10, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument(
        "--grow", type=int, nargs="*", default=[1, 100, 500, 1000, 2000, 5000, 10000], help="candidates"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as scratch:
        home = Path(scratch).resolve()
        os.environ["FRESHRANK_HOME"] = str(home)
        info = broker.start(home / "broker", owned=True, timeout_s=60.0)
        try:
            config = deployment(home, info.bootstrap_servers)
            figures = asyncio.run(measure(read_settings(config), config, home, arguments))
        finally:
            broker.stop(home / "broker")
    write_report({"name": "serve", "machine": machine(), "arguments": vars(arguments)} | figures, arguments.json)


def deployment(home: Path, bootstrap: str) -> Path:
    """Write the log and the configuration; make the topics."""
    cascade = Cascade(1, hours=HOURS, funnel=Funnel(), n_ads=10_000, requests_per_hour=180.0)
    write_cascade(home / "cascade", cascade)
    text = CONFIG.read_text().replace(
        "partitions = 4", f'partitions = 4\nbootstrap_servers = "{bootstrap}"\nclock = "replay"'
    )
    config = home / "serve.toml"
    sections = f'[creatives]\n{CREATIVES}\n\n[registry]\nurl = "{home / "registry"}"\n\n[serve]\n{SERVE}\n'
    config.write_text(f"{text}\n{sections}")
    settings = read_settings(config)
    create_topics(bootstrap, prefix=settings.prefix, partitions=settings.kafka.partitions, security={})
    return config


async def measure(settings: Settings, config: Path, home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return every figure."""
    figures: dict[str, Any] = {}
    async with AIOKafkaProducer(**client_options(settings.kafka.bootstrap_servers, {})) as producer:
        log = Log(settings, producer)
        ads = await log.fill(home)
        if {"rate", "grow", "swaps"} & {*arguments.parts}:
            by_prior = in_order(config, "none")
            async with service(by_prior) as url, client(url) as session:
                await ready(session, creatives=False)
                load = Load(session, ads)
                await load.run(arguments.rate, 5.0, arguments.candidates)  # warm
                if "rate" in arguments.parts:
                    figures |= await at_rates(load, arguments)
                if "grow" in arguments.parts:
                    figures["by_candidates"] = {
                        n: await load.run(arguments.rate, arguments.seconds, n) for n in arguments.grow
                    }
                async with session.get("/metrics") as answer:
                    figures["stages_ms"] = stages(await answer.text())
                if "swaps" in arguments.parts:
                    figures["swaps"] = await under_swaps(load, log, arguments)
        if "processes" in arguments.parts:
            figures["processes"] = await by_processes(config, ads, arguments)
        if "orders" in arguments.parts:
            figures["orders"] = await by_order(config, ads, arguments)
    return figures


async def at_rates(load: Load, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return latencies at the rate that is asked for, the highest rate that is answered in time, and beyond it."""
    runs = [await load.run(arguments.rate, arguments.seconds, arguments.candidates) for _ in range(arguments.runs)]
    figures: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    best = 0.0
    for rate in RATES:
        found = await load.run(rate, arguments.seconds, arguments.candidates)
        figures.setdefault("by_rate", {})[rate] = found
        if found["p99_ms"] > P99_MAX_MS or found["failed"]:
            break
        best = float(rate)
    figures["max_rate_p99_10ms"] = best
    twice = 2.0 * (best or arguments.rate)
    figures["at_twice"] = await load.run(twice, arguments.seconds, arguments.candidates)
    figures["goodput_2x"] = figures["at_twice"]["good_per_s"]
    return figures


def in_order(config: Path, order: str) -> Path:
    """Return a configuration that ranks creatives in an order, or, with `none`, by their prior alone."""
    own = config.with_name(f"serve-{order}.toml")
    section = 'network = ""' if order == "none" else f'{CREATIVES}\norder = "{order}"'
    own.write_text(config.read_text().replace(CREATIVES, section))
    return own


async def by_processes(config: Path, ads: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return latencies and good answers with one process and with two, round by round over services that are all up."""
    async with AsyncExitStack() as stack:
        loads = {}
        for n in (1, 2):
            own = in_order(config, "none").rename(config.with_name(f"serve-{n}.toml"))
            own.write_text(own.read_text().replace(SERVE, f"{SERVE}\nprocesses = {n}"))
            url = await stack.enter_async_context(service(own))
            session = await stack.enter_async_context(client(url))
            await ready(session, creatives=False)
            loads[n] = Load(session, ads)
            await loads[n].run(arguments.rate, 5.0, arguments.candidates)  # warm
        rounds = [
            {
                f"{n} at {rate:g}/s": await load.run(rate, arguments.seconds, arguments.candidates)
                for rate in (arguments.rate, HEAVY_PER_S)
                for n, load in loads.items()
            }
            for _ in range(arguments.runs)
        ]
    return {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }


async def by_order(config: Path, ads: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return latencies with and without a creative ranker, round by round over services that are all up."""
    async with AsyncExitStack() as stack:
        loads = {}
        for name in ("none", "parallel", "pre", "post"):
            url = await stack.enter_async_context(service(in_order(config, name)))
            session = await stack.enter_async_context(client(url))
            await ready(session, creatives=name != "none")
            loads[name] = Load(session, ads)
            await loads[name].run(arguments.rate, 3.0, arguments.candidates)  # warm
        rounds = [
            {
                name: await load.run(arguments.rate, arguments.seconds, arguments.candidates)
                for name, load in loads.items()
            }
            for _ in range(arguments.runs)
        ]
    return {
        name: {
            "p50_ms": statistics.median(one[name]["p50_ms"] for one in rounds),
            "p99_ms": statistics.median(one[name]["p99_ms"] for one in rounds),
            "p50_over_none": statistics.median(one[name]["p50_ms"] / one["none"]["p50_ms"] for one in rounds),
        }
        for name in loads
    }


async def under_swaps(load: Load, log: Log, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return latencies while snapshots are swapped and rolled back, beside those of the same load without."""
    seconds = SWAP_S * (N_SWAPS + N_ROLLBACKS)
    body = load.body(np.random.default_rng(0), arguments.candidates)
    truth: dict[str, Any] = {}
    for _ in range(2):  # what each of the two snapshots says of this request
        await log.swap()
        await asyncio.sleep(3.0)
        found = await load.ask(body)
        truth[found["snapshot"]] = found["ads"]
    assert len(truth) == 2, "the two snapshots must have served in turn"
    before = await load.run(arguments.rate, seconds, arguments.candidates, body)
    swaps = await load.swaps()
    swapping = asyncio.create_task(log.swap_again(N_SWAPS + N_ROLLBACKS))
    during = await load.run(arguments.rate, seconds, arguments.candidates, body)
    await swapping
    mixed = sum(truth.get(one["snapshot"]) != one["ads"] for one in load.answers)
    return {
        "swaps": await load.swaps() - swaps,
        "without": before,
        "during": during,
        "p99_over_without": during["p99_ms"] / before["p99_ms"],
        "failed": during["failed"],
        "mixed": mixed,
        "answers_by_snapshot": Counter(one["snapshot"] for one in load.answers),
    }


class Log:
    """What a service follows: snapshots of all families, and the catalog."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._producer = producer
        self._registry = Registry(registry_url(settings))
        self._announcements: list[list[Announcement]] = []  # of two moments, of every family each
        self._serving = 1

    async def fill(self, home: Path) -> list[str]:
        """Learn the log, announce every family and fill the catalog; return the ids of the ads."""
        settings = self._settings
        backtest = Backtest(settings, read_arrivals(settings, [home], RowCounts()))
        for step in backtest.steps():
            lineages = {settings.model.family: (backtest.learner, step)}
            for kind, learner in backtest.others.items():
                family = {"prerank": settings.prerank.family, "creatives": settings.creatives.family}[kind]
                if steps := backtest.other_steps[kind]:
                    lineages[family] = (learner, steps[-1])
            if len(lineages) == 3:
                self._announcements = [*self._announcements, [self._save(*one) for one in lineages.items()]][-2:]
        await self._announce(self._announcements[-1])
        assert settings.log is not None
        ads = read_ads(settings.log, settings.fields, [home]).ads
        for ad in ads.values():
            await self._producer.send(topic_name(settings.prefix, "catalog"), encode_ad(ad), ad.ad_id.encode())
        await self._producer.flush()
        return list(ads)

    async def swap(self) -> None:
        """Announce the other moment's click model; the other families stay, so two answers are right, and no more."""
        self._serving = 1 - self._serving
        await self._announce(self._announcements[self._serving][:1])

    async def swap_again(self, times: int) -> None:
        """Swap to and fro; a rollback is an announcement like any other."""
        for _ in range(times):
            await self.swap()
            await asyncio.sleep(SWAP_S)

    def _save(self, family: str, learnt: tuple[Learner[Any, Any], Step]) -> Announcement:
        learner, step = learnt
        self._registry.save(learner.latest, {})
        said = to_announcement(family, step.report, 0.0, None)
        return msgspec.structs.replace(said, champion=learner.latest.version)

    async def _announce(self, announcements: Sequence[Announcement]) -> None:
        for said in announcements:
            topic = topic_name(self._settings.prefix, "snapshots")
            await self._producer.send_and_wait(topic, encode_announcement(said), said.family.encode())


def encode_ad(ad: CatalogAd) -> bytes:
    return msgspec.json.encode(ad)


@asynccontextmanager
async def service(config: Path) -> AsyncIterator[str]:
    """Run the service as a process; its address."""
    command = [sys.executable, "-m", "stream.cli", "serve", str(config), "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def ready(session: aiohttp.ClientSession, *, creatives: bool = True) -> None:
    """Return once it serves, with the pre-ranker, the creative ranker if there is to be one, and the whole catalog."""
    wanted = ["prerank", *(["creatives"] if creatives else [])]
    async with asyncio.timeout(120.0):
        while True:
            async with session.get("/readyz") as answer, session.get("/metrics") as exported:
                text = await exported.text()
                swapped = [f'swaps_total{{outcome="swapped",task="{task}"}} 1.0' in text for task in wanted]
                if answer.status == 200 and all(swapped):
                    return
            await asyncio.sleep(0.2)


def client(url: str) -> aiohttp.ClientSession:
    """Return a client that lets a connection go that was idle for a second, before the service does."""
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0))


class Load:
    """Requests on a schedule."""

    def __init__(self, session: aiohttp.ClientSession, ads: Sequence[str]) -> None:
        self._session = session
        self._ads = ads
        self._number = 0
        self._keeps = False
        self._degraded = 0
        self.answers: list[dict[str, Any]] = []

    async def run(self, rate: float, seconds: float, candidates: int, body: bytes = b"") -> dict[str, float]:
        """Return what came of so many requests a second; with a body all are that, and `answers` holds what came."""
        rng = np.random.default_rng(candidates)
        self.answers, self._keeps, self._degraded = [], bool(body), 0
        bodies = [body or self.body(rng, candidates) for _ in range(int(rate * seconds))]
        begun_s = time.perf_counter() + 0.1
        tasks = [asyncio.create_task(self._one(body, begun_s + number / rate)) for number, body in enumerate(bodies)]
        results = await asyncio.gather(*tasks)
        took_s = time.perf_counter() - begun_s
        good = np.array([latency_s for latency_s, status in results if status == 200]) * 1e3
        statuses = Counter(status for _, status in results)
        p50, p99, p999 = np.percentile(good, [50.0, 99.0, 99.9]).tolist() if len(good) else [float("inf")] * 3
        print(
            f"{rate:g}/s, {candidates}: p50 {p50:.1f}, p99 {p99:.1f} ms, {dict(statuses)}, {self._degraded} degraded",
            file=sys.stderr,
        )
        return {
            "rate": rate,
            "p50_ms": p50,
            "p99_ms": p99,
            "p999_ms": p999,
            "good_per_s": len(good) / took_s,
            "degraded_share": self._degraded / len(results),
            "failed": float(len(results) - len(good)),
        }

    async def swaps(self) -> float:
        """Return how many click models the service has brought in."""
        async with self._session.get("/metrics") as answer:
            text = await answer.text()
        found = re.search(r'swaps_total\{outcome="swapped",task="click"\} (\S+)', text)
        return float(found[1]) if found else 0.0

    async def ask(self, body: bytes) -> dict[str, Any]:
        async with self._session.post("/v1/rank", data=body) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    def body(self, rng: np.random.Generator, candidates: int) -> bytes:
        self._number += 1
        ids = rng.choice(len(self._ads), size=min(candidates, len(self._ads)), replace=False)
        user = {"user_id": str(rng.integers(4000)), "age": str(rng.integers(6)), "gender": "f"}
        body = {
            "request_id": f"bench-{self._number}",
            "user": user,
            "context": {"hour": str(rng.integers(24)), "placement": "top"},
            "candidates": [self._ads[index] for index in ids],
            "top": 20,
        }
        return json.dumps(body).encode()

    async def _one(self, body: bytes, due_s: float) -> tuple[float, int]:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        try:
            async with asyncio.timeout(REQUEST_S_MAX), self._session.post("/v1/rank", data=body) as answer:
                said = await answer.read()
                self._degraded += b'"degraded":["' in said
                if self._keeps and answer.status == 200:
                    self.answers.append(json.loads(said))
                return time.perf_counter() - due_s, answer.status
        except (TimeoutError, aiohttp.ClientError):
            return time.perf_counter() - due_s, 0


def stages(text: str) -> dict[str, float]:
    """Return the mean time of each stage as the service counted it."""
    found: dict[str, dict[str, float]] = {}
    pattern = r'freshrank_rank_latency_seconds_(sum|count)\{stage="(\w+)"\} (\S+)'
    for what, stage, value in re.findall(pattern, text):
        found.setdefault(stage, {})[what] = float(value)
    return {stage: 1e3 * one["sum"] / one["count"] for stage, one in found.items() if one["count"]}


if __name__ == "__main__":
    main()
