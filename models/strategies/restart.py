"""Strategies that do not go on from their last model: with each slide they start anew and learn what they keep.

Owns which rows they keep and the start. Must not know how rows are learnt (models/train.py) or what else is compared.

Invariants: network and objective are those of `finetune`, so what differs is the start and the rows alone; the rows of
a slide are learnt together and slides in the order of time; each row is learnt once from one start, with its label as
it is known at that start: late clicks of rows that are kept are among them.

Shape legend: `N` rows, `S` slots.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from features.encode import Keys
from features.posteriors import LEVEL_INPUTS, dense_width, shares
from features.priors import Floats, Ints
from features.vocabulary import Vocabulary, revise
from models.batch import Inputs, Predictor, make_inputs
from models.click_task import initial_snapshot
from models.examples import Examples, read_examples
from models.losses import Targets
from models.plan import Plan
from models.snapshot import Snapshot
from models.strategies.ours import finetune
from models.strategies.strategy import Probabilities
from models.train import Tensors, move_rows, resolve_device, train
from models.update import count_slide
from models.window import Slide, impression_ids


@dataclass(frozen=True)
class _Part:
    """Rows of one slide as they are kept: keys and no embedding rows, as those change owners.

    Attributes:
        slide: Number of the slide.
        keys: (N, S).
        level: The dense inputs that set the level, (N, 2); without a feature prior the others are 0.
        clicks: 0 or 1, (N,).
        settled_s: When each settled, (N,).
        ids: What names the impression of each, (N,).
    """

    slide: int
    keys: Keys
    level: torch.Tensor
    clicks: torch.Tensor
    settled_s: Floats
    ids: Ints

    def since(self, start_s: float) -> _Part:
        """Return the rows that settled at or after a moment."""
        if not len(self.keys) or self.settled_s.min() >= start_s:
            return self
        kept = self.settled_s >= start_s
        which = torch.from_numpy(kept)
        rest = self.level[which], self.clicks[which], self.settled_s[kept], self.ids[kept]
        return _Part(self.slide, self.keys[kept], *rest)

    def corrected(self, late: Ints) -> _Part:
        """Return the rows with a click where a late one is known by now."""
        return dataclasses.replace(
            self, clicks=self.clicks.clone().masked_fill_(torch.from_numpy(np.isin(self.ids, late)), 1.0)
        )


class Restart:
    """A network that is trained from its initial weights with each slide."""

    def __init__(self, plan: Plan, keeps_s: float) -> None:
        """Begin with nothing learnt.

        Args:
            plan: Of the deployment.
            keeps_s: How long before the end of the newest slide its rows may have settled; inf keeps all, 0 the
                newest slide.
        """
        self._plan = finetune(plan)
        self._keeps_s = keeps_s
        self._device = resolve_device(plan.device)
        self._initial = self._snapshot = initial_snapshot(self._plan)
        self._parts: list[_Part] = []
        self._last: tuple[Examples, Inputs] | None = None

    def predict(self, slide: Slide) -> tuple[Probabilities, Examples]:
        """Return what the network of the last start says."""
        examples = read_examples(slide, self._snapshot, self._plan.buckets, self._plan.rows_max)
        inputs = make_inputs(examples.keys, examples.counts, self._snapshot, self._device)
        self._last = examples, inputs
        return Predictor(self._snapshot, self._device).score(inputs), examples

    def learn(self, slide: Slide) -> None:
        """Keep the slide, forget what is too old, and start anew."""
        assert self._last is not None, "a slide is predicted before it is learnt"
        (examples, inputs), self._last = self._last, None
        self._snapshot, _ = count_slide(self._snapshot, slide, examples.settled, self._plan)
        late = impression_ids(examples.late.frame)
        if not len(inputs) and not len(late):
            return
        settled_s = examples.frame["settled_s"].to_numpy()
        clicks = torch.from_numpy(examples.clicks.astype(np.float32))
        level = inputs.dense[:, :LEVEL_INPUTS].cpu()
        newest = _Part(slide.index, examples.keys, level, clicks, settled_s, impression_ids(examples.frame))
        start_s = slide.end_s - self._keeps_s if self._keeps_s else slide.start_s
        parts = [part.since(start_s) for part in (*self._parts, newest)]
        self._parts = [part.corrected(late) if len(late) else part for part in parts if len(part.keys)]
        self._snapshot = self._learn_anew(self._snapshot)

    def _learn_anew(self, counted: Snapshot) -> Snapshot:
        """Return a snapshot, whose counts are made, with a network that has learnt what is kept and nothing else."""
        plan = self._plan
        empty = Vocabulary.empty()
        vocabulary, source, _ = revise(
            empty, counted.priors, admit_min=plan.admit_min, forget_min=plan.forget_min, values_max=plan.values_max
        )
        tensors = move_rows(self._initial.tensors, source, vocabulary.keys, plan.seed)
        for part in self._parts:
            tensors = self._train(tensors, part, vocabulary)
        return dataclasses.replace(counted, tensors=tensors, vocabulary=vocabulary)

    def _train(self, tensors: Tensors, part: _Part, vocabulary: Vocabulary) -> Tensors:
        plan = self._plan
        return train(
            tensors,
            dataclasses.replace(self._initial, tensors=tensors).build(self._device),
            _inputs(part, vocabulary, plan, self._device),
            Targets(part.clicks.to(self._device)),
            objective=plan.objective,
            learning_rate=plan.learning_rate,
            embedding_learning_rate=plan.embedding_learning_rate,
            batch_rows=plan.batch_rows,
            precision=plan.precision,
            seed=plan.seed,
            slide=part.slide,
        )


def last_window(plan: Plan) -> Restart:
    """Start anew on the rows of the newest `[window] window_s` alone."""
    return Restart(plan, plan.window_s)


def retrain(plan: Plan) -> Restart:
    """Start anew on all history."""
    return Restart(plan, math.inf)


RESTARTS: dict[str, Callable[[Plan], Restart]] = {"last-window": last_window, "retrain": retrain}


def _inputs(part: _Part, vocabulary: Vocabulary, plan: Plan, device: str) -> Inputs:
    share = shares(part.keys, plan.fields).astype(np.float32)
    width = dense_width(plan.fields, len(plan.half_lives_s))
    return Inputs(
        rows=torch.from_numpy(vocabulary.rows(part.keys)).to(device),
        share=torch.from_numpy(share).to(device),
        dense=functional.pad(part.level, (0, width - LEVEL_INPUTS)).to(device),
    )
