"""What a trainer says of each slide that it learns, without Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from infra.metrics import TrainMetrics
from infra.settings import Settings, parse_settings
from models.update import Learner
from stream.families import click_family
from stream.roles import Cluster
from stream.train_worker import TrainService
from tests.frames import FIELDS
from tests.models.learnt import slide

NO_CLUSTER = Cluster("", "test", 1, {}, {})


def settings_for(directory: Path, counts_max: int, values_max: int) -> Settings:
    names = ("name", "side", "kind", "of", "values_max")
    fields = [{name: getattr(field, name) for name in names} for field in FIELDS]
    return parse_settings(
        {
            "name": "test",
            "fields": fields,
            "priors": {"counts_max": counts_max},
            "model": {"values_max": values_max},
            "registry": {"url": str(directory)},
        }
    )


def learn(settings: Settings, n_slides: int) -> CollectorRegistry:
    """Return the metrics of a trainer that learnt some slides."""
    registry = CollectorRegistry()
    service = TrainService(settings, NO_CLUSTER, click_family(settings), TrainMetrics(registry))
    service._learner, service._newest, service._commands = Learner(click_family(settings).task), None, 0
    for index in range(1, n_slides + 1):
        service._learn_and_save(slide(index), {})
    return registry


def test_what_limits_take_is_counted_and_warned_of_once_a_slide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = learn(settings_for(tmp_path, counts_max=30, values_max=20), 2)
    warnings = [record.message for record in caplog.records if "_max" in record.message]
    assert len(warnings) == 2
    assert warnings[0].startswith("train: slide 1: [priors] counts_max = 30 took the counts of ")
    assert "raise it, or have less counted" in warnings[0]
    assert "; [model] values_max = 20 left " in warnings[0]
    assert "raise it, or admit fewer" in warnings[0]
    for limit, said in (("counts_max", "took the counts of "), ("values_max", "left ")):
        counted = registry.get_sample_value("freshrank_train_values_evicted_total", {"task": "click", "limit": limit})
        assert counted == sum(int(warning.partition(said)[2].split()[0]) for warning in warnings) > 0
    assert registry.get_sample_value("freshrank_train_values_count", {"task": "click", "what": "counted"}) == 30.0
    assert registry.get_sample_value("freshrank_train_values_count", {"task": "click", "what": "with_row"}) == 20.0


def test_a_trainer_within_its_limits_says_nothing_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = learn(settings_for(tmp_path, counts_max=100_000, values_max=100_000), 2)
    assert not [record.message for record in caplog.records if "_max" in record.message]
    for limit in ("counts_max", "values_max"):
        assert (
            registry.get_sample_value("freshrank_train_values_evicted_total", {"task": "click", "limit": limit}) == 0.0
        )
    assert (
        registry.get_sample_value("freshrank_train_values_count", {"task": "click", "what": "with_row"}) or 0.0
    ) > 20.0
