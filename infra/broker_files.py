"""The files of the embedded broker's data directory.

Owns their names and contents: `log/` Kafka's data, `logs/` what the broker says, `broker.json` what runs or ran here
(the ports are kept, so that clients find the broker again), `server.properties` and `log4j2.properties`, written anew
at each start. Must not know processes or Java.

Invariants: all paths inside are relative to the directory, which is the broker's working directory; a file that a
crash may leave half-written is written beside and renamed.
"""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

HOST = "127.0.0.1"  # the broker is for this machine alone
MESSAGE_BYTES_MAX = 8_388_608  # a block of at most 8 MB with its batch header

PROPERTIES: dict[str, str | int] = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",  # transactions need one that the broker itself can reach
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "log.message.timestamp.type": "LogAppendTime",
    "auto.create.topics.enable": "false",
    "message.max.bytes": MESSAGE_BYTES_MAX,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 4,
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 4,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1_000,
    "broker.session.timeout.ms": 3_000,
    "broker.heartbeat.interval.ms": 250,
    # How often transactions of dead producers are looked for; at the default of 10 s they block readers twice as long.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
    # The default of 128 MB is allocated at the start, more than everything else together: 315 MB in all against 180.
    "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
    "num.network.threads": 2,
    "num.io.threads": 4,
}

# The controller refuses a killed broker's successor until the session of the first has ended: 4.8 s to the first answer
# after kill -9 at 3 s, 2.6 s at 1 s. Not for every start: a session this short may end on a starved machine.
PROPERTIES_AFTER_CRASH = {"broker.session.timeout.ms": 1_000}

LOG4J = """\
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=logs/server.log
appender.file.filePattern=logs/server.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %m (%c)%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
"""


@dataclass(frozen=True)
class State:
    """What `broker.json` holds.

    Attributes:
        pid: Of the Java process; 0 when it was stopped.
        owner_pid: Of the process that it ends with; 0 when it lives alone.
        port: Clients'.
        controller_port: The controller's, which the broker alone uses.
        started_s: Seconds that the start took; 0 until it answers.
    """

    pid: int
    owner_pid: int
    port: int
    controller_port: int
    started_s: float


def read_state(data_dir: Path) -> State | None:
    """Return what runs or ran here, None if nothing that this version knows of."""
    try:
        return State(**json.loads((data_dir / "broker.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_state(data_dir: Path, state: State) -> None:
    """Put down what runs or ran here."""
    part = data_dir / "broker.json.part"
    part.write_text(json.dumps(asdict(state)))
    part.rename(data_dir / "broker.json")


def write_files(data_dir: Path, port: int, controller_port: int, *, after_crash: bool) -> None:
    """Write what the broker reads when it starts."""
    properties = PROPERTIES | {
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "log.dirs": "log",  # relative: this file can hold neither commas nor umlauts in a path
    }
    if after_crash:
        properties |= PROPERTIES_AFTER_CRASH
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    (data_dir / "server.properties").write_text(text)
    (data_dir / "log4j2.properties").write_text(LOG4J)
    meta = data_dir / "log" / "meta.properties"
    if not meta.exists():  # by hand what Kafka's format tool takes a second Java for
        meta.parent.mkdir(exist_ok=True)
        ids = f"cluster.id={_kafka_id()}\nnode.id=1\ndirectory.id={_kafka_id()}\n"
        (meta.with_suffix(".part")).write_text(f"version=1\n{ids}")
        meta.with_suffix(".part").rename(meta)


def _kafka_id() -> str:
    """Return a random id in Kafka's form: 16 bytes, URL-safe base64; it may not begin with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
