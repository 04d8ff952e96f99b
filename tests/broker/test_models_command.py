"""`freshrank models` against a real trainer: what people ask for is done at the next slide, and told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.broker import BrokerInfo
from infra.settings import SettingsError
from stream.announcement import Announcement, decode_announcement
from stream.cli import app
from stream.commands import Command, send_command
from stream.models_command import ask, list_models, show_model, why
from tests.broker.deployment import Deployment, deploy, until

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
        await until(deployment.announced(known + 1), 60.0)
    return (await announcements(deployment))[known:]


@pytest.mark.slow
async def test_what_is_asked_for_is_done_at_the_next_slide_and_told(learnt: Deployment) -> None:
    known = await announcements(learnt)
    settings, cluster = learnt.settings, learnt.cluster
    listed = await list_models(settings, cluster)
    assert listed["champion"] == known[-1].champion
    assert {row["does"] for row in listed["models"]} >= {"serves", "learns"}
    wanted = next(one.latest for one in known if one.latest not in (known[-1].champion, known[-1].latest))
    assert show_model(settings, wanted)["version"] == wanted
    with pytest.raises(ValueError, match="snapshot ctr-000099-nothing must have a manifest"):
        await ask(settings, cluster, "promote", "ctr-000099-nothing", "")
    with pytest.raises(SettingsError, match="must name a snapshot that does not serve"):
        await ask(settings, cluster, "promote", known[-1].champion, "")
    asked = await ask(settings, cluster, "promote", wanted, "the sale")
    assert not asked.has_trainer
    assert asked.is_done
    assert "no trainer is alive" in asked.text
    (at_once,) = (await announcements(learnt))[len(known) :]
    assert (at_once.champion, at_once.slide, at_once.decision) == (wanted, known[-1].slide, "promote")
    back = Command("rollback", known[-1].champion, "it rains")
    offset = await send_command(cluster, settings.model.family, back)  # a trainer that starts now does it
    later = await learn_the_rest(learnt, len(known) + 1)
    assert later[0].slide == known[-1].slide + 1
    assert (later[0].champion, later[0].commands) == (back.version, offset + 1)
    assert later[0].since is not None
    assert (later[0].since.decision, later[0].since.reason) == ("rollback", "asked for: it rains")
    assert later[0].since.former == wanted
    assert back.version in (await why(settings, cluster))["text"][0]
    for command, said in ((["list"], wanted), (["why"], "asked for: it rains"), (["rollback"], "no trainer is alive")):
        result = await asyncio.to_thread(CliRunner().invoke, app, ["models", *command, str(learnt.config)])
        assert result.exit_code == 0
        assert said in result.output
