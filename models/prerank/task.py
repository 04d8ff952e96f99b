"""The pre-ranker as a task: the candidates of settled requests in, the chance to be exposed and clicked out.

Owns how candidates are read, scored, counted and learnt. Must not know pointers or gates (models/update.py).

Invariants: counts are those of before the slide, so no candidate sees its own label; a candidate that the log holds
with probability 1/10 weighs ten; the bits depend on snapshot, candidates, seed and slide.

Shape legend: `N` candidates, `B` batch, `S` slots, `R` vectors, `D` width of an embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from features.encode import Keys, encode, hash_strings, mix
from features.fields import Field, field_slots, id_field, slot_counts
from features.priors import CORRECTION, Floats, Ints, PriorTable, SettledRows, find, in_order
from features.vocabulary import UNKNOWN_ROW, Vocabulary, revise
from models.batch import ROWS_MAX, minibatches
from models.evaluate import Evaluation, grouped_auc
from models.evidence import Evidence
from models.examples import hash_share, user_ids
from models.gate import slice_items
from models.plan import Plan
from models.prerank.build import PRERANKERS, new_trunk, trunk_of
from models.prerank.heads import CLICKED, EXPOSED, UNEXPOSED, head_loss, head_losses, head_probability, head_scores
from models.prerank.inputs import pool, pool_slots, shares_of, split, told_by_counts
from models.prerank.trunk import Trunk
from models.shadow import remember
from models.snapshot import Snapshot
from models.task import Scored
from models.train import (
    Tensors,
    Touched,
    adagrad_step,
    adam_step,
    flatten_weights,
    initial_embedding,
    move_rows,
    resume_adam,
)
from models.window import Slide

# Ten times that of the click model, which begins beside a base that knows much already. Here request and ad meet in
# products alone: where both are small each waits for the other (tests/models/prerank; no difference on the cascade).
EMBEDDING_BOUND = 0.17

CANDIDATE = ("source_partition", "source_offset", "position")  # what names a candidate in the rows of `chain_rows`
LABELS = {"clicked": CLICKED, "exposed": EXPOSED, "unexposed": UNEXPOSED}


@dataclass(frozen=True)
class Candidates:
    """The candidates of a slide.

    Attributes:
        settled: All of them, as they are counted.
        keys: Of those that are learnt, (N, S); so are the following.
        labels: See models/prerank/heads.py, (N,).
        weights: 1 over the probability with which each is there, (N,).
        requests: Whose candidate each is, (N,).
        clicks: 1 where it was exposed; with the head `exposed`, clicked, (N,).
        buckets: The gate's bucket of its user, (N,).
        slices: The gate's slice of its item, (N,).
        left_out: How many are counted alone.
        before: The counts that they see.
    """

    settled: SettledRows
    keys: Keys
    labels: Ints
    weights: Floats
    requests: Ints
    clicks: Floats
    buckets: Ints
    slices: Ints
    left_out: int
    before: PriorTable


@dataclass(frozen=True)
class ScoredCandidates(Scored):
    """What a pre-ranker says of candidates.

    Attributes:
        scores: What they are ranked by, (N,).
    """

    scores: npt.NDArray[np.float32]


class PrerankTask:
    """Learns what becomes of candidates; see `models.task.Task`.

    Attributes:
        plan: What it follows; `network` names one of `PRERANKERS`.
    """

    def __init__(self, plan: Plan, *, gate_penalty: float) -> None:
        """Take the plan.

        Args:
            gate_penalty: What an open share of 1 of a trunk's gates adds to the loss, nats.
        """
        self.plan = plan
        self._gate_penalty = gate_penalty
        self._head = PRERANKERS[plan.network].head

    def initial(self) -> Snapshot:
        """Return a state that has learnt nothing."""
        plan = self.plan
        trunk = new_trunk(plan.network, plan.fields, dim=plan.dim, hidden=plan.hidden, seed=plan.seed)
        tensors = {f"network.{name}": tensor for name, tensor in trunk.state_dict().items()}
        return Snapshot(
            family=plan.family,
            slide=None,
            parent="",
            fields=plan.fields,
            levels=(),
            network=plan.network,
            dim=plan.dim,
            hidden=plan.hidden,
            prior="frozen",
            ways=(),
            tensors=tensors | initial_embedding(plan.dim),
            vocabulary=Vocabulary.empty(),
            base=PriorTable.empty(plan.half_lives_s, len(plan.fields)),
            recent=SettledRows.empty(sum(slot_counts(plan.fields))),
            end_s=-math.inf,
            origin_s=math.inf,
            evidence=Evidence(),
        )

    def read(self, slide: Slide, before: Snapshot) -> Candidates:
        """Return the candidates of a slide: a frame as `chain_rows` makes it."""
        frame, fields = slide.frame, self.plan.fields
        keys = encode(frame, fields)
        labels = frame["label"].replace_strict(LABELS, return_dtype=pl.Int64).to_numpy()
        weights = 1.0 / frame["sample_rate"].to_numpy()
        is_counted = labels != UNEXPOSED if self._head == "exposed" else np.ones(len(labels), bool)
        counted = labels == CLICKED if self._head == "exposed" else labels != UNEXPOSED
        settled_s = frame["settled_s"].to_numpy()
        settled = SettledRows(keys, settled_s, counted.astype(np.float64), weights * is_counted)
        requests = hash_strings(frame["request_id"])
        kept = np.ones(len(frame), bool)
        if 0 < self.plan.rows_max < len(frame):
            kept = hash_share(requests) < self.plan.rows_max / len(frame)
        users = user_ids(frame, keys, fields)
        return Candidates(
            settled=in_order([settled]),
            keys=keys[kept],
            labels=labels[kept],
            weights=weights[kept],
            requests=requests.view(np.int64)[kept],
            clicks=counted.astype(np.float64)[kept],
            buckets=(mix(users) % np.uint64(self.plan.buckets)).astype(np.int64)[kept],
            slices=slice_items(_item_evidence(keys[kept], fields, before.priors)),
            left_out=int((~kept).sum()),
            before=before.priors,
        )

    def score(self, rows: Candidates, snapshot: Snapshot) -> ScoredCandidates:
        """Return the probabilities to be exposed, and what candidates are ranked by."""
        outputs = outputs_of(snapshot, rows.keys)
        labels = torch.from_numpy(rows.labels)
        probabilities = head_probability(self._head, outputs).numpy()
        weights = rows.weights / rows.weights.mean() if len(rows.weights) else rows.weights
        losses = head_losses(self._head, outputs, labels).numpy().astype(np.float64) * weights
        return ScoredCandidates(
            probabilities, losses, _evaluation(probabilities, losses, rows), head_scores(self._head, outputs).numpy()
        )

    def learn(
        self, start: Snapshot, after: Snapshot, rows: Candidates, scored: ScoredCandidates
    ) -> tuple[Snapshot, int]:
        """Learn the candidates in one pass; what is new in the slide gets its row first."""
        del scored
        assert after.slide is not None
        plan = self.plan
        vocabulary, source, evicted = revise(
            after.vocabulary,
            after.priors,
            admit_min=plan.admit_min,
            forget_min=plan.forget_min,
            values_max=plan.values_max,
        )
        tensors = move_rows(after.tensors, source, vocabulary.keys, plan.seed, bound=EMBEDDING_BOUND)
        if len(rows.keys):
            tensors = self._train(tensors, trunk_of(start), vocabulary, rows, after.slide)
        learnt = dataclasses.replace(
            after,
            tensors=tensors,
            vocabulary=vocabulary,
            learnt=(*after.learnt, after.slide),
            shadow=remember(after.shadow, after.slide),
        )
        return learnt, evicted

    def _train(
        self, tensors: Mapping[str, Tensor], trunk: Trunk, vocabulary: Vocabulary, rows: Candidates, slide: int
    ) -> Tensors:
        plan = self.plan
        state = {name: tensor.clone() for name, tensor in tensors.items()}
        weights = flatten_weights(trunk.train())
        resume_adam(state, weights)
        told = told_by_counts(vocabulary, rows.before)
        at, share = torch.from_numpy(vocabulary.rows(rows.keys)), shares_of(rows.keys, plan.fields)
        labels = torch.from_numpy(rows.labels)
        weighed = torch.from_numpy(rows.weights.astype(np.float32))
        parameters = [*trunk.parameters()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(np.array([plan.seed + 1, slide + 1], np.uint64)).sum().item() >> 1)
            for batch in minibatches(len(at), plan.batch_rows, seed=plan.seed, slide=slide):
                which = torch.from_numpy(batch)
                touched = Touched(at[which])
                embedded = touched.look_up(state["embedding.rows"]).requires_grad_()
                slots = torch.cat([embedded, functional.embedding(at[which], told)], dim=2)
                outputs = trunk(*split(pool_slots(slots, share[which], plan.fields), plan.fields))
                loss = head_loss(self._head, outputs, labels[which], weighed[which])
                loss = loss + self._gate_penalty * trunk.open_share()
                of_embedded, *of_weights = torch.autograd.grad(loss, [embedded, *parameters])
                owned = slice(int(touched.rows[0] == UNKNOWN_ROW), None)
                summed = touched.sums(of_embedded)
                adagrad_step(state, touched.rows[owned], summed[owned], plan.embedding_learning_rate)
                gradient = torch.cat([one.flatten() for one in of_weights])
                adam_step(state, weights, gradient, plan.learning_rate)
        state["adam.weights"] = weights.clone()
        state |= {f"network.{name}": tensor.clone() for name, tensor in trunk.eval().state_dict().items()}
        return {name: tensor.detach() for name, tensor in state.items()}


def outputs_of(snapshot: Snapshot, keys: Keys) -> Tensor:
    """Return the outputs of a snapshot's trunk for candidates with these keys, (N, O)."""
    trunk, fields = trunk_of(snapshot), snapshot.fields
    vectors = vectors_of(snapshot)
    at, share = torch.from_numpy(snapshot.vocabulary.rows(keys)), shares_of(keys, fields)
    with torch.inference_mode():
        parts = [
            trunk(*split(pool(at[first:last], share[first:last], vectors, fields), fields))
            for first, last in ((first, first + ROWS_MAX) for first in range(0, max(len(at), 1), ROWS_MAX))
        ]
        return torch.cat(parts)


def vectors_of(snapshot: Snapshot) -> Tensor:
    """Return the vector of each value that a snapshot knows, (R, D + 2)."""
    return torch.cat([snapshot.tensors["embedding.rows"], told_by_counts(snapshot.vocabulary, snapshot.priors)], dim=1)


def exposed_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Return impressions of a block of examples as candidates that were all exposed; late clicks are left out."""
    return frame.filter(pl.col("kind") != CORRECTION).with_columns(
        label=pl.when(pl.col("click") == 1).then(pl.lit("clicked")).otherwise(pl.lit("exposed")), sample_rate=1.0
    )


def chain_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Return candidates of a block of chains with the columns that slides want of rows.

    `position` numbers the candidates of a request, `kind` is their label and `click` says whether they were exposed.
    """
    return frame.with_columns(
        position=pl.col("candidate"), kind=pl.col("label"), click=(pl.col("label") != "unexposed").cast(pl.Int8)
    )


def _item_evidence(keys: Keys, fields: tuple[Field, ...], table: PriorTable) -> Floats:
    """Return how many candidates with its item each had, longest memory, (N,)."""
    item = id_field(fields, "item")
    assert item is not None, "check_fields asks for an item id"
    slot = field_slots(fields)[fields.index(item)].start
    at, is_known = find(table.keys, keys[:, slot])
    n = np.zeros(len(keys))
    n[is_known] = table.n[at[is_known], int(np.argmax(table.half_lives_s))]
    return n


def _evaluation(probabilities: npt.NDArray[np.float32], losses: Floats, rows: Candidates) -> Evaluation:
    """Return how good the probabilities to be exposed were: `clicks` are the candidates that were exposed."""
    n_rows, n_exposed = len(losses), int(rows.clicks.sum())
    if not n_rows:
        return Evaluation(0, 0)
    p, logloss = probabilities.astype(np.float64), float(losses.mean())
    if n_exposed in (0, n_rows):
        return Evaluation(n_rows, n_exposed, logloss)
    return Evaluation(
        rows=n_rows,
        clicks=n_exposed,
        logloss=logloss,
        auc=grouped_auc(p, rows.clicks, np.zeros(n_rows, np.int64)),
        gauc=grouped_auc(p, rows.clicks, rows.requests),
        calibration=float((p * rows.weights).sum() / (rows.clicks * rows.weights).sum()),
    )
