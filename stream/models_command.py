"""`freshrank models`: which snapshots there are, which serves and why, and asking the trainer for another.

Owns the results of these commands. Must not decide what is promoted: the gate does, or a person through `commands`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client import CollectorRegistry

from infra.metrics import TrainMetrics
from infra.settings import Settings, SettingsError, registry_url
from models.registry import Registry
from stream.announcement import Announcement, newest_announcement
from stream.commands import Action, Command, send_command
from stream.explain import explain, model_rows
from stream.families import click_family
from stream.roles import Cluster
from stream.train_worker import TrainService, group_members, trainer_group


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        command: The wish.
        offset: Its place in `commands`.
        has_trainer: Whether a trainer was there to heed it.
        is_done: Whether it was done at once, under the fence of the trainer that was not there.
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
            return f"{line}; the trainer does it when the next slide is complete"
        if self.is_done:
            return f"{line}; no trainer is alive: it was done in its place, and serves now"
        return f"{line}; no trainer is alive, and it could not be done in its place: see what was logged"


async def list_models(settings: Settings, cluster: Cluster) -> dict[str, Any]:
    """Return the JSON object of `freshrank models list`: see docs/cli.md."""
    family, registry = settings.model.family, Registry(registry_url(settings))
    newest = await newest_announcement(cluster, family)
    manifests = [registry.manifest(version) for version in registry.versions()]
    rows = model_rows([manifest for manifest in manifests if manifest["family"] == family], newest)
    pointers = {name: getattr(newest, name, "") for name in ("champion", "latest", "former")}
    return {"name": settings.name, "family": family, **pointers, "models": rows}


def show_model(settings: Settings, version: str) -> dict[str, Any]:
    """Return the manifest of a snapshot.

    Raises:
        ValueError: If it is not in the registry, or not what was saved.
    """
    return Registry(registry_url(settings)).manifest(version)


async def why(settings: Settings, cluster: Cluster) -> dict[str, Any]:
    """Return the JSON object of `freshrank models why`: `text` for people, and what it was made of."""
    newest = await _newest(settings, cluster)
    return {"champion": newest.champion, "text": explain(newest), "announcement": msgspec.to_builtins(newest)}


async def ask(settings: Settings, cluster: Cluster, action: Action, version: str, note: str) -> Asked:
    """Ask the trainer to let a snapshot serve; without one it is done at once, under its fence.

    Args:
        settings: Of the deployment.
        cluster: Its Kafka.
        action: promote or rollback.
        version: Which one; empty with rollback: what served before.
        note: Why.

    Raises:
        ValueError: If there is no such snapshot, it cannot be used, or it serves already.
    """
    newest = await _newest(settings, cluster)
    version = version or (newest.since.former if newest.since else "")
    if not version:
        raise SettingsError("rollback must have a snapshot to go back to, got none that served before; promote another")
    if version == newest.champion:
        raise SettingsError(f"{action} must name a snapshot that does not serve, got {version}; choose another")
    Registry(registry_url(settings)).load(version, fields=settings.fields)
    command = Command(action, version, note)
    group = trainer_group(settings, cluster)
    offset = await send_command(cluster, settings.model.family, command)
    if await _has_trainer(cluster, group):
        return Asked(command, offset, has_trainer=True, is_done=False)
    service = TrainService(settings, cluster, click_family(settings), TrainMetrics(CollectorRegistry()))
    announcement = await service.obey_alone()
    is_done = announcement is not None and announcement.champion == version
    return Asked(command, offset, has_trainer=False, is_done=is_done)


async def _newest(settings: Settings, cluster: Cluster) -> Announcement:
    newest = await newest_announcement(cluster, settings.model.family)
    if newest is None:
        raise SettingsError(
            f"{cluster.topic('snapshots')} must hold an announcement of the family {settings.model.family}, got none;"
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
