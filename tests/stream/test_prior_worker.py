"""What the live priors export of what they publish, without Kafka."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from infra.metrics import PriorMetrics
from infra.settings import parse_settings
from stream.prior_worker import PriorService
from stream.roles import Cluster
from tests.fakes import Producer
from tests.frames import world

FRAME = world(200)


async def test_values_that_the_limit_takes_are_counted_once() -> None:
    settings = parse_settings(
        {
            "name": "test",
            "fields": [{"name": "user_id", "side": "user"}, {"name": "ad_id", "side": "item"}],
            "priors": {"counts_max": 5},
        }
    )
    registry = CollectorRegistry()
    service = PriorService(settings, Cluster("", "test", 1, {}, {}), PriorMetrics(registry), shard=(0, 1))
    producer = service._producer = Producer()
    service._priors.count(FRAME)
    await service._publish()
    assert producer.sent
    n_values = sum(FRAME[f"field.{name}"].n_unique() for name in ("user_id", "ad_id"))
    for _ in range(2):
        assert registry.get_sample_value("freshrank_prior_table_values_evicted_total") == n_values - 5
        assert registry.get_sample_value("freshrank_prior_table_values_count") == 5.0
        await service._publish()
