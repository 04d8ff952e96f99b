"""What every role shares about Kafka: the topics and how a client reaches the cluster.

Owns the table of topics, their creation, the options of all clients and the check that a broker is there. Must not know
Faust, what a record means or who asks. Readers stand in stream/kafka_log.py, the partitioner in stream/partitioner.py
(core); both are offered here too, so that a role imports one module.

Invariants: every topic carries append time; the partition count of a prefix never changes; a broker that is not there
is an error within seconds, which names the address.
"""

from __future__ import annotations

import logging
import math
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from stream.kafka_log import OffsetGone, Record, read_last, read_range
from stream.partitioner import murmur2_partition

__all__ = [
    "TOPICS",
    "OffsetGone",
    "Record",
    "check_broker",
    "check_retention",
    "client_options",
    "create_topics",
    "murmur2_partition",
    "read_last",
    "read_range",
    "topic_name",
]

RECORD_BYTES_MAX = 1_100_000  # an event of at most 1 MB with its batch header
BLOCK_BYTES_MAX = 8_388_608  # a block of at most 8 MB with its batch header
NAME_CHARS_MAX = 249  # Kafka's limit
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")  # those that need a name and a password, nothing else
SECURITY_KEYS = frozenset(
    {"protocol", "sasl_mechanism", "sasl_username", "sasl_password", "sasl_password_env"}
    | {"ca_file", "cert_file", "key_file"}
)
RESUME_TOPICS = ("events", "examples", "dead-letters")  # what a ledger reads when it takes over a partition
TOPIC_EXISTS, TOPIC_UNKNOWN = 36, 3  # Kafka's error codes


@dataclass(frozen=True)
class Topic:
    """How a topic is made.

    Attributes:
        cleanup: Kafka's cleanup.policy.
        is_partitioned: It has as many partitions as the prefix; else one.
        bytes_max: Largest batch of records.
    """

    cleanup: str
    is_partitioned: bool
    bytes_max: int


TOPICS = {
    "events": Topic("delete", is_partitioned=True, bytes_max=RECORD_BYTES_MAX),
    "catalog": Topic("compact", is_partitioned=False, bytes_max=RECORD_BYTES_MAX),
    "examples": Topic("delete", is_partitioned=True, bytes_max=BLOCK_BYTES_MAX),
    "chains": Topic("delete", is_partitioned=True, bytes_max=BLOCK_BYTES_MAX),
    "prior-updates": Topic("delete", is_partitioned=False, bytes_max=BLOCK_BYTES_MAX),
    "snapshots": Topic("compact", is_partitioned=False, bytes_max=RECORD_BYTES_MAX),
    "commands": Topic("delete", is_partitioned=False, bytes_max=RECORD_BYTES_MAX),
    # A raw record of any size that `events` takes, escaped.
    "dead-letters": Topic("delete", is_partitioned=True, bytes_max=BLOCK_BYTES_MAX),
}


def topic_name(prefix: str, topic: str) -> str:
    """Return the name on the broker of one of `TOPICS`.

    Raises:
        ValueError: If the prefix cannot be part of a topic's name.
    """
    assert topic in TOPICS, topic
    name = f"{prefix}.{topic}"
    if not re.fullmatch(r"[A-Za-z0-9._-]+", prefix) or len(name) > NAME_CHARS_MAX:
        raise ValueError(
            "[kafka] prefix must be letters, digits, '.', '_' or '-' and leave the topic's name within"
            f" {NAME_CHARS_MAX} characters, got {prefix!r}; choose another"
        )
    return name


def client_options(bootstrap_servers: str, security: Mapping[str, str]) -> dict[str, Any]:
    """Return what aiokafka's and kafka-python's clients take to reach a cluster: addresses, TLS and SASL.

    Args:
        bootstrap_servers: host:port, several with commas between.
        security: The keys of [kafka.security]; empty values count as not given.

    Raises:
        ValueError: If a key or value is not one of those that work here, or a file cannot be read.
    """
    given = {key: value for key, value in security.items() if value}
    if unknown := sorted(given.keys() - SECURITY_KEYS):
        raise ValueError(f"[kafka.security] takes {', '.join(sorted(SECURITY_KEYS))}, got {', '.join(unknown)}")
    protocol = given.get("protocol", "PLAINTEXT")
    if protocol not in PROTOCOLS:
        raise ValueError(f"[kafka.security] protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    options: dict[str, Any] = {"bootstrap_servers": bootstrap_servers, "security_protocol": protocol}
    if protocol.startswith("SASL"):
        mechanism = given.get("sasl_mechanism", "")
        if mechanism not in MECHANISMS:
            rule = f"must be one of {', '.join(MECHANISMS)} with protocol {protocol}"
            raise ValueError(f"[kafka.security] sasl_mechanism {rule}, got {mechanism!r}")
        for key in ("sasl_username", "sasl_password"):
            if key not in given:
                raise ValueError(f"[kafka.security] {key} must be given with protocol {protocol}, got none")
        options["sasl_mechanism"] = mechanism
        options["sasl_plain_username"] = given["sasl_username"]
        options["sasl_plain_password"] = given["sasl_password"]
    if protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(given)
    return options


def check_broker(bootstrap_servers: str, *, security: Mapping[str, str], timeout_s: float = 5.0) -> None:
    """Return once a broker has answered.

    Raises:
        ValueError: If none does within `timeout_s`: says which address and why.
    """
    with _admin(bootstrap_servers, security, timeout_s):
        pass


def create_topics(
    bootstrap_servers: str,
    *,
    prefix: str,
    partitions: int,
    security: Mapping[str, str],
    retention_s: float | None = None,
    timeout_s: float = 5.0,
) -> list[str]:
    """Make the topics of a prefix that are not there yet, wait until they can be used and return their names.

    Args:
        bootstrap_servers: host:port, several with commas between.
        prefix: Stands before each name.
        partitions: Of the topics that have several.
        security: The keys of [kafka.security].
        retention_s: How long a topic that is not compacted keeps what was appended; None: as the broker has it.
        timeout_s: Longest wait for the broker.

    Raises:
        ValueError: If the broker cannot be reached or refuses, or a topic is there with other rules.
    """
    if partitions < 1:
        raise ValueError(f"[kafka] partitions must be >= 1, got {partitions}")
    wanted = {
        topic_name(prefix, topic): (rule, partitions if rule.is_partitioned else 1) for topic, rule in TOPICS.items()
    }
    with _admin(bootstrap_servers, security, timeout_s) as admin, _clear_errors(bootstrap_servers):
        there = _partition_counts(admin, list(wanted))
        missing = {name: _creation(*wanted[name], retention_s) for name in wanted if name not in there}
        created = _create(admin, missing) if missing else []
        raced = [name for name in missing if name not in created]  # another process made them meanwhile
        admin.wait_for_topics(list(missing))
        for name, n_partitions in (there | _partition_counts(admin, raced)).items():
            _check_same(admin, name, n_partitions, wanted[name][1])
    return created


def check_retention(
    bootstrap_servers: str, *, prefix: str, security: Mapping[str, str], least_s: float, timeout_s: float = 5.0
) -> dict[str, float]:
    """Return for how many seconds the topics that a resume reads keep their records; those that are there.

    Raises:
        ValueError: If the broker cannot be reached, or a topic keeps them for `least_s` or less.
    """
    names = [topic_name(prefix, topic) for topic in RESUME_TOPICS]
    with _admin(bootstrap_servers, security, timeout_s) as admin, _clear_errors(bootstrap_servers):
        there = list(_partition_counts(admin, names))
        wanted = [ConfigResource(ConfigResourceType.TOPIC, name, ["retention.ms"]) for name in there]
        configs = admin.describe_configs(wanted, config_filter="all")["topic"] if wanted else {}
    kept_s: dict[str, float] = {}
    for name in there:
        kept_ms = int(configs[name]["retention.ms"]["value"])
        kept_s[name] = kept_ms / 1000.0 if kept_ms >= 0 else math.inf
        if kept_s[name] <= least_s:
            raise ValueError(
                f"topic {name} must have retention.ms > {least_s * 1000:.0f}, 2 x (wait_s + grace_s), got {kept_ms} on"
                " the broker: a ledger that resumes would miss events; change it there"
            )
    return kept_s


def _ssl_context(given: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=given.get("ca_file"))
        if "cert_file" in given:
            context.load_cert_chain(given["cert_file"], given.get("key_file"))
    except OSError as error:  # also what ssl raises for a file that is no certificate
        files = ", ".join(f"{key} {given[key]!r}" for key in ("ca_file", "cert_file", "key_file") if key in given)
        raise ValueError(f"[kafka.security] files must be readable PEM files, got {error} for {files}") from error
    return context


@contextmanager
def _admin(bootstrap_servers: str, security: Mapping[str, str], timeout_s: float) -> Iterator[KafkaAdminClient]:
    options = client_options(bootstrap_servers, security)
    deadline_s = time.monotonic() + timeout_s
    _connect(bootstrap_servers, timeout_s)
    nets: list[KafkaNetClient] = []

    def make_net(**config: Any) -> KafkaNetClient:
        nets.append(KafkaNetClient(**config))
        return nets[-1]

    wait_ms = int(1000 * max(1.0, deadline_s - time.monotonic()))
    with _collected_log("kafka") as lines:
        try:
            admin = KafkaAdminClient(**options, bootstrap_timeout_ms=wait_ms, kafka_client=make_net)
        except KafkaError as error:
            for net in nets:
                net.close()  # or its thread stays
            raise _unreachable(bootstrap_servers, lines[-1] if lines else str(error)) from error
    try:
        yield admin
    finally:
        admin.close()


@contextmanager
def _clear_errors(bootstrap_servers: str) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise ValueError(f"the broker at {bootstrap_servers} must allow topics to be made, got {error}") from error


def _connect(bootstrap_servers: str, timeout_s: float) -> None:
    """Open one TCP connection to any of the servers, all tried at once; looking up a name may not hang us either."""
    answers: queue.Queue[str | None] = queue.Queue()

    def try_one(host: str, port: int) -> None:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
            answers.put(None)
        except OSError as error:
            answers.put(f"{host}:{port} {error.strerror or error}")

    servers = [_host_port(server.strip()) for server in bootstrap_servers.split(",")]
    for host, port in servers:
        threading.Thread(target=try_one, args=(host, port), daemon=True).start()
    reasons: list[str] = []
    deadline_s = time.monotonic() + timeout_s
    while len(reasons) < len(servers):
        try:
            reason = answers.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            reasons.append(f"no answer within {timeout_s:g} s")
            break
        if reason is None:
            return
        reasons.append(reason)
    raise _unreachable(bootstrap_servers, "; ".join(reasons))


def _host_port(server: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]\s]+):(\d{1,5})", server)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError(f"[kafka] bootstrap_servers must be host:port, several with commas between, got {server!r}")
    return found[1].strip("[]"), int(found[2])


def _unreachable(bootstrap_servers: str, reason: str) -> ValueError:
    return ValueError(
        f"[kafka] bootstrap_servers must name a Kafka broker that answers, got {bootstrap_servers!r}: {reason};"
        " start it, correct the address or [kafka.security], or leave it empty for the embedded broker"
    )


@contextmanager
def _collected_log(name: str) -> Iterator[list[str]]:
    """Collect what a library logs about one attempt, instead of showing it: its exception holds no reason."""
    logger, handler = logging.getLogger(name), _Lines(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Lines(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _partition_counts(admin: KafkaAdminClient, names: list[str]) -> dict[str, int]:
    topics = admin.describe_topics(names) if names else []
    return {topic["name"]: len(topic["partitions"]) for topic in topics if topic["error_code"] != TOPIC_UNKNOWN}


def _creation(rule: Topic, n_partitions: int, retention_s: float | None) -> dict[str, Any]:
    configs = {
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": rule.cleanup,
        "max.message.bytes": str(rule.bytes_max),
    }
    if rule.cleanup == "delete" and retention_s is not None:
        configs["retention.ms"] = str(int(retention_s * 1000))
    return {"num_partitions": n_partitions, "configs": configs}


def _create(admin: KafkaAdminClient, missing: dict[str, dict[str, Any]]) -> list[str]:
    """Return those that were made; one that exists by now is not among them."""
    created: list[str] = []
    for answer in admin.create_topics(missing, raise_errors=False)["topics"]:
        if answer["error_code"] == 0:
            created.append(answer["name"])
        elif answer["error_code"] != TOPIC_EXISTS:
            raise ValueError(f"topic {answer['name']} must be made, got from the broker: {answer['error_message']}")
    return created


def _check_same(admin: KafkaAdminClient, name: str, n_partitions: int, n_wanted: int) -> None:
    if n_partitions != n_wanted:
        raise ValueError(
            f"[kafka] partitions is fixed per prefix: topic {name} must have {n_wanted}, got {n_partitions} on the"
            " broker; set it back or choose another [kafka] prefix"
        )
    resource = ConfigResource(ConfigResourceType.TOPIC, name, ["message.timestamp.type"])
    configs = admin.describe_configs([resource], config_filter="all")["topic"][name]
    kind = configs["message.timestamp.type"]["value"]
    if kind != "LogAppendTime":
        raise ValueError(
            f"topic {name} must have message.timestamp.type=LogAppendTime, got {kind} on the broker;"
            " change it there or choose another [kafka] prefix"
        )
