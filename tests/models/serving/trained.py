"""A small world and the snapshots of a real learner that saw two slides of it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import polars as pl

from features.fields import Field
from models.click_task import ClickTask
from models.losses import Objective
from models.plan import Plan
from models.snapshot import Snapshot
from models.update import Learner
from models.window import Slide

SLIDE_S = 1000.0
WAIT_S = 60.0
FIELDS = (
    Field(name="user_id", side="user"),
    Field(name="age", side="user", kind="number"),
    Field(name="hour", side="context", kind="number"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories", values_max=2),
    Field(name="user_tags", side="cross", of=("user_id", "tags")),
)
PLAN = Plan(
    fields=FIELDS,
    family="ctr",
    network="mlp",
    dim=4,
    hidden=(8,),
    admit_min=2.0,
    forget_min=0.5,
    values_max=1_000_000,
    half_lives_s=(600.0, 6000.0),
    levels=("ad",),
    evidence_min=0.01,
    counts_max=1_000_000,
    prior="live",
    ways=("dense", "wide"),
    objective=Objective(),
    learns="always",
    is_gated=True,
    learning_rate=0.01,
    embedding_learning_rate=0.05,
    batch_rows=128,
    rows_max=0,
    seed=1,
    device="cpu",
    precision="auto",
    warmup_s=1e9,
    window_s=0.0,
    lookback_s=WAIT_S,
    alpha=0.05,
    margin=0.01,
    buckets=16,
    evidence_clip=0.25,
    clicks_min=1,
    calibration=(0.5, 2.0),
    rule="non_inferiority",
    shift_max=1.5,
    slice_margin=0.05,
    harm_max=0.1,
    rollback_wait=12,
)


def slide(index: int, n_rows: int = 400) -> Slide:
    """Return a slide in which even-numbered ads are clicked four times as often as odd ones."""
    rng = np.random.default_rng(index)
    start_s = index * SLIDE_S
    settled_s = np.sort(rng.uniform(start_s, start_s + SLIDE_S, n_rows))
    ads = rng.integers(0, 20, n_rows)
    users = rng.integers(0, 30, n_rows)
    columns: dict[str, Any] = {
        "request_id": [f"r{index}-{row}" for row in range(n_rows)],
        "position": np.zeros(n_rows, np.int32),
        "kind": ["expired_negative"] * n_rows,
        "time_s": settled_s - WAIT_S,
        "settled_s": settled_s,
        "click": (rng.random(n_rows) < np.where(ads % 2 == 0, 0.6, 0.15)).astype(np.int8),
        "propensity": np.ones(n_rows),
        "ad_id": [f"ad{ad}" for ad in ads],
        "source_partition": np.zeros(n_rows, np.int32),
        "source_offset": np.arange(n_rows),
        "field.user_id": [f"u{user}" for user in users],
        "field.age": 20.0 + users,
        "field.hour": rng.integers(0, 24, n_rows).astype(np.float64),
        "field.ad": [f"ad{ad}" for ad in ads],
        "field.tags": [[f"t{ad % 2}", f"t{ad % 5}"] for ad in ads],
    }
    return Slide(index, start_s, start_s + SLIDE_S, pl.DataFrame(columns))


@functools.cache
def two_snapshots() -> tuple[Snapshot, Snapshot]:
    """Return the newest snapshot after one slide and after two."""
    learner = Learner(ClickTask(PLAN))
    learner.learn(slide(1))
    first = learner.latest
    learner.learn(slide(2))
    return first, learner.latest
