import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode import encode, slot_fields
from features.fields import Field, shard_fields, slot_counts
from features.live_priors import CountUpdate, LivePriors, PublishedCounts
from features.priors import PriorTable, SettledRows, advance
from tests.frames import FIELDS, world

HALF_LIVES_S = (600.0, 100_000.0)
FRAME = world(600).with_columns(
    kind=pl.when(pl.col("source_offset") % 7 == 0).then(pl.lit("late_corrected")).otherwise(pl.col("kind"))
)
BLOCKS = [FRAME[first : first + 40] for first in range(0, len(FRAME), 40)]
EMPTY = PublishedCounts.empty(HALF_LIVES_S, len(FIELDS))


def live(shard: int = 0, n_shards: int = 1, evidence_min: float = 0.0, counts_max: int = 1_000_000) -> LivePriors:
    return LivePriors(
        FIELDS, HALF_LIVES_S, evidence_min=evidence_min, counts_max=counts_max, shard=shard, n_shards=n_shards
    )


def counted(frame: pl.DataFrame) -> PriorTable:
    """The same counts in one step, by the arithmetic that training uses."""
    rows = SettledRows.from_frame(frame, encode(frame, FIELDS))
    empty = PriorTable.empty(HALF_LIVES_S, len(FIELDS))
    return advance(empty, rows, float(rows.settled_s[-1]), slot_field=slot_fields(FIELDS))


def told(updates: list[CountUpdate]) -> PublishedCounts:
    counts = EMPTY
    for update in updates:
        counts = counts.updated([update])
    return counts


def run(priors: LivePriors, blocks: list[pl.DataFrame], *, every: int = 3) -> list[CountUpdate]:
    """Count blocks; publish after every few, and at the end."""
    updates = []
    for index, block in enumerate(blocks):
        priors.count(block)
        if index % every == 0:
            updates += priors.changes(1000)
    return [*updates, *priors.changes(1000)]


def assert_same(one: PriorTable, other: PriorTable) -> None:
    assert one.as_of_s == other.as_of_s
    assert one.keys.tolist() == other.keys.tolist()
    assert one.field.tolist() == other.field.tolist()
    for name in ("n", "c", "root_n", "root_c"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)


def test_what_is_published_of_changed_values_adds_up_to_the_whole_table() -> None:
    priors = live()
    counts = told(run(priors, BLOCKS))
    assert_same(counts.table, counted(FRAME))
    assert_same(priors.table, counts.table)


def test_a_publication_holds_what_changed_since_the_last_one_and_then_nothing() -> None:
    priors = live()
    priors.count(FRAME[:10])
    (first,) = priors.changes(1000)
    assert sorted(first.keys.tolist()) == sorted(set(encode(FRAME[:10], FIELDS).ravel().tolist()) - {0})
    assert not list(priors.changes(1000))
    priors.count(FRAME[10:11])
    (second,) = priors.changes(1000)
    assert set(second.keys.tolist()) == set(encode(FRAME[10:11], FIELDS).ravel().tolist()) - {0}
    priors.count(FRAME[:0])
    assert not list(priors.changes(1000))


def test_a_publication_comes_in_parts_of_bounded_size_that_together_are_the_whole() -> None:
    priors, whole = live(), live()
    for one in (priors, whole):
        one.count(FRAME)
    parts = list(priors.changes(50))
    assert len(parts) > 3
    assert all(len(part.keys) <= 50 for part in parts)
    assert_same(told(parts).table, told(list(whole.changes(1000))).table)


@pytest.mark.parametrize("n_shards", [2, 3, 4])
def test_shards_publish_together_exactly_what_one_alone_publishes(n_shards: int) -> None:
    alone = run(live(), BLOCKS)
    together = [run(live(shard, n_shards), BLOCKS) for shard in range(n_shards)]
    for whole, parts in zip(alone, zip(*together, strict=True), strict=True):
        keys = np.concatenate([part.keys for part in parts])
        order = np.argsort(keys)
        assert np.array_equal(keys[order], whole.keys)  # each value once: no two shards share one
        for name in ("field", "n", "c"):
            joined = np.concatenate([getattr(part, name) for part in parts])[order]
            assert np.array_equal(joined, getattr(whole, name)), name
        for part in parts:
            assert part.at_s == whole.at_s
            assert np.array_equal(part.root_n, whole.root_n)
            assert np.array_equal(part.root_c, whole.root_c)


@settings(max_examples=40)
@given(st.data())
def test_a_reader_knows_the_same_in_whatever_order_the_shards_publish(data: st.DataObject) -> None:
    queues = [run(live(shard, 3), BLOCKS, every=2 + shard) for shard in range(3)]
    order = data.draw(st.permutations([shard for shard, queue in enumerate(queues) for _ in queue]))
    mixed = [queues[shard].pop(0) for shard in order]
    assert_same(told(mixed).table, counted(FRAME))
    cut = data.draw(st.integers(0, len(mixed)))
    at_once = EMPTY.updated(mixed[:cut]).updated(mixed[cut:])  # as a reader takes them who starts late
    assert_same(at_once.table, counted(FRAME))
    assert at_once.heard_s.tolist() == told(mixed).heard_s.tolist()


def test_a_shard_that_lags_behind_a_snapshot_leaves_the_snapshots_counts_of_its_fields_alone() -> None:
    ahead, behind = live(0, 2), live(1, 2)
    counts = told(run(ahead, BLOCKS) + run(behind, BLOCKS[:3]))
    snapshot = counted(FRAME[:400])
    over = counts.over(snapshot)
    of_field = np.array(shard_fields(FIELDS, 2))
    assert over.as_of_s == counted(FRAME).as_of_s
    is_own, truth = of_field[over.field] == 0, counted(FRAME)
    wanted_n = dict(zip(truth.keys.tolist(), truth.n.tolist(), strict=True))
    np.testing.assert_allclose(over.n[is_own], [wanted_n[key] for key in over.keys[is_own].tolist()])
    left = 0.5 ** ((over.as_of_s - snapshot.as_of_s) / np.array(HALF_LIVES_S))
    own_n = dict(zip(snapshot.keys.tolist(), (snapshot.n * left).tolist(), strict=True))
    np.testing.assert_allclose(over.n[~is_own], [own_n[key] for key in over.keys[~is_own].tolist()])


def test_publications_older_than_a_snapshot_tell_it_nothing() -> None:
    snapshot = counted(FRAME)
    assert told(run(live(), BLOCKS[:3])).over(snapshot) is snapshot
    assert EMPTY.over(snapshot) is snapshot


def test_an_update_that_comes_again_late_changes_nothing() -> None:
    first, *_, last = run(live(), [FRAME[:300], FRAME[300:]], every=1)
    counts = told([first, last])
    assert_same(counts.updated([first]).table, counts.table)
    again = dataclasses.replace(first, at_s=first.at_s - 1.0)
    assert_same(counts.updated([again]).table, counts.table)


def test_an_update_with_other_half_lives_or_fields_is_refused() -> None:
    (update,) = run(live(), BLOCKS[:1])
    with pytest.raises(ValueError, match="must have 1 half-lives"):
        PublishedCounts.empty((600.0,), len(FIELDS)).check(update)
    with pytest.raises(ValueError, match=r"fields must be below 2, got 4"):
        PublishedCounts.empty(HALF_LIVES_S, 2).check(update)


def test_values_without_evidence_are_forgotten() -> None:
    counts = told(run(live(), BLOCKS))
    assert len(counts.without(1e9).table.keys) == 0
    assert len(counts.without(0.0).table.keys) == len(counts.table.keys)


@pytest.mark.parametrize("n_shards", [1, 2])
def test_counts_restored_from_a_snapshot_are_published_whole_and_go_on(n_shards: int) -> None:
    updates = []
    for shard in range(n_shards):
        priors = live(shard, n_shards)
        priors.restore(counted(FRAME[:400]))
        updates += [*priors.changes(1000), *run(priors, [FRAME[400:]])]
    assert_same(told(updates).table, counted(FRAME))


def test_nothing_is_published_before_anything_was_counted() -> None:
    priors = live()
    priors.restore(PriorTable.empty(HALF_LIVES_S, len(FIELDS)))
    assert not list(priors.changes(1000))


def test_values_that_were_forgotten_before_they_were_published_are_left_out() -> None:
    priors = live(evidence_min=0.5)
    priors.count(FRAME[:5])
    later = FRAME[5:6].with_columns(settled_s=pl.lit(1e9))
    priors.count(later)
    (update,) = priors.changes(1000)
    assert set(update.keys.tolist()) == set(encode(later, FIELDS).ravel().tolist()) - {0}


def test_no_more_values_are_counted_than_allowed() -> None:
    priors = live(counts_max=7)
    for first in range(0, len(FRAME), 50):
        priors.count(FRAME[first : first + 50])
        assert len(priors.table.keys) == 7


def test_it_is_said_how_many_values_lost_their_counts_to_the_limit_and_not_how_many_to_time() -> None:
    limited, forgetful = live(counts_max=7), live(evidence_min=0.5)
    for priors in (limited, forgetful):
        priors.count(FRAME[:5])
    assert (len(limited.table.keys), limited.evicted) == (7, len(counted(FRAME[:5]).keys) - 7)
    before = len(forgetful.table.keys)
    forgetful.count(FRAME[5:6].with_columns(settled_s=pl.lit(1e9)))
    assert len(forgetful.table.keys) < before
    assert forgetful.evicted == 0


def test_a_reader_keeps_the_published_values_with_the_most_evidence() -> None:
    counts = told(run(live(), BLOCKS))
    assert counts.within(len(counts.table.keys)).table is counts.table
    kept = counts.within(9)
    least = np.sort(counts.table.evidence)[-9]
    assert len(kept.table.keys) == 9
    assert kept.table.evidence.min() == least
    assert kept.heard_s is counts.heard_s
    assert_same(kept.updated([]).table, kept.table)
    again = live()
    again.restore(counted(FRAME))
    assert_same(kept.updated(list(again.changes(1000))).table, counted(FRAME))  # what is published again is known again


def test_a_value_that_a_reader_has_no_room_for_has_its_snapshots_counts() -> None:
    snapshot = counted(FRAME[:400])
    counts = told(run(live(), BLOCKS)).within(9)
    over = counts.over(snapshot)
    assert set(over.keys.tolist()) == set(snapshot.keys.tolist()) | set(counts.table.keys.tolist())
    left = 0.5 ** ((over.as_of_s - snapshot.as_of_s) / np.array(HALF_LIVES_S))
    own = ~np.isin(snapshot.keys, counts.table.keys)
    np.testing.assert_allclose(over.n[np.isin(over.keys, snapshot.keys[own])], snapshot.n[own] * left)


def test_fields_are_shared_out_by_their_slots_and_a_cross_goes_with_its_first_part() -> None:
    for n_shards in (1, 2, 3, 4):
        of_field = shard_fields(FIELDS, n_shards)
        assert set(of_field) == set(range(n_shards))
        assert of_field[4] == of_field[0]  # user_x_ad, user_id
    load = np.bincount(shard_fields(FIELDS, 2), slot_counts(FIELDS))
    assert load.tolist() == [4.0, 3.0]


@pytest.mark.parametrize("n_shards", [0, 5])
def test_there_are_at_most_as_many_shards_as_fields_in_events(n_shards: int) -> None:
    with pytest.raises(ValueError, match=rf"priors must have 1 to 4 shards .*, got {n_shards}"):
        shard_fields((*FIELDS, Field("again", "cross", of=("user_id", "tags"))), n_shards)
