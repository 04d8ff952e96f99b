from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from features.crosses import ChosenCross, choose_crosses
from features.fields import Field, check_fields
from tests.frames import frame

N_ROWS, SPAN_S = 4000, 50_000.0
FIELDS = (
    Field("user", "user"),
    Field("group", "user"),
    Field("ad", "item"),
    Field("topics", "item", "categories", values_max=2),
    Field("price", "item", "number"),
    Field("hour", "context"),
)
Floats = npt.NDArray[np.float64]


def log(logits: Any, *, seed: int = 0, n_rows: int = N_ROWS, **columns: Any) -> pl.DataFrame:
    """Rows of a world in which `logits`, a function of the columns as numbers, decides about clicks."""
    rng = np.random.default_rng(seed)
    user, ad, hour = rng.integers(0, 300, n_rows), rng.integers(0, 40, n_rows), rng.integers(0, 8, n_rows)
    drawn = {"user": user, "group": user % 5, "ad": ad, "topic": ad % 6, "price": 2.0 ** (ad % 4), "hour": hour}
    rates = 1.0 / (1.0 + np.exp(-logits(drawn, np.random.default_rng(99))))
    values = {name: drawn[name].astype(str) for name in ("user", "group", "ad", "hour")}
    values |= {"topics": [[f"t{topic}", f"u{topic % 2}"] for topic in drawn["topic"]], "price": drawn["price"]}
    given: dict[str, Any] = {
        "time_s": np.sort(rng.uniform(0.0, SPAN_S, n_rows)),
        "click": rng.random(n_rows) < rates,
    } | columns
    of_rows = {name: given.pop(name) for name in ("time_s", "click", "request_id") if name in given}
    fields = {f"field.{name}": column for name, column in (values | given).items()}
    return frame(**of_rows).with_columns(pl.Series(name, column) for name, column in fields.items())


def choose(rows: pl.DataFrame, fields: Sequence[Field] = FIELDS, **limits: int) -> list[ChosenCross]:
    return choose_crosses(
        rows, fields, half_lives_s=(5_000.0, 100_000.0), levels=(), **{"crosses_max": 4, "cells_max": 100_000} | limits
    )


def parts(chosen: Sequence[ChosenCross]) -> list[tuple[str, ...]]:
    return [one.field.of for one in chosen]


def noise(drawn: dict[str, Any], _: np.random.Generator) -> Floats:
    return np.full(len(drawn["user"]), -1.0)


def additive(drawn: dict[str, Any], rng: np.random.Generator) -> Floats:
    effects = {name: rng.normal(size=300) for name in ("user", "ad", "hour")}
    total: Floats = sum((effects[name][drawn[name]] for name in effects), np.full(len(drawn["user"]), -1.0))
    return total


def either_or(drawn: dict[str, Any], _: np.random.Generator) -> Floats:
    """No field alone tells anything."""
    odd: Floats = np.where((drawn["group"] + drawn["hour"]) % 2 == 0, 0.6, -0.6)
    return odd - 1.0


def of_topics(drawn: dict[str, Any], _: np.random.Generator) -> Floats:
    odd: Floats = np.where((drawn["group"] + drawn["topic"]) % 2 == 0, 0.7, -0.7)
    return odd


@pytest.mark.parametrize("world", [noise, additive])
def test_hardly_anything_is_chosen_where_fields_do_not_act_together(world: Any) -> None:
    chosen = [choose(log(world, seed=seed), crosses_max=8) for seed in range(8)]
    assert chosen.count([]) >= 6


@pytest.mark.parametrize("seed", range(2))
def test_a_field_crossed_with_what_it_tells_is_no_candidate(seed: int) -> None:
    """An ad's topics are always the same, so ad and topic together say nothing but the ad."""
    assert ("ad", "topics") not in parts(choose(log(additive, seed=seed)))


def test_fields_that_act_together_are_found_though_neither_tells_anything_alone() -> None:
    found, *_ = choose(log(either_or))
    assert found.field.of == ("group", "hour")
    assert found.cells == 5 * 8
    assert 0.01 < found.gain < 0.1
    assert found.z_score > 4.0
    check_fields((*FIELDS, found.field))


def test_a_weak_cross_is_taken_where_a_strong_one_says_that_fields_act_together() -> None:
    weak = log(lambda drawn, rng: 0.2 * of_topics(drawn, rng) - 1.0)
    both = log(lambda drawn, rng: either_or(drawn, rng) + 0.2 * of_topics(drawn, rng))
    assert choose(weak) == []
    assert parts(choose(both))[:2] == [("group", "hour"), ("group", "topics")]


def test_a_field_of_several_values_is_crossed_with_one_of_one() -> None:
    chosen = choose(log(of_topics))
    assert chosen[0].field.of == ("group", "topics")


def test_crosses_that_are_there_are_not_chosen_again_and_names_stay_unique() -> None:
    both = log(lambda drawn, rng: either_or(drawn, rng) + of_topics(drawn, rng))
    there = Field("group_x_topics", "cross", of=("hour", "group"))
    first, *_ = choose(both, (*FIELDS, there))
    assert first.field.of == ("group", "topics")
    assert first.field.name != there.name
    check_fields((*FIELDS, there, first.field))


@pytest.mark.slow
def test_budgets_are_kept() -> None:
    both = log(lambda drawn, rng: either_or(drawn, rng) + of_topics(drawn, rng))
    chosen = choose(both)
    assert {("group", "hour"), ("group", "topics")} <= set(parts(chosen))
    assert choose(both, crosses_max=1) == chosen[:1]
    assert choose(both, crosses_max=0) == []
    assert sum(one.cells for one in choose(both, cells_max=45)) <= 45
    assert choose(both, cells_max=5) == []


def test_what_the_rows_of_one_request_share_is_no_reason() -> None:
    request = np.arange(N_ROWS) // 4
    rng = np.random.default_rng(1)
    rows = log(
        noise,
        request_id=[f"r{i}" for i in request],
        time_s=np.sort(rng.uniform(0.0, SPAN_S, N_ROWS // 4))[request] + np.arange(N_ROWS) % 4 * 1e-3,
        click=(rng.random(N_ROWS // 4) < 0.3)[request],
        user=(request // 2).astype(str),
        group=(request % 2).astype(str),
    )
    assert ("user", "group") not in parts(choose(rows, cells_max=10**6))


def test_a_cell_that_never_comes_again_and_fields_without_news_are_passed_over() -> None:
    fields = (*FIELDS, Field("once", "context"), Field("same", "context"), Field("none", "user"))
    rows = log(either_or, once=[str(i) for i in range(N_ROWS)], same=["x"] * N_ROWS, none=[None] * N_ROWS)
    chosen = parts(choose(rows, fields))
    assert chosen[0] == ("group", "hour")
    assert not {"once", "same", "none"} & {part for pair in chosen for part in pair}


@pytest.mark.parametrize("rows", [log(either_or, n_rows=150), log(either_or, n_rows=0)])
def test_too_few_rows_choose_nothing(rows: pl.DataFrame) -> None:
    assert choose(rows) == []


@pytest.mark.parametrize("click", [0, 1])
def test_one_class_alone_chooses_nothing(click: int) -> None:
    assert choose(log(noise, click=np.full(N_ROWS, click))) == []


def test_a_single_field_has_nothing_to_be_crossed_with() -> None:
    assert choose(log(noise), FIELDS[2:3]) == []


def test_late_corrections_are_counted_and_not_judged() -> None:
    rows = log(either_or)
    late = rows.filter(pl.col("click") == 0).head(200)
    late = late.with_columns(
        pl.lit("late_corrected").alias("kind"), pl.lit(1).cast(rows.schema["click"]).alias("click"),
        pl.col("settled_s") + 500.0,
    )  # fmt: skip
    assert parts(choose(pl.concat([rows, late])))[0] == ("group", "hour")


@pytest.mark.slow
def test_rows_shown_before_anything_had_settled_are_not_all_that_fits() -> None:
    rows = log(lambda drawn, rng: additive(drawn, rng) + either_or(drawn, rng), n_rows=6000)
    waited = rows.with_columns(settled_s=pl.col("time_s") + 0.5 * SPAN_S)
    assert parts(choose(waited, crosses_max=1)) == [("group", "hour")]


def test_the_order_of_the_rows_changes_nothing() -> None:
    rows = log(either_or)
    assert choose(rows) == choose(rows.sample(fraction=1.0, shuffle=True, seed=3))
