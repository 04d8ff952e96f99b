import dataclasses
import math

import numpy as np
import polars as pl
import pytest
import torch

from models.batch import Predictor
from models.click_task import ClickTask, initial_snapshot
from models.evaluate import evaluate
from models.losses import Objective
from models.snapshot import Snapshot, from_arrays, to_arrays
from models.train import fresh_rows
from models.update import Learner, UpdateReport
from models.window import Slide
from tests.frames import WAIT_S, frame, plan
from tests.models.learnt import SLIDE_S, learnt, slide


def copy(snapshot: Snapshot) -> Snapshot:
    """The snapshot as it comes back from a disk: the same arrays, no cached values."""
    rest = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(Snapshot)}
    arrays = ("tensors", "vocabulary", "base", "recent", "evidence", "end_s", "origin_s", "shadow")
    rest = {name: value for name, value in rest.items() if name not in arrays}
    return from_arrays(to_arrays(snapshot), rest, snapshot.shadow.former)


def test_it_learns_which_ads_users_like() -> None:
    _, reports = learnt(6)
    first, *_, last = reports
    assert first.latest.auc == pytest.approx(0.5, abs=0.05)  # has seen nothing
    assert last.latest.auc is not None
    assert last.latest.logloss is not None
    assert last.latest.auc > 0.75
    assert last.latest.logloss < 0.6
    assert last.latest.calibration == pytest.approx(1.0, abs=0.15)


def test_the_network_finds_what_counts_of_single_values_cannot_say() -> None:
    """Users and ads without bias, whose pairs decide: only the pairs' cross or an interaction can tell."""
    rng = np.random.default_rng(0)
    likes = rng.integers(0, 2, (12, 12))

    def rows(index: int) -> Slide:
        user, ad = rng.integers(0, 12, 3000), rng.integers(0, 12, 3000)
        click = rng.random(3000) < np.where(likes[user, ad] == 1, 0.9, 0.1)
        time_s = np.sort(rng.uniform(0.0, SLIDE_S, 3000)) + index * SLIDE_S - WAIT_S
        ids = {"user_id": [f"u{u}" for u in user], "ad_id": [f"a{a}" for a in ad]}
        return Slide(index, index * SLIDE_S, (index + 1) * SLIDE_S, frame(time_s=time_s, click=click, **ids))

    without_cross = plan().fields[:2]
    learner = Learner(ClickTask(plan(fields=without_cross, hidden=(32, 16), dim=8, learning_rate=0.01)))
    reports = [learner.learn(rows(index)) for index in range(1, 16)]
    assert reports[-1].latest.auc is not None
    assert reports[-1].latest.auc > 0.75


def test_learning_again_from_the_start_gives_the_same_bits() -> None:
    learner = Learner(ClickTask(plan()))
    again = tuple(learner.learn(slide(index)) for index in range(1, 4))
    assert again == learnt()[1]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_learner_resumed_from_its_snapshots_goes_on_with_the_same_bits(stop: int) -> None:
    changes = {"warmup_s": 2 * SLIDE_S, "clicks_min": 1}
    whole, stopped = (
        Learner(ClickTask(plan(**changes))),
        Learner(ClickTask(plan(**changes))),
    )
    wanted = [whole.learn(slide(index)) for index in range(1, 5)]
    got = [stopped.learn(slide(index)) for index in range(1, stop + 1)]
    resumed = Learner.resume(ClickTask(plan(**changes)), copy(stopped.latest), copy(stopped.champion))
    got += [resumed.learn(slide(index)) for index in range(stop + 1, 5)]
    assert got == wanted
    assert resumed.latest.digest == whole.latest.digest


def test_an_overloaded_learner_learns_some_rows_of_every_slide_and_counts_them_all() -> None:
    some = Learner(ClickTask(plan(rows_max=300)))
    reports = [some.learn(slide(index)) for index in range(1, 4)]
    every, wanted = learnt(3)
    assert [report.rows for report in reports] == [report.rows for report in wanted]
    for report in reports:
        assert report.latest.rows == report.rows - report.left_out - report.stale_rows
        assert 220 < report.latest.rows < 380
    assert {report.left_out for report in wanted} == {0}
    np.testing.assert_array_equal(some.latest.priors.n, every.latest.priors.n)
    assert some.latest.learnt == every.latest.learnt
    assert reports[-1].latest.auc is not None
    assert reports[-1].latest.auc > 0.6


def test_the_order_in_which_a_slide_came_together_changes_nothing() -> None:
    rows = slide(1)
    moved = dataclasses.replace(rows, frame=rows.frame.with_columns(source_partition=pl.lit(3, pl.Int32)))
    one, other = Learner(ClickTask(plan())), Learner(ClickTask(plan()))
    one.learn(rows)
    other.learn(moved)
    assert one.latest.digest == other.latest.digest


def test_a_slide_is_scored_before_it_is_learnt() -> None:
    learner = Learner(ClickTask(plan()))
    rows = slide(1)
    report = learner.learn(rows)
    flipped = dataclasses.replace(rows, frame=rows.frame.with_columns(click=(1 - pl.col("click")).cast(pl.Int8)))
    before = learner.scores["latest"]
    other = Learner(ClickTask(plan()))
    other.learn(flipped)
    settled = rows.frame["settled_s"].to_numpy()
    unaware = rows.frame["time_s"].to_numpy() < settled[0]  # shown before any label was known
    assert unaware.sum() > 1
    np.testing.assert_array_equal(before[unaware], other.scores["latest"][unaware])
    assert report.rows == len(rows.frame) == len(before)


def test_during_the_warm_up_every_model_is_promoted_and_then_evidence_decides() -> None:
    learner = Learner(ClickTask(plan(warmup_s=2 * SLIDE_S, buckets=64)))
    reports = [learner.learn(slide(index, n_rows=400)) for index in range(1, 17)]
    decisions = [report.decision for report in reports]
    assert decisions[:2] == ["warmup", "warmup"]
    assert set(decisions[2:]) <= {"hold", "promote"}
    assert "promote" in decisions
    assert [report.evidence.pieces for report in reports[:4]] == [0, 0, 1, 2]
    assert {guard.name for guard in reports[-1].guards} >= {"clicks", "calibration", "shift", "slide", "slice common"}
    latest_before = [initial_snapshot(plan()).version, *(report.latest_version for report in reports)]
    champion = latest_before[0]
    for report, before in zip(reports, latest_before, strict=False):
        champion = champion if report.decision == "hold" else before
        assert report.champion_version == champion


def test_slides_learnt_since_the_champion_are_remembered() -> None:
    learner = Learner(ClickTask(plan(clicks_min=10**6)))  # never enough evidence
    for index in range(1, 4):
        learner.learn(slide(index))
    assert learner.latest.learnt == (1, 2, 3)
    assert learner.champion.slide is None


def test_a_harmful_lineage_is_rejected_and_starts_again_from_the_champion() -> None:
    learner = Learner(
        ClickTask(plan(warmup_s=2 * SLIDE_S, buckets=64, learning_rate=1e-5))
    )  # it must not heal too soon
    for index in range(1, 4):
        learner.learn(slide(index))
    broken = {"network.direct.weight": learner.latest.tensors["network.direct.weight"] * 0.0 - 2.0}
    broken["calibration.curvature"] = learner.latest.tensors["calibration.curvature"] * 1e6  # nor be mended behind
    learner.latest = dataclasses.replace(learner.latest, tensors={**learner.latest.tensors, **broken})
    reports: list[UpdateReport] = []
    while not reports or reports[-1].decision != "reject":
        champion = learner.champion
        reports.append(learner.learn(slide(4 + len(reports))))
        assert len(reports) < 20
    rejected = reports[-1]
    assert rejected.lost == tuple(range(2, rejected.slide))
    assert learner.champion is champion
    assert learner.latest.parent == champion.version
    assert learner.latest.learnt == (rejected.slide,)
    assert rejected.latest.logloss is not None
    after = learner.learn(slide(rejected.slide + 1))
    assert after.latest.logloss is not None
    assert after.latest.logloss < rejected.latest.logloss
    assert after.evidence.pieces == 1  # evidence began anew


def promoted() -> Learner:
    """A learner whose first promotion is watched."""
    learner = Learner(ClickTask(plan(warmup_s=2 * SLIDE_S)))
    for index in range(1, 30):
        if learner.learn(slide(index, n_rows=400)).decision == "promote":
            return learner
    raise AssertionError("the gate must promote a model of this world")


def test_a_harmful_champion_is_rolled_back_to_the_one_before() -> None:
    learner = promoted()
    former, watched = learner.former, learner.latest.shadow
    assert former is not None
    assert watched.former == former.version
    assert watched.learnt
    shifted = learner.latest.tensors["calibration.weight"] + torch.tensor([0.0, 0.0, 6.0])  # all but certain of a click
    broken = {**learner.latest.tensors, "calibration.weight": shifted}
    learner.champion = dataclasses.replace(learner.champion, tensors=broken)
    learner.latest = dataclasses.replace(learner.latest, tensors=broken)
    first = learner.learn(slide(31, n_rows=400))
    assert (first.decision, first.former_version) == ("hold", former.version)
    report = learner.learn(slide(32, n_rows=400))
    assert report.decision == "rollback"
    assert report.reason.startswith("worse than the former champion by more than 0.1 nats")
    assert report.lost == (*watched.learnt, 31)
    assert learner.champion is former
    assert (learner.former, report.former_version) == (None, "")
    assert (learner.latest.parent, learner.latest.learnt) == (former.version, (32,))
    assert learner.latest.shadow.wait == plan().rollback_wait
    assert learner.learn(slide(33, n_rows=400)).decision == "hold"


@pytest.mark.slow
def test_a_learner_that_watches_goes_on_with_the_same_bits() -> None:
    learner = promoted()
    assert learner.former is not None
    task = ClickTask(plan(warmup_s=2 * SLIDE_S))
    resumed = Learner.resume(task, copy(learner.latest), copy(learner.champion), copy(learner.former))
    assert resumed.learn(slide(31)) == learner.learn(slide(31))
    assert resumed.latest.digest == learner.latest.digest
    with pytest.raises(ValueError, match=r"must be resumed with the former champion ctr-.*, got none; restore it"):
        Learner.resume(ClickTask(plan(warmup_s=2 * SLIDE_S)), learner.latest, learner.champion)


def test_the_newest_model_promoted_by_a_person_is_watched() -> None:
    learner = Learner(ClickTask(plan(clicks_min=10**6)))
    for index in range(1, 3):
        learner.learn(slide(index, n_rows=200))
    served, newest = learner.champion, learner.latest
    learner.promote(newest)
    assert (learner.champion, learner.former) == (newest, served)
    assert (learner.latest.learnt, learner.latest.shadow.former) == ((), served.version)
    report = learner.learn(slide(3, n_rows=200))
    assert (report.champion_version, report.former_version) == (newest.version, served.version)
    assert learner.latest.learnt == (3,)
    assert learner.latest.shadow.learnt == (1, 2, 3)
    with pytest.raises(ValueError, match="must not serve already to be promoted"):
        learner.promote(newest)


def test_an_older_model_promoted_by_a_person_serves_while_learning_goes_on() -> None:
    learner = Learner(ClickTask(plan(clicks_min=10**6)))
    older, *_ = [learner.learn(slide(index, n_rows=200)) and learner.latest for index in range(1, 4)]
    tensors = learner.latest.tensors
    learner.promote(older)
    assert learner.champion is older
    assert learner.latest.tensors is tensors
    assert learner.latest.learnt == (2, 3)
    assert learner.latest.shadow.wait == plan().rollback_wait


def test_a_rollback_by_a_person_learns_on_from_what_serves_and_keeps_the_counts() -> None:
    learner = Learner(ClickTask(plan(warmup_s=3 * SLIDE_S)))
    older, *_ = [learner.learn(slide(index, n_rows=200)) and learner.latest for index in range(1, 4)]
    counts = learner.latest.priors.root_n
    learner.roll_back(older)
    assert learner.champion is older
    assert (learner.latest.parent, learner.latest.learnt, learner.former) == (older.version, (), None)
    assert learner.latest.tensors is older.tensors
    np.testing.assert_array_equal(learner.latest.priors.root_n, counts)
    report = learner.learn(slide(4, n_rows=200))
    assert (report.decision, report.reason) == ("hold", "the newest model is the champion")


def test_a_static_model_learns_the_warm_up_alone_while_counts_go_on() -> None:
    learner = Learner(ClickTask(plan(learns="warmup", warmup_s=2 * SLIDE_S)))
    for index in range(1, 3):
        learner.learn(slide(index))
    warm = learner.latest
    report = learner.learn(slide(3))
    assert learner.latest.tensors is warm.tensors
    assert learner.latest.vocabulary is warm.vocabulary
    assert learner.latest.priors.root_n[1] > warm.priors.root_n[1]
    assert report.latest_version != warm.version


def test_what_is_new_in_a_slide_learns_from_it() -> None:
    learner = Learner(ClickTask(plan()))
    learner.learn(slide(1))
    latest = learner.latest
    fresh = fresh_rows(latest.vocabulary.keys, latest.dim, plan().seed)
    assert len(fresh) > 20
    assert (latest.tensors["embedding.rows"][1:] != fresh).any(dim=1).all()


def test_values_are_forgotten_with_their_evidence() -> None:
    learner = Learner(ClickTask(plan(half_lives_s=(600.0, 2000.0))))
    learner.learn(slide(1))
    known = len(learner.latest.vocabulary)
    gone = Slide(9, 9 * SLIDE_S, 9 * SLIDE_S + 100.0, frame(time_s=[9 * SLIDE_S] * 5, request_id=list("abcde")))
    report = learner.learn(gone)
    assert report.values == 4  # the user, the ad, the price and the cross that came five times
    assert known > 20


def test_counts_are_forgotten_with_their_evidence() -> None:
    learner = Learner(ClickTask(plan(half_lives_s=(600.0, 2000.0), evidence_min=0.2)))
    learner.learn(slide(1))
    counted = len(learner.latest.priors.keys)
    learner.learn(Slide(9, 9 * SLIDE_S, 9 * SLIDE_S + 100.0, frame(time_s=[9 * SLIDE_S])))
    assert len(learner.latest.priors.keys) == 4 < counted


def test_values_and_counts_stay_within_their_limits() -> None:
    learner = Learner(ClickTask(plan(values_max=20, counts_max=30)))
    for index in range(1, 5):
        report = learner.learn(slide(index))
        assert report.values <= 20
        assert len(learner.latest.base.keys) == report.counted <= 30
    assert (report.values, report.counted) == (20, 30)


def test_a_report_says_what_each_limit_took() -> None:
    free, limited = (
        Learner(ClickTask(plan())),
        Learner(ClickTask(plan(values_max=20, counts_max=300))),
    )
    for index in (1, 2):
        wanted, report = free.learn(slide(index)), limited.learn(slide(index))
        assert (wanted.counts_evicted, wanted.rows_evicted) == (0, 0)
        if index == 1:  # the same evidence up to here
            assert report.counts_evicted == wanted.counted - 300
    admitted = np.count_nonzero(limited.latest.priors.evidence >= 2.0)
    assert report.counts_evicted > 0
    assert report.values + report.rows_evicted == admitted > 20


def test_a_slide_that_is_counted_alone_takes_no_row() -> None:
    report = Learner(ClickTask(plan(learns="warmup", counts_max=30))).learn(slide(1))
    assert report.counts_evicted > report.rows_evicted == 0


def test_what_time_alone_takes_is_not_said_to_be_a_limits() -> None:
    learner = Learner(ClickTask(plan(half_lives_s=(600.0, 2000.0), evidence_min=0.2)))
    before = learner.learn(slide(1))
    report = learner.learn(Slide(9, 9 * SLIDE_S, 9 * SLIDE_S + 100.0, frame(time_s=[9 * SLIDE_S])))
    assert report.counted < before.counted
    assert (report.counts_evicted, report.rows_evicted) == (0, 0)


@pytest.mark.parametrize("click", [0, 1])
def test_a_slide_of_one_class_is_learnt_without_a_decision(click: int) -> None:
    learner = Learner(ClickTask(plan()))
    rows = slide(1)
    for index in (1, 2):
        same = rows.frame.with_columns(
            click=pl.lit(click, pl.Int8),
            time_s=pl.col("time_s") + index * SLIDE_S,
            settled_s=pl.col("settled_s") + index * SLIDE_S,
        )
        report = learner.learn(Slide(index + 1, (index + 1) * SLIDE_S, (index + 2) * SLIDE_S, same))
    assert report.latest.auc is None
    assert report.latest.logloss is not None
    assert report.latest.logloss < 0.2
    assert report.decision == ("hold" if click == 0 else report.decision)


def test_an_empty_slide_and_a_slide_of_one_row_are_no_error() -> None:
    learner = Learner(ClickTask(plan()))
    empty = learner.learn(Slide(0, 0.0, SLIDE_S, frame(time_s=[])))
    assert (empty.rows, empty.latest.logloss, empty.decision) == (0, None, "hold")
    one = learner.learn(Slide(1, SLIDE_S, 2 * SLIDE_S, frame(time_s=[SLIDE_S + 5.0], click=[1])))
    assert (one.rows, one.clicks, one.decision) == (1, 1, "hold")
    after = learner.learn(slide(2))
    assert after.latest.logloss is not None
    empty = learner.learn(Slide(3, 3 * SLIDE_S, 4 * SLIDE_S, frame(time_s=[])))
    assert learner.latest.learnt == (1, 2)
    assert math.isfinite(learner.latest.priors.as_of_s)


def test_odd_numbers_and_missing_values_are_learnt_like_any_other() -> None:
    rows = slide(1).frame
    odd = np.resize([np.nan, np.inf, -np.inf, 1e300, 0.0], len(rows))
    rows = rows.with_columns(
        pl.Series("field.price", odd),
        pl.lit(None, pl.String).alias("field.user_id"),
        pl.lit(None, pl.List(pl.String)).alias("field.tags"),
    )
    learner = Learner(ClickTask(plan()))
    learner.learn(Slide(1, SLIDE_S, 2 * SLIDE_S, rows))
    assert all(np.isfinite(array).all() for array in to_arrays(learner.latest).values())


def test_a_slide_of_values_that_nobody_has_seen_is_scored_near_the_overall_rate() -> None:
    learner = Learner.resume(ClickTask(plan()), learnt()[0].latest, learnt()[0].champion)
    rows = slide(4)
    new = rows.frame.with_columns(
        (pl.col(f"field.{name}") + "-new").alias(f"field.{name}") for name in ("user_id", "ad_id")
    )
    report = learner.learn(dataclasses.replace(rows, frame=new))
    assert report.latest.calibration == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "other"},
        {"fields": plan().fields[:2]},
        {"levels": ("ad_id", "tags")},
        {"dim": 8},
        {"hidden": (4,)},
        {"half_lives_s": (600.0, 1000.0)},
    ],
)
def test_snapshots_of_another_plan_are_refused_by_name(changes: dict[str, object]) -> None:
    learner = learnt()[0]
    with pytest.raises(ValueError, match=f"snapshot {learner.latest.version} must have .*{next(iter(changes))}"):
        Learner.resume(ClickTask(plan(**changes)), learner.latest, learner.champion)


def test_a_plan_without_a_look_back_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lookback_s must be > 0, got 0\.0"):
        plan(lookback_s=0.0)


def corrections_of(rows: Slide) -> Slide:
    """The slide, and half a minute later a correction of each of its first hundred rows that were not clicked."""
    late = rows.frame.filter(pl.col("click") == 0)[:100].with_columns(
        kind=pl.lit("late_corrected"), click=pl.lit(1, pl.Int8), settled_s=pl.col("settled_s") + 30.0
    )
    return dataclasses.replace(rows, frame=pl.concat([rows.frame, late]).sort("settled_s"))


def test_late_corrections_move_the_counts_and_are_not_scored() -> None:
    learner = Learner(ClickTask(plan()))
    report = learner.learn(corrections_of(slide(1)))
    assert (report.rows, report.corrected, report.stale_rows) == (1500, 100, 0)
    assert report.clicks == report.latest.clicks == int(slide(1).frame["click"].sum())
    assert len(learner.scores["latest"]) == 1500
    plain = learnt(1)[0].latest.priors
    counts = learner.latest.priors
    np.testing.assert_allclose(counts.root_n, plain.root_n)
    assert counts.root_c[1] == pytest.approx(plain.root_c[1] + 100.0, rel=0.01)


def test_a_slide_of_corrections_alone_is_learnt_as_clicks() -> None:
    learner = Learner(ClickTask(plan()))
    learner.learn(slide(1))
    before = learner.latest
    late = corrections_of(slide(2))
    report = learner.learn(dataclasses.replace(late, frame=late.frame.filter(pl.col("kind") == "late_corrected")))
    assert (report.rows, report.clicks, report.corrected) == (0, 0, 100)
    assert learner.latest.priors.root_c[1] > before.priors.root_c[1]
    one, other = (dataclasses.replace(s, base=before.base, recent=before.recent) for s in (before, learner.latest))
    examples = Learner.resume(ClickTask(plan()), one, one).score(slide(2))
    scores = [Predictor(s)(examples.keys, examples.counts).mean() for s in (one, other)]
    assert scores[1] > scores[0]


@pytest.mark.slow
@pytest.mark.parametrize(("corrects", "low", "high"), [(True, 0.97, 1.03), (False, 0.0, 0.75)])
def test_corrections_bring_predictions_to_the_final_click_rate(corrects: bool, low: float, high: float) -> None:
    """A third of the clicks come late: without corrections a third of the rate is missing."""
    learner = Learner(ClickTask(plan()))
    rng = np.random.default_rng(5)
    predicted, clicked, waiting = [], [], slide(1).frame.clear()
    for index in range(1, 13):
        rows = slide(index)
        clicks = rows.frame["click"].to_numpy()
        is_late = (clicks == 1) & (rng.random(len(clicks)) < 1 / 3)
        first = rows.frame.with_columns(
            click=pl.Series(np.where(is_late, 0, clicks).astype(np.int8)),
            kind=pl.when(pl.Series(is_late)).then(pl.lit("expired_negative")).otherwise("kind"),
        )
        late = rows.frame.filter(pl.Series(is_late)).with_columns(
            kind=pl.lit("late_corrected"), settled_s=pl.col("settled_s") + 30.0
        )
        waiting = pl.concat([waiting, late]) if corrects else waiting
        due = pl.col("settled_s") < rows.end_s
        learner.learn(dataclasses.replace(rows, frame=pl.concat([first, waiting.filter(due)]).sort("settled_s")))
        waiting = waiting.filter(~due)
        if index > 6:
            predicted.append(learner.scores["latest"])
            clicked.append(clicks)
    assert low < np.concatenate(predicted).mean() / np.concatenate(clicked).mean() < high


@pytest.mark.slow
@pytest.mark.parametrize("confidence", ["accuracy", "auc"])
def test_with_its_guards_confidence_ranking_keeps_the_level_over_a_hundred_slides(confidence: str) -> None:
    """Without them it collapses: tests/models/test_losses.py."""
    objective = Objective(confidence=confidence)  # type: ignore[arg-type]
    learner = Learner(ClickTask(plan(objective=objective, is_gated=False)))
    predicted, clicked = [], []
    for index in range(1, 101):
        examples = learner.score(rows := slide(index, n_rows=400))
        predicted.append(learner.scores["latest"])
        clicked.append(examples.clicks)
        learner.learn(rows)
    late = np.concatenate(predicted[-25:]), np.concatenate(clicked[-25:])
    assert 0.95 < late[0].mean() / late[1].mean() < 1.05
    assert late[0].min() > 1e-3
    assert late[0].max() < 1.0 - 1e-3
    plain = Learner(ClickTask(plan(is_gated=False)))
    for index in range(1, 101):
        report = plain.learn(slide(index, n_rows=400))
    found = evaluate(predicted[-1], clicked[-1])
    assert found.logloss is not None
    assert report.latest.logloss is not None
    assert found.logloss < report.latest.logloss + 0.02
