"""Candidates are scored as the ranking service scores them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from features.encode import encode, field_key
from models.batch import Predictor
from models.ope.candidates import ad_fields, ad_posteriors, places, score_pairs
from models.serving.rank import Scorer
from models.serving.schema import Ad
from tests.frames import FIELDS
from tests.models.learnt import learnt, slide
from tests.models.serving.asked import candidate_frame

ADS = [Ad(f"a{i}", {"ad_id": f"a{i}", "tags": [f"t{i % 4}"], "price": 1.5 * i}) for i in range(5)]


def ads() -> pl.DataFrame:
    frame = candidate_frame(FIELDS, {}, ADS).select(field.column for field in ad_fields(FIELDS))
    return frame.with_columns(ad_id=pl.Series([ad.ad_id for ad in ADS]))


def test_each_pair_has_the_score_that_the_ranking_service_would_have_given() -> None:
    snapshot = learnt()[0].latest
    rows = slide(4, 7).frame
    found = score_pairs(snapshot, Predictor(snapshot), rows, ads())
    assert found.shape == (7, 5)
    scorer = Scorer.from_snapshot(snapshot)
    for row, scores in zip(rows.iter_rows(named=True), found, strict=True):
        asked = candidate_frame(FIELDS, {"user_id": row["field.user_id"]}, ADS)
        np.testing.assert_allclose(scores, scorer.score(encode(asked, FIELDS), row["time_s"]), rtol=1e-5)
    assert np.ptp(found, axis=1).min() > 0.0, "candidates differ"


def test_a_posterior_holds_the_counts_of_the_ad_and_its_prior() -> None:
    snapshot = learnt()[0].latest
    clicks, others = ad_posteriors(snapshot, ads())
    table, number, h = snapshot.priors, 1, 1  # the field ad_id, the longer half-life
    at = np.searchsorted(table.keys, [field_key(FIELDS[number], ad.ad_id) for ad in ADS])
    strength = table.strength[number, h]
    np.testing.assert_allclose(clicks + others, table.n[at, h] + strength)
    assert clicks - table.c[at, h] == pytest.approx(strength * table.root_c[h] / table.root_n[h], rel=0.01)


def test_each_row_finds_the_ad_that_it_showed() -> None:
    rows = pl.DataFrame({"ad_id": ["a3", "a0", "x", "a3"]})
    assert places(rows, ads()).tolist() == [3, 0, -1, 3]
