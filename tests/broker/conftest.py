"""A real embedded broker for the whole session, and names that no other test uses."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import broker as embedded
from infra.broker import BrokerInfo
from stream.kafka import client_options


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerInfo]:
    """A running broker; its data is gone after the session."""
    data_dir: Path = tmp_path_factory.mktemp("broker")
    yield embedded.start(data_dir, owned=True, timeout_s=60.0)
    embedded.stop(data_dir)


@pytest.fixture
def topic_prefix() -> str:
    """A [kafka] prefix of the test's own: no topic of it exists yet."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def kafka_options(broker: BrokerInfo) -> dict[str, Any]:
    """What aiokafka's clients need to reach the session's broker."""
    return client_options(broker.bootstrap_servers, {})
