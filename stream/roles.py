"""What every role shares: one deployment's Kafka names and options, the Faust app, and how a worker runs and ends.

Owns the connection of settings to Kafka and Faust. Must not know what a role does.

Invariants: a worker that fails says why in one line and exits with 1; SIGTERM ends it cleanly; nothing it acknowledges
to Faust carries meaning (positions come from snapshots and from its own output).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
import mode

from infra import broker
from infra.settings import Settings, SettingsError, state_dir
from stream.kafka import BLOCK_BYTES_MAX, Record, check_broker, client_options, topic_name

SESSION_S = 6.0  # a dead worker's partitions move after this long; the broker's smallest by default
STREAM_BLOCKS_MAX = 32  # blocks that Faust may hold unread: its default of 4096 would be gigabytes

log = logging.getLogger("freshrank")


@dataclass(frozen=True)
class Cluster:
    """Where a deployment's topics are and how clients reach them."""

    bootstrap_servers: str
    prefix: str
    partitions: int
    options: dict[str, Any]
    security: dict[str, str]

    def topic(self, name: str) -> str:
        """Return a topic's full name."""
        return topic_name(self.prefix, name)


def find_servers(settings: Settings) -> str:
    """Return host:port of the settings' brokers, or of the embedded one that runs in the state directory; else ""."""
    if settings.kafka.bootstrap_servers:
        return settings.kafka.bootstrap_servers
    running = broker.status(state_dir() / "broker")
    return "" if running is None else running.bootstrap_servers


def find_cluster(settings: Settings) -> Cluster:
    """Return the cluster of the settings: theirs, or the embedded broker that runs in the state directory.

    Raises:
        SettingsError: If no broker answers there.
    """
    servers = find_servers(settings)
    if not servers:
        raise SettingsError(
            "[kafka] bootstrap_servers is empty, so the embedded broker must run, got none in"
            f" {state_dir() / 'broker'}; start it with `freshrank broker start`"
        )
    security = dict(settings.kafka.security)
    try:
        check_broker(servers, security=security)
        options = client_options(servers, security)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return Cluster(servers, settings.prefix, settings.kafka.partitions, options, security)


def make_app(cluster: Cluster, role: str) -> faust.App:
    """Return the Faust app of a role; its id is the consumer group `<prefix>.<role>`."""
    data_dir = Path(state_dir() / "faust" / cluster.prefix)
    data_dir.mkdir(parents=True, exist_ok=True)
    servers = [f"aiokafka://{server.strip()}" for server in cluster.bootstrap_servers.split(",")]
    return faust.App(
        f"{cluster.prefix}.{role}",
        broker=servers,
        broker_credentials=_credentials(cluster),
        broker_session_timeout=SESSION_S,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=1.0,
        broker_max_poll_interval=600.0,
        consumer_max_fetch_size=2 * BLOCK_BYTES_MAX,
        consumer_auto_offset_reset="earliest",
        producer_max_request_size=BLOCK_BYTES_MAX,
        stream_buffer_maxsize=STREAM_BLOCKS_MAX,
        stream_wait_empty=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        datadir=str(data_dir / role),
        store="memory://",
        value_serializer="raw",
        key_serializer="raw",
    )


def run_app(app: faust.App, *services: mode.Service) -> None:
    """Run a role until SIGTERM or SIGINT, then exit with 0; exit with 1 and the reason if it fails."""
    worker = _Worker(app, *services, quiet=True, loglevel="WARNING", redirect_stdouts=False, logging_config=LOGGING)
    worker.spinner = None
    worker.execute_from_commandline()


async def delivered(stream: faust.StreamT[bytes]) -> AsyncIterator[tuple[int, Record]]:
    """Yield the partition and the record of each message of an agent's stream, acknowledged at once."""
    assert isinstance(stream, faust.Stream)
    async for event in stream.noack().events():
        message = event.message
        yield message.partition, Record(message.offset, int(message.timestamp * 1000), message.key, message.value)


class RoleError(RuntimeError):
    """A role cannot go on and says why; shown as one line, without a trace."""


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Leave out the trace of what a person can mend: it says all in its message."""
        return "" if isinstance(ei[1], (RoleError, ValueError)) else super().formatException(ei)


class _Worker(faust.Worker):
    """A Faust worker that leaves the process its own name."""

    def _setproctitle(self, info: str, *, ident: str = "") -> None:
        pass


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"()": _Formatter, "fmt": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"freshrank": {"level": "INFO"}},
}


def _credentials(cluster: Cluster) -> Any:
    context = cluster.options.get("ssl_context")
    if "sasl_mechanism" in cluster.options:
        return faust.SASLCredentials(
            mechanism=cluster.options["sasl_mechanism"],
            username=cluster.options["sasl_plain_username"],
            password=cluster.options["sasl_plain_password"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None
