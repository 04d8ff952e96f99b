"""Every Prometheus metric of freshrank, by the process that exports it.

Owns names, help texts and the closed lists of label values. Must not know when something is worth counting.

Invariants: a name is `freshrank_<noun>_<unit>` in base units, `_total` on counters; no label value is an id; each
group belongs to one registry, so that two services in one process do not add up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

ROUTES = ("rank", "explain", "events", "healthz", "readyz", "metrics", "openapi", "other")
# A ranking request was let in, refused because the queue was full, or dropped because it had waited too long.
ADMISSIONS = ("admitted", "full", "stale")
EVENT_TYPES = ("request", "impression", "click")
EVENT_OUTCOMES = ("written", "refused", "unavailable")
SNAPSHOT_OUTCOMES = ("swapped", "refused", "unreachable")
RECORD_OUTCOMES = ("applied", "refused")
FOLLOWED = ("snapshots", "catalog", "prior-updates")
ROW_KINDS = ("clicked", "expired_negative", "late_corrected")
# What a partition's ledger says of itself: metric, help, and per label value the key of its states.
LEDGER_COUNTERS = {
    "freshrank_ledger_records": (
        "Records of events, by what they were",
        "outcome",
        ("requests", "impressions", "clicks", "ticks", "duplicates", "dead_letters"),
    ),
    "freshrank_ledger_rows": ("Rows written, by kind", "kind", ("clicked", "expired_negative", "corrected")),
    "freshrank_ledger_clicks": ("Clicks, by what became of them", "outcome", ("matched", "repeated", "late", "orphan")),
    "freshrank_ledger_early": (
        "What a limit took before its time: rows, requests, candidates",
        "what",
        ("expired_early", "forgotten_early", "candidates_cut"),
    ),
}
LEDGER_GAUGES = {
    "freshrank_ledger_waiting_count": ("Pending impressions and held clicks", "what", ("pending", "held")),
    "freshrank_ledger_known_count": ("Requests that are not forgotten", "what", ("requests_known",)),
    "freshrank_ledger_known_bytes": ("Bytes of their records", "what", ("bytes_known",)),
    "freshrank_ledger_clock_timestamp_seconds": (
        "Event time that is settled (watermark) and forgotten (horizon)",
        "clock",
        ("watermark_s", "horizon_s"),
    ),
    "freshrank_ledger_violations_count": (
        "By how much a conservation law is broken; anything but 0 is a fault",
        "law",
        ("impressions_law", "clicks_law", "records_law"),
    ),
}
PUSH_OUTCOMES = ("pushed", "older", "dropped", "failed")

# From a fifth of a millisecond to where nobody waits any more.
LATENCY_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# From what a publication takes to far beyond the time that a click is waited for.
DELAY_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
CANDIDATE_BUCKETS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


TRAIN_FIGURES = {
    "logloss_nats": "Log loss on the newest slide before it was learnt, nats per row",
    "auc_ratio": "AUC on the newest slide; NaN with one class alone",
    "calibration_ratio": "Mean prediction over click rate on the newest slide; NaN without clicks",
}
DEGRADED = ("users", "prerank", "rank", "creatives")
USER_READS = ("found", "missing", "too_old", "slow", "away")
TASKS = ("click", "prerank", "creatives")
FOLLOWED_MODELS = ("click", "latest", "prerank", "creatives")  # `latest`: the newest click model, beside the champion
ARMS = ("champion", "latest", "fallback")
TRAIN_VALUES = ("counted", "with_row")
# What was served was recomputed, or not: there was more than is looked at, its snapshot or its counts could not be had
# any more, or the recomputation failed.
SKEW_OUTCOMES = ("compared", "limit", "snapshot", "counts", "failed")
SKEW_BUCKETS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
VALUE_LIMITS = ("counts_max", "values_max")
DECISIONS = ("warmup", "promote", "hold", "reject", "rollback")
DRIFT_DETECTORS = ("adwin", "page_hinkley")
BRIDGE_TOPICS = ("impressions", "clicks")
# What became of a record: its events were written, or a dead letter with one of these rules (docs/events.md).
BRIDGE_OUTCOMES = (
    "written",
    "bad_id",
    "bad_position",
    "bad_propensity",
    "bad_time",
    "bad_value",
    "bridge_path",
    "empty",
    "future",
    "not_json",
    "not_utf8",
    "too_big",
    "too_deep",
)


class ServeMetrics:
    """What the ranking service exports."""

    def __init__(self, registry: CollectorRegistry, *, is_shared: bool = False) -> None:
        """Register the group.

        Args:
            registry: Where.
            is_shared: Several processes share their figures (prometheus_client's multiprocess mode): whichever is asked
                exports counts and durations of all together, those of the dead included. Of the gauges it is the sum
                of what waits, and of the others the least of the living, because an alert is about the one behind.
        """
        self.registry = registry
        self._is_shared = is_shared
        self._register_requests(registry)
        self._register_followed(registry)

    def exported(self) -> CollectorRegistry:
        """Return what Prometheus is to read."""
        if not self._is_shared:
            return self.registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # theirs
        return registry

    def _register_requests(self, registry: CollectorRegistry) -> None:
        self.answers = Counter("freshrank_answers_total", "HTTP answers", ["route", "status"], registry=registry)
        self.rank_latency_s = Histogram(
            "freshrank_rank_latency_seconds",
            "From a request read to its answer ready, by stage",
            ["stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.admissions = Counter(
            "freshrank_rank_admissions_total",
            "Ranking requests by what the queue made of them",
            ["outcome"],
            registry=registry,
        )
        self.queued = Gauge(
            "freshrank_rank_queue_count",
            "Ranking requests that wait for their turn",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.candidates = Histogram(
            "freshrank_rank_candidates_count",
            "Candidates per ranking request",
            buckets=CANDIDATE_BUCKETS,
            registry=registry,
        )
        self.degraded = Counter(
            "freshrank_rank_degraded_total",
            "Answers without a part of the ranking, left out to answer in time",
            ["part"],
            registry=registry,
        )
        self.user_reads = Counter(
            "freshrank_user_reads_total",
            "Reads of a request's user from the feature store by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.arms = Counter(
            "freshrank_split_requests_total",
            "Ranking requests of an experiment by the arm that answered them",
            ["arm"],
            registry=registry,
        )
        _preset(self.arms, ARMS)
        _preset(self.degraded, DEGRADED)
        _preset(self.user_reads, USER_READS)
        self.events = Counter(
            "freshrank_served_events_total",
            "Events on their way into the log, and what became of them",
            ["type", "outcome"],
            registry=registry,
        )
        _preset(self.admissions, ADMISSIONS)
        _preset(self.events, EVENT_TYPES, EVENT_OUTCOMES)

    def _register_followed(self, registry: CollectorRegistry) -> None:
        self.snapshots = Counter(
            "freshrank_snapshot_swaps_total", "Snapshots brought in or not", ["task", "outcome"], registry=registry
        )
        self.snapshot_slide = Gauge(
            "freshrank_snapshot_slide_count",
            "Number of the last slide that the serving snapshot saw",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.swapped_at_s = Gauge(
            "freshrank_snapshot_swap_timestamp_seconds",
            "When the serving snapshot was swapped in",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.counts_as_of_s = Gauge(
            "freshrank_prior_counts_timestamp_seconds",
            "Event time of the counts in use",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.counts_delay_s = Histogram(
            "freshrank_prior_counts_delay_seconds",
            "Until counts are under the scores: since they were published, and (live clock) since the newest label in"
            " them settled",
            ["since"],
            buckets=DELAY_BUCKETS_S,
            registry=registry,
        )
        self.prior_values = Gauge(
            "freshrank_prior_values_count",
            "Values with counts in use",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.prior_evicted = Counter(
            "freshrank_prior_values_evicted_total",
            "Values whose published counts were dropped because of [priors] counts_max",
            registry=registry,
        )
        self.catalog_ads = Gauge(
            "freshrank_catalog_ads_count", "Active ads held in memory", registry=registry, multiprocess_mode="livemin"
        )
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
        _preset(self.snapshots, FOLLOWED_MODELS, SNAPSHOT_OUTCOMES)
        _preset(self.records, FOLLOWED, RECORD_OUTCOMES)
        _preset(self.failures, FOLLOWED)


class PriorMetrics:
    """What the live priors export."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the group."""
        self.registry = registry
        self.rows = Counter("freshrank_prior_rows_total", "Rows counted, by kind", ["kind"], registry=registry)
        self.newest_s = Gauge(
            "freshrank_prior_newest_timestamp_seconds",
            "Event time at which the newest example counted had settled",
            registry=registry,
        )
        self.values = Gauge("freshrank_prior_table_values_count", "Values with counts", registry=registry)
        self.evicted = Counter(
            "freshrank_prior_table_values_evicted_total",
            "Values that lost their counts because of [priors] counts_max",
            registry=registry,
        )
        self.published = Counter(
            "freshrank_prior_values_published_total", "Values whose counts were published", registry=registry
        )
        self.publish_lag_s = Histogram(
            "freshrank_prior_publish_lag_seconds",
            "From the append of the oldest examples not yet published until their counts are in prior-updates",
            buckets=DELAY_BUCKETS_S,
            registry=registry,
        )
        self.pushed = Counter(
            "freshrank_store_users_total",
            "Users on their way into the store: pushed, older than what it holds, dropped (too many wait), failed",
            ["outcome"],
            registry=registry,
        )
        self.push_s = Histogram(
            "freshrank_store_push_seconds",
            "How long a batch of users takes into the store",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        _preset(self.rows, ROW_KINDS)
        _preset(self.pushed, PUSH_OUTCOMES)


class TrainMetrics:
    """What a trainer exports: how good what serves and what learns were on the newest slide, and what was decided."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the group."""
        self._figures = {
            name: Gauge(f"freshrank_train_{name}", text, ["task", "model"], registry=registry)
            for name, text in TRAIN_FIGURES.items()
        }
        self._rows = Counter("freshrank_train_rows_total", "Rows scored and then learnt", ["task"], registry=registry)
        self._left_out = Counter(
            "freshrank_train_rows_left_out_total",
            "Rows beyond rows_max ([update], [prerank]): counted in the priors, not scored or learnt",
            ["task"],
            registry=registry,
        )
        self._values = Gauge(
            "freshrank_train_values_count",
            "Values after the newest slide: with counts, with an embedding row",
            ["task", "what"],
            registry=registry,
        )
        self._evicted = Counter(
            "freshrank_train_values_evicted_total",
            "Values that a limit took, slide by slide: their counts ([priors] counts_max), or the embedding row that"
            " their evidence asks for ([model] values_max)",
            ["task", "limit"],
            registry=registry,
        )
        self._load = Gauge(
            "freshrank_train_load_ratio",
            "Wall time of the newest slide's learning over its length in event time: above 1 a live log is not kept up",
            ["task"],
            registry=registry,
        )
        self._decisions = Counter(
            "freshrank_gate_decisions_total", "Slides by what the gate decided", ["task", "decision"], registry=registry
        )
        self._drift = Counter(
            "freshrank_drift_alarms_total",
            "Slides in which a drift detector raised an alarm",
            ["task", "detector"],
            registry=registry,
        )
        self._slide_end_s = Gauge(
            "freshrank_train_slide_end_timestamp_seconds",
            "Event time up to which it has learnt",
            ["task"],
            registry=registry,
        )
        self._learn_s = Histogram(
            "freshrank_train_slide_seconds",
            "Wall time of scoring and learning one slide",
            ["task"],
            buckets=DELAY_BUCKETS_S,
            registry=registry,
        )
        self._register_skew(registry)
        _preset(self._values, TASKS, TRAIN_VALUES)
        _preset(self._evicted, TASKS, VALUE_LIMITS)
        _preset(self._decisions, TASKS, DECISIONS)
        _preset(self._drift, TASKS, DRIFT_DETECTORS)

    def _register_skew(self, registry: CollectorRegistry) -> None:
        self._skew = Histogram(
            "freshrank_train_skew_ratio",
            "Training/serving skew: click probability as it was served minus as the trainer recomputes it, absolute",
            buckets=SKEW_BUCKETS,
            registry=registry,
        )
        self._skew_max = Gauge(
            "freshrank_train_skew_max_ratio",
            "The largest such difference of the newest slide; NaN where none was found",
            registry=registry,
        )
        self._skew_mean = Gauge(
            "freshrank_train_skew_mean_ratio",
            "The mean of the newest slide's; NaN where none was found",
            registry=registry,
        )
        self._skew_rows = Counter(
            "freshrank_train_skew_rows_total",
            "Rows that say what they were served with: compared, or why not",
            ["outcome"],
            registry=registry,
        )
        _preset(self._skew_rows, SKEW_OUTCOMES)

    def compared(self, differences: Sequence[float], left_out: Mapping[str, int]) -> None:
        """Note what was served in one slide and what the trainer says of it.

        Args:
            differences: Absolute, of the rows that were compared.
            left_out: How many others there are, by `SKEW_OUTCOMES`.
        """
        for difference in differences:
            self._skew.observe(difference)
        n_rows = len(differences)
        self._skew_max.set(max(differences, default=math.nan))
        self._skew_mean.set(math.fsum(differences) / n_rows if n_rows else math.nan)
        self._skew_rows.labels("compared").inc(n_rows)
        for outcome, count in left_out.items():
            self._skew_rows.labels(outcome).inc(count)

    def learnt(  # the figures of one slide
        self,
        task: str,
        evaluation: Mapping[str, Mapping[str, float | None]],
        *,
        decision: str,
        drift: Iterable[str],
        left_out: int,
        values: Mapping[str, int],
        evicted: Mapping[str, int],
        start_s: float,
        end_s: float,
        learn_s: float,
    ) -> None:
        """Note one slide.

        Args:
            task: What was learnt, of `TASKS`.
            evaluation: The figures by model (`champion`, `latest`).
            decision: What was decided.
            drift: Detectors that raised an alarm.
            left_out: Rows beyond what is learnt of a slide.
            values: How many there are, by `TRAIN_VALUES`.
            evicted: How many a limit took, by `VALUE_LIMITS`.
            start_s: Where the slide begins.
            end_s: Where it ends.
            learn_s: Wall time that it took.
        """
        for model, figures in evaluation.items():
            for name, gauge in self._figures.items():
                value = figures.get(name.rpartition("_")[0])
                gauge.labels(task, model).set(math.nan if value is None else value)
        self._rows.labels(task).inc(evaluation["latest"]["rows"] or 0)
        self._decisions.labels(task, decision).inc()
        for detector in drift:
            self._drift.labels(task, detector).inc()
        self._left_out.labels(task).inc(left_out)
        for what, count in values.items():
            self._values.labels(task, what).set(count)
        for limit, count in evicted.items():
            self._evicted.labels(task, limit).inc(count)
        self._load.labels(task).set(learn_s / (end_s - start_s) if end_s > start_s else math.nan)
        self._slide_end_s.labels(task).set(end_s)
        self._learn_s.labels(task).observe(learn_s)


class BridgeMetrics:
    """What the bridge exports; counts are of what is committed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the group."""
        self.records = Counter(
            "freshrank_bridge_records_total",
            "Records of a topic of the user's own: written as events, or a dead letter by its rule",
            ["topic", "outcome"],
            registry=registry,
        )
        self.events = Counter("freshrank_bridge_events_total", "Events written, ticks aside", registry=registry)
        self.ticks = Counter(
            "freshrank_bridge_ticks_total", "Ticks, each of them to every partition", registry=registry
        )
        self.watermark_s = Gauge(
            "freshrank_bridge_watermark_timestamp_seconds",
            "Event time up to which a topic is read: the least over its partitions that are not idle",
            ["topic"],
            registry=registry,
        )
        self.ahead_s = Gauge(
            "freshrank_bridge_ahead_seconds",
            "By how much event time a topic's next record is ahead of the partition that it waits for; 0 if none"
            " waits, infinite while nothing is known of that partition",
            ["topic"],
            registry=registry,
        )
        self.paused = Gauge(
            "freshrank_bridge_paused_count",
            "Partitions that are not read now, because enough of their records wait",
            ["topic"],
            registry=registry,
        )
        _preset(self.records, BRIDGE_TOPICS, BRIDGE_OUTCOMES)
        for gauge in (self.watermark_s, self.ahead_s, self.paused):
            _preset(gauge, BRIDGE_TOPICS)


class LedgerMetrics(Collector):
    """What a ledger worker exports: the cumulative counts of its partitions, read when Prometheus asks."""

    def __init__(self, registry: CollectorRegistry, states: Callable[[], Mapping[int, Mapping[str, float]]]) -> None:
        """Register the group; `states` gives each owned partition's numbers by the keys of the tables above."""
        self._states = states
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield all families as they stand."""
        states = self._states()
        families: list[tuple[dict[str, tuple[str, str, tuple[str, ...]]], type[Metric]]] = [
            (LEDGER_COUNTERS, CounterMetricFamily),
            (LEDGER_GAUGES, GaugeMetricFamily),
        ]
        for table, kind in families:
            for name, (text, label, keys) in table.items():
                family = kind(name, text, labels=["partition", label])  # type: ignore[call-arg]  # both take labels
                for partition, state in states.items():
                    for key in keys:
                        family.add_metric([str(partition), key.removesuffix("_law")], state[key])  # type: ignore[attr-defined]
                yield family


def serve_metrics(registry: CollectorRegistry, port: int) -> None:
    """Answer Prometheus on a port of all addresses, from a thread of its own, as long as the process lives.

    Raises:
        ValueError: If the port cannot be had.
    """
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise ValueError(f"--metrics-port must be a free port, got {port}: {error.strerror}; choose another") from None


def expose(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return the metrics of a registry as Prometheus reads them, and the content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _preset(metric: Counter | Gauge, *labels: Iterable[str]) -> None:
    """Export every label combination as 0 from the start: an alert on an increase needs the zero before it."""
    for combination in itertools.product(*labels):
        metric.labels(*combination)
