"""Scores: one snapshot, newer counts on top, the same keys as in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.encode import encode, slot_fields
from features.live_priors import CountUpdate, PublishedCounts
from features.priors import PriorTable, SettledRows, advance, lookup
from models.batch import Predictor
from models.click_task import ClickTask
from models.serving.rank import Scorer, best_first
from models.serving.schema import Ad
from models.window import Slide
from tests.models.serving.asked import candidate_frame
from tests.models.serving.trained import FIELDS, PLAN, slide, two_snapshots

NOW_S = 3000.0
USER = {"user_id": "u1", "age": 30.0, "hour": 12.0}
ADS = [Ad(f"ad{i}", {"ad": f"ad{i}", "tags": [f"t{i % 2}", f"t{i % 5}"]}) for i in range(20)]


def settled(one: Slide) -> SettledRows:
    return SettledRows.from_frame(one.frame, encode(one.frame, FIELDS))


def update_from(table: PriorTable) -> CountUpdate:
    return CountUpdate(table.as_of_s, table.keys, table.field, table.n, table.c, table.root_n, table.root_c)


def published(table: PriorTable) -> PublishedCounts:
    """Return what a reader knows of counts that were published whole."""
    return PublishedCounts.empty(PLAN.half_lives_s, len(FIELDS)).updated([update_from(table)])


def counted(*slides: Slide) -> PriorTable:
    """Return the counts that the live priors hold after some slides."""
    table = PriorTable.empty(PLAN.half_lives_s, len(FIELDS))
    for one in slides:
        table = advance(table, settled(one), one.end_s, slot_field=slot_fields(FIELDS))
    return table


def test_ads_that_are_clicked_more_score_higher() -> None:
    scores = Scorer.from_snapshot(two_snapshots()[1]).score(
        encode(candidate_frame(FIELDS, dict(USER), ADS), FIELDS), NOW_S
    )
    assert scores.shape == (20,)
    assert scores.dtype == np.float32
    assert scores[::2].min() > scores[1::2].max()


def test_a_row_of_the_log_scores_alike_from_its_own_frame_and_from_its_values() -> None:
    frame = slide(2).frame.head(50)
    scorer = Scorer.from_snapshot(two_snapshots()[1])
    for row, expected in zip(frame.iter_rows(named=True), scorer.score(encode(frame, FIELDS), NOW_S), strict=True):
        user = {name: row[f"field.{name}"] for name in ("user_id", "age", "hour")}
        ad = Ad(row["ad_id"], {"ad": row["field.ad"], "tags": row["field.tags"]})
        assert scorer.score(encode(candidate_frame(FIELDS, user, [ad]), FIELDS), NOW_S)[0] == pytest.approx(
            expected, abs=1e-6
        )


def test_no_candidate_and_no_value_can_be_scored() -> None:
    scorer = Scorer.from_snapshot(two_snapshots()[1])
    assert scorer.score(encode(candidate_frame(FIELDS, {}, []), FIELDS), NOW_S).shape == (0,)
    assert np.isfinite(scorer.score(encode(candidate_frame(FIELDS, {}, [Ad("x", {})]), FIELDS), 0.0)).all()


def test_live_counts_are_what_a_scorer_uses() -> None:
    live = counted(slide(1), slide(2), slide(3))
    scorer = Scorer.from_snapshot(two_snapshots()[1]).with_live_counts(published(live))
    frame = candidate_frame(FIELDS, dict(USER), ADS)
    keys = encode(frame, FIELDS)
    table = replace(live, strength=two_snapshots()[1].priors.strength)
    expected = Predictor(two_snapshots()[1])(keys, lookup(table, keys, 4500.0))
    np.testing.assert_allclose(scorer.score(encode(frame, FIELDS), 4500.0), expected, atol=1e-6)
    assert scorer.table.as_of_s == live.as_of_s


def test_live_counts_older_than_the_snapshot_change_nothing() -> None:
    scorer = Scorer.from_snapshot(two_snapshots()[1])
    later = scorer.with_live_counts(published(counted(slide(1))))
    np.testing.assert_array_equal(later.table.n, scorer.table.n)


def test_a_scorer_says_of_which_moment_the_counts_over_its_snapshots_own_are() -> None:
    own, live = Scorer.from_snapshot(two_snapshots()[1]), counted(slide(1), slide(2), slide(3))
    nothing = PublishedCounts.empty(PLAN.half_lives_s, len(FIELDS))
    initial = Scorer.from_snapshot(ClickTask(PLAN).initial())
    assert own.with_live_counts(published(live)).counts_s == live.as_of_s
    assert [one.counts_s for one in (own, own.with_live_counts(published(counted(slide(1)))))] == [None, None]
    assert [one.counts_s for one in (initial, initial.with_live_counts(nothing))] == [None, None]


def test_new_counts_make_a_new_scorer_and_leave_the_old_one_alone() -> None:
    scorer = Scorer.from_snapshot(two_snapshots()[0])
    frame = candidate_frame(FIELDS, dict(USER), ADS)
    before = scorer.score(encode(frame, FIELDS), NOW_S)
    later = scorer.with_live_counts(published(counted(slide(1), slide(2))))
    np.testing.assert_array_equal(scorer.score(encode(frame, FIELDS), NOW_S), before)
    assert np.abs(later.score(encode(frame, FIELDS), NOW_S) - before).max() > 1e-4


def test_the_best_come_first_and_ties_keep_their_order() -> None:
    scores = np.array([0.1, 0.5, 0.5, 0.9], np.float32)
    assert best_first(scores, 3).tolist() == [3, 1, 2]
    assert best_first(scores, 9).tolist() == [3, 1, 2, 0]
