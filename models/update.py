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
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import slot_fields
from features.priors import CORRECTION, SettledRows, advance, within
from models.drift import DriftWatch
from models.evaluate import Evaluation
from models.evidence import Evidence, EvidenceSummary
from models.gate import Comparison, Decision, GateDecision, Guard, compare, judge, summary_of
from models.plan import Plan
from models.shadow import Shadow, follow, look, settle
from models.snapshot import Snapshot
from models.task import Rows, Scored, Task
from models.window import Slide

Probabilities = npt.NDArray[np.float32]


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


R = TypeVar("R", bound=Rows)
S = TypeVar("S", bound=Scored)


class Learner(Generic[R, S]):
    """The whole learning state: its snapshots, and the step that makes new ones.

    Attributes:
        latest: The newest state of the lineage that learns.
        champion: What serves.
        former: What served before, while it is watched whether the promotion was right; else None.
        scores: Predictions of the last slide's rows that are not stale, in their order, by the pointers' names; without
            a gate by "latest" alone.
    """

    def __init__(self, task: Task[R, S]) -> None:
        """Start with the first state of a task."""
        self._task = task
        self._plan = task.plan
        self.latest = self.champion = task.initial()
        self.former: Snapshot | None = None
        self.scores: dict[str, Probabilities] = {}
        self._slide: Slide | None = None
        self._drift = DriftWatch()

    @classmethod
    def resume(
        cls, task: Task[R, S], latest: Snapshot, champion: Snapshot, former: Snapshot | None = None
    ) -> Learner[R, S]:
        """Return the learner that saved these snapshots; `former` is the one that `latest` names in its shadow.

        Raises:
            ValueError: If a snapshot was made by a plan with other fields, network or half-lives, or none is given of
                what is watched.
        """
        for snapshot in (latest, champion, *([former] if former else [])):
            _check_fits(task.plan, snapshot)
        if (got := former.version if former else "") != latest.shadow.former:
            rule = f"be resumed with the former champion {latest.shadow.former or 'left out'}"
            raise ValueError(f"snapshot {latest.version} must {rule}, got {got or 'none'}; restore it in the registry")
        learner = cls(task)
        learner.latest, learner.champion, learner.former = latest, champion, former
        return learner

    def score(self, slide: Slide) -> R:
        """Score the next slide, which `learn` then learns; return its rows that are not stale, see `scores`."""
        self._rows = self._task.read(slide, self.latest)
        self._scored = {name: self._task.score(self._rows, snapshot) for name, snapshot in self._pointers()}
        self.scores = {name: scored.probabilities for name, scored in self._scored.items()}
        self._slide = slide
        return self._rows

    def learn(self, slide: Slide) -> UpdateReport:
        """Learn one slide and return what happened; `latest` and `champion` are the new state."""
        if self._slide is not slide:
            self.score(slide)
        self._slide = None
        before, rows = self.latest, self._rows
        evaluations = {name: scored.evaluation for name, scored in self._scored.items()}
        is_warmup = slide.is_warmup(origin_s(before, slide), self._plan.warmup_s)
        verdict, shadow = self._verdict(evaluations["latest"], is_warmup=is_warmup)
        after, counts_evicted = count_slide(before, slide, rows.settled, self._plan)
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
            after, rows_evicted = self._task.learn(start, after, rows, self._scored[name])
        self._point(before, start, verdict.decision, shadow)
        self.latest = after
        self._scored.clear()
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
            stale_rows=len(impressions) - len(rows.clicks) - rows.left_out,
            left_out=rows.left_out,
            corrected=len(slide.frame) - len(impressions),
            drift=self._drift.look(self.scores.get("champion", self.scores["latest"]), rows.clicks),
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

    def _verdict(self, latest: Evaluation, *, is_warmup: bool) -> tuple[GateDecision, Shadow]:
        """Return what the slide decides, and what is watched from now on."""
        if not self._plan.is_gated:
            nothing = Evidence()
            summary = summary_of(nothing, self._plan.gate)
            return GateDecision("promote", "there is no gate", summary, nothing), Shadow()
        watched = self._watch(latest)
        verdict = settle(self._decide(latest, is_warmup=is_warmup), watched, self._plan.gate)
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

    def _watch(self, latest: Evaluation) -> Shadow:
        """Return the shadow with what the slide says of the champion against the one before."""
        rules, new = self._plan.gate, None
        if self.former is not None and latest.clicks >= rules.clicks_min:
            new = self._compare("champion", "former").pieces
        return look(self.latest.shadow, new, rules)

    def _compare(self, newer: str, older: str) -> Comparison:
        return compare(
            self._scored[newer].losses - self._scored[older].losses,
            self._rows.buckets,
            self._rows.slices,
            self._plan.evidence_clip,
            means=(_mean(self.scores[newer]), _mean(self.scores[older])),
        )

    def _decide(self, latest: Evaluation, *, is_warmup: bool) -> GateDecision:
        evidence, rules = self.latest.evidence, self._plan.gate
        summary = summary_of(evidence, rules)
        if is_warmup:
            return GateDecision("warmup", "every model is promoted during the warm-up", summary, evidence)
        if not self.latest.learnt:
            return GateDecision("hold", "the newest model is the champion", summary, evidence)
        return judge(evidence, self._compare("latest", "champion"), latest, rules)


def _mean(predictions: Probabilities) -> float:
    return float(predictions.mean(dtype=np.float64)) if len(predictions) else 0.0


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
