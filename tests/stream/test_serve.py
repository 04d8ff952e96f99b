"""The parts of the service before Kafka has said anything; with Kafka: tests/broker/test_serve.py."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from infra.metrics import ServeMetrics
from infra.settings import parse_settings
from models.serving.keys import hash_of
from stream.event_writer import EventWriter
from stream.serve import _Service, listening


def service(registry_dir: Path, clock: str, **serve: Any) -> _Service:
    settings = parse_settings(
        {
            "name": "test",
            "fields": [{"name": "ad", "side": "item"}],
            "kafka": {"clock": clock},
            "serve": serve,
            "registry": {"url": str(registry_dir)},
        }
    )
    metrics = ServeMetrics(CollectorRegistry())
    return _Service(settings, EventWriter(None, "test.events", 4, metrics), metrics)


def test_it_is_not_ready_before_every_topic_was_read_to_its_end(tmp_path: Path) -> None:
    found = service(tmp_path, "live").readiness()
    assert (found.ready, found.snapshot) == (False, None)
    assert found.missing == ["catalog", "prior-updates", "snapshots", "snapshot"]


def test_events_happen_at_the_clocks_time_when_the_log_is_live(tmp_path: Path) -> None:
    assert abs(service(tmp_path, "live").now_s() - time.time()) < 5.0


def test_in_a_replay_time_begins_at_zero_and_is_the_counts_own(tmp_path: Path) -> None:
    assert service(tmp_path, "replay").now_s() == 0.0


async def test_keys_and_limits_of_the_settings_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLERS", hash_of("a key").hex())
    app = service(tmp_path, "live", api_keys_env="CALLERS", candidates_max=7, events_max=3, body_bytes_max=99).app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        assert (await client.get("/openapi.json")).status_code == 401
        client.headers["authorization"] = "Bearer a key"
        document = (await client.get("/openapi.json")).text
        for limit in ('"maxItems":7', '"maxItems":3', "at most 99 bytes"):
            assert limit in document
        assert (await client.post("/v1/rank", content=b" " * 100)).status_code == 413


def test_an_answers_body_does_not_wait_for_the_acknowledgement_of_its_header() -> None:
    with listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
