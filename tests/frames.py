"""Frames of examples for tests: rows of a small world in which some users and items click more than others."""

from typing import Any

import numpy as np
import polars as pl

from features.fields import Field
from models.losses import Objective
from models.plan import Plan

FIELDS = (
    Field("user_id", "user"),
    Field("ad_id", "item"),
    Field("tags", "item", "categories", values_max=3),
    Field("price", "item", "number"),
    Field("user_x_ad", "cross", of=("user_id", "ad_id")),
)
WAIT_S = 60.0


def world(
    n_rows: int, *, seed: int = 0, start_s: float = 0.0, span_s: float = 10_000.0, users: int = 40
) -> pl.DataFrame:
    """Rows with a click rate that depends on the user, the ad and both together, sorted as a slide is."""
    rng = np.random.default_rng(seed)
    tastes = np.random.default_rng(99)  # the same world, whatever rows are drawn from it
    user_bias, ad_bias, pair_bias = tastes.normal(size=users), tastes.normal(size=20), tastes.normal(size=(users, 20))
    time_s = np.sort(rng.uniform(start_s, start_s + span_s, n_rows))
    user, ad = rng.integers(0, users, n_rows), rng.integers(0, 20, n_rows)
    probability = 1.0 / (1.0 + np.exp(-(user_bias[user] + ad_bias[ad] + pair_bias[user, ad] - 0.5)))
    click = (rng.random(n_rows) < probability).astype(np.int8)
    return frame(
        time_s=time_s,
        click=click,
        request_id=[f"r{seed}-{i // 2}" for i in range(n_rows)],
        position=np.arange(n_rows) % 2,
        source_offset=np.arange(n_rows),
        user_id=[f"u{u}" for u in user],
        ad_id=[f"a{a}" for a in ad],
        tags=[[f"t{a % 4}", f"t{a % 3}"] for a in ad],
        price=ad * 1.5,
    )


def frame(**columns: Any) -> pl.DataFrame:
    """The columns given, and plain defaults for the rest; columns named as fields get their prefix."""
    n_rows = len(columns["time_s"])
    time_s = np.asarray(columns["time_s"], np.float64)
    click = np.asarray(columns.get("click", np.zeros(n_rows)), np.int8)
    rows = {
        "request_id": columns.get("request_id", [f"r{i}" for i in range(n_rows)]),
        "position": np.asarray(columns.get("position", np.zeros(n_rows)), np.int32),
        "kind": np.where(click == 1, "clicked", "expired_negative"),
        "time_s": time_s,
        "settled_s": np.asarray(columns.get("settled_s", time_s + WAIT_S), np.float64),
        "click": click,
        "propensity": np.ones(n_rows),
        "ad_id": columns.get("ad_id", ["a"] * n_rows),
        "source_partition": np.asarray(columns.get("source_partition", np.zeros(n_rows)), np.int32),
        "source_offset": np.asarray(columns.get("source_offset", np.arange(n_rows)), np.int64),
        "field.user_id": columns.get("user_id", ["u"] * n_rows),
        "field.ad_id": columns.get("ad_id", ["a"] * n_rows),
        "field.tags": columns.get("tags", [[]] * n_rows),
        "field.price": np.asarray(columns.get("price", np.zeros(n_rows)), np.float64),
    }
    return pl.DataFrame(rows, schema_overrides=_TYPES)


def plan(**changes: Any) -> Plan:
    """A plan for the small world, quick to learn."""
    settings: dict[str, Any] = {
        "fields": FIELDS,
        "family": "ctr",
        "network": "mlp",
        "dim": 4,
        "hidden": (8,),
        "admit_min": 2.0,
        "forget_min": 0.5,
        "values_max": 1_000_000,
        "half_lives_s": (600.0, 100_000.0),
        "levels": (),
        "evidence_min": 0.01,
        "counts_max": 1_000_000,
        "prior": "live",
        "ways": ("dense", "wide"),
        "objective": Objective(),
        "learns": "always",
        "is_gated": True,
        "learning_rate": 0.003,
        "embedding_learning_rate": 0.05,
        "batch_rows": 128,
        "rows_max": 0,
        "seed": 0,
        "device": "cpu",
        "precision": "auto",
        "warmup_s": 0.0,
        "window_s": 0.0,
        "lookback_s": 2 * WAIT_S,
        "alpha": 0.05,
        "margin": 0.02,
        "buckets": 16,
        "evidence_clip": 0.25,
        "clicks_min": 10,
        "calibration": (0.5, 2.0),
        "rule": "non_inferiority",
        "shift_max": 1.5,
        "slice_margin": 0.05,
        "harm_max": 0.1,
        "rollback_wait": 12,
    }
    return Plan(**(settings | changes))


_TYPES: dict[str, pl.DataType] = {
    "request_id": pl.String(),
    "kind": pl.String(),
    "ad_id": pl.String(),
    "field.user_id": pl.String(),
    "field.ad_id": pl.String(),
    "field.tags": pl.List(pl.String()),
}
