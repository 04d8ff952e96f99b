"""Every Prometheus metric of freshrank, by the process that exports it.

Owns names, help texts and the closed lists of label values. Must not know when something is worth counting.

Invariants: a name is `freshrank_<noun>_<unit>` in base units, `_total` on counters; no label value is an id; each
group belongs to one registry, so that two services in one process do not add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ROUTES = ("rank", "events", "healthz", "readyz", "metrics", "other")
EVENT_TYPES = ("request", "impression", "click")
EVENT_OUTCOMES = ("written", "refused", "unavailable")
SNAPSHOT_OUTCOMES = ("swapped", "refused", "unreachable")
RECORD_OUTCOMES = ("applied", "refused")
FOLLOWED = ("snapshots", "catalog", "prior-updates")

# From a fifth of a millisecond to where nobody waits any more.
LATENCY_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CANDIDATE_BUCKETS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class ServeMetrics:
    """What the ranking service exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the group."""
        self.registry = registry
        self.answers = Counter("freshrank_answers_total", "HTTP answers", ["route", "status"], registry=registry)
        self.rank_latency_s = Histogram(
            "freshrank_rank_latency_seconds",
            "From a request read to its answer ready, by stage",
            ["stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.candidates = Histogram(
            "freshrank_rank_candidates_count",
            "Candidates per ranking request",
            buckets=CANDIDATE_BUCKETS,
            registry=registry,
        )
        self.events = Counter(
            "freshrank_served_events_total",
            "Events on their way into the log, and what became of them",
            ["type", "outcome"],
            registry=registry,
        )
        self.snapshots = Counter(
            "freshrank_snapshot_swaps_total", "Snapshots brought in or not", ["outcome"], registry=registry
        )
        self.snapshot_slide = Gauge(
            "freshrank_snapshot_slide_count",
            "Number of the last slide that the serving snapshot saw",
            registry=registry,
        )
        self.swapped_at_s = Gauge(
            "freshrank_snapshot_swap_timestamp_seconds", "When the serving snapshot was swapped in", registry=registry
        )
        self.counts_as_of_s = Gauge(
            "freshrank_prior_counts_timestamp_seconds", "Event time of the counts in use", registry=registry
        )
        self.prior_values = Gauge("freshrank_prior_values_count", "Values with counts in use", registry=registry)
        self.catalog_ads = Gauge("freshrank_catalog_ads_count", "Active ads held in memory", registry=registry)
        self.records = Counter(
            "freshrank_followed_records_total",
            "Records read from followed topics",
            ["topic", "outcome"],
            registry=registry,
        )
        self.failures = Counter(
            "freshrank_follow_failures_total",
            "Times that following a topic was interrupted",
            ["topic"],
            registry=registry,
        )
        _preset(self.events, EVENT_TYPES, EVENT_OUTCOMES)
        _preset(self.snapshots, SNAPSHOT_OUTCOMES)
        _preset(self.records, FOLLOWED, RECORD_OUTCOMES)
        _preset(self.failures, FOLLOWED)


def expose(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return the metrics of a registry as Prometheus reads them, and the content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _preset(counter: Counter, *labels: Iterable[str]) -> None:
    """Export every label combination as 0 from the start: an alert on an increase needs the zero before it."""
    for combination in itertools.product(*labels):
        counter.labels(*combination)
