"""Topics and client options against a real broker, and against none."""

import asyncio
import functools
import gc
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from infra.broker import BrokerInfo
from stream.kafka import (
    TOPICS,
    check_broker,
    check_retention,
    client_options,
    create_topics,
    murmur2_partition,
    topic_name,
)

ANSWER_S = 8.0  # a bound for errors that must come within seconds


@pytest.fixture
def admin(broker: BrokerInfo) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    yield client
    client.close()


@pytest.fixture
def leaks_collected() -> Iterator[None]:
    """Collect here the sockets that kafka-python leaves to the garbage collector when a connection fails."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("kafka-io"):
            thread.join(5.0)
    gc.collect()


def create(broker: BrokerInfo, prefix: str, partitions: int) -> list[str]:
    return create_topics(broker.bootstrap_servers, prefix=prefix, partitions=partitions, security={})


def test_topics_are_made_once_with_their_partitions_and_rules(
    broker: BrokerInfo, admin: KafkaAdminClient, topic_prefix: str
) -> None:
    names = {topic_name(topic_prefix, topic): rule for topic, rule in TOPICS.items()}
    assert sorted(create(broker, topic_prefix, 3)) == sorted(names)
    assert create(broker, topic_prefix, 3) == []
    counts = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(names))}
    assert counts == {name: 3 if rule.is_partitioned else 1 for name, rule in names.items()}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    for name, rule in names.items():
        assert configs[name]["message.timestamp.type"]["value"] == "LogAppendTime"
        assert configs[name]["cleanup.policy"]["value"] == rule.cleanup
        assert configs[name]["max.message.bytes"]["value"] == str(rule.bytes_max)


def test_the_partition_count_of_a_prefix_is_fixed(broker: BrokerInfo, topic_prefix: str) -> None:
    create(broker, topic_prefix, 2)
    with pytest.raises(ValueError, match=rf"topic {topic_prefix}\.\S+ must have 4, got 2 on the broker"):
        create(broker, topic_prefix, 4)


def test_a_topic_without_append_time_is_refused(broker: BrokerInfo, admin: KafkaAdminClient, topic_prefix: str) -> None:
    configs = {"message.timestamp.type": "CreateTime"}
    admin.create_topics({f"{topic_prefix}.events": {"num_partitions": 2, "configs": configs}}, wait_for_metadata=True)
    with pytest.raises(ValueError, match=r"must have message\.timestamp\.type=LogAppendTime, got CreateTime"):
        create(broker, topic_prefix, 2)


def test_zero_partitions_are_refused(broker: BrokerInfo, topic_prefix: str) -> None:
    with pytest.raises(ValueError, match=r"\[kafka\] partitions must be >= 1, got 0"):
        create(broker, topic_prefix, 0)


@pytest.mark.parametrize("prefix", ["", "a b", "ü", "x" * 240])
def test_a_prefix_that_kafka_refuses_is_refused_before(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"\[kafka\] prefix must be letters"):
        topic_name(prefix, "dead-letters")


async def test_a_block_of_8_mb_fits_and_the_client_lands_where_the_partitioner_says(
    broker: BrokerInfo, topic_prefix: str, kafka_options: dict[str, Any]
) -> None:
    create(broker, topic_prefix, 5)
    async with AIOKafkaProducer(**kafka_options, max_request_size=9_000_000) as producer:
        await producer.send_and_wait(topic_name(topic_prefix, "examples"), b"b" * 8_000_000)
        keys = [b"request-%d" % number for number in range(40)]
        events = topic_name(topic_prefix, "events")
        sent = await asyncio.gather(*[await producer.send(events, b"{}", key=key) for key in keys])
    assert [metadata.partition for metadata in sent] == [murmur2_partition(key, 5) for key in keys]


def test_an_address_without_a_broker_is_an_error_within_seconds() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: refused
        address = f"127.0.0.1:{free.getsockname()[1]}"
        begun_s = time.monotonic()
        with pytest.raises(ValueError, match=rf"\[kafka\] bootstrap_servers must .* got '{address}': .*refused"):
            check_broker(address, security={})
    assert time.monotonic() - begun_s < ANSWER_S


@pytest.mark.usefixtures("leaks_collected")
@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
def test_an_address_where_something_else_listens_is_an_error_within_seconds() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        begun_s = time.monotonic()
        with pytest.raises(
            ValueError, match=rf"bootstrap_servers must name a Kafka broker that answers, got '{address}'"
        ):
            create_topics(address, prefix="p", partitions=1, security={}, timeout_s=1.0)
    assert time.monotonic() - begun_s < ANSWER_S


@pytest.mark.usefixtures("leaks_collected")
@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
def test_tls_against_a_plain_listener_is_an_error_within_seconds(broker: BrokerInfo) -> None:
    with pytest.raises(ValueError, match="bootstrap_servers must name a Kafka broker that answers"):
        check_broker(broker.bootstrap_servers, security={"protocol": "SSL"}, timeout_s=1.0)


@pytest.mark.usefixtures("leaks_collected")
@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
def test_one_of_several_addresses_is_enough(broker: BrokerInfo) -> None:
    check_broker(f"127.0.0.1:1,{broker.bootstrap_servers}", security={})


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:99999", "a b:1", "kafka://x:1"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    with pytest.raises(ValueError, match=r"\[kafka\] bootstrap_servers must be host:port"):
        check_broker(address, security={})


def test_options_pass_sasl_and_tls_through() -> None:
    security = {"protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"}
    options = client_options("a:1,b:2", security)
    context = options.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert options == {
        "bootstrap_servers": "a:1,b:2",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }


@pytest.mark.parametrize(
    ("security", "message"),
    [
        ({"protcol": "SSL"}, "takes .*, got protcol"),
        ({"protocol": "TLS"}, "protocol must be one of PLAINTEXT, .* got 'TLS'"),
        ({"protocol": "SASL_SSL"}, "sasl_mechanism must be one of PLAIN, .* with protocol SASL_SSL, got ''"),
        ({"protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}, "sasl_username must be given"),
        ({"protocol": "SSL", "ca_file": "/none.pem"}, "files must be readable PEM files, got .* ca_file '/none.pem'"),
    ],
)
def test_security_that_cannot_work_is_said(security: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=r"\[kafka\.security\] " + message):
        client_options("a:1", security)


def test_topic_that_forgets_before_a_resume_is_done_is_refused(broker: BrokerInfo, topic_prefix: str) -> None:
    check = functools.partial(check_retention, broker.bootstrap_servers, prefix=topic_prefix, security={})
    assert check(least_s=240.0) == {}
    create_topics(broker.bootstrap_servers, prefix=topic_prefix, partitions=1, security={}, retention_s=300.0)
    assert set(check(least_s=240.0).values()) == {300.0}
    with pytest.raises(ValueError, match=r"must have retention.ms > 300000, 2 x \(wait_s \+ grace_s\), got 300000"):
        check(least_s=300.0)
