"""What a trainer says of each slide that it learns, without Kafka."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import polars as pl
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


def with_skew(monkeypatch: pytest.MonkeyPatch, directory: Path, pctr: float | None, *, is_broken: bool = False) -> Any:
    """Return the metrics of a trainer whose third slide says one probability of all rows, or none, and its digest."""
    settings, registry = settings_for(directory, counts_max=100_000, values_max=100_000), CollectorRegistry()
    family = click_family(settings)
    service = TrainService(settings, NO_CLUSTER, family, TrainMetrics(registry))
    service._learner, service._newest, service._commands = Learner(family.task), None, 0
    if is_broken:
        monkeypatch.setattr("models.skew.encode", None)
    for index in (1, 2, 3):
        one = slide(index)
        if index == 3 and pctr is not None:
            frame = one.frame.with_columns(
                snapshot=pl.lit(service._learner.latest.version),
                pctr=pl.lit(pctr),
                counts_s=pl.lit(None, pl.Float64()),
                request_s=pl.col("time_s"),
            )
            one = dataclasses.replace(one, frame=frame)
        service._learn_and_save(one, {})
        service._compare_served(one)
    return registry, service._learner.latest.digest


def test_what_was_served_is_compared_exported_and_changes_nothing_that_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry, digest = with_skew(monkeypatch, tmp_path, 0.75)
    value = registry.get_sample_value
    assert value("freshrank_train_skew_rows_total", {"outcome": "compared"}) == 1500.0
    assert value("freshrank_train_skew_ratio_count") == 1500.0
    assert 0.1 < value("freshrank_train_skew_mean_ratio") < value("freshrank_train_skew_max_ratio") < 1.0
    assert value("freshrank_train_skew_ratio_sum") == pytest.approx(1500.0 * value("freshrank_train_skew_mean_ratio"))
    assert not caplog.records
    silent, without = with_skew(monkeypatch, tmp_path, None)
    assert digest == without
    assert silent.get_sample_value("freshrank_train_skew_ratio_count") == 0.0

    registry, broken = with_skew(monkeypatch, tmp_path, 0.75, is_broken=True)
    assert broken == digest
    assert registry.get_sample_value("freshrank_train_skew_rows_total", {"outcome": "failed"}) == 1500.0
    assert math.isnan(registry.get_sample_value("freshrank_train_skew_max_ratio"))
    assert "train: slide 3: what was served could not be compared" in caplog.text
