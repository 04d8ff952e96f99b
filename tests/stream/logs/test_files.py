"""The formats of log files, whole and broken."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stream.logs.files import CSV_BLOCK_BYTES, LogError, columns_of, find_files, read_chunks

ROWS = [{"ad": f"ad{number}", "n": number, "x": number / 2} for number in range(10)]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    frame, plain = pl.DataFrame(rows), path.with_suffix("") if path.suffix == ".gz" else path
    writers = {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".ndjson": frame.write_ndjson}
    writers[plain.suffix](plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def read(path: Path, columns: list[str], rows_max: int = 4) -> list[pl.DataFrame]:
    return [chunk.frame for chunk in read_chunks(path, columns, ",", rows_max)]


NAMES = ["log.parquet", "log.csv", "log.csv.gz", "log.ndjson", "log.ndjson.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_its_rows_in_order_and_in_chunks(tmp_path: Path, name: str) -> None:
    chunks = read(write(tmp_path / name), ["n", "ad"])
    assert [chunk.height for chunk in chunks] == [4, 4, 2]
    table = pl.concat(chunks).cast({"n": pl.Int64})
    assert table.rows() == [(row["n"], row["ad"]) for row in ROWS]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_tells_its_columns(tmp_path: Path, name: str) -> None:
    assert list(columns_of(write(tmp_path / name), ",")) == ["ad", "n", "x"]


def test_a_column_may_be_asked_for_in_any_order_and_only_those_come(tmp_path: Path) -> None:
    assert read(write(tmp_path / "log.csv"), ["x"], 100)[0].columns == ["x"]


def test_another_separator_and_quoted_line_breaks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.logs.files.CSV_BLOCK_BYTES", 64)  # so that rows straddle blocks
    (tmp_path / "log.tsv").write_text("a\tb\n" + "".join(f'{number}\t"two\nlines"\n' for number in range(50)))
    chunks = list(read_chunks(tmp_path / "log.tsv", ["b", "a"], "\t", 10))
    assert pl.concat(chunk.frame for chunk in chunks).rows() == [("two\nlines", str(number)) for number in range(50)]
    assert not any(chunk.broken for chunk in chunks)


def test_a_csv_row_with_another_number_of_cells_is_counted(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n1,2\n3\n4,5,6\n7,8\n")
    (chunk,) = read_chunks(tmp_path / "log.csv", ["a"], ",", 10)
    assert (chunk.frame["a"].to_list(), chunk.broken) == (["1", "7"], 2)


def test_a_csv_of_broken_rows_alone_still_counts_them(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n1\n2\n")
    assert sum(chunk.broken for chunk in read_chunks(tmp_path / "log.csv", ["a"], ",", 10)) == 2


def test_a_line_that_is_no_json_object_is_counted(tmp_path: Path) -> None:
    (tmp_path / "log.ndjson").write_text('{"a": 1}\n[2]\n{"a": \n\n{"a": 3}\n5\n')
    (chunk,) = read_chunks(tmp_path / "log.ndjson", ["a"], ",", 10)
    assert (chunk.frame["a"].to_list(), chunk.broken) == ([1, 3], 3)


def test_nan_and_infinity_are_read_from_ndjson_although_they_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "log.ndjson").write_text('{"a": NaN}\n{"a": -Infinity}\n{"a": 1.5}\n')
    (chunk,) = read_chunks(tmp_path / "log.ndjson", ["a"], ",", 10)
    assert str(chunk.frame["a"].to_list()) == "[nan, -inf, 1.5]"


def test_keys_of_ndjson_that_lack_in_a_row_are_null(tmp_path: Path) -> None:
    (tmp_path / "log.ndjson").write_text('{"a": 1}\n{"b": "x"}\n')
    assert list(columns_of(tmp_path / "log.ndjson", ",")) == ["a", "b"]
    assert read(tmp_path / "log.ndjson", ["a", "b"])[0].rows() == [(1, None), (None, "x")]


def test_a_column_of_ndjson_with_several_types_becomes_text(tmp_path: Path) -> None:
    lines = ['{"a": 1, "b": [1, null], "c": 18446744073709551615}', '{"a": "x", "b": ["y"], "c": 1}', '{"a": true}']
    (tmp_path / "log.ndjson").write_text("\n".join(lines))
    frame = read(tmp_path / "log.ndjson", ["a", "b", "c"])[0]
    assert frame["a"].to_list() == ["1", "x", "true"]
    assert frame["b"].to_list() == [["1", None], ["y"], None]
    assert frame["c"].to_list() == ["18446744073709551615", "1", None]


# Broken files -----------------------------------------------------------------------------------------------------


def error_of(path: Path, column: str = "a") -> str:
    def look_and_read() -> None:
        columns_of(path, ",")
        read(path, [column])

    with pytest.raises(LogError) as caught:
        look_and_read()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("log.csv", b"a,b\n\xff\xfe,2\n"), ("log.csv", b"a\xff,b\n1,2\n"), ("log.ndjson", b'{"a": "\xff\xfe"}\n')],
)
def test_other_bytes_than_utf8_are_said_to_be_so(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert error_of(tmp_path / name) == f"{tmp_path / name} must be UTF-8 text, got other bytes; save it as UTF-8"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_or_of_another_format_is_said_to_be_unreadable(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, ROWS * 2000).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if name.endswith("gz") else b"\x00\x01\x02" * 50)
    if name == "log.csv":  # any bytes are a header: that none of its columns is known is found when they are checked
        return
    message = error_of(tmp_path / name, "ad")
    assert message.startswith(f"{tmp_path / name} must ")


@pytest.mark.parametrize("position", [18, 500])  # the first byte after the header, and the middle
def test_a_gzip_file_with_flipped_bytes_is_unreadable(tmp_path: Path, position: int) -> None:
    whole = bytearray(write(tmp_path / "log.ndjson.gz", ROWS * 2000).read_bytes())
    whole[position] ^= 0xFF
    (tmp_path / "log.ndjson.gz").write_bytes(whole)
    assert "must be a readable ndjson file, got:" in error_of(tmp_path / "log.ndjson.gz", "ad")


@pytest.mark.parametrize(("name", "what"), [("log.csv", "a header and rows"), ("log.ndjson", "one JSON object a line")])
def test_a_file_without_a_byte_is_said_to_be_empty(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).touch()
    assert error_of(tmp_path / name).startswith(f"{tmp_path / name} must hold {what}, got ")


def test_a_csv_row_longer_than_a_block_is_an_error_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f'a,b\n1,"{"x" * (3 * CSV_BLOCK_BYTES)}"\n2,y\n')
    assert "must be a readable csv file, got: " in error_of(tmp_path / "log.csv")


def test_an_unknown_ending_is_named() -> None:
    with pytest.raises(LogError, match=r"\[log\] files must end in \.parquet, \.csv, .* got log\.xlsx"):
        columns_of(Path("log.xlsx"), ",")


# Finding files ----------------------------------------------------------------------------------------------------


def test_a_glob_stands_for_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"{number:02}.csv" for number in range(20)]
    for name in [*reversed(names), "20.txt"]:
        (tmp_path / name).touch()
    assert [path.name for path in find_files("*.csv", [tmp_path])] == names
    assert [path.name for path in find_files(str(tmp_path / "*.csv"), [])] == names


def test_the_first_directory_that_has_the_file_counts(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "a[1].csv").touch()
    assert find_files("a[1].csv", [tmp_path / "one", tmp_path / "two"]) == [tmp_path / "two" / "a[1].csv"]
    (tmp_path / "one" / "a[1].csv").touch()
    assert find_files("a[1].csv", [tmp_path / "one", tmp_path / "two"]) == [tmp_path / "one" / "a[1].csv"]


def test_a_file_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(LogError) as caught:
        find_files("none.csv", [tmp_path, Path("configs")])
    assert str(caught.value) == (
        f'[log] files must exist, got none for "none.csv" in {tmp_path}, configs; check the name, or use --data DIR'
    )
