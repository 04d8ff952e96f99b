"""What was served is what training makes of the same rows; and where it is not, that shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.encode import ValueEncoder, encode, join_keys, slot_fields
from features.fields import raw_fields
from features.live_priors import PublishedCounts
from features.priors import CORRECTION, PriorTable, SettledRows, advance
from models import skew
from models.click_task import ClickTask
from models.serving.rank import Scorer
from models.skew import LOADS_MAX, Skew, SkewReport
from models.snapshot import Snapshot, SnapshotError
from models.update import Learner
from models.window import Slide
from tests.models.serving.test_rank import published
from tests.models.serving.trained import FIELDS, PLAN, slide, two_snapshots

TOLERANCE = 1e-6
EVERY_S = 50.0  # live counts come this often
NAMES = {f"field.{field.name}": field.name for field in raw_fields(FIELDS)}


def settled(*slides: Slide) -> SettledRows:
    rows = pl.concat([one.frame for one in slides])
    return SettledRows.from_frame(rows, encode(rows, FIELDS))


def known_at(moment_s: float, slides: Sequence[Slide], snapshot: Snapshot) -> PublishedCounts:
    """Return the counts that were published last before a moment: of all that had settled, as of the newest of it."""
    rows = settled(*slides).between(-math.inf, moment_s)
    table = PriorTable.empty(snapshot.base.half_lives_s.tolist(), len(FIELDS))
    return published(advance(table, rows, float(rows.settled_s[-1]), slot_field=slot_fields(FIELDS)))


def serve(snapshot: Snapshot, *before: Slide, rows: Slide, only_own: bool = False) -> Slide:
    """Return a slide whose rows say what a scorer said of their values, 2 s before they were shown."""
    encoder, scorers, said = ValueEncoder(raw_fields(FIELDS)), {}, []
    for row in rows.frame.iter_rows(named=True):
        request_s = row["time_s"] - 2.0
        moment_s = request_s // EVERY_S * EVERY_S
        if moment_s not in scorers:
            scorer = Scorer.from_snapshot(snapshot)
            counts = known_at(moment_s, [*before, rows], snapshot)
            scorers[moment_s] = scorer if only_own else scorer.with_live_counts(counts)
        values = {name: row[column] for column, name in NAMES.items()}
        keys = join_keys(FIELDS, [(encoder.fields, encoder.keys(values)[None])])
        pctr = float(scorers[moment_s].score(keys, request_s)[0])
        said.append((snapshot.version, pctr, scorers[moment_s].counts_s, request_s))
    schema = {"snapshot": pl.String(), "pctr": pl.Float64(), "counts_s": pl.Float64(), "request_s": pl.Float64()}
    return dataclasses.replace(rows, frame=rows.frame.hstack(pl.DataFrame(said, schema, orient="row").get_columns()))


def absent(version: str) -> Snapshot:
    raise SnapshotError(version)


def measure(
    served: Slide, snapshot: Snapshot, held: Sequence[Snapshot] | None = None, load: Any = absent
) -> SkewReport:
    """Return what a trainer that goes on from a snapshot says of a slide."""
    rows = ClickTask(PLAN).read(served, snapshot)
    return Skew(load).measure(served, rows, [snapshot] if held is None else held)


def altered(served: Slide, **columns: Any) -> Slide:
    """Return a slide with columns of its last row changed: no other was served on what that one settled as."""
    is_it = pl.int_range(pl.len()) == pl.len() - 1
    changes = [pl.when(is_it).then(value).otherwise(pl.col(name)).alias(name) for name, value in columns.items()]
    return dataclasses.replace(served, frame=served.frame.with_columns(changes))


@pytest.fixture(scope="module")
def newest() -> Snapshot:
    return two_snapshots()[1]


@pytest.fixture(scope="module")
def served(newest: Snapshot) -> Slide:
    return serve(newest, slide(1), slide(2), rows=slide(3))


def test_what_was_served_on_live_counts_is_what_training_says(newest: Snapshot, served: Slide) -> None:
    found = measure(served, newest)
    assert served.frame["counts_s"].n_unique() > 15
    out_of_reach = served.frame["counts_s"].drop_nulls().to_numpy() < newest.base.as_of_s
    assert found.left_out == {"limit": 0, "counts": int(out_of_reach.sum()), "snapshot": 0}
    assert len(found.differences) == 400 - out_of_reach.sum() > 350
    assert found.differences.max() <= TOLERANCE


def test_rows_that_were_served_before_a_slides_counts_began_are_not_guessed(newest: Snapshot, served: Slide) -> None:
    early = altered(served, counts_s=newest.base.as_of_s - 0.5)
    late = altered(served, counts_s=served.end_s)
    usual = measure(served, newest).left_out["counts"]
    assert [measure(one, newest).left_out["counts"] for one in (early, late)] == [usual + 1, usual + 1]


def test_counts_from_before_a_quiet_time_are_still_whole(newest: Snapshot) -> None:
    learner, comparing = Learner(ClickTask(PLAN)), Skew(absent)
    quiet = Slide(4, 4000.0, 5000.0, slide(4).frame.filter(pl.col("settled_s") < 4010.0))
    for one in (slide(1), slide(2), quiet):
        comparing.measure(one, learner.score(one), [])
        learner.learn(one)
    served = serve(newest, slide(1), slide(2), quiet, rows=slide(5))
    as_of_s = learner.latest.base.as_of_s
    is_old, is_early = served.frame["counts_s"] < as_of_s, served.frame["request_s"] < as_of_s
    assert is_old.sum() > is_early.sum() + 10
    rows = learner.score(served)
    found = comparing.measure(served, rows, [newest])
    assert (len(found.differences), found.left_out["counts"]) == (400 - is_early.sum(), is_early.sum())
    assert found.differences.max() <= TOLERANCE
    assert Skew(absent).measure(served, rows, [newest]).left_out["counts"] == is_old.sum()  # as after a restart


def test_what_was_served_on_a_snapshots_own_counts_is_what_training_says(newest: Snapshot) -> None:
    found = measure(serve(newest, slide(1), slide(2), rows=slide(3), only_own=True), newest)
    assert len(found.differences) == 400
    assert found.differences.max() <= TOLERANCE


def test_a_model_that_learns_on_counts_as_of_its_slides_start_is_compared_on_the_same() -> None:
    plan = dataclasses.replace(PLAN, prior="frozen")
    learner = Learner(ClickTask(plan))
    for index in (1, 2):
        learner.learn(slide(index))
    frozen = learner.latest
    good = serve(frozen, slide(1), slide(2), rows=slide(3))
    assert good.frame["counts_s"].null_count() == 400
    rows = ClickTask(plan).read(good, frozen)
    assert Skew(absent).measure(good, rows, [frozen]).differences.max() <= TOLERANCE
    live = serve(dataclasses.replace(frozen, prior="live"), slide(1), slide(2), rows=slide(3))
    wrong = dataclasses.replace(live, frame=live.frame.with_columns(snapshot=pl.lit(frozen.version)))
    assert Skew(absent).measure(wrong, rows, [frozen]).differences.max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"pctr": 0.9}, 0.05),  # another probability than the one that it was served with
        ({"field.user_id": "u99"}, 1e-4),  # the values in the log are not those that serving encoded
        ({"field.tags": ["t9"]}, 1e-4),
        ({"request_s": 3990.0}, 1e-5),  # counts that decayed to another moment
    ],
)
def test_one_wrong_row_is_seen(newest: Snapshot, served: Slide, changes: dict[str, Any], least: float) -> None:
    differences = measure(
        altered(served, **{name: pl.lit(value) for name, value in changes.items()}), newest
    ).differences
    assert np.count_nonzero(differences > TOLERANCE) == 1
    assert differences.max() > least


def test_counts_that_lack_what_had_settled_are_seen(newest: Snapshot) -> None:
    rows, lost = slide(3), slide(2)
    kept = dataclasses.replace(lost, frame=lost.frame.filter(pl.col("click") == 0))
    found = measure(serve(newest, slide(1), kept, rows=rows), newest)
    assert np.median(found.differences) > 1e-3


def test_another_model_than_the_one_that_is_named_is_seen(newest: Snapshot, served: Slide) -> None:
    older = two_snapshots()[0]
    wrong = dataclasses.replace(served, frame=served.frame.with_columns(snapshot=pl.lit(older.version)))
    assert np.median(measure(wrong, newest, [older]).differences) > 1e-3


def test_models_that_are_not_at_hand_are_loaded_once(newest: Snapshot, served: Slide) -> None:
    asked: list[str] = []

    def load(version: str) -> Snapshot:
        asked.append(version)
        return newest

    comparing, rows = Skew(load), ClickTask(PLAN).read(served, newest)
    found = [comparing.measure(served, rows, []) for _ in range(2)]
    assert asked == [newest.version]
    assert [len(one.differences) for one in found] == [len(measure(served, newest).differences)] * 2


def test_rows_whose_model_cannot_be_had_are_counted(newest: Snapshot, served: Slide) -> None:
    n_rows = len(measure(served, newest).differences)
    for load in (absent, unreachable, of_other_half_lives):
        found = measure(served, newest, [], load)
        assert (len(found.differences), found.left_out["snapshot"]) == (0, n_rows)


def unreachable(version: str) -> Snapshot:
    raise OSError(version)


def of_other_half_lives(_: str) -> Snapshot:
    newest = two_snapshots()[1]
    return dataclasses.replace(newest, base=dataclasses.replace(newest.base, half_lives_s=np.array([1.0, 2.0])))


def test_a_slide_that_names_many_models_costs_few_loads(newest: Snapshot, served: Slide) -> None:
    asked: list[str] = []

    def load(version: str) -> Snapshot:
        asked.append(version)
        raise SnapshotError(version)

    names = pl.format("ctr-{}", pl.int_range(pl.len()) % 50)
    many = dataclasses.replace(served, frame=served.frame.with_columns(snapshot=names))
    found = measure(many, newest, [], load)
    assert len(asked) == len(set(asked)) == LOADS_MAX
    assert found.left_out["snapshot"] == len(measure(served, newest).differences)


def test_a_bounded_sample_of_a_large_slide_is_compared(
    newest: Snapshot, served: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skew, "ROWS_MAX", 50)
    found = measure(served, newest)
    assert found.left_out["limit"] == 350
    assert len(found.differences) + found.left_out["counts"] == 50
    again = dataclasses.replace(served, frame=served.frame.filter(pl.col("settled_s") > 3500.0))
    assert 0 < len(again.frame) - measure(again, newest).left_out["limit"] <= 50


def test_rows_that_say_nothing_and_corrections_are_no_part_of_it(newest: Snapshot, served: Slide) -> None:
    assert len(measure(slide(3), newest).differences) == 0
    usual = len(measure(served, newest).differences)
    silent = altered(served, pctr=None)
    corrected = altered(served, kind=pl.lit(CORRECTION), click=pl.lit(1, pl.Int8))
    assert [len(measure(one, newest).differences) for one in (silent, corrected)] == [usual - 1, usual - 1]
