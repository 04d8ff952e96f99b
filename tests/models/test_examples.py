import dataclasses

import numpy as np
import polars as pl
import pytest

from features.fields import Field
from features.posteriors import LEVEL_INPUTS
from models.batch import make_inputs
from models.click_task import initial_snapshot
from models.examples import read_examples
from models.window import Slide
from tests.frames import frame, plan
from tests.models.learnt import learnt, slide

START = initial_snapshot(plan())


def slide_of(rows: pl.DataFrame) -> Slide:
    return Slide(0, 0.0, 1e6, rows.sort("settled_s"))


def test_a_row_shown_before_the_slide_and_settled_in_it_does_not_see_what_settled_in_between() -> None:
    before = learnt()[0].latest  # its slide ends at 40000
    seen = before.recent.settled_s
    assert seen.max() > 39_950.0
    rows = frame(time_s=[39_950.0, 40_010.0], settled_s=[40_010.0, 40_070.0], user_id=["new", "new"])
    counts = read_examples(Slide(4, 40_000.0, 50_000.0, rows), before, 16).counts
    everything = before.priors.root_n[1]
    assert counts.root_n[0, 1] == pytest.approx(everything - (seen > 39_950.0).sum(), rel=1e-3)
    assert counts.root_n[1, 1] == pytest.approx(everything + 1, rel=1e-3)  # all of it, and the first row's own label


def test_no_row_sees_a_row_of_its_own_request() -> None:
    rows = frame(time_s=[0.0, 100.0], request_id=["r", "r"], position=[0, 1], click=[1, 0])
    counts = read_examples(slide_of(rows), START, 16).counts
    assert not counts.n.any()
    apart = read_examples(slide_of(rows.with_columns(request_id=pl.Series(["r", "s"]))), START, 16).counts
    assert apart.n[1].any()


def test_rows_shown_too_long_ago_are_counted_and_not_learnt() -> None:
    before = learnt()[0].latest
    rows = frame(time_s=[30_000.0, 40_001.0], settled_s=[40_001.0, 40_061.0])
    examples = read_examples(Slide(4, 40_000.0, 50_000.0, rows), before, 16)
    assert len(examples.clicks) == len(examples.keys) == 1
    assert len(examples.settled.settled_s) == len(before.recent.settled_s) + 2


def test_a_row_that_settles_when_it_is_shown_is_refused() -> None:
    rows = frame(time_s=[5.0], settled_s=[5.0], request_id=["quick"])
    with pytest.raises(ValueError, match=r'settle after it was shown, got request_id "quick" shown and settled at 5.0'):
        read_examples(slide_of(rows), START, 16)


def test_rows_are_compared_within_requests_when_these_have_several() -> None:
    several = frame(time_s=[0.0, 0.0, 5.0, 5.0], request_id=["a", "a", "b", "b"], user_id=["u", "u", "u", "v"])
    assert len(set(read_examples(slide_of(several), START, 16).groups.tolist())) == 2
    single = several.with_columns(request_id=pl.Series(["a", "b", "c", "d"]))
    groups = read_examples(slide_of(single), START, 16).groups
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_a_user_stays_in_one_bucket() -> None:
    one, other = (read_examples(slide(index), START, 16) for index in (1, 2))
    buckets: dict[int, int] = {}
    for examples in (one, other):
        for user, bucket in zip(examples.keys[:, 0].tolist(), examples.buckets.tolist(), strict=True):
            assert buckets.setdefault(user, bucket) == bucket
    assert 5 < len(set(buckets.values())) <= 16


def test_without_a_user_field_a_request_is_a_user() -> None:
    fields = (Field("ad_id", "item"),)
    rows = frame(time_s=[0.0, 0.0, 5.0], request_id=["a", "a", "b"], ad_id=["x", "y", "x"])
    examples = read_examples(slide_of(rows), initial_snapshot(plan(fields=fields)), 1000)
    assert examples.buckets[0] == examples.buckets[1] != examples.buckets[2]


def test_an_empty_slide_has_no_examples() -> None:
    examples = read_examples(slide_of(frame(time_s=[])), START, 16)
    assert len(examples.clicks) == len(examples.groups) == len(examples.buckets) == 0
    assert examples.counts.n.shape == (0, START.recent.keys.shape[1], 2)


def test_a_late_correction_is_no_example_but_later_rows_see_its_click() -> None:
    rows = frame(
        time_s=[0.0, 0.0, 200.0, 400.0], settled_s=[60.0, 300.0, 260.0, 460.0], request_id=["a", "a", "b", "c"]
    ).with_columns(
        kind=pl.Series(["expired_negative", "late_corrected", "expired_negative", "expired_negative"]),
        click=pl.Series([0, 1, 0, 0], dtype=pl.Int8),
    )
    examples = read_examples(slide_of(rows), START, 16)
    assert examples.clicks.tolist() == [0.0, 0.0, 0.0]
    assert examples.settled.impression.tolist() == [1.0, 1.0, 0.0, 1.0]
    first, before, after = range(3)
    assert not examples.counts.root_n[first].any()
    assert not examples.counts.root_c[before].any()
    assert (examples.counts.root_c[after] > 0.85).all()
    np.testing.assert_allclose(examples.counts.root_n[after, 1], 2.0, rtol=0.01)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_model_without_prior_is_given_the_same_without_counting_values(is_resumed: bool) -> None:
    """The overall rate, and evidence when it is asked for, are those of the live priors; counts of values are none."""
    live = learnt()[0].latest if is_resumed else START
    without = dataclasses.replace(live, prior="none")
    one, other = (read_examples(slide(4), before, 16) for before in (live, without))
    assert other.counts.n.shape[1] == other.late.counts.n.shape[1] == 0
    np.testing.assert_array_equal(one.counts.root_c, other.counts.root_c)
    dense = make_inputs(one.keys, one.counts, live, "cpu").dense
    got = make_inputs(other.keys, other.counts, without, "cpu").dense
    np.testing.assert_array_equal(got[:, :LEVEL_INPUTS], dense[:, :LEVEL_INPUTS])
    assert got.shape == dense.shape
    assert not got[:, LEVEL_INPUTS:].any()
    assert one.evidence.max() > 40.0
    np.testing.assert_array_equal(one.evidence, other.evidence)
    np.testing.assert_array_equal(one.item_evidence, other.item_evidence)


def test_of_a_slide_with_too_many_rows_whole_requests_are_kept_and_all_rows_are_counted() -> None:
    whole = slide(1)
    some, every = read_examples(whole, START, 16, 500), read_examples(whole, START, 16)
    assert 420 < len(some.frame) < 580
    assert some.left_out == len(every.frame) - len(some.frame)
    kept = set(some.frame["request_id"])
    assert set(every.frame.filter(pl.col("request_id").is_in(kept))["source_offset"]) == set(
        some.frame["source_offset"]
    )
    np.testing.assert_array_equal(some.settled.settled_s, every.settled.settled_s)
    same = every.frame["request_id"].is_in(kept).to_numpy()
    np.testing.assert_array_equal(some.counts.n, every.counts.n[same])  # what is kept sees the counts of all


def test_corrections_are_thinned_as_their_slide_is() -> None:
    whole = slide(1)
    late = whole.frame.filter(pl.col("click") == 0).with_columns(
        kind=pl.lit("late_corrected"), click=pl.lit(1, pl.Int8), settled_s=pl.col("settled_s") + 30.0
    )
    rows = dataclasses.replace(whole, frame=pl.concat([whole.frame, late]).sort("settled_s"))
    some = read_examples(rows, START, 16, 500)
    assert 0 < len(some.late.frame) < 0.45 * len(late)
    assert set(some.late.frame["request_id"]) <= set(some.frame["request_id"])
