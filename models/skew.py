"""Training/serving skew: the click probabilities that were served, against the same ones recomputed as training does.

Owns the recomputation: a row's own columns become keys as they do for learning, the model is the one that the row
names, and its counts are rebuilt from what had settled by the moment that the row names. So a fault in serving's
encoder, in its catalog's keys, in the counts that are published or in a swap is a difference. Must not know Kafka,
metrics or where snapshots are kept.

Counts that are published while the blocks of several partitions come in hold all rows of some partitions up to their
moment and not yet all of others; rebuilt ones hold them all. On a replay that was caught up with the two are the same
to the last bits; on a live stream the difference is what was missing when it was served: stale counts, as they should
show. The same goes for values whose counts one side has forgotten and the other not yet ([priors] evidence_min,
counts_max).

Invariants: nothing learnt depends on it; what cannot be recomputed exactly is left out and said, never guessed; a slide
costs at most `ROWS_MAX` rows and `LOADS_MAX` loads of a snapshot, however much was served.

Shape legend: `N` rows that are compared, `S` slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.encode import Keys, encode, hash_strings
from features.fields import slot_counts
from features.point_in_time import point_in_time
from features.priors import CORRECTION, Counts, Floats, decay, lookup
from models.batch import Predictor
from models.examples import Examples, hash_share
from models.snapshot import Snapshot, SnapshotError
from models.window import Slide

ROWS_MAX = 2_000  # of a slide; chosen by hand: a fault in one row of 500 is all but certainly among them
LOADS_MAX = 3  # of snapshots, for a slide; chosen by hand: rows wait a slide or two, and so name the last few champions
KEPT_MAX = 3  # snapshots that are kept for the next slide; each may be as large as what serves


@dataclass(frozen=True)
class SkewReport:
    """What was served in a slide, compared.

    Attributes:
        differences: Served minus recomputed probability, absolute, (N,).
        left_out: Rows that were served and not compared, by reason: `limit`, there were more than `ROWS_MAX`;
            `snapshot`, what they name cannot be had; `counts`, what had settled then is not known any more.
    """

    differences: Floats
    left_out: dict[str, int]


class Skew:
    """Compares slide after slide; keeps the models that the last ones were served by."""

    def __init__(self, load: Callable[[str], Snapshot]) -> None:
        """Begin with no model.

        Args:
            load: Returns the snapshot of a version, or raises SnapshotError or OSError.
        """
        self._load = load
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._settled_s: Floats = np.zeros(0)  # when what was known after the slide before had settled
        self._newest_s: float | None = None  # of it, what is in the counts of the slide after

    def measure(self, slide: Slide, rows: Examples, held: Iterable[Snapshot]) -> SkewReport:
        """Return how far what was served in a slide is from what training says of it; to be asked of every slide.

        Args:
            slide: Whose rows may say what they were served with.
            rows: What was read of it for learning: with what had settled before, and in it.
            held: Snapshots that need not be loaded.
        """
        since_s, as_of_s = self._reach(rows), rows.before.base.as_of_s
        served = served_rows(slide.frame)
        chosen = _sample(served)
        left_out = {"limit": len(served) - len(chosen)}
        counts_s, at_s = pl.col("counts_s"), pl.max_horizontal("counts_s", "request_s")
        is_known = (counts_s >= since_s) & (counts_s < slide.end_s) & (at_s >= as_of_s)
        chosen, left_out["counts"] = _keep(chosen, counts_s.is_null() | is_known)
        models = self._models_of(chosen["snapshot"], held, rows.before) if len(chosen) else {}
        chosen, left_out["snapshot"] = _keep(chosen, pl.col("snapshot").is_in([*models]))
        differences = np.zeros(0)
        if len(chosen):
            differences = np.abs(chosen["pctr"].to_numpy() - _recompute(chosen, rows, models))
        return SkewReport(differences, left_out)

    def _reach(self, rows: Examples) -> float:
        """Return from which moment on it is known what had settled.

        That is the moment of a slide's counts, or earlier where nothing settled in between: in a quiet hour the counts
        that serve are as old as the last row, and still whole.
        """
        as_of_s = rows.before.base.as_of_s
        if n_counted := int(np.searchsorted(self._settled_s, as_of_s, side="right")):
            self._newest_s = float(self._settled_s[n_counted - 1])
        self._settled_s = rows.settled.settled_s
        return as_of_s if self._newest_s is None else self._newest_s

    def _models_of(self, named: pl.Series, held: Iterable[Snapshot], like: Snapshot) -> dict[str, _Model]:
        """Return the models that rows name, as far as they can be had, those of the most rows first."""
        at_hand = {snapshot.version: snapshot for snapshot in held}
        found: dict[str, _Model] = {}
        n_loads = 0
        for version in named.value_counts().sort(["count", named.name], descending=[True, False])[named.name]:
            if version not in self._models:
                n_loads += version not in at_hand
                is_allowed = version in at_hand or n_loads <= LOADS_MAX
                model = self._new(version, at_hand.get(version), like) if is_allowed else None
                if model is None:
                    continue
                self._models[version] = model
            self._models.move_to_end(version)
            found[version] = self._models[version]
        while len(self._models) > KEPT_MAX:
            self._models.popitem(last=False)
        return found

    def _new(self, version: str, snapshot: Snapshot | None, like: Snapshot) -> _Model | None:
        try:
            snapshot = snapshot or self._load(version)
        except (SnapshotError, OSError):  # pruned, of other fields, or its registry is away
            return None
        is_alike = snapshot.fields == like.fields and np.array_equal(snapshot.base.half_lives_s, like.base.half_lives_s)
        return _Model(snapshot, Predictor(snapshot)) if is_alike else None


@dataclass(frozen=True)
class _Model:
    snapshot: Snapshot
    predict: Predictor


def served_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the impressions that say what they were served with."""
    if "pctr" not in frame.columns:
        return frame.clear().with_columns(snapshot=pl.lit(""), pctr=0.0, counts_s=0.0, request_s=0.0)
    return frame.filter(pl.col("pctr").is_not_null() & (pl.col("kind") != CORRECTION))


def _sample(frame: pl.DataFrame) -> pl.DataFrame:
    """Return at most `ROWS_MAX` of the rows, chosen by a hash of their request: from all of the slide."""
    if len(frame) <= ROWS_MAX:
        return frame
    order = np.argsort(hash_share(hash_strings(frame["request_id"])), kind="stable")
    return frame[np.sort(order[:ROWS_MAX])]


def _keep(frame: pl.DataFrame, wanted: pl.Expr) -> tuple[pl.DataFrame, int]:
    """Return the rows that are wanted, and how many are not."""
    kept = frame.filter(wanted)
    return kept, len(frame) - len(kept)


def _recompute(served: pl.DataFrame, rows: Examples, models: dict[str, _Model]) -> Floats:
    """Return what the models say of rows, (N,), on the counts that each names."""
    keys = encode(served, rows.before.fields)
    request_s, is_live = served["request_s"].to_numpy(), served["counts_s"].is_not_null().to_numpy()
    counts_s = served["counts_s"].fill_null(0.0).to_numpy()
    live = live_counts(rows, keys[is_live], counts_s[is_live], request_s[is_live])
    place = np.cumsum(is_live) - 1  # of a row among those
    found = np.zeros(len(served))
    for version, model in models.items():
        at = np.flatnonzero((served["snapshot"] == version).to_numpy())
        is_own = ~is_live[at] | (model.snapshot.prior == "frozen")
        own, others = at[is_own], at[~is_own]
        if len(own):
            table = model.snapshot.priors
            found[own] = model.predict(keys[own], lookup(table, keys[own], np.maximum(request_s[own], table.as_of_s)))
        if len(others):
            found[others] = model.predict(keys[others], live.take(place[others]))
    return found


def live_counts(rows: Examples, keys: Keys, counts_s: Floats, at_s: Floats) -> Counts:
    """Return what had settled by some moments, decayed to others.

    Args:
        rows: Of a slide, with what had settled before.
        keys: (N, S).
        counts_s: Up to when rows had settled that are counted, (N,); where that is before the moment of the counts in
            `rows`, nothing settled in between.
        at_s: To when they decay, (N,), not before that moment; to `counts_s` where that is later.
    """
    base = rows.before.base
    then_s = np.maximum(counts_s, base.as_of_s)
    then = point_in_time(base, rows.settled, keys, then_s, slot_counts(rows.before.fields))
    left = decay((np.maximum(at_s, then_s) - then_s)[:, None], base.half_lives_s)  # (N, H)
    return Counts(then.n * left[:, None], then.c * left[:, None], then.root_n * left, then.root_c * left)
