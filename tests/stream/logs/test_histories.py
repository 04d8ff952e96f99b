"""Histories against the sentence that defines them: what had settled before the row, newest first, each value once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from features.fields import Field
from infra.settings import History, LogSettings, Settings, parse_settings
from stream.logs.histories import Histories, logged_fields, offered_histories, with_histories
from stream.logs.reader import RowCounts, check_log, read_rows

WAIT_S = 5.0
FIELDS = (
    Field(name="user", side="user"),
    Field(name="clicked", side="user", kind="categories", values_max=2),
    Field(name="skipped", side="user", kind="categories", values_max=3),
    Field(name="ad", side="item"),
    Field(name="user_ad", side="cross", of=("user", "ad")),
)
LOG = LogSettings(
    files=("log.ndjson",),
    time="t",
    label="y",
    histories=(History(name="clicked", of="ad"), History(name="skipped", of="ad", clicked=False)),
)
Row = tuple[str | None, float, int, str | None]


def frame_of(rows: list[Row]) -> pl.DataFrame:
    columns = {"field.user": pl.String, "time_s": pl.Float64, "click": pl.Int8, "field.ad": pl.String}
    return pl.DataFrame(rows, schema=columns, orient="row")


def add(frames: list[pl.DataFrame], **changed: Any) -> pl.DataFrame:
    return pl.concat(Histories(LOG, FIELDS, wait_s=WAIT_S, **changed).added_to(iter(frames)))


def expected(rows: list[Row], index: int, *, clicked: bool, length: int) -> list[str] | None:
    user, time_s = rows[index][:2]
    mine = [row for row in rows[:index] if user is not None and row[0] == user and row[1] + WAIT_S < time_s]
    values = [ad for _, _, click, ad in reversed(mine) if ad is not None and bool(click) == clicked]
    return list(dict.fromkeys(values))[:length] or None


ROW = st.tuples(
    st.sampled_from(["u1", "u2", None]),
    st.integers(0, 40).map(float),
    st.integers(0, 1),
    st.sampled_from(["a", "b", "c", "d", None]),
)


@given(rows=st.lists(ROW, max_size=40), cuts=st.sets(st.integers(1, 39)))
def test_a_history_holds_what_had_settled_and_does_not_depend_on_the_cuts(rows: list[Row], cuts: set[int]) -> None:
    rows.sort(key=lambda row: row[1])
    bounds = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    frames = [frame_of(rows[first:last]) for first, last in itertools.pairwise(bounds)]
    frame = add(frames)
    for name, clicked, length in (("clicked", True, 2), ("skipped", False, 3)):
        wanted = [expected(rows, index, clicked=clicked, length=length) for index in range(len(rows))]
        assert frame[f"field.{name}"].to_list() == wanted


def test_the_user_who_was_shown_nothing_for_longest_is_forgotten() -> None:
    rows: list[Row] = [("u1", 0.0, 1, "a"), ("u2", 0.0, 1, "a"), ("u1", 10.0, 0, "b"), ("u3", 20.0, 0, "b")]
    rows += [("u1", 30.0, 0, "c"), ("u2", 30.0, 0, "c")]
    histories = Histories(LOG, FIELDS, wait_s=WAIT_S, users_max=2)
    frame = pl.concat(histories.added_to(iter([frame_of(rows)])))
    assert frame["field.clicked"].to_list() == [None, None, ["a"], None, ["a"], None]
    assert histories.forgotten == 2


def test_the_reader_makes_histories_of_the_files_other_columns(tmp_path: Path) -> None:
    rows = [{"t": 10.0 * n, "y": n % 2, "user": "u1", "ad": f"a{n}"} for n in range(5)]
    pl.DataFrame(rows).write_ndjson(tmp_path / "log.ndjson")
    [source] = check_log(LOG, FIELDS, [tmp_path])
    assert source.columns == ("t", "y", "user", "ad")
    counts = RowCounts()
    frame = pl.concat(read_rows(LOG, FIELDS, [tmp_path], counts, wait_s=WAIT_S, rows_max=2))
    assert frame["field.clicked"].to_list() == [None, None, ["a1"], ["a1"], ["a3", "a1"]]
    assert frame["field.skipped"].to_list() == [None, ["a0"], ["a0"], ["a2", "a0"], ["a2", "a0"]]
    assert counts.warnings() == []


def test_a_log_that_holds_too_many_users_is_warned_of() -> None:
    assert "7 users forgotten" in RowCounts(forgotten=7).warnings()[0]


def test_the_files_hold_all_fields_but_histories_and_crosses() -> None:
    assert [field.name for field in logged_fields(LOG, FIELDS)] == ["user", "ad"]


def settings_of(**log: Any) -> Settings:
    fields = [{"name": "user", "side": "user"}, {"name": "ad", "side": "item"}]
    named = [{"name": one["name"], "side": "user", "kind": "categories"} for one in log.get("histories", [])]
    log = {"files": ["a.csv"], "time": "t"} | log
    return parse_settings({"name": "shop", "log": log, "fields": [*fields, *named], "window": {"slide_s": 9.0}})


def test_a_log_of_users_offers_the_items_that_were_clicked_and_those_that_were_not() -> None:
    settings = settings_of()
    assert [(one.name, one.of, one.clicked) for one, _ in offered_histories(settings)] == [
        ("clicked_ad", "ad", True),
        ("skipped_ad", "ad", False),
    ]
    offering = with_histories(settings)
    assert offering.log is not None
    assert [field.name for field in offering.fields] == ["user", "ad", "clicked_ad", "skipped_ad"]
    assert offered_histories(offering) == ()  # it names them now
    assert with_histories(offering) == offering


def test_what_a_file_names_is_all_it_gets() -> None:
    settings = settings_of(histories=[{"name": "before", "of": "ad"}])
    assert offered_histories(settings) == ()
    assert with_histories(settings) == settings


def test_a_log_without_users_offers_nothing() -> None:
    fields = [{"name": "user", "side": "context"}, {"name": "ad", "side": "item"}]
    log = {"files": ["a.csv"], "time": "t"}
    settings = parse_settings({"name": "shop", "log": log, "fields": fields, "window": {"slide_s": 9.0}})
    assert with_histories(settings) == settings
