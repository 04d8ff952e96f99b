"""A small cascade that a pre-ranker learns within seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from features.fields import Field
from models.plan import Plan
from models.prerank.task import PrerankTask, chain_rows
from models.update import Learner
from models.window import Slide
from tests.frames import plan as click_plan

FIELDS = (Field("user", "user"), Field("ad", "item"), Field("tags", "item", "categories", values_max=2))
SLIDE_S = 1000.0
N_USERS, N_ADS, N_REQUESTS, N_CANDIDATES = 20, 40, 150, 20


def prerank_plan(**changes: Any) -> Plan:
    own = {"network": "ecm", "family": "prerank", "levels": (), "prior": "frozen", "ways": (), "lookback_s": 1e-6}
    own |= {"learning_rate": 0.02, "embedding_learning_rate": 0.5, "batch_rows": 64, "hidden": (16, 8), "dim": 4}
    return click_plan(**({"fields": FIELDS, "half_lives_s": (5000.0,), "warmup_s": 0.0} | own | changes))


def slide(index: int, *, seed: int = 0, requests: int = N_REQUESTS, sample: float = 1.0) -> Slide:
    """Ads of the user's own parity are liked, of those the ones with a low number; the best two are exposed."""
    rng = np.random.default_rng([seed, index])
    user = rng.integers(N_USERS, size=requests)
    ads = np.stack([rng.permutation(N_ADS)[:N_CANDIDATES] for _ in range(requests)])
    liking = np.where(ads % 2 == user[:, None] % 2, 2.0, -2.0) - ads / N_ADS
    place = np.argsort(np.argsort(-(liking + rng.gumbel(0.0, 0.3, ads.shape)), axis=1), axis=1)
    exposed = place < 2
    clicked = exposed & (rng.random(ads.shape) < 1.0 / (1.0 + np.exp(-liking)))
    kept = exposed | (rng.random(ads.shape) < sample)
    request = np.broadcast_to(np.arange(requests)[:, None], ads.shape)[kept]
    settled_s = SLIDE_S * index + 10.0 + request
    frame = pl.DataFrame(
        {
            "request_id": [f"r{index}-{one}" for one in request],
            "candidate": (np.cumsum(kept, axis=1) - 1)[kept].astype(np.int32),
            "time_s": settled_s - 5.0,
            "settled_s": settled_s,
            "label": np.where(clicked, "clicked", np.where(exposed, "exposed", "unexposed"))[kept],
            "sample_rate": np.where(exposed, 1.0, sample)[kept],
            "source_partition": np.zeros(len(request), np.int32),
            "source_offset": request,
            "field.user": [f"u{one}" for one in user[request]],
            "field.ad": [f"a{one}" for one in ads[kept]],
            "field.tags": [[f"t{one % 2}", f"s{one % 5}"] for one in ads[kept]],
        }
    )
    return Slide(index, SLIDE_S * index, SLIDE_S * (index + 1), chain_rows(frame))


def learnt(n_slides: int = 8, *, sample: float = 1.0, **changes: Any) -> tuple[Learner[Any, Any], PrerankTask]:
    task = PrerankTask(prerank_plan(is_gated=False, **changes), gate_penalty=0.01)
    learner = Learner(task)
    for index in range(n_slides):
        learner.learn(slide(index, sample=sample))
    return learner, task
