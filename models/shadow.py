"""After a promotion: the former champion scores on in the shadow, and comes back when what serves is harmful.

Owns when a model is watched, when it is rolled back and how long promotions wait then. Must not know models.

Invariants: one former champion at a time, the last that nothing was certain against: promotions while it watches do not
replace it; it leaves when what serves is certainly not worse than it by the margin; models that are equally good are
rolled back in no more than alpha of all watches; after a rollback nothing is promoted for `rollback_wait` slides.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from models.evidence import Evidence, Floats, gather, is_above, is_below
from models.gate import BUCKETS_MIN, GateDecision, GateRules, certain_harm, summary_of

ALARMS = 2  # slides in succession that are certainly harmful each by `harm_max`: then at once; chosen by hand
WATCH_MAX = 200  # slides after which a watch that could not tell ends; chosen by hand


@dataclass(frozen=True)
class Shadow:
    """What is remembered of the last promotion that is not proven, and of the last rollback.

    Attributes:
        former: Version of the champion that is scored in the shadow; empty: none.
        learnt: Slides learnt since that champion; they are lost when it comes back.
        evidence: What serves against it.
        alarms: How many slides in succession were certainly harmful each.
        wait: Slides for which nothing is promoted yet.
    """

    former: str = ""
    learnt: tuple[int, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    alarms: int = 0
    wait: int = 0


def look(shadow: Shadow, new: Floats | None, rules: GateRules) -> Shadow:
    """Return the shadow after one more slide.

    Args:
        shadow: Before it.
        new: Log loss of what serves minus that of the former champion, mean of each bucket of users, (K,); None when
            the slide is no evidence.
        rules: The rules.
    """
    shadow = dataclasses.replace(shadow, wait=max(shadow.wait - 1, 0))
    if not shadow.former or new is None:
        return shadow
    is_alarm = len(new) >= BUCKETS_MIN and certain_harm(new) > rules.harm_max
    evidence = gather(shadow.evidence, new, rules.margin)
    return dataclasses.replace(shadow, evidence=evidence, alarms=shadow.alarms + 1 if is_alarm else 0)


def settle(verdict: GateDecision, shadow: Shadow, rules: GateRules) -> GateDecision:
    """Return the gate's decision, or what the shadow says instead: rollback, or hold for some slides after one."""
    harm = ""
    if shadow.former and shadow.alarms >= ALARMS:
        harm = f"worse than the former champion by more than {rules.harm_max} nats on {ALARMS} slides in succession"
    elif shadow.former and is_above(shadow.evidence, rules.margin, rules.alpha):
        lower = summary_of(shadow.evidence, rules).lower
        harm = f"worse than the former champion by at least {lower:.4f} nats, margin {rules.margin}"
    if harm:
        return GateDecision("rollback", harm, summary_of(shadow.evidence, rules), Evidence(), verdict.guards)
    if verdict.decision == "promote" and shadow.wait:
        reason = f"{shadow.wait} more slides without a promotion after a rollback; {verdict.reason}"
        return dataclasses.replace(verdict, decision="hold", reason=reason)
    return verdict


def follow(
    shadow: Shadow, verdict: GateDecision, rules: GateRules, *, champion: str, learnt: tuple[int, ...]
) -> Shadow:
    """Return the shadow after a decision.

    Args:
        shadow: As it was looked at.
        verdict: What was settled.
        rules: The rules.
        champion: Version of what served until now.
        learnt: Slides that the newest model has learnt since.
    """
    if verdict.decision == "rollback":
        return Shadow(wait=rules.rollback_wait)
    if verdict.decision == "warmup":
        return Shadow()
    if verdict.decision == "reject":
        shadow = dataclasses.replace(shadow, learnt=tuple(slide for slide in shadow.learnt if slide not in learnt))
    is_proven = is_below(shadow.evidence, rules.margin, rules.alpha) or shadow.evidence.pieces >= WATCH_MAX
    if shadow.former and is_proven:
        shadow = Shadow(wait=shadow.wait)
    if verdict.decision == "promote" and not shadow.former:
        return Shadow(former=champion, learnt=learnt)
    return shadow


def remember(shadow: Shadow, slide: int) -> Shadow:
    """Return the shadow after the newest model has learnt a slide."""
    return dataclasses.replace(shadow, learnt=(*shadow.learnt, slide)) if shadow.former else shadow
