"""What every strategy has to pass, whatever it is: each check is called with each name."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl

from models.evaluate import evaluate
from models.plan import Plan
from models.strategies.build import build_strategy
from models.strategies.strategy import Probabilities
from models.window import Slide
from tests.frames import WAIT_S, plan, world
from tests.models.learnt import SLIDE_S

N_WARMUP = 3
N_ROWS = 600  # so many are learnt from; fewer do where nothing has to be learnt
N_FEW = 80
Change = Callable[[pl.DataFrame], pl.DataFrame]


def quick_plan() -> Plan:
    """A plan under which a few small slides are enough to learn something."""
    return plan(warmup_s=N_WARMUP * SLIDE_S, learning_rate=0.01, embedding_learning_rate=0.3, batch_rows=32)


def as_it_is(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


def slide(index: int, n_rows: int = N_ROWS, *, change: Change = as_it_is, span_s: float = SLIDE_S) -> Slide:
    """One slide of the small world, changed."""
    start_s = index * SLIDE_S
    rows = world(n_rows, seed=index, start_s=start_s - WAIT_S, span_s=span_s, users=12)
    return Slide(index, start_s, start_s + SLIDE_S, change(rows))


def clicked(value: pl.Expr) -> Change:
    """The rows with other labels."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        kind = pl.when(pl.col("click") == 1).then(pl.lit("clicked")).otherwise(pl.lit("expired_negative"))
        return frame.with_columns(value.cast(pl.Int8).alias("click")).with_columns(kind.alias("kind"))

    return change


def run(name: str, slides: Sequence[Slide]) -> list[Probabilities]:
    """Return what a strategy predicts of each slide."""
    strategy = build_strategy(name, quick_plan())
    predictions = []
    for one in slides:
        predicted, examples = strategy.predict(one)
        assert predicted.shape == (len(examples.clicks),)
        assert np.isfinite(predicted).all()
        assert ((predicted >= 0.0) & (predicted <= 1.0)).all()
        predictions.append(predicted)
        strategy.learn(one)
    return predictions


def check_it_learns(name: str) -> None:
    slides = [slide(index) for index in range(1, 6)]
    first, again = run(name, slides), run(name, slides[:3])
    for one, other in zip(first, again, strict=False):
        np.testing.assert_array_equal(one, other)  # one seed, one result
    clicks = np.concatenate([one.frame["click"].to_numpy() for one in slides[-2:]])
    got = evaluate(np.concatenate(first[-2:]), clicks)
    assert got.ne is not None
    assert got.auc is not None
    assert got.ne < 0.98, got  # 1 is what the constant that suits these rows best would get
    assert got.auc > 0.6, got


def check_it_predicts_before_it_sees_labels(name: str) -> None:
    """All rows of the slide are shown before the first settles, so even the live priors know none of its labels."""
    first, second, third = slide(1, 200), slide(2, 200, span_s=WAIT_S / 2), slide(3, N_FEW)
    flipped = slide(2, 200, change=clicked(1 - pl.col("click")), span_s=WAIT_S / 2)
    one, other = run(name, [first, second, third]), run(name, [first, flipped, third])
    np.testing.assert_array_equal(one[1], other[1])
    assert np.abs(one[2] - other[2]).max() > 1e-3  # it does learn them


ODD: dict[str, Change] = {
    "no clicks": clicked(pl.lit(0)),
    "all clicked": clicked(pl.lit(1)),
    "one row": lambda frame: frame.head(1),
    "no example": lambda frame: frame.with_columns(pl.col("time_s") - 10.0 * SLIDE_S),
    "constant": lambda frame: frame.with_columns(pl.lit("u").alias("field.user_id"), pl.lit(1.0).alias("field.price")),
    "missing": lambda frame: frame.with_columns(pl.col("^field\\..*$").map_batches(_nulls)),
    "odd numbers": lambda frame: frame.with_columns(pl.Series("field.price", _odd_numbers(len(frame)))),
    "new values": lambda frame: frame.with_columns(pl.col("field.user_id", "field.ad_id").str.to_uppercase()),
    "new value each": lambda frame: frame.with_columns(pl.col("request_id").alias("field.user_id")),
}


def check_it_bears_odd_slides(name: str) -> None:
    """In the warm-up, at the very start and later; and it goes on learning afterwards."""
    changes = [*ODD.values(), as_it_is, *ODD.values()]
    odd = [slide(index, N_FEW, change=change) for index, change in enumerate(changes, start=1)]
    later = [slide(len(odd) + index) for index in (1, 2)]
    predictions = run(name, [*odd, *later])
    got = evaluate(predictions[-1], later[-1].frame["click"].to_numpy())
    assert got.ne is not None
    assert got.ne < 1.5, got  # not lost for ever; `static` has learnt nothing but oddities


def check_it_learns_late_clicks(name: str) -> None:
    """A third of the clicks come late: who learns them is right about the final rate, who does not is a third below."""
    low, high = (_share_of_the_final_rate(name, corrects=corrects) for corrects in (False, True))
    assert low < 0.8
    assert 0.93 < high < 1.07


def _share_of_the_final_rate(name: str, *, corrects: bool) -> float:
    """Return the mean prediction over the final click rate in the later slides."""
    slides = [slide(index) for index in range(1, 9)]
    predicted = run(name, list(with_late_clicks(slides, corrects=corrects)))
    final = [one.frame["click"].to_numpy() for one in slides]
    return float(np.concatenate(predicted[4:]).mean() / np.concatenate(final[4:]).mean())


def with_late_clicks(slides: Sequence[Slide], *, corrects: bool) -> Iterator[Slide]:
    """The slides as they settle when each click is late with probability 1/3: half a minute, or not at all."""
    rng, waiting = np.random.default_rng(5), slides[0].frame.clear()
    for one in (_named_apart(one) for one in slides):
        is_late = pl.Series((one.frame["click"].to_numpy() == 1) & (rng.random(len(one.frame)) < 1 / 3))
        first = clicked(pl.col("click") * ~is_late)(one.frame)
        late = one.frame.filter(is_late).with_columns(
            kind=pl.lit("late_corrected"), settled_s=pl.col("settled_s") + 30.0
        )
        waiting = pl.concat([waiting, late]) if corrects else waiting
        due = pl.col("settled_s") < one.end_s
        yield dataclasses.replace(one, frame=pl.concat([first, waiting.filter(due)]).sort("settled_s"))
        waiting = waiting.filter(~due)


def _named_apart(one: Slide) -> Slide:
    """The slide with impressions that bear no other slide's name."""
    return dataclasses.replace(one, frame=one.frame.with_columns(pl.col("source_offset") + 10_000 * one.index))


def _nulls(values: pl.Series) -> pl.Series:
    return pl.Series(values.name, [None] * len(values), values.dtype)


def _odd_numbers(n_rows: int) -> list[float | None]:
    return list(itertools.islice(itertools.cycle([math.nan, math.inf, -math.inf, 1e300, -1e300, 0.0, None]), n_rows))
