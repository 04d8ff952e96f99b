import dataclasses

import pytest

from bench.gate import World, serve, stream
from models.evidence import Evidence, EvidenceSummary
from models.gate import Decision, GateDecision
from models.shadow import WATCH_MAX, Shadow, follow, look, remember, settle
from tests.models.test_gate import RULES, Pieces, around

WATCHED = Shadow(former="ctr-000003", learnt=(4, 5))
WORLD = World(slides=36, rows=400, twins=400, buckets=32, hour_own=0.2)


def gate(decision: Decision) -> GateDecision:
    return GateDecision(decision, "because", EvidenceSummary(0.0, -0.1, 0.1, 3), Evidence(pieces=3))


def looked(*slides: Pieces | None, shadow: Shadow = WATCHED) -> Shadow:
    for pieces in slides:
        shadow = look(shadow, pieces, RULES)
    return shadow


def test_equally_good_models_are_not_rolled_back_to_and_fro() -> None:
    courses = [
        serve(stream(WORLD, seed), stream(WORLD, 100 + seed), "non_inferiority", harm=None) for seed in range(20)
    ]
    assert sum(course.promotions for course in courses) > 200
    assert (
        sum(course.rollbacks for course in courses) <= 12
    )  # three watches a stream: alpha of them exceeds it in 1 of 10,000 runs


@pytest.mark.parametrize(("harm", "slides_max"), [(0.05, 20), (0.25, 3)])
def test_harm_after_a_promotion_rolls_back_soon(harm: float, slides_max: int) -> None:
    courses = [
        serve(stream(WORLD, seed), stream(WORLD, 100 + seed), "non_inferiority", harm=harm) for seed in range(10)
    ]
    assert all(course.rollbacks == 1 for course in courses)
    assert max(course.harmful or 0 for course in courses) <= slides_max


def test_a_promotion_leaves_the_former_champion_in_the_shadow_until_it_is_proven() -> None:
    shadow = follow(Shadow(), gate("promote"), RULES, champion="ctr-000003", learnt=(4,))
    shadow = remember(shadow, 5)
    assert (shadow.former, shadow.learnt) == ("ctr-000003", (4, 5))
    for slide in range(6, 30):
        shadow = look(shadow, around(0.0), RULES)
        shadow = remember(follow(shadow, gate("promote"), RULES, champion="ctr-000007", learnt=(slide - 1,)), slide)
        if shadow.former != "ctr-000003":
            break
        assert shadow.learnt == tuple(range(4, slide + 1))
    assert (shadow.former, shadow.learnt, shadow.evidence) == ("ctr-000007", (slide - 1, slide), Evidence())
    assert 10 < slide < 20


def test_certain_harm_rolls_back_whatever_the_gate_says() -> None:
    shadow = looked(*[around(0.04)] * 40)
    verdict = settle(gate("promote"), shadow, RULES)
    assert verdict.decision == "rollback"
    assert verdict.reason.startswith("worse than the former champion by at least 0.03")
    assert (verdict.evidence, verdict.summary.pieces) == (Evidence(), 40)
    assert follow(shadow, verdict, RULES, champion="", learnt=()) == Shadow(wait=RULES.rollback_wait)


def test_two_disastrous_slides_in_succession_roll_back_at_once() -> None:
    bad, good = around(0.2), around(0.0)
    assert settle(gate("hold"), looked(bad, good, bad), RULES).decision == "hold"
    verdict = settle(gate("hold"), looked(good, bad, bad), RULES)
    assert verdict.decision == "rollback"
    assert verdict.reason == "worse than the former champion by more than 0.1 nats on 2 slides in succession"
    assert settle(gate("hold"), looked(bad[:9], bad[:9]), RULES).decision == "hold"  # nine buckets say too little


def test_after_a_rollback_promotions_wait() -> None:
    shadow = Shadow(wait=RULES.rollback_wait)
    for left in range(RULES.rollback_wait - 1, 0, -1):
        shadow = look(shadow, None, RULES)
        verdict = settle(gate("promote"), shadow, RULES)
        assert verdict.decision == "hold"
        assert verdict.reason == f"{left} more slides without a promotion after a rollback; because"
        assert verdict.evidence == gate("promote").evidence  # it is gathered meanwhile
        shadow = follow(shadow, verdict, RULES, champion="", learnt=())
    assert settle(gate("promote"), look(shadow, None, RULES), RULES).decision == "promote"


def test_a_slide_without_evidence_changes_nothing() -> None:
    assert looked(None) == WATCHED
    assert looked(around(0.3), shadow=Shadow()) == Shadow()


def test_slides_lost_by_a_rejection_cannot_be_lost_again() -> None:
    shadow = follow(WATCHED, gate("reject"), RULES, champion="ctr-000004", learnt=(5,))
    assert remember(shadow, 6).learnt == (4, 6)


def test_a_watch_that_cannot_tell_ends() -> None:
    shadow = dataclasses.replace(WATCHED, evidence=Evidence(pieces=WATCH_MAX - 1))
    assert follow(shadow, gate("hold"), RULES, champion="", learnt=()).former
    shadow = dataclasses.replace(WATCHED, evidence=Evidence(pieces=WATCH_MAX))
    assert follow(shadow, gate("hold"), RULES, champion="", learnt=()) == Shadow()


def test_the_warm_up_is_not_watched() -> None:
    assert follow(Shadow(), gate("warmup"), RULES, champion="ctr-000001", learnt=(2,)) == Shadow()
