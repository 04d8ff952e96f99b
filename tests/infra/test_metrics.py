"""Metric names follow one form, and label values come from closed lists."""

from __future__ import annotations

import math
import re
import socket
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from infra.metrics import (
    BRIDGE_OUTCOMES,
    BRIDGE_TOPICS,
    DECISIONS,
    DRIFT_DETECTORS,
    EVENT_OUTCOMES,
    EVENT_TYPES,
    BridgeMetrics,
    LedgerMetrics,
    PriorMetrics,
    ServeMetrics,
    TrainMetrics,
    expose,
    serve_metrics,
)
from models.drift import DETECTORS
from models.gate import Decision
from stream.blocks import Counts

UNITS = ("seconds", "count", "bytes", "total", "nats", "ratio")
LEDGER = {**dict.fromkeys(Counts.__struct_fields__, 1.0), "impressions_law": 0.0, "clicks_law": 0.0}
LEDGER |= {"records_law": 0.0, "requests_known": 5.0, "bytes_known": 7.0, "watermark_s": 90.0, "horizon_s": 91.0}


def test_every_name_is_freshrank_noun_unit() -> None:
    registry = CollectorRegistry()
    ServeMetrics(registry)
    PriorMetrics(registry)
    TrainMetrics(registry)
    BridgeMetrics(registry)
    LedgerMetrics(registry, lambda: {0: LEDGER})
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.fullmatch(rf"freshrank(_[a-z]+)+_({'|'.join(UNITS)})", name), name
        assert family.documentation


def test_counters_with_closed_labels_start_at_zero() -> None:
    metrics = ServeMetrics(CollectorRegistry())
    exported = expose(metrics.registry)[0].decode()
    for kind in EVENT_TYPES:
        for outcome in EVENT_OUTCOMES:
            assert f'freshrank_served_events_total{{outcome="{outcome}",type="{kind}"}} 0.0' in exported


def test_the_bridge_shows_every_outcome_of_both_topics_before_there_is_one() -> None:
    registry = CollectorRegistry()
    BridgeMetrics(registry)
    for topic in BRIDGE_TOPICS:
        for outcome in BRIDGE_OUTCOMES:
            labels = {"topic": topic, "outcome": outcome}
            assert registry.get_sample_value("freshrank_bridge_records_total", labels) == 0.0
        for name in ("watermark_timestamp_seconds", "ahead_seconds", "paused_count"):
            assert registry.get_sample_value(f"freshrank_bridge_{name}", {"topic": topic}) == 0.0


def test_two_groups_do_not_add_up() -> None:
    one, other = ServeMetrics(CollectorRegistry()), ServeMetrics(CollectorRegistry())
    one.snapshots.labels("click", "swapped").inc()
    assert 'freshrank_snapshot_swaps_total{outcome="swapped",task="click"} 1.0' in expose(one.registry)[0].decode()
    assert 'freshrank_snapshot_swaps_total{outcome="swapped",task="click"} 0.0' in expose(other.registry)[0].decode()


def test_ledger_says_what_its_partitions_hold_when_it_is_asked() -> None:
    registry = CollectorRegistry()
    states = {0: LEDGER, 3: LEDGER | {"pending": 12.0}}
    LedgerMetrics(registry, lambda: states)
    exported = expose(registry)[0].decode()
    assert 'freshrank_ledger_waiting_count{partition="3",what="pending"} 12.0' in exported
    assert 'freshrank_ledger_records_total{outcome="dead_letters",partition="0"} 1.0' in exported
    assert 'freshrank_ledger_clock_timestamp_seconds{clock="horizon_s",partition="0"} 91.0' in exported
    assert 'freshrank_ledger_violations_count{law="impressions",partition="0"} 0.0' in exported
    states.pop(3)
    assert 'partition="3"' not in expose(registry)[0].decode()


def test_port_that_is_taken_is_an_error_that_says_so() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--metrics-port must be a free port, got {port}"):
            serve_metrics(CollectorRegistry(), port)


def test_a_trainer_exports_figures_decisions_and_drift() -> None:
    registry = CollectorRegistry()
    metrics = TrainMetrics(registry)
    figures = {"rows": 100, "logloss": 0.4, "auc": None, "calibration": 1.1}
    for decision, drift in (("hold", ()), ("promote", ("adwin",))):
        metrics.learnt(
            "click",
            {"champion": figures, "latest": figures},
            decision=decision,
            drift=drift,
            left_out=30,
            values={"counted": 50, "with_row": 20},
            evicted={"counts_max": 4, "values_max": 0},
            start_s=3600.0,
            end_s=7200.0,
            learn_s=0.5,
        )
    value = registry.get_sample_value
    assert value("freshrank_train_logloss_nats", {"task": "click", "model": "champion"}) == 0.4
    assert math.isnan(value("freshrank_train_auc_ratio", {"task": "click", "model": "latest"}) or 0.0)
    assert value("freshrank_train_rows_total", {"task": "click"}) == 200.0
    assert value("freshrank_train_rows_left_out_total", {"task": "click"}) == 60.0
    assert value("freshrank_train_values_count", {"task": "click", "what": "counted"}) == 50.0
    assert value("freshrank_train_values_count", {"task": "click", "what": "with_row"}) == 20.0
    assert value("freshrank_train_values_evicted_total", {"task": "click", "limit": "counts_max"}) == 8.0
    assert value("freshrank_train_values_evicted_total", {"task": "click", "limit": "values_max"}) == 0.0
    assert value("freshrank_train_load_ratio", {"task": "click"}) == 0.5 / 3600.0
    assert value("freshrank_gate_decisions_total", {"task": "click", "decision": "promote"}) == 1.0
    assert value("freshrank_gate_decisions_total", {"task": "click", "decision": "rollback"}) == 0.0
    assert value("freshrank_drift_alarms_total", {"task": "click", "detector": "adwin"}) == 1.0
    assert value("freshrank_train_slide_end_timestamp_seconds", {"task": "click"}) == 7200.0
    assert (DETECTORS, get_args(Decision)) == (DRIFT_DETECTORS, DECISIONS)
