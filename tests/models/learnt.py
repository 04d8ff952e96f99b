"""A learner that has learnt a few slides of the small world, shared by the tests that only read it."""

from functools import cache

from models.click_task import ClickTask
from models.update import Learner, UpdateReport
from models.window import Slide
from tests.frames import WAIT_S, plan, world

SLIDE_S = 10_000.0


def slide(index: int, n_rows: int = 1500) -> Slide:
    """One slide of the world; slides follow each other."""
    start_s = index * SLIDE_S
    rows = world(n_rows, seed=index, start_s=start_s - WAIT_S, span_s=SLIDE_S)
    return Slide(index, start_s, start_s + SLIDE_S, rows)


@cache
def learnt(n_slides: int = 3) -> tuple[Learner, tuple[UpdateReport, ...]]:
    """A learner after some slides, with its reports. Do not let it learn more."""
    learner = Learner(ClickTask(plan()))
    return learner, tuple(learner.learn(slide(index)) for index in range(1, n_slides + 1))
