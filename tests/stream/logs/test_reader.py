"""The generic mapping, on real files: whole requests in order, everything counted, bad logs in one clear line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.fields import Field
from infra.settings import Join, LogSettings
from stream.logs.files import LogError
from stream.logs.reader import RowCounts, check_log, read_rows
from stream.logs.requests import REQUEST_BYTES_MAX

FIELDS = (
    Field(name="user", side="user"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="price", side="item", kind="number"),
    Field(name="user_ad", side="cross", of=("user", "ad")),
)
LOG: dict[str, Any] = {"files": ("log.ndjson",), "time": "t", "label": "y"}
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def row(t: Any = 100.0, **changed: Any) -> dict[str, Any]:
    return {"t": t, "y": 0, "user": "u1", "ad": "a1", "tags": "x y", "price": 1.5} | changed


def write(directory: Path, rows: Sequence[dict[str, Any]], name: str = "log.ndjson") -> None:
    if name.endswith("ndjson"):
        (directory / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    elif name.endswith("csv"):
        pl.DataFrame(rows, strict=False).write_csv(directory / name)
    else:
        pl.DataFrame(rows).write_parquet(directory / name)


def read(
    directory: Path, *, rows_max: int = 1000, disorder_s: float = 0.0, limit: int | None = None, **log: Any
) -> tuple[pl.DataFrame, RowCounts]:
    counts = RowCounts()
    mapping = LogSettings(**(LOG | log))
    frames = read_rows(
        mapping, FIELDS, [directory], counts, wait_s=5.0, rows_max=rows_max, disorder_s=disorder_s, limit=limit
    )
    return pl.concat(frames), counts


def error_of(directory: Path, **log: Any) -> str:
    with pytest.raises(LogError) as caught:
        read(directory, **log)
    return str(caught.value)


@pytest.mark.parametrize("name", ["log.ndjson", "log.csv", "log.parquet"])
def test_every_format_becomes_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = [row(100.0, y=1), row(101.0, user=None, price=None), row(102.0, tags=None)]
    write(tmp_path, rows, name)
    frame, counts = read(tmp_path, files=(name,), rows_max=2)
    assert frame["time_s"].to_list() == [100.0, 101.0, 102.0]
    assert frame["click"].to_list() == [1, 0, 0]
    assert frame["field.user"].to_list() == ["u1", None, "u1"]
    assert frame["field.tags"].to_list() == [["x", "y"], ["x", "y"], None]
    assert frame["field.price"].to_list() == [1.5, None, 1.5]
    assert frame["request_id"].to_list() == ["0", "1", "2"]
    assert frame["position"].to_list() == [0, 0, 0]
    assert (counts.read, counts.used, counts.clicks, counts.warnings()) == (3, 3, 1, [])


def test_rows_of_several_files_follow_in_the_order_given(tmp_path: Path) -> None:
    write(tmp_path, [row(100.0, ad="first")], "b.ndjson")
    write(tmp_path, [row(101.0, ad="second")], "c.ndjson")
    write(tmp_path, [row(102.0, ad="third")], "a.csv")
    frame, _ = read(tmp_path, files=("[bc].ndjson", "a.csv"))
    assert frame["ad_id"].to_list() == ["first", "second", "third"]


# Requests ---------------------------------------------------------------------------------------------------------


def test_rows_with_the_same_request_columns_are_one_request_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, [row(ad="a"), row(ad="b", user="u2"), row(ad="c"), row(101.0, ad="d")])
    frame, _ = read(tmp_path, request=("user", "t"))
    first = frame.filter(pl.col("field.user") == "u1", pl.col("time_s") == 100.0)
    assert first.select("ad_id", "position").rows() == [("a", 0), ("c", 1)]
    assert frame["request_id"].n_unique() == 3
    assert all(len(name) == 16 for name in frame["request_id"])


def test_rows_of_one_key_at_another_time_are_another_request(tmp_path: Path) -> None:
    write(tmp_path, [row(100.0), row(100.5)])
    frame, _ = read(tmp_path, request=("user",))
    assert frame["request_id"].n_unique() == 2
    assert frame["position"].to_list() == [0, 0]


def test_a_request_is_the_same_whether_its_key_is_a_number_or_text(tmp_path: Path) -> None:
    write(tmp_path, [row(user=17), row(user="17"), row(user=17.0)])
    frame, _ = read(tmp_path, request=("user",), rows_max=1)
    assert frame["request_id"].n_unique() == 1


def test_parts_of_a_request_key_do_not_run_into_each_other(tmp_path: Path) -> None:
    write(tmp_path, [row(user="a", ad="bc"), row(user="ab", ad="c"), row(user=None, ad="abc"), row(user="abc", ad="x")])
    frame, _ = read(tmp_path, request=("user", "ad"))
    assert (frame["request_id"].n_unique(), frame["request_id"].null_count()) == (4, 0)


def test_a_propensity_column_is_read_and_what_is_none_is_counted(tmp_path: Path) -> None:
    write(tmp_path, [row(ad="a", shown_with=0.5), row(ad="b", shown_with=0.0), row(ad="c", shown_with=1.0)])
    frame, counts = read(tmp_path, propensity="shown_with")
    assert frame.select("ad_id", "propensity").rows() == [("a", 0.5), ("c", 1.0)]
    assert counts.unusable == {"bad_propensity": 1}
    assert 'the log must have the column "chance"' in error_of(tmp_path, propensity="chance")


def test_a_position_column_orders_the_rows_of_a_request(tmp_path: Path) -> None:
    write(tmp_path, [row(ad="third", place=7), row(ad="first", place=0), row(ad="second", place=3)])
    frame, _ = read(tmp_path, request=("user",), position="place")
    assert frame.select("ad_id", "position").rows() == [("first", 0), ("second", 3), ("third", 7)]


log_rows = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 1)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=30)
@given(drawn=log_rows, rows_max=st.integers(1, 12))
def test_the_rows_of_a_log_in_time_order_do_not_depend_on_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, str, str, int]], rows_max: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    drawn.sort(key=lambda one: one[0])
    write(directory, [row(100.0 + t, user=user, ad=ad, y=y) for t, user, ad, y in drawn])
    n_instant = max(sum(one[0] == t for one in drawn) for t in range(7))
    whole, counts = read(directory, request=("user",))
    parts, counted = read(directory, request=("user",), rows_max=max(rows_max, n_instant + 1))
    assert parts.equals(whole)
    assert counted == counts


def test_more_rows_of_one_instant_than_fit_into_memory_are_let_go(tmp_path: Path) -> None:
    write(tmp_path, [row(ad=f"a{number}") for number in range(10)])
    mapping = LogSettings(**(LOG | {"request": ("user",)}))
    heights = [frame.height for frame in read_rows(mapping, FIELDS, [tmp_path], RowCounts(), wait_s=5.0, rows_max=3)]
    assert (sum(heights), max(heights)) == (10, 3)


def test_a_limit_counts_usable_rows(tmp_path: Path) -> None:
    write(tmp_path, [row(100.0 + number, y=number % 2 if number else 7) for number in range(10)])
    frame, counts = read(tmp_path, rows_max=4, limit=5)
    assert frame["time_s"].to_list() == [101.0, 102.0, 103.0, 104.0, 105.0]
    assert (counts.used, counts.clicks) == (5, 3)
    assert read(tmp_path, limit=100)[1].used == 9


# Joins ------------------------------------------------------------------------------------------------------------


def test_a_join_adds_columns_and_counts_rows_without_a_partner(tmp_path: Path) -> None:
    rows = [{"t": 100.0 + n, "y": n % 2, "user": n, "ad": f"a{n}"} for n in range(3)]
    write(tmp_path, rows, "log.parquet")
    write(
        tmp_path,
        [{"ad": "a0", "tags": "x", "price": 1.0, "user": 99}, {"ad": "a1", "tags": "y", "price": 2.0, "user": 99}],
        "ads.csv",
    )
    frame, counts = read(tmp_path, files=("log.parquet",), joins=(Join("ads.csv", "ad"),))
    assert frame["field.tags"].to_list() == [["x"], ["y"], None]
    assert frame["field.user"].to_list() == ["0", "1", "2"], "a column that the log has is not taken from a join"
    assert counts.unmatched == {"ads.csv": 1}
    assert counts.warnings() == ["1 rows have no partner in ads.csv: values missing"]


def test_a_join_may_hang_on_another_and_keys_meet_whatever_their_type(tmp_path: Path) -> None:
    write(tmp_path, [{"t": 100.0, "y": 0, "user": 17.0, "ad": 5}], "log.parquet")
    write(tmp_path, [{"ad": "5", "shop": "3"}], "ads.csv")
    write(tmp_path, [{"shop": 3.0, "tags": "x", "price": 1.0}], "shops.parquet")
    joins = (Join("ads.csv", "ad"), Join("shops.parquet", "shop"))
    frame, counts = read(tmp_path, files=("log.parquet",), joins=joins)
    assert frame["field.tags"].to_list() == [["x"]]
    assert counts.unmatched == {}


def test_a_joined_file_must_hold_each_key_once(tmp_path: Path) -> None:
    write(tmp_path, [{"t": 100.0, "y": 0, "user": 1, "ad": "a"}])
    write(tmp_path, [{"ad": "a", "tags": "x", "price": 1.0}, {"ad": "a", "tags": "y", "price": 1.0}], "ads.csv")
    assert error_of(tmp_path, joins=(Join("ads.csv", "ad"),)) == (
        f'{tmp_path / "ads.csv"} must hold each "ad" once, got "a" more often'
    )


def test_a_joined_file_must_be_one_whole_file_with_its_key(tmp_path: Path) -> None:
    write(tmp_path, [row()])
    (tmp_path / "ads.csv").write_text("ad,tags\n1\n")
    (tmp_path / "other.csv").write_text("id,tags\n1,x\n")
    assert "ads.csv must hold rows and nothing else" in error_of(tmp_path, joins=(Join("ads.csv", "ad"),))
    assert 'other.csv must have the column "ad", got id, tags' in error_of(tmp_path, joins=(Join("other.csv", "ad"),))
    assert "[log] joins must name one file each, got 2" in error_of(tmp_path, joins=(Join("*.csv", "ad"),))


# Rows that cannot be used -----------------------------------------------------------------------------------------


def test_every_row_is_used_or_counted_by_the_rule_it_breaks(tmp_path: Path) -> None:
    rows = [row(), row(None), row(101.0, y=7), row(102.0, ad=""), row(103.0, y=1), row(104.0, ad="a" * 300)]
    write(tmp_path, rows)
    with (tmp_path / "log.ndjson").open("a") as file:
        file.write("{\n")
    frame, counts = read(tmp_path)
    assert frame["time_s"].to_list() == [100.0, 103.0]
    assert counts.unusable == {"bad_time": 1, "bad_label": 1, "no_ad_id": 1, "bad_ad_id": 1, "broken_row": 1}
    assert counts.read == counts.used + sum(counts.unusable.values())
    assert "1 of 7 rows left out: bad_label" in counts.warnings()


def test_nan_and_infinity_are_missing_numbers_and_no_times(tmp_path: Path) -> None:
    rows = [row(price=math.nan), row(math.nan), row(101.0, price=math.inf), row(math.inf), row(102.0, y=math.nan)]
    write(tmp_path, [*rows, row(103.0, y=1)])
    frame, counts = read(tmp_path)
    assert frame["field.price"].to_list() == [None, None, 1.5]
    assert counts.unusable == {"bad_time": 2, "bad_label": 1}
    assert counts.unreadable == {"price": 1}, "infinity is no number; NaN is how many programs write a missing one"


@pytest.mark.parametrize("name", ["log.ndjson", "log.csv"])
def test_a_column_with_another_type_half_way_stays_one_column(tmp_path: Path, name: str) -> None:
    rows = [row(100.0 + n, user=n, price=n) for n in range(4)]
    rows += [row(104.0 + n, user=f"u{n}", price="much", y=1) for n in range(4)]
    write(tmp_path, rows, name)
    frame, counts = read(tmp_path, files=(name,), rows_max=2)
    assert frame["field.user"].to_list() == ["0", "1", "2", "3", "u0", "u1", "u2", "u3"]
    assert frame["field.price"].to_list() == [0.0, 1.0, 2.0, 3.0, None, None, None, None]
    assert counts.unreadable == {"price": 4}
    assert counts.warnings() == ["4 values of price are no numbers: missing"]


def test_a_file_whose_column_has_another_type_than_the_files_before_is_read(tmp_path: Path) -> None:
    write(tmp_path, [row(100.0, user=1)], "a.parquet")
    write(tmp_path, [row(101.0, user="u", y=1)], "b.parquet")
    frame, _ = read(tmp_path, files=("*.parquet",))
    assert frame["field.user"].to_list() == ["1", "u"]


def test_a_huge_string_is_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, [row(), row(101.0, user="x" * 2_000_000), row(102.0, y=1)])
    frame, counts = read(tmp_path)
    assert frame["time_s"].to_list() == [100.0, 102.0]
    assert counts.unusable == {"request_too_big": 1}


def test_a_request_keeps_as_many_rows_as_fit_into_a_record(tmp_path: Path) -> None:
    write(tmp_path, [row(ad=f"a{number}", tags="x" * 1000) for number in range(200)] + [row(101.0, y=1)])
    frame, counts = read(tmp_path, request=("user",))
    n_kept = frame.filter(pl.col("time_s") == 100.0).height
    assert 100 < n_kept < REQUEST_BYTES_MAX // 1000
    assert counts.unusable == {"request_too_big": 200 - n_kept}
    assert frame["position"].to_list() == [*range(n_kept), 0]


def test_a_log_out_of_order_is_mended_within_a_chunk_and_counted_across(tmp_path: Path) -> None:
    times = [100.0, 103.0, 101.0, 104.0, 105.0, 90.0, 106.0, 103.5]
    write(tmp_path, [row(t, y=int(t) % 2) for t in times])
    whole, counts = read(tmp_path)
    assert whole["time_s"].to_list() == sorted(times)
    assert counts.out_of_order == 0
    parts, counts = read(tmp_path, rows_max=3, disorder_s=1.0)
    assert sorted(parts["time_s"]) == sorted(times), "nothing is lost"
    assert counts.out_of_order == 1
    assert counts.warnings() == ["1 rows come later than [ledger] disorder_s allows: sort the log by time"]


@pytest.mark.parametrize(("y", "word"), [(0, "no row is a click"), (1, "every row is a click")])
def test_a_log_of_one_class_is_read_with_a_warning(tmp_path: Path, y: int, word: str) -> None:
    write(tmp_path, [row(100.0 + n, y=y) for n in range(3)])
    _, counts = read(tmp_path)
    assert counts.warnings() == [f"{word}: there is nothing to learn to tell apart; check [log] label"]


# Logs that cannot be used -----------------------------------------------------------------------------------------


def test_an_empty_log_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [row()], "log.parquet")
    pl.read_parquet(tmp_path / "log.parquet").clear().write_parquet(tmp_path / "log.parquet")
    (tmp_path / "log.csv").write_text("t,y,user,ad,tags,price\n")
    for name in ("log.parquet", "log.csv"):
        assert error_of(tmp_path, files=(name,)) == f"the log must hold rows, got none in {name}"


def test_a_log_without_one_usable_row_says_why(tmp_path: Path) -> None:
    write(tmp_path, [row(1.6e12), row(1.6e12), row(y=5)])
    assert error_of(tmp_path) == (
        "the log must hold usable rows, got none of 3 (bad_time 2, bad_label 1); check [log] and time_unit"
    )


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, [row()])
    assert error_of(tmp_path, label="click") == (
        'the log must have the column "click", got none in log.ndjson; columns: t, y, user, ad, tags, price'
    )


def test_a_column_that_a_later_file_lacks_is_found_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path, [row()], "a.csv")
    (tmp_path / "b.csv").write_text("t,y,user\n1,0,u\n")
    assert error_of(tmp_path, files=("a.csv", "b.csv")) == (
        f'{tmp_path / "b.csv"} must have the column "ad", got t, y, user'
    )


@pytest.mark.parametrize(
    ("changed", "log", "message"),
    [
        ({"t": 5}, {"time_unit": "iso"}, '"t" is used as time and must hold text or time, got number'),
        ({"t": [5]}, {}, '"t" is used as time and must hold number or time or text, got list'),
        ({"y": [1]}, {}, '"y" is used as label and must hold number or text, got list'),
        ({"ad": ["a"]}, {}, '"ad" is used as category and must hold number or text or time, got list'),
        ({"price": [1.0]}, {}, '"price" is used as number and must hold number or text, got list'),
        ({"tags": {"a": 1}}, {}, '"tags" is used as categories and must hold number or text or list, got nested'),
        (
            {"at": [1]},
            {"click_time": "at"},
            '"at" is used as click_time and must hold number or time or text, got list',
        ),
    ],
)
def test_a_column_that_cannot_be_what_it_is_used_as_is_an_error(
    tmp_path: Path, changed: dict[str, Any], log: dict[str, Any], message: str
) -> None:
    write(tmp_path, [row(**changed)], "log.parquet")
    settings_ = LogSettings(**(LOG | {"files": ("log.parquet",)} | log))
    with pytest.raises(LogError) as caught:
        check_log(settings_, FIELDS, [tmp_path])
    assert str(caught.value) == f"the column {message}"


def test_text_may_hold_times_and_numbers_that_is_found_out_row_by_row(tmp_path: Path) -> None:
    write(tmp_path, [row("soon", y="1", price="1.5")], "log.parquet")
    assert len(check_log(LogSettings(**LOG | {"files": ("log.parquet",)}), FIELDS, [tmp_path])) == 1


def test_check_log_says_which_columns_come_from_which_file_and_reads_no_rows(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("t,y,user,ad\n\xff,not,read,at all\n", encoding="latin-1")
    (tmp_path / "ads.csv").write_text("ad,tags,price,user\n")
    sources = check_log(
        LogSettings(**LOG | {"files": ("log.csv",), "joins": (Join("ads.csv", "ad"),)}), FIELDS, [tmp_path]
    )
    assert [(source.path.name, source.columns) for source in sources] == [
        ("log.csv", ("t", "y", "ad", "user")),
        ("ads.csv", ("ad", "tags", "price")),
    ]


@pytest.mark.skipif(not (SHARED / "kuairand").is_dir(), reason="KuaiRand is not on this machine")
def test_kuairand_is_read_as_its_configuration_says() -> None:
    from infra.settings import read_settings

    settings_ = read_settings(Path(__file__).resolve().parents[3] / "configs" / "kuairand.toml")
    assert settings_.log is not None
    counts = RowCounts()
    frames = read_rows(settings_.log, settings_.fields, [SHARED / "kuairand"], counts, wait_s=60.0)
    first = next(frames)
    assert counts.unusable == counts.unmatched == {}
    assert first["field.upload_type"].null_count() == 0
    assert first["field.tag"].list.len().max() == 3
    assert 0.4 < float(first["click"].mean()) < 0.5  # type: ignore[arg-type]
