"""The control `vw`: Vowpal Wabbit, a logistic regression on values and on all pairs of values, learnt online.

Owns the text of its examples. Must not know slides or gates.

A field is a namespace, so each pair of fields is an interaction without being named; it reads values, no priors.
Source: Vowpal Wabbit (vowpalwabbit.org), its adaptive, normalised, invariant updates as they come.

Shape legend: `N` rows, `S` slots.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from vowpalwabbit import Workspace

from features.fields import Field, field_slots
from features.priors import Floats
from models.plan import Plan
from models.strategies.controls.best_rate import BestRate
from models.strategies.controls.late import late_click_weight
from models.strategies.controls.numbers import log_numbers, number_fields
from models.strategies.strategy import Probabilities, Rows

RATES = (0.05, 0.1, 0.25, 0.5, 1.0)  # around VW's own 0.5
BITS = 22  # of the hash: four million weights, 64 MB a copy; chosen by hand
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # VW tells namespaces of a pair by their first letter


class Vw:
    """One Vowpal Wabbit with one learning rate."""

    def __init__(self, fields: Sequence[Field], rate: float) -> None:
        """Begin with nothing learnt."""
        self._fields = fields
        self._learner = Workspace(
            f"--quiet --loss_function logistic --link logistic -q :: -b {BITS} --learning_rate {rate}"
        )
        weakref.finalize(self, self._learner.finish)  # VW's own clearing up fails when the interpreter ends

    def predict(self, rows: Rows) -> Probabilities:
        """Return the probabilities of one row after the other; nothing is learnt."""
        return np.array([self._learner.predict(line) for line in example_lines(rows, self._fields)], np.float64)

    def learn(self, rows: Rows, clicks: Floats) -> None:
        """Learn one row after the other, in the order of time."""
        lines = example_lines(rows, self._fields)
        for line, click, corrects in zip(lines, clicks.tolist(), rows.corrects.tolist(), strict=True):
            weight = f" {late_click_weight(self._learner.predict(line)):.6f}" if corrects else ""
            self._learner.learn(f"{'1' if click else '-1'}{weight} {line}")


def vw(plan: Plan) -> BestRate:
    """Return Vowpal Wabbit with the rate that does best during the warm-up."""
    return BestRate(lambda rate: Vw(plan.fields, rate), RATES)


def example_lines(rows: Rows, fields: Sequence[Field]) -> pl.Series:
    """Return each row as VW's text, without its label, (N,): per field a namespace with the keys of its values.

    Crosses are left out, as VW makes them of their parts. A number is its bucket and its size.
    """
    keys = pl.DataFrame(rows.keys, [str(slot) for slot in range(rows.keys.shape[1])], orient="row")
    known = keys.with_columns(pl.when(pl.all() != 0).then(pl.all()).cast(pl.String))
    names = [field.name for field in number_fields(fields)]
    sizes = pl.DataFrame(log_numbers(rows.frame, fields), [f"size {name}" for name in names], orient="row")
    sized = sizes.fill_nan(None).with_columns(pl.format("size:{}", name).alias(name) for name in sizes.columns)
    namespaces = [
        pl.concat_str([pl.lit(f"|{LETTERS[at % len(LETTERS)]}{at}"), *columns], separator=" ", ignore_nulls=True)
        for at, columns in enumerate(_columns(fields))
    ]
    return known.hstack(sized).select(pl.concat_str(namespaces, separator=" ")).to_series()


def _columns(fields: Sequence[Field]) -> Iterator[list[str]]:
    """Yield the columns of each field that is no cross: its slots, and of a number its size."""
    for field, place in zip(fields, field_slots(fields), strict=True):
        if field.side != "cross":
            slots = [str(slot) for slot in range(place.start, place.stop)]
            yield [*slots, f"size {field.name}"] if field.kind == "number" else slots
