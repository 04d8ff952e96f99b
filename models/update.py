"""One step of learning: score a slide, decide, train on it, move the counts on. Backtest and trainer take the same one.

Owns the pointers, `latest` (the lineage that learns), `champion` (what serves) and `former` (the champion before, while
it is watched whether that was right), and the order of the step. Must not know where slides come from, where snapshots
go or what time it is.

Invariants: a slide is scored by models that have not seen it, on counts that had settled when each row was shown; rows
that correct an earlier impression are counted and learnt, but never scored nor evidence for the gate; the
state after a slide is a function of the slides so far; a learner resumed from its snapshots goes on with the same bits.

Shape legend: `N` rows, `S` slots.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from features.encode import Keys, slot_fields
from features.fields import Field, slot_counts
from features.posteriors import deviations
from features.priors import CORRECTION, PriorTable, SettledRows, advance, within
from features.strength import add_losses, best_strength, initial_losses
from features.vocabulary import Vocabulary, revise
from models.batch import Inputs, Predictor, make_inputs
from models.drift import DriftWatch
from models.evaluate import Evaluation, evaluate
from models.evidence import Evidence, EvidenceSummary
from models.examples import Examples, read_examples
from models.gate import Comparison, Decision, GateDecision, GateRules, Guard, Rule, compare, judge, summary_of
from models.losses import Objective, Targets
from models.networks.build import build_network, initial_tensors
from models.networks.network import Way
from models.shadow import Shadow, follow, look, remember, settle
from models.snapshot import FeaturePrior, Snapshot
from models.train import initial_embedding, move_rows, resolve_device, train
from models.window import Slide

STRENGTH_LOSSES = "strength.losses"

Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what is learnt; infra/settings.py says what each means.

    Attributes:
        prior: Which counts a row sees.
        ways: How they get into the network.
        objective: What the network minimises.
        learns: Each slide, or those of the warm-up alone: then only counts go on.
        rows_max: How many rows of a slide are scored and learnt; 0: all.
        is_gated: Whether the champion is chosen by the gate; else each new model serves at once.
        warmup_s: Slides that end within this time of the first settled row are warm-up.
        window_s: How far back the strategy `last-window` learns; 0: the newest slide.
        lookback_s: How far before a slide a row of it may have been shown and still be given its counts: the longest
            wait for a click plus the disorder allowed. Rows shown earlier are counted, not learnt.
    """

    fields: tuple[Field, ...]
    family: str
    network: str
    dim: int
    hidden: tuple[int, ...]
    admit_min: float
    forget_min: float
    values_max: int
    half_lives_s: tuple[float, ...]
    levels: tuple[str, ...]
    evidence_min: float
    counts_max: int
    prior: FeaturePrior
    ways: tuple[Way, ...]
    objective: Objective
    learns: Literal["always", "warmup"]
    is_gated: bool
    learning_rate: float
    embedding_learning_rate: float
    batch_rows: int
    rows_max: int
    seed: int
    device: str
    precision: str
    warmup_s: float
    window_s: float
    lookback_s: float
    alpha: float
    margin: float
    buckets: int
    evidence_clip: float
    clicks_min: int
    calibration: tuple[float, float]
    rule: Rule
    shift_max: float
    slice_margin: float
    harm_max: float
    rollback_wait: int

    def __post_init__(self) -> None:
        """Check what would let a row see its own label."""
        if not self.lookback_s > 0.0:
            raise ValueError(f"lookback_s must be > 0, got {self.lookback_s}; give it the longest wait for a click")

    @property
    def gate(self) -> GateRules:
        """The gate's part of it."""
        return GateRules(**{field.name: getattr(self, field.name) for field in dataclasses.fields(GateRules)})


@dataclass(frozen=True)
class UpdateReport:
    """What one step did.

    Attributes:
        slide: Number of the slide.
        start_s: Where it begins.
        end_s: Where it ends.
        rows: Impressions that settled in it.
        clicks: How many of them were clicked by then.
        champion: How good the champion's predictions of it were, before the decision.
        latest: How good the newest model's were, before it learnt the slide.
        decision: warmup, promote, hold, reject or rollback.
        reason: Why, for people.
        evidence: What the decision rests on.
        guards: The gate's guardrails on the slide, those that were passed too.
        champion_version: What serves after the step.
        latest_version: What learns after the step.
        lost: Slides whose learning was thrown away by a reject or a rollback.
        former_version: What served before and is watched in the shadow; empty: nothing is.
        values: Values that own an embedding row after the step.
        counted: Values with counts after the step, up to the moment that limits hold at.
        counts_evicted: Values that lost their counts to `counts_max`.
        rows_evicted: Values that lost, or did not get, an embedding row because of `values_max`.
        stale_rows: Rows shown too long before the slide to know what had settled then: counted, not learnt or scored.
        left_out: Rows beyond `rows_max`: counted, not learnt or scored.
        corrected: Clicks of earlier impressions that came too late for those: counted and learnt, not scored.
        drift: Detectors that raised an alarm over what the champion predicted; they begin anew with each process.
    """

    slide: int
    start_s: float
    end_s: float
    rows: int
    clicks: int
    champion: Evaluation
    latest: Evaluation
    decision: Decision
    reason: str
    evidence: EvidenceSummary
    guards: tuple[Guard, ...]
    champion_version: str
    latest_version: str
    lost: tuple[int, ...]
    values: int
    counted: int
    counts_evicted: int
    rows_evicted: int
    stale_rows: int
    left_out: int
    corrected: int
    drift: tuple[str, ...]
    former_version: str


@dataclass(frozen=True)
class _Scored:
    """A slide that was scored and is not learnt yet; inputs and logits by name of the model."""

    slide: Slide
    examples: Examples
    inputs: dict[str, Inputs]
    logits: dict[str, Logits]


class Learner:
    """The whole learning state: its snapshots, and the step that makes new ones.

    Attributes:
        latest: The newest state of the lineage that learns.
        champion: What serves.
        former: What served before, while it is watched whether the promotion was right; else None.
        scores: Predictions of the last slide's rows that are not stale, in their order, by the pointers' names; without
            a gate by "latest" alone.
    """

    def __init__(self, plan: Plan) -> None:
        """Start with a model that predicts the overall click rate."""
        self._plan = plan
        self._device = resolve_device(plan.device)
        self.latest = self.champion = initial_snapshot(plan)
        self.former: Snapshot | None = None
        self.scores: dict[str, Probabilities] = {}
        self._scored: _Scored | None = None
        self._drift = DriftWatch()

    @classmethod
    def resume(cls, plan: Plan, latest: Snapshot, champion: Snapshot, former: Snapshot | None = None) -> Learner:
        """Return the learner that saved these snapshots; `former` is the one that `latest` names in its shadow.

        Raises:
            ValueError: If a snapshot was made by a plan with other fields, network or half-lives, or none is given of
                what is watched.
        """
        for snapshot in (latest, champion, *([former] if former else [])):
            _check_fits(plan, snapshot)
        if (got := former.version if former else "") != latest.shadow.former:
            rule = f"be resumed with the former champion {latest.shadow.former or 'left out'}"
            raise ValueError(f"snapshot {latest.version} must {rule}, got {got or 'none'}; restore it in the registry")
        learner = cls(plan)
        learner.latest, learner.champion, learner.former = latest, champion, former
        return learner

    def score(self, slide: Slide) -> Examples:
        """Score the next slide, which `learn` then learns; return its rows that are not stale, see `scores`."""
        examples = read_examples(slide, self.latest, self._plan.buckets, self._plan.rows_max)
        inputs = {name: self._inputs(examples, snapshot) for name, snapshot in self._pointers()}
        predictors = {name: Predictor(snapshot, self._device) for name, snapshot in self._pointers()}
        logits = {name: predictor.logits(inputs[name]) for name, predictor in predictors.items()}
        self.scores = {name: predictor.calibrate(logits[name]) for name, predictor in predictors.items()}
        self._scored = _Scored(slide, examples, inputs, logits)
        return examples

    def learn(self, slide: Slide) -> UpdateReport:
        """Learn one slide and return what happened; `latest` and `champion` are the new state."""
        if self._scored is None or self._scored.slide is not slide:
            self.score(slide)
        scored, self._scored = self._scored, None
        assert scored is not None
        before, examples = self.latest, scored.examples
        evaluations = {name: evaluate(p, examples.clicks, examples.groups) for name, p in self.scores.items()}
        is_warmup = slide.is_warmup(origin_s(before, slide), self._plan.warmup_s)
        verdict, shadow = self._verdict(examples, evaluations["latest"], is_warmup=is_warmup)
        after, counts_evicted = count_slide(before, slide, examples.settled, self._plan)
        rows_evicted = 0
        after = dataclasses.replace(after, evidence=verdict.evidence, shadow=shadow)
        name = {"reject": "champion", "rollback": "former"}.get(verdict.decision, "latest")
        start = dict(self._pointers())[name]
        after = dataclasses.replace(
            after,
            parent=start.version,
            tensors=start.tensors,
            vocabulary=start.vocabulary,
            learnt=before.learnt if verdict.decision == "hold" else (),
        )
        if is_warmup or self._plan.learns == "always":
            keys, inputs = examples.keys, scored.inputs[name]
            targets = self._targets(examples, scored.logits[name][:, 1])
            if len(examples.late.keys):
                late = make_inputs(examples.late.keys, examples.late.counts, start, self._device)
                keys = np.concatenate([keys, examples.late.keys])
                inputs, targets = inputs.followed_by(late), targets.followed_by_late(len(late))
            after, rows_evicted = self._train(start, learn_strength(after, examples), keys, inputs, targets)
        self._point(before, start, verdict.decision, shadow)
        self.latest = after
        impressions = slide.frame.filter(pl.col("kind") != CORRECTION)
        return UpdateReport(
            slide=slide.index,
            start_s=slide.start_s,
            end_s=slide.end_s,
            rows=len(impressions),
            clicks=int(impressions["click"].sum()),
            champion=evaluations.get("champion", evaluations["latest"]),
            latest=evaluations["latest"],
            decision=verdict.decision,
            reason=verdict.reason,
            evidence=verdict.summary,
            guards=verdict.guards,
            champion_version=self.champion.version,
            latest_version=after.version,
            lost={"reject": before.learnt, "rollback": before.shadow.learnt}.get(verdict.decision, ()),
            values=len(after.vocabulary) - 1,
            counted=len(after.base.keys),
            counts_evicted=counts_evicted,
            rows_evicted=rows_evicted,
            stale_rows=len(impressions) - len(examples.clicks) - examples.left_out,
            left_out=examples.left_out,
            corrected=len(slide.frame) - len(impressions),
            drift=self._drift.look(self.scores.get("champion", self.scores["latest"]), examples.clicks),
            former_version=shadow.former,
        )

    def promote(self, snapshot: Snapshot) -> None:
        """Let a snapshot serve because a person wants it; what learns goes on learning, evidence begins anew.

        If it is the newest model, what served until now is watched as after any promotion; else the gate promotes
        nothing for `rollback_wait` slides.

        Raises:
            ValueError: If it serves already, or was made by another plan.
        """
        _check_fits(self._plan, snapshot)
        if snapshot.version == self.champion.version:
            raise ValueError(
                f"snapshot {snapshot.version} must not serve already to be promoted; nothing is to be done"
            )
        is_newest = snapshot.version == self.latest.version
        first = -1 if snapshot.slide is None else snapshot.slide
        since = tuple(range(first + 1, (self.latest.slide or 0) + 1))
        shadow = Shadow(wait=self._plan.rollback_wait)
        if is_newest:
            shadow = Shadow(former=self.champion.version, learnt=self.latest.learnt)
        self.former = self.champion if is_newest else None
        self.champion = snapshot
        learnt = () if is_newest else since
        self.latest = dataclasses.replace(self.latest, evidence=Evidence(), learnt=learnt, shadow=shadow)

    def roll_back(self, snapshot: Snapshot) -> None:
        """Let a snapshot serve because a person wants it, and go on learning from it; the counts stay as they are.

        Raises:
            ValueError: If it was made by another plan.
        """
        _check_fits(self._plan, snapshot)
        self.champion, self.former = snapshot, None
        self.latest = dataclasses.replace(
            self.latest,
            parent=snapshot.version,
            tensors=snapshot.tensors,
            vocabulary=snapshot.vocabulary,
            evidence=Evidence(),
            learnt=(),
            shadow=Shadow(wait=self._plan.rollback_wait),
        )

    def _pointers(self) -> tuple[tuple[str, Snapshot], ...]:
        pointers = ("latest", self.latest), ("champion", self.champion)
        if not self._plan.is_gated:
            return pointers[:1]
        return pointers if self.former is None else (*pointers, ("former", self.former))

    def _verdict(self, examples: Examples, latest: Evaluation, *, is_warmup: bool) -> tuple[GateDecision, Shadow]:
        """Return what the slide decides, and what is watched from now on."""
        if not self._plan.is_gated:
            nothing = Evidence()
            summary = summary_of(nothing, self._plan.gate)
            return GateDecision("promote", "there is no gate", summary, nothing), Shadow()
        watched = self._watch(examples, latest)
        verdict = settle(self._decide(examples, latest, is_warmup=is_warmup), watched, self._plan.gate)
        learnt = () if is_warmup else self.latest.learnt
        return verdict, follow(watched, verdict, self._plan.gate, champion=self.champion.version, learnt=learnt)

    def _point(self, before: Snapshot, start: Snapshot, decision: Decision, shadow: Shadow) -> None:
        """Set what serves and what is watched after a decision."""
        served = self.champion
        if decision in ("warmup", "promote"):
            self.champion = before
        elif decision == "rollback":
            self.champion = start
        if shadow.former == served.version:
            self.former = served
        elif not shadow.former:
            self.former = None

    def _watch(self, examples: Examples, latest: Evaluation) -> Shadow:
        """Return the shadow with what the slide says of the champion against the one before."""
        rules, new = self._plan.gate, None
        if self.former is not None and latest.clicks >= rules.clicks_min:
            new = self._compare("champion", "former", examples).pieces
        return look(self.latest.shadow, new, rules)

    def _compare(self, newer: str, older: str, examples: Examples) -> Comparison:
        return compare(
            self.scores[newer],
            self.scores[older],
            examples.clicks,
            buckets=examples.buckets,
            slices=examples.slices,
            evidence_clip=self._plan.evidence_clip,
        )

    def _inputs(self, examples: Examples, snapshot: Snapshot) -> Inputs:
        return make_inputs(examples.keys, examples.counts, snapshot, self._device)

    def _decide(self, examples: Examples, latest: Evaluation, *, is_warmup: bool) -> GateDecision:
        evidence, rules = self.latest.evidence, self._plan.gate
        summary = summary_of(evidence, rules)
        if is_warmup:
            return GateDecision("warmup", "every model is promoted during the warm-up", summary, evidence)
        if not self.latest.learnt:
            return GateDecision("hold", "the newest model is the champion", summary, evidence)
        return judge(evidence, self._compare("latest", "champion", examples), latest, rules)

    def _targets(self, examples: Examples, teacher: Logits) -> Targets:
        """Return what the rows are learnt from by a model that goes on from the one with these logits."""
        clicks = torch.from_numpy(examples.clicks).to(self._device)
        if not self._plan.objective.needs_teacher:
            return Targets(clicks)
        objective = self._plan.objective
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
        plan = self._plan
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


def count_slide(before: Snapshot, slide: Slide, settled: SettledRows, plan: Plan) -> tuple[Snapshot, int]:
    """Return the snapshot with the slide counted, nothing of it learnt, and how many values `counts_max` took."""
    moment_s = max(before.base.as_of_s, slide.end_s - plan.lookback_s)
    counted = advance(
        before.base,
        settled.between(-math.inf, moment_s),
        moment_s,
        slot_field=slot_fields(plan.fields),
        evidence_min=plan.evidence_min,
    )
    base = within(counted, plan.counts_max)
    recent = settled.between(moment_s, math.inf)
    origin = origin_s(before, slide)
    after = dataclasses.replace(before, slide=slide.index, end_s=slide.end_s, origin_s=origin, base=base, recent=recent)
    return after, len(counted.keys) - len(base.keys)


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


def origin_s(before: Snapshot, slide: Slide) -> float:
    """Return when the first row of all settled, up to a slide: the warm-up counts from there."""
    return slide.first_s if before.slide is None else before.origin_s


def _check_fits(plan: Plan, snapshot: Snapshot) -> None:
    """Check that a learner with this plan could have made the snapshot."""
    for name in ("family", "fields", "levels", "network", "dim", "hidden", "prior", "ways"):
        wanted, got = getattr(plan, name), getattr(snapshot, name)
        if wanted != got:
            raise ValueError(f"snapshot {snapshot.version} must have the {name} {wanted} to go on, got {got}; {_NEXT}")
    if tuple(snapshot.base.half_lives_s.tolist()) != plan.half_lives_s:
        got = tuple(snapshot.base.half_lives_s.tolist())
        raise ValueError(
            f"snapshot {snapshot.version} must have half_lives_s {plan.half_lives_s} to go on, got {got}; {_NEXT}"
        )


_NEXT = "start a new family or put the settings back"
