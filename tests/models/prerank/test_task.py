"""The pre-ranker as a task: what it learns from which candidates, and that bits depend on what they should."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.prerank.recall import recall
from models.prerank.task import PrerankTask, chain_rows
from models.update import Learner
from tests.models.prerank.cascades import N_ADS, N_CANDIDATES, N_REQUESTS, SLIDE_S, learnt, prerank_plan, slide


def recalled(learner: Learner[Any, Any], task: PrerankTask, k: int = 4) -> float:
    """Return the recall of what is exposed, as a share of what the truth recalls."""
    test = slide(50, seed=1)
    rows = task.read(test, learner.latest)
    scored = task.score(rows, learner.latest)
    user, ad = (test.frame[f"field.{name}"].str.slice(1).cast(pl.Int64).to_numpy() for name in ("user", "ad"))
    truth = np.where(ad % 2 == user % 2, 2.0, -2.0) - ad / N_ADS
    found, best = (recall(s, rows.clicks > 0.0, rows.requests, [k]).at[k] for s in (scored.scores, truth))
    return found / best


@pytest.mark.parametrize(
    ("name", "hidden"),
    [("ecm", (16, 8)), ("ecmm", (64, 16)), ("two-tower", (16, 8)), ("esmm", (16, 8)), ("cold", (16, 8))],
)
def test_what_learns_from_the_entire_chain_recalls_what_is_exposed(name: str, hidden: tuple[int, ...]) -> None:
    assert recalled(*learnt(network=name, hidden=hidden)) > 0.8  # without the user .6, by chance .27


def test_training_on_exposed_candidates_alone_is_biased_and_the_entire_chain_is_not() -> None:
    exposed_only, entire = recalled(*learnt(network="exposed-only")), recalled(*learnt(network="ecm"))
    assert exposed_only < 0.7
    assert entire > exposed_only + 0.25


def test_a_sample_of_the_unexposed_gives_the_same_level_as_all_of_them() -> None:
    for sample in (1.0, 0.2):
        learner, task = learnt(sample=sample)
        rows = task.read(slide(50, seed=1), learner.latest)
        probabilities = task.score(rows, learner.latest).probabilities
        assert probabilities.mean() == pytest.approx(rows.clicks.mean(), rel=0.35), sample  # without weights 2.3 times


def test_counts_hold_every_candidate_by_its_weight_and_no_candidate_sees_its_own_slide() -> None:
    task = PrerankTask(prerank_plan(), gate_penalty=0.0)
    first, second = slide(0, sample=0.5), slide(1, sample=0.5)
    learner = Learner(task)
    learner.learn(first)
    weights = (1.0 / first.frame["sample_rate"]).sum()
    assert learner.latest.priors.root_n[0] == pytest.approx(weights, rel=0.2)  # decayed a little
    rows = task.read(second, learner.latest)
    assert rows.before is learner.latest.priors
    changed = second.frame.with_columns(
        label=pl.when(pl.col("label") == "unexposed").then(pl.lit("clicked")).otherwise("label")
    )
    other = task.read(dataclasses.replace(second, frame=chain_rows(changed)), learner.latest)
    before = task.score(rows, learner.latest).probabilities
    np.testing.assert_array_equal(task.score(other, learner.latest).probabilities, before)


def test_the_same_slides_give_the_same_bits_and_another_seed_others() -> None:
    one, other = learnt(3, network="ecmm")[0], learnt(3, network="ecmm")[0]
    assert one.latest.digest == other.latest.digest
    assert learnt(3, network="ecmm", seed=7)[0].latest.digest != one.latest.digest


def test_a_learner_resumed_from_its_snapshots_goes_on_with_the_same_bits() -> None:
    whole, task = learnt(4)
    stopped, _ = learnt(2)
    resumed = Learner.resume(task, stopped.latest, stopped.champion)
    for index in (2, 3):
        resumed.learn(slide(index))
    assert resumed.latest.digest == whole.latest.digest


def test_the_gate_promotes_a_better_pre_ranker_and_its_evaluation_is_about_exposure() -> None:
    task = PrerankTask(prerank_plan(warmup_s=5.5 * SLIDE_S, buckets=16, clicks_min=1), gate_penalty=0.0)
    learner = Learner(task)
    reports = [learner.learn(slide(index)) for index in range(30)]
    assert "promote" in [report.decision for report in reports]
    last = reports[-1].latest
    assert (last.rows, last.clicks) == (N_REQUESTS * N_CANDIDATES, 2 * N_REQUESTS)
    assert last.auc is not None
    assert last.auc > 0.85
    assert last.calibration == pytest.approx(1.0, abs=0.35)
    assert reports[-1].rows == N_REQUESTS * N_CANDIDATES


def test_of_more_candidates_than_can_be_learnt_whole_requests_are_kept() -> None:
    task = PrerankTask(prerank_plan(rows_max=300), gate_penalty=0.0)
    learner = Learner(task)
    rows = task.read(slide(0), learner.latest)
    assert 100 < len(rows.keys) < 600
    assert rows.left_out == N_REQUESTS * N_CANDIDATES - len(rows.keys)
    assert set(np.unique(rows.requests, return_counts=True)[1]) == {N_CANDIDATES}
    assert len(rows.settled.keys) == N_REQUESTS * N_CANDIDATES
