import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl

from models.plan import Plan
from models.strategies.build import build_strategy
from models.strategies.restart import Restart, last_window, retrain
from models.strategies.strategy import Probabilities, Strategy
from models.window import Slide
from tests.frames import plan
from tests.models.learnt import SLIDE_S
from tests.models.strategies.checks import quick_plan, slide


def predict_last(strategy: Strategy, slides: list[Slide]) -> Probabilities:
    """What a strategy says of the last slide after it has learnt the others."""
    for one in slides[:-1]:
        strategy.predict(one)
        strategy.learn(one)
    return strategy.predict(slides[-1])[0]


def test_last_window_forgets_what_retrain_still_knows() -> None:
    """Of two histories whose first slides have the same clicks at other rows, so that the overall rate is the same."""
    slides = [slide(index, 300) for index in (1, 2, 3, 4)]
    moved = slides[0].frame.with_columns(pl.col("click").reverse())
    other = [dataclasses.replace(slides[0], frame=moved), *slides[1:]]

    def difference(make: Callable[[Plan], Restart], window_s: float) -> float:
        settings = dataclasses.replace(quick_plan(), window_s=window_s)
        one, two = predict_last(make(settings), slides), predict_last(make(settings), other)
        return float(np.abs(one - two).mean())

    known = min(difference(retrain, 0.0), difference(last_window, 3 * SLIDE_S))
    assert difference(last_window, 2 * SLIDE_S) < 0.2 * known


def test_with_one_slide_all_restarts_are_the_same() -> None:
    slides = [slide(1, 300), slide(2, 100)]
    one, other = predict_last(last_window(plan()), slides), predict_last(retrain(plan()), slides)
    np.testing.assert_array_equal(one, other)


def test_retraining_on_all_slides_says_nearly_what_never_starting_anew_says() -> None:
    """The same passes in the same order, from rows that a value owns a slide earlier."""
    slides = [slide(index, 400) for index in range(1, 5)]
    settings = quick_plan()
    one, other = predict_last(retrain(settings), slides), predict_last(build_strategy("finetune", settings), slides)
    assert np.corrcoef(one, other)[0, 1] > 0.7
