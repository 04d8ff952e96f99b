"""`freshrank models` against real trainers and services: what people ask for is done at once, and told."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from infra.broker import BrokerInfo
from infra.settings import SettingsError
from stream.announcement import Announcement, decode_announcement
from stream.cli import app
from stream.commands import Command, send_command
from stream.families import Kind
from stream.logs.ads import read_ads
from stream.models_command import ask, champion_of, list_models, show_model, why
from tests.broker.deployment import Deployment, deploy, deploy_cascade, until

ROWS = 12_000
SLIDE_S = 1800.0


@pytest.fixture
async def learnt(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> Deployment:
    """A deployment that has learnt half of its log; the trainer is gone."""
    deployment = deploy(tmp_path, broker.bootstrap_servers, topic_prefix, rows=ROWS, slide_s=SLIDE_S)
    await deployment.replay(limit=ROWS // 2)
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()
    with deployment.role("worker", "train"):
        await until(deployment.announced(3), 60.0)
    return deployment


async def announcements(deployment: Deployment) -> list[Announcement]:
    return [decode_announcement(record.value or b"") for record in await deployment.read("snapshots", 0)]


async def learn_the_rest(deployment: Deployment, known: int) -> list[Announcement]:
    await deployment.replay(append=True)
    with deployment.role("worker", "ledger"):
        await deployment.wait_settled()
    with deployment.role("worker", "train"):
        await until(deployment.announced(known + 2), 60.0)
    return (await announcements(deployment))[known:]


@pytest.mark.slow
async def test_what_is_asked_for_is_done_before_the_next_slide_and_told(learnt: Deployment) -> None:
    known = await announcements(learnt)
    settings, cluster = learnt.settings, learnt.cluster
    listed = await list_models(settings, cluster, "click")
    assert listed["champion"] == known[-1].champion
    assert {row["does"] for row in listed["models"]} >= {"serves", "learns"}
    wanted = next(one.latest for one in known if one.latest not in (known[-1].champion, known[-1].latest))
    assert show_model(settings, wanted)["version"] == wanted
    with pytest.raises(ValueError, match="snapshot ctr-000099-nothing must have a manifest"):
        await ask(settings, cluster, "click", Command("promote", "ctr-000099-nothing"))
    with pytest.raises(SettingsError, match="must name a snapshot that does not serve"):
        await ask(settings, cluster, "click", Command("promote", known[-1].champion))
    asked = await ask(settings, cluster, "click", Command("promote", wanted, "the sale"))
    assert not asked.has_trainer
    assert asked.is_done
    assert "no trainer is alive" in asked.text
    (at_once,) = (await announcements(learnt))[len(known) :]
    assert (at_once.champion, at_once.slide, at_once.decision) == (wanted, known[-1].slide, "promote")
    back = Command("rollback", known[-1].champion, "it rains")
    offset = await send_command(cluster, settings.model.family, back)  # a trainer that starts now does it
    later = await learn_the_rest(learnt, len(known) + 1)
    assert [one.slide for one in later[:2]] == [known[-1].slide, known[-1].slide + 1]
    assert (later[0].champion, later[0].commands) == (back.version, offset + 1)
    assert later[0].since is not None
    assert (later[0].since.decision, later[0].since.reason) == ("rollback", "asked for: it rains")
    assert later[0].since.former == wanted
    assert back.version in (await why(settings, cluster, "click"))["text"][0]
    for command, said in ((["list"], wanted), (["why"], "asked for: it rains"), (["rollback"], "no trainer is alive")):
        result = await asyncio.to_thread(CliRunner().invoke, app, ["models", *command, str(learnt.config)])
        assert result.exit_code == 0
        assert said in result.output


BOUND_S = 5.0  # what is promised
BODY = {"user": {"user_id": "1", "age": "2"}, "context": {"hour": "3"}, "top": 10}


class Services:
    """Running services, and what each of them serves."""

    def __init__(self, ports: list[int], ads: list[str]) -> None:
        self.clients = [httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20.0) for port in ports]
        self.body = BODY | {"candidates": ads}

    async def serve(self, key: str, version: str) -> AsyncIterator[bool]:
        """Tell again and again whether all answer with this version: `snapshot` ranks, `prerank` pre-ranks."""
        while True:
            yield all([await self.serves(client, key) == version for client in self.clients])

    async def serves(self, client: httpx.AsyncClient, key: str) -> str | None:
        try:
            answer: dict[str, str] = (await client.post("/v1/rank", json=self.body)).json()
        except httpx.HTTPError:
            return None
        return answer.get(key)

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()


async def roll_back(deployment: Deployment, services: Services, kind: Kind, versions: list[str]) -> float:
    """Roll back to one that does not serve; return after how many seconds every service serves it."""
    key = {"click": "snapshot", "prerank": "prerank"}[kind]
    champion = await champion_of(deployment.settings, deployment.cluster, kind)
    version = next(one for one in versions if one != champion)
    begun_s = time.monotonic()
    asking = asyncio.create_task(ask(deployment.settings, deployment.cluster, kind, Command("rollback", version)))
    await until(services.serve(key, version), 30.0)
    took_s = time.monotonic() - begun_s
    assert (await asking).is_done
    return took_s


@pytest.mark.slow
async def test_a_rollback_of_either_family_reaches_every_running_service_within_seconds(
    tmp_path: Path, broker: BrokerInfo, topic_prefix: str
) -> None:
    """With a trainer that follows `commands`, and without one, under its fence."""
    some = deploy_cascade(tmp_path, broker.bootstrap_servers, topic_prefix, hours=4, slide_s=SLIDE_S)
    await some.replay()
    ads = list(read_ads(some.settings.log, some.settings.fields, [some.data_dir]).ads)  # type: ignore[arg-type]
    ports = free_ports(2)
    services, took_s = Services(ports, ads), {}
    with ExitStack() as stack:
        with some.role("worker", "ledger"), some.role("worker", "train"):
            await until(some.announced(4, "prerank"), 90.0)
            await until(some.announced(4), 60.0)
            for port in ports:
                stack.enter_context(some.role("serve", "--port", str(port)))
            said = await announcements(some)
            versions = {kind: [one.latest for one in said if one.family == family] for kind, family in KINDS}
            await until(services.serve("snapshot", await champion_of(some.settings, some.cluster, "click")), 60.0)
            await until(services.serve("prerank", await champion_of(some.settings, some.cluster, "prerank")), 60.0)
            for kind, _ in KINDS:
                took_s[kind, "trainer"] = await roll_back(some, services, kind, versions[kind])
        for kind, _ in KINDS:
            took_s[kind, "alone"] = await roll_back(some, services, kind, versions[kind])
        result = await asyncio.to_thread(
            CliRunner().invoke, app, ["models", "list", str(some.config), "--family", "prerank", "--json", "-"]
        )
        assert result.exit_code == 0
        champion = await champion_of(some.settings, some.cluster, "prerank")
        assert f'"champion": "{champion}"' in result.output
        assert champion.startswith("prerank-")
    await services.close()
    assert max(took_s.values()) < BOUND_S, took_s


KINDS: tuple[tuple[Kind, str], ...] = (("click", "ctr"), ("prerank", "prerank"))


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
