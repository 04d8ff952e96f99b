"""Metric names follow one form, and label values come from closed lists."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

from infra.metrics import EVENT_OUTCOMES, EVENT_TYPES, ServeMetrics, expose

UNITS = ("seconds", "count", "total")


def test_every_name_is_freshrank_noun_unit() -> None:
    registry = CollectorRegistry()
    ServeMetrics(registry)
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


def test_two_groups_do_not_add_up() -> None:
    one, other = ServeMetrics(CollectorRegistry()), ServeMetrics(CollectorRegistry())
    one.snapshots.labels("swapped").inc()
    assert 'freshrank_snapshot_swaps_total{outcome="swapped"} 1.0' in expose(one.registry)[0].decode()
    assert 'freshrank_snapshot_swaps_total{outcome="swapped"} 0.0' in expose(other.registry)[0].decode()
