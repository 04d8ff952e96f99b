"""Histories against the sentence that defines them: what had settled before the row, newest first, each value once."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from features.fields import Field, History
from infra.settings import ClickDelay, LogSettings
from stream.logs.histories import Histories, logged_fields
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
    click_delay_s=ClickDelay(mean=0.0),
    histories=(History(name="clicked", of="ad"), History(name="skipped", of="ad", clicked=False)),
)
Row = tuple[str | None, float, float | None, str | None]  # user, time, time of the click, ad


def frame_of(rows: list[Row]) -> pl.DataFrame:
    columns = {"field.user": pl.String, "time_s": pl.Float64, "click_time_s": pl.Float64, "field.ad": pl.String}
    return pl.DataFrame(rows, schema=columns, orient="row").with_columns(position=pl.lit(0))


def add(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(Histories(LOG.histories, FIELDS, wait_s=WAIT_S).added_to(iter(frames)))


def expected(rows: list[Row], index: int, *, clicked: bool, length: int) -> list[str] | None:
    """What somebody knows of a user who waits for each click: who clicks too late has left, and then clicks."""
    user, time_s = rows[index][:2]
    known: list[tuple[float, bool, str | None]] = []
    for shown_to, shown_s, click_s, ad in rows[:index]:
        settles_s = shown_s + WAIT_S
        if user is not None and shown_to == user:
            is_late = click_s is not None and click_s > settles_s
            known.append((settles_s, click_s is not None and not is_late, ad))
            if click_s is not None and is_late:
                known.append((click_s, True, ad))
    known.sort(key=lambda one: one[0])
    values = [ad for known_s, was, ad in reversed(known) if known_s < time_s and ad is not None and was == clicked]
    return list(dict.fromkeys(values))[:length] or None


@st.composite
def a_row(draw: st.DrawFn) -> Row:
    time_s = float(draw(st.integers(0, 40)))
    delay_s = draw(st.one_of(st.none(), st.integers(0, 12)))
    user, ad = draw(st.sampled_from(["u1", "u2", None])), draw(st.sampled_from(["a", "b", "c", "d", None]))
    return user, time_s, None if delay_s is None else time_s + delay_s, ad


@given(rows=st.lists(a_row(), max_size=40), cuts=st.sets(st.integers(1, 39)))
def test_a_history_holds_what_was_known_and_does_not_depend_on_the_cuts(rows: list[Row], cuts: set[int]) -> None:
    rows.sort(key=lambda row: row[1])
    bounds = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    frame = add([frame_of(rows[first:last]) for first, last in itertools.pairwise(bounds)])
    for name, clicked, length in (("clicked", True, 2), ("skipped", False, 3)):
        wanted = [expected(rows, index, clicked=clicked, length=length) for index in range(len(rows))]
        assert frame[f"field.{name}"].to_list() == wanted


def test_the_user_who_was_shown_nothing_for_longest_is_forgotten() -> None:
    rows: list[Row] = [("u1", 0.0, 1.0, "a"), ("u2", 0.0, 1.0, "a"), ("u1", 10.0, None, "b"), ("u3", 20.0, None, "b")]
    rows += [("u1", 30.0, None, "c"), ("u2", 30.0, None, "c")]
    histories = Histories(LOG.histories, FIELDS, wait_s=WAIT_S, users_max=2)
    frame = pl.concat(histories.added_to(iter([frame_of(rows)])))
    assert frame["field.clicked"].to_list() == [None, None, ["a"], None, ["a"], None]
    assert histories.forgotten == 2


def test_what_was_not_shown_is_in_no_history_and_sees_what_was_known() -> None:
    rows: list[Row] = [("u1", 0.0, None, "a"), ("u1", 0.0, None, "b"), ("u1", 30.0, None, "c"), ("u1", 30.0, None, "d")]
    frame = frame_of(rows).with_columns(position=pl.Series([0, None, 0, None]))
    assert add([frame])["field.skipped"].to_list() == [None, None, ["a"], ["a"]]


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
    assert [field.name for field in logged_fields(FIELDS, LOG.histories)] == ["user", "ad"]
