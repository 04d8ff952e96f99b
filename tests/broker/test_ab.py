"""An experiment on a real broker: two models serve two groups of users, and `freshrank ab` reads what came of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from infra.broker import BrokerInfo
from infra.settings import SettingsError, read_settings
from models.registry import Registry
from models.serving.split import draw
from stream.ab import compare_arms
from stream.audit.proof import audit
from stream.events import Request, Tick, decode_event, encode_event
from stream.kafka import create_topics
from stream.roles import find_cluster
from tests.broker.deployment import Deployment
from tests.broker.test_serve import announcement, eventually, exports, is_ready, send, serving
from tests.models.serving.trained import FIELDS, two_snapshots

USERS = [f"u{number}" for number in range(60)]
CANDIDATES = ["ad0", "ad1", "ad2", "ad3"]
SHARE = 0.4
FALLBACK_FROM = 2000
SUMS = ("users", "requests", "impressions", "clicks")
MISSING = "ctr-000009-000000000000"
VERSIONS = [snapshot.version for snapshot in two_snapshots()]


def deployed(directory: Path, broker: BrokerInfo, prefix: str) -> Deployment:
    fields = "".join(
        f'[[fields]]\nname = "{one.name}"\nside = "{one.side}"\nkind = "{one.kind}"\n'
        f"of = {list(one.of)}\nvalues_max = {one.values_max}\n"
        for one in FIELDS
    )
    config = directory / "deployment.toml"
    config.write_text(
        f"""name = "test"
{fields}
[priors]
half_lives_s = [600.0, 6000.0]
[window]
slide_s = 1000.0
[ledger]
wait_s = 60.0
[split]
name = "fresh"
share = {SHARE}
[kafka]
bootstrap_servers = "{broker.bootstrap_servers}"
prefix = "{prefix}"
partitions = 3
[registry]
url = "{directory / "registry"}"
"""
    )
    settings = read_settings(config)
    create_topics(broker.bootstrap_servers, prefix=prefix, partitions=3, security={})
    return Deployment(config, settings, find_cluster(settings), directory, directory)


def expected_sums(visits: list[int], n_users: int) -> list[int]:
    return [n_users, len(visits), 2 * len(visits), sum(bool(number % 3) for number in visits)]


def announced(latest: str) -> bytes:
    return json.dumps(json.loads(announcement(0)) | {"latest": latest}).encode()


def is_drawn(user: str) -> bool:
    return draw("fresh", user) < SHARE


async def visit(client: httpx.AsyncClient, user: str | None, number: int, time_s: float) -> dict[str, Any]:
    """Ask, see the first two ads and click one of them, or none; return the answer."""
    body = {"request_id": f"q{number}", "user": {"user_id": user}, "candidates": CANDIDATES, "time_s": time_s}
    answer: dict[str, Any] = (await client.post("/v1/rank", json=body)).raise_for_status().json()
    shown = [{"request_id": f"q{number}", "ad_id": ad["ad_id"], "position": ad["position"]} for ad in answer["ads"][:2]]
    events = [{"type": "impression", "time_s": time_s + 1.0, **one} for one in shown]
    events += [{"type": "click", "time_s": time_s + 2.0, **shown[0]}] if number % 3 else []
    sent = await client.post("/v1/events", json=events)
    assert sent.json()["accepted"] == len(events)
    return answer


async def visit_all(client: httpx.AsyncClient, first: int, time_s: float) -> list[tuple[int, str, dict[str, Any]]]:
    """Let every user visit, with numbers from `first` on; return number, user and answer of each."""
    numbers = range(first, first + len(USERS))
    visits = [visit(client, user, number, time_s) for number, user in zip(numbers, USERS, strict=True)]
    return list(zip(numbers, USERS, await asyncio.gather(*visits), strict=True))


async def tick(deployment: Deployment, time_s: float) -> None:
    producer = AIOKafkaProducer(**deployment.cluster.options)
    await producer.start()
    try:
        for partition in range(3):
            for _ in range(2):  # the second closes the block that the first has filled
                await producer.send_and_wait(
                    deployment.cluster.topic("events"), encode_event(Tick(time_s)), partition=partition
                )
                time_s += 1000.0
    finally:
        await producer.stop()


def compare(deployment: Deployment, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream.cli", "ab", str(deployment.config), *options]
    env = os.environ | {"FRESHRANK_HOME": str(deployment.home / "state"), "COLUMNS": "200"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120.0, check=False)


@pytest.mark.slow
async def test_two_models_serve_two_groups_of_users_and_ab_reads_what_came_of_it(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str, kafka_options: dict[str, Any]
) -> None:
    deployment = deployed(tmp_path, broker, topic_prefix)
    for snapshot in two_snapshots():
        Registry(str(tmp_path / "registry")).save(snapshot, {})
    with pytest.raises(SettingsError, match="must hold settled impressions of both arms"):
        await compare_arms(deployment.settings, deployment.cluster)
    n_drawn = sum(map(is_drawn, USERS))
    visits: dict[bool, list[int]] = {False: [], True: []}  # numbers, by whether the user was drawn

    time_s = two_snapshots()[0].priors.as_of_s + 100.0
    await send(kafka_options, f"{topic_prefix}.snapshots", "ctr", announced(VERSIONS[1]))
    async with serving(deployment.settings, broker) as client:
        await eventually(lambda: is_ready(client))
        await eventually(lambda: exports(client, 'snapshot_swaps_total{outcome="swapped",task="latest"} 1.0'))
        for first in (0, 1000):
            for number, user, answer in await visit_all(client, first, time_s + first):
                expected = ("latest", VERSIONS[1]) if is_drawn(user) else ("champion", VERSIONS[0])
                assert (answer["arm"], answer["snapshot"]) == expected
                visits[is_drawn(user)].append(number)
        anonymous = await visit(client, None, 9999, time_s + 1000.0)
        assert anonymous["arm"] == "champion"
        await send(kafka_options, f"{topic_prefix}.snapshots", "ctr", announced(MISSING))
        await eventually(lambda: exports(client, 'snapshot_swaps_total{outcome="refused",task="latest"} 1.0'))
        for number, user, answer in await visit_all(client, FALLBACK_FROM, time_s + FALLBACK_FROM):
            assert (answer["arm"], answer["snapshot"]) == ("fallback" if is_drawn(user) else "champion", VERSIONS[0])
            visits[is_drawn(user)].append(number)

    records = [decode_event(one.value) for at in range(3) for one in await deployment.read("events", at)]
    requests = [event for event in records if isinstance(event, Request)]
    assert {(event.split, event.arm, event.snapshot) for event in requests} == {
        ("fresh", "champion", VERSIONS[0]),
        ("fresh", "latest", VERSIONS[1]),
        ("fresh", "fallback", VERSIONS[0]),
    }
    await tick(deployment, time_s + 3000.0)
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()

    found = await compare_arms(deployment.settings, deployment.cluster)
    assert {arm: [one[name] for name in SUMS] for arm, one in found["arms"].items()} == {
        "champion": expected_sums(visits[False], n_users=len(USERS) - n_drawn),
        "latest": expected_sums([number for number in visits[True] if number < FALLBACK_FROM], n_users=n_drawn),
    }
    fallback = [number for number in visits[True] if number >= FALLBACK_FROM]
    assert [found["fallback"][name] for name in SUMS] == expected_sums(fallback, n_users=n_drawn)
    assert found["left_out"] == {"outside": 0, "anonymous": 2}
    assert (found["crossed"], found["draw"]["observed"]) == (0, n_drawn / len(USERS))
    assert all(proof.equal for proof in await audit(deployment.settings, deployment.cluster, lambda _: None))

    done = await asyncio.to_thread(compare, deployment, "--since", str(time_s + 500.0), "--json", "-")
    assert done.returncode == 0, done.stderr
    later = json.loads(done.stdout)
    assert later["since_s"] == time_s + 500.0
    assert later["arms"]["latest"]["impressions"] == found["arms"]["latest"]["impressions"] / 2
