"""Every candidate of every logged row as a model sees it: its score, its posterior, and which one was shown.

Owns the pairs of a row and a candidate. Must not know policies, estimators or where candidates come from.

Invariants: a pair is encoded and scored by the functions that training and serving share, with the row's user and
context values and the candidate's own; counts are the snapshot's, decayed to the row's moment.

Shape legend: `N` rows, `K` candidates, `S` slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from features.encode import encode
from features.fields import Field, id_field, raw_fields
from features.posteriors import beta_posterior
from features.priors import Floats, Ints, lookup
from models.batch import Predictor
from models.snapshot import Snapshot


def ad_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields whose values a candidate brings; a request brings those of the others."""
    return tuple(field for field in raw_fields(fields) if field.side in ("item", "creative"))


def score_pairs(snapshot: Snapshot, predictor: Predictor, rows: pl.DataFrame, ads: pl.DataFrame) -> Floats:
    """Return the click probability of each candidate in each row's place, (N, K).

    Args:
        snapshot: What scores.
        predictor: The same, made ready.
        rows: `time_s` and a column per field of the request, (N,).
        ads: A column per field of `ad_fields`, (K,).
    """
    own = ad_fields(snapshot.fields)
    request = [field.column for field in raw_fields(snapshot.fields) if field not in own]
    row, ad = np.divmod(np.arange(rows.height * ads.height), ads.height)
    pairs = ads.select(field.column for field in own)[ad]
    if request:
        pairs = pairs.hstack(rows.select(request)[row])
    keys = encode(pairs, snapshot.fields)  # (N * K, S)
    time_s = np.maximum(rows["time_s"].to_numpy(), snapshot.priors.as_of_s)
    scores = predictor(keys, lookup(snapshot.priors, keys, time_s[row]))
    return scores.astype(np.float64).reshape(rows.height, ads.height)


def ad_posteriors(snapshot: Snapshot, ads: pl.DataFrame) -> tuple[Floats, Floats]:
    """Return the Beta posterior of each candidate's click rate as of the snapshot, (K,) each."""
    item = id_field(snapshot.fields, "item")
    assert item is not None, "check_fields asks for an item id"
    table, keys = snapshot.priors, encode(ads, snapshot.fields)
    counts = lookup(table, keys, table.as_of_s)
    return beta_posterior(counts, keys, table, snapshot.fields, snapshot.levels, of=item)


def places(rows: pl.DataFrame, ads: pl.DataFrame) -> Ints:
    """Return which candidate each row showed, -1 where it is none of them, (N,)."""
    numbered = ads.select("ad_id").with_row_index("place")
    found = rows.select("ad_id").join(numbered, on="ad_id", how="left", maintain_order="left")["place"]
    return found.cast(pl.Int64).fill_null(-1).to_numpy()
