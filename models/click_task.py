"""The click model as a task: impressions in, click probabilities out, learnt with the data-driven prior.

Owns how its rows are scored, what they are learnt from, and its first state. Must not know pointers or gates
(models/update.py).

Shape legend: `N` rows, `S` slots.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from features.encode import Keys
from features.fields import slot_counts
from features.posteriors import deviations
from features.priors import PriorTable, SettledRows
from features.strength import add_losses, best_strength, initial_losses
from features.vocabulary import Vocabulary, revise
from models.batch import Inputs, Predictor, make_inputs
from models.evaluate import evaluate, log_losses
from models.evidence import Evidence
from models.examples import Examples, read_examples
from models.gate import PROBABILITY_MIN
from models.losses import Targets
from models.networks.build import build_network, initial_tensors
from models.plan import Plan
from models.shadow import remember
from models.snapshot import Snapshot
from models.task import Scored
from models.train import initial_embedding, move_rows, resolve_device, train
from models.window import Slide

STRENGTH_LOSSES = "strength.losses"

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoredClicks(Scored):
    """What a click model says of impressions.

    Attributes:
        inputs: What its network reads of them.
        logits: Of base and network, (N, 2).
    """

    inputs: Inputs
    logits: Logits


class ClickTask:
    """Learns clicks of impressions; see `models.task.Task`.

    Attributes:
        plan: What it follows.
    """

    def __init__(self, plan: Plan) -> None:
        """Take the plan."""
        self.plan = plan
        self._device = resolve_device(plan.device)

    def initial(self) -> Snapshot:
        """Return a state that predicts the overall click rate."""
        return initial_snapshot(self.plan)

    def read(self, slide: Slide, before: Snapshot) -> Examples:
        """Return the impressions of a slide, with what had settled when each was shown."""
        return read_examples(slide, before, self.plan.buckets, self.plan.rows_max)

    def score(self, rows: Examples, snapshot: Snapshot) -> ScoredClicks:
        """Return click probabilities."""
        predictor = Predictor(snapshot, self._device)
        inputs = make_inputs(rows.keys, rows.counts, snapshot, self._device)
        logits = predictor.logits(inputs)
        found = predictor.calibrate(logits)
        losses = log_losses(found.astype(np.float64), rows.clicks, PROBABILITY_MIN)
        return ScoredClicks(found, losses, evaluate(found, rows.clicks, rows.groups), inputs, logits)

    def learn(self, start: Snapshot, after: Snapshot, rows: Examples, scored: ScoredClicks) -> tuple[Snapshot, int]:
        """Learn the impressions, and what corrects earlier ones."""
        keys, inputs = rows.keys, scored.inputs
        targets = self._targets(rows, scored.logits[:, 1])
        if len(rows.late.keys):
            late = make_inputs(rows.late.keys, rows.late.counts, start, self._device)
            keys = np.concatenate([keys, rows.late.keys])
            inputs, targets = inputs.followed_by(late), targets.followed_by_late(len(late))
        return self._train(start, learn_strength(after, rows), keys, inputs, targets)

    def _targets(self, examples: Examples, teacher: Logits) -> Targets:
        """Return what the rows are learnt from by a model that goes on from the one with these logits."""
        clicks = torch.from_numpy(examples.clicks).to(self._device)
        if not self.plan.objective.needs_teacher:
            return Targets(clicks)
        objective = self.plan.objective
        known = examples.evidence if objective.model_prior == "evidence" else np.zeros(len(examples.clicks))
        evidence = torch.from_numpy(np.nan_to_num(known, posinf=0.0)).to(self._device, torch.float32)
        return Targets(clicks, torch.from_numpy(teacher).to(self._device), objective.trust(evidence))

    def _train(
        self, start: Snapshot, after: Snapshot, keys: Keys, inputs: Inputs, targets: Targets
    ) -> tuple[Snapshot, int]:
        """Return the snapshot after its vocabulary followed the counts and its network learnt the slide.

        The vocabulary goes first, so what is new in the slide learns from it. With the snapshot, how many values
        `values_max` left without a row.
        """
        if not len(inputs):
            return after, 0
        assert after.slide is not None
        plan = self.plan
        vocabulary, source, evicted = revise(
            after.vocabulary,
            after.priors,
            admit_min=plan.admit_min,
            forget_min=plan.forget_min,
            values_max=plan.values_max,
        )
        initial = deviations(after.priors, vocabulary.keys) if "initial" in plan.ways else None
        tensors = train(
            move_rows(after.tensors, source, vocabulary.keys, plan.seed, initial),
            start.build(self._device),
            dataclasses.replace(inputs, rows=torch.from_numpy(vocabulary.rows(keys)).to(self._device)),
            targets,
            objective=plan.objective,
            learning_rate=plan.learning_rate,
            embedding_learning_rate=plan.embedding_learning_rate,
            batch_rows=plan.batch_rows,
            precision=plan.precision,
            seed=plan.seed,
            slide=after.slide,
        )
        learnt = dataclasses.replace(
            after,
            tensors=tensors,
            vocabulary=vocabulary,
            learnt=(*after.learnt, after.slide),
            shadow=remember(after.shadow, after.slide),
        )
        return learnt, evicted


def initial_snapshot(plan: Plan) -> Snapshot:
    """Return the state before the first slide: it predicts the overall click rate."""
    n_half_lives = len(plan.half_lives_s)
    network = build_network(
        plan.network, plan.fields, dim=plan.dim, hidden=plan.hidden, ways=plan.ways, n_half_lives=n_half_lives
    )
    strength = {STRENGTH_LOSSES: torch.from_numpy(initial_losses(len(plan.fields), n_half_lives))}
    tensors = initial_tensors(network, fields=plan.fields, n_half_lives=n_half_lives, seed=plan.seed)
    return Snapshot(
        family=plan.family,
        slide=None,
        parent="",
        fields=plan.fields,
        levels=plan.levels,
        network=plan.network,
        dim=plan.dim,
        hidden=plan.hidden,
        prior=plan.prior,
        ways=plan.ways,
        tensors=tensors | initial_embedding(plan.dim) | strength,
        vocabulary=Vocabulary.empty(),
        base=PriorTable.empty(plan.half_lives_s, len(plan.fields)),
        recent=SettledRows.empty(sum(slot_counts(plan.fields))),
        end_s=-math.inf,
        origin_s=math.inf,
        evidence=Evidence(),
    )


def learn_strength(after: Snapshot, examples: Examples) -> Snapshot:
    """Return the snapshot with the strengths of its priors, from the losses of a slide's examples too."""
    if after.prior == "none" or not len(examples.clicks):
        return after
    known, counted = after.tensors[STRENGTH_LOSSES].numpy(), examples.before.base
    losses = add_losses(known, examples.counts, examples.keys, examples.clicks, counted, after.fields, after.levels)
    return dataclasses.replace(
        after,
        tensors={**after.tensors, STRENGTH_LOSSES: torch.from_numpy(losses)},
        base=dataclasses.replace(after.base, strength=best_strength(losses)),
    )
