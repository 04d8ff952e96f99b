"""`freshrank models`: which snapshots there are, which serves and why, and asking the trainer for another.

Owns the results of these commands. Must not decide what is promoted: the gate does, or a person through `commands`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client import CollectorRegistry

from infra.metrics import TrainMetrics
from infra.settings import Settings, SettingsError, registry_url
from models.registry import Registry
from stream.announcement import Announcement, newest_announcement
from stream.commands import Command, send_command
from stream.explain import explain, model_rows
from stream.families import Family, Kind, family_of
from stream.roles import Cluster
from stream.train_worker import TrainService, group_members, trainer_group

DONE_WAIT_S = 10.0  # by hand: a trainer that learns no slide right now does it within one second
POLL_S = 0.2


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        command: The wish.
        offset: Its place in `commands`.
        has_trainer: Whether it was left to a trainer.
        is_done: Whether it is announced by now, by the trainer or, without one, under its fence.
    """

    command: Command
    offset: int
    has_trainer: bool
    is_done: bool

    @property
    def text(self) -> str:
        """One line for people."""
        line = f"{self.command.action} {self.command.version} is asked for"
        if self.has_trainer:
            late = "the trainer is at work on a slide, or cannot do it: see what it logs"
            return f"{line}; {'the trainer has done it, and it serves now' if self.is_done else late}"
        if self.is_done:
            return f"{line}; no trainer is alive: it was done in its place, and serves now"
        return f"{line}; no trainer is alive, and it could not be done in its place: see what was logged"


async def list_models(settings: Settings, cluster: Cluster, kind: Kind) -> dict[str, Any]:
    """Return the JSON object of `freshrank models list`: see docs/cli.md."""
    family, registry = family_of(settings, kind).name, Registry(registry_url(settings))
    newest = await newest_announcement(cluster, family)
    manifests = [registry.manifest(version) for version in registry.versions()]
    rows = model_rows([manifest for manifest in manifests if manifest["family"] == family], newest)
    pointers = {name: getattr(newest, name, "") for name in ("champion", "latest", "former")}
    return {"name": settings.name, "family": family, **pointers, "models": rows}


async def champion_of(settings: Settings, cluster: Cluster, kind: Kind) -> str:
    """Return the version that serves."""
    return (await _newest(cluster, family_of(settings, kind))).champion


def show_model(settings: Settings, version: str) -> dict[str, Any]:
    """Return the manifest of a snapshot of any family.

    Raises:
        ValueError: If it is not in the registry, or not what was saved.
    """
    return Registry(registry_url(settings)).manifest(version)


async def why(settings: Settings, cluster: Cluster, kind: Kind) -> dict[str, Any]:
    """Return the JSON object of `freshrank models why`: `text` for people, and what it was made of."""
    newest = await _newest(cluster, family_of(settings, kind))
    return {"champion": newest.champion, "text": explain(newest), "announcement": msgspec.to_builtins(newest)}


async def ask(settings: Settings, cluster: Cluster, kind: Kind, wish: Command) -> Asked:
    """Ask the trainer to let a snapshot serve, and wait for it; without one it is done here, under its fence.

    Args:
        settings: Of the deployment.
        cluster: Its Kafka.
        kind: Of the family.
        wish: What is asked for; a rollback without a version: to what served before.

    Raises:
        ValueError: If there is no such snapshot, it cannot be used, or it serves already.
    """
    family = family_of(settings, kind)
    newest = await _newest(cluster, family)
    version = wish.version or (newest.since.former if newest.since else "")
    if not version:
        raise SettingsError("rollback must have a snapshot to go back to, got none that served before; promote another")
    if version == newest.champion:
        raise SettingsError(f"{wish.action} must name a snapshot that does not serve, got {version}; choose another")
    Registry(registry_url(settings)).load(version, fields=family.fields)
    command = msgspec.structs.replace(wish, version=version)
    group = trainer_group(settings, cluster)
    offset = await send_command(cluster, family.name, command)
    deadline_s = time.monotonic() + DONE_WAIT_S
    while await _has_trainer(cluster, group):
        newest = await _newest(cluster, family)
        if newest.commands > offset or time.monotonic() > deadline_s:
            return Asked(command, offset, has_trainer=True, is_done=newest.champion == version)
        await asyncio.sleep(POLL_S)
    service = TrainService(settings, cluster, family, TrainMetrics(CollectorRegistry()))
    # Where nothing was left to do a trainer that has gone meanwhile may have done it.
    announcement = await service.obey_alone() or await _newest(cluster, family)
    return Asked(command, offset, has_trainer=False, is_done=announcement.champion == version)


async def _newest(cluster: Cluster, family: Family) -> Announcement:
    newest = await newest_announcement(cluster, family.name)
    if newest is None:
        raise SettingsError(
            f"{cluster.topic('snapshots')} must hold an announcement of the family {family.name}, got none;"
            " start a trainer and let it learn a slide"
        )
    return newest


async def _has_trainer(cluster: Cluster, group: str) -> bool:
    admin = AIOKafkaAdminClient(**cluster.options)
    await admin.start()
    try:
        return bool(await group_members(admin, group))
    finally:
        await admin.close()
