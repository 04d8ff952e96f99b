"""What does it cost to score candidates, when each one's counts are read from a feature store?

`python -m bench.feature_reads --json FILE`. The same click model scores the same 200 candidates of a simulated cascade
in three ways, in one process, taking turns:

- `memory`: keys from the catalog's columns, counts from the table in memory: freshrank's way;
- `each`: the counts of an ad's values come from Feast, one read a candidate, as a service does that asks its feature
  store for each item;
- `batch`: the same in one read for all candidates, the best that a feature store offers.

What the peers read is the counts of the ad's own values alone; those of users, contexts and crosses come from memory in
all three ways, and all run the same network, which favours the peers. Feast is asked through `features/store.py`, as
users are, on its SQLite file and on a Redis of this machine. Reported: medians over rounds, and ratios to `memory` of
the same round. The scores of all ways are checked to be the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from bench.report import machine, write_report
from bench.serve import CONFIG, HOURS
from features.encode import Keys, ValueEncoder, join_keys, slot_fields
from features.fields import Field, raw_fields
from features.priors import Counts
from features.store import UserStore, open_store
from infra.settings import Settings, read_settings
from models.batch import Predictor
from models.serving.catalog import Catalog
from models.serving.rank import Scorer, Scores
from models.train import use_threads
from stream.backtest import Backtest
from stream.cascade import Cascade, Funnel
from stream.logs.ads import read_ads
from stream.logs.reader import RowCounts
from stream.logs.simulated import write_cascade
from stream.logs.source import read_arrivals
from tests.redis_server import redis_server

CANDIDATES = 200
WARM = 3
REQUEST = {"user_id": "17", "age": "3", "gender": "f", "hour": "12", "placement": "top"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="rounds; one scores the candidates in each way")
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"name": "feature_reads", "machine": machine(), "arguments": vars(arguments)}
    with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as scratch:
        home = Path(scratch).resolve()
        os.environ["FRESHRANK_HOME"] = str(home)
        request = learnt(home, arguments.candidates)
        with redis_server(home) as url:
            for name, redis_url in (("sqlite", ""), ("redis", url)):
                store = filled_store(request, redis_url, home)
                figures[name] = by_turns(ways(request, store), arguments.runs)
    write_report(figures, arguments.json)


@dataclasses.dataclass(frozen=True)
class Request:
    """One request to score: `ids` of its candidates, its own keys, and what answers."""

    settings: Settings
    scorer: Scorer
    catalog: Catalog
    ids: list[str]
    time_s: float
    keys: Keys

    def joined(self) -> Keys:
        found, _ = self.catalog.resolve(self.ids, {})
        fields, ads = self.settings.fields, self.catalog.table.encoder.fields
        return join_keys(fields, [(of_request(fields), self.keys), (ads, found.keys(range(len(self.ids))))])

    def is_of_ad(self) -> np.ndarray:
        """Return which slots are of the ad's own values, (S,)."""
        own = np.array([field.side in ("item", "creative") for field in self.settings.fields])
        return own[slot_fields(self.settings.fields)]


def of_request(fields: tuple[Field, ...]) -> list[Field]:
    return [field for field in raw_fields(fields) if field.side in ("user", "context")]


def learnt(home: Path, n_candidates: int) -> Request:
    """Return a request to a click model that has learnt a simulated cascade."""
    write_cascade(home / "cascade", Cascade(1, hours=HOURS, funnel=Funnel(), n_ads=5000, requests_per_hour=180.0))
    config = home / "bench.toml"
    config.write_text(CONFIG.read_text())
    settings = read_settings(config)
    use_threads(settings.update.threads)
    backtest = Backtest(settings, read_arrivals(settings, [home], RowCounts()))
    for _ in backtest.steps():
        pass
    catalog = Catalog(settings.fields)
    assert settings.log is not None
    ads = read_ads(settings.log, settings.fields, [home]).ads
    for ad in ads.values():
        catalog.put(ad.ad_id, msgspec.json.encode(ad))
    scorer = Scorer.from_snapshot(backtest.learner.latest)
    ids = np.random.default_rng(0).choice(list(ads), n_candidates, replace=False).tolist()
    keys = ValueEncoder(of_request(settings.fields)).keys(REQUEST)
    return Request(settings, scorer, catalog, ids, scorer.table.as_of_s + 60.0, keys)


def filled_store(request: Request, redis_url: str, home: Path) -> UserStore:
    """Return a store that holds the counts of the candidates' own values, under their ids."""
    entity = (Field("ad_id", "user"), Field("ad", "item"))
    store = open_store(entity, prefix="ads", redis_url=redis_url, directory=home / "ads", max_age_s=1e9)
    own, counts = request.is_of_ad(), request.scorer.counts(request.joined(), request.time_s)
    store.push(
        pl.DataFrame(
            {
                "user_id": request.ids,
                "as_of_s": [request.time_s] * len(request.ids),
                "impressions": counts.n[:, own].reshape(len(request.ids), -1).tolist(),
                "clicks": counts.c[:, own].reshape(len(request.ids), -1).tolist(),
            }
        )
    )
    return store


def ways(request: Request, store: UserStore) -> dict[str, Callable[[], Scores]]:
    scorer, own, predict = request.scorer, request.is_of_ad(), Predictor(request.scorer.snapshot)

    def from_memory() -> Scores:
        return scorer.score(request.joined(), request.time_s)

    def from_store(batches: list[list[str]]) -> Scores:
        read = {ad: known for ids in batches for ad, known in store.read_users(ids, request.time_s).users.items()}
        keys = request.joined()
        others = scorer.counts(np.where(own, np.uint64(0), keys), request.time_s)
        n, c = others.n, others.c
        shape = (len(request.ids), int(own.sum()), n.shape[2])
        n[:, own] = np.reshape([read[ad].impressions for ad in request.ids], shape)
        c[:, own] = np.reshape([read[ad].clicks for ad in request.ids], shape)
        return predict(keys, Counts(n, c, others.root_n, others.root_c))

    return {
        "memory": from_memory,
        "each": lambda: from_store([[ad] for ad in request.ids]),
        "batch": lambda: from_store([request.ids]),
    }


def by_turns(found: dict[str, Callable[[], Scores]], runs: int) -> dict[str, Any]:
    """Return what each way takes, in turns, and its ratio to the first."""
    times: dict[str, list[float]] = {name: [] for name in found}
    expected = found["memory"]()
    for number in range(WARM + runs):
        for name, way in found.items():
            begun_s = time.perf_counter()
            scores = way()
            if number >= WARM:
                times[name].append(1e3 * (time.perf_counter() - begun_s))
            np.testing.assert_allclose(scores, expected, rtol=1e-5)
    figures = {
        name: {
            "p50_ms": statistics.median(of_way),
            "over_memory": statistics.median(a / b for a, b in zip(of_way, times["memory"], strict=True)),
        }
        for name, of_way in times.items()
    }
    print(figures, file=sys.stderr)
    return figures


if __name__ == "__main__":
    main()
