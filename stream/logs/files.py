"""The formats of log files: which columns a file has, and its rows in chunks that fit into memory.

Owns Parquet (by row group), CSV and NDJSON (both also gzipped, both read as they come) and finding files. Must not know
what the columns mean.

Invariants: memory is bounded by a chunk; a file that cannot be read is one `LogError` that names it; a row that is no
row (another number of cells, no JSON object) is counted, never dropped in silence.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

CSV_BLOCK_BYTES = 8 << 20  # a row may straddle two blocks, so it is shorter than twice this
NDJSON_SCHEMA_LINES = 100  # how far `columns_of` looks for keys that the first lines lack
_UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)


class LogError(ValueError):
    """A log that cannot be read as the configuration says; the command line prints it and exits with 2."""


class Chunk(NamedTuple):
    """Consecutive rows of a file, and how many lines among them were no rows."""

    frame: pl.DataFrame
    broken: int = 0


def find_files(pattern: str, bases: Sequence[Path]) -> list[Path]:
    """Return the files that a name or glob stands for, sorted by name, from the first base that has any.

    Raises:
        LogError: If there is none.
    """
    for base in [Path("/")] if Path(pattern).is_absolute() else bases:
        if (base / pattern).is_file():
            return [base / pattern]
        relative = str(Path(pattern).relative_to(base)) if Path(pattern).is_absolute() else pattern
        if found := sorted(path for path in base.glob(relative) if path.is_file()):
            return found
    places = ", ".join(str(base) for base in bases)
    raise LogError(f'[log] files must exist, got none for "{pattern}" in {places}; check the name, or use --data DIR')


def columns_of(path: Path, separator: str) -> dict[str, pl.DataType]:
    """Return the columns of a file with their types; no more of it is read than that takes.

    Raises:
        LogError: If the file cannot be read.
    """
    try:
        if _format(path) == "parquet":
            with pa.parquet.ParquetFile(path) as file:
                empty = pl.from_arrow(file.schema_arrow.empty_table())
        elif _format(path) == "csv":
            empty = pl.DataFrame(schema=dict.fromkeys(_csv_header(path, separator), pl.String()))
        else:
            empty = _ndjson_head(path)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    assert isinstance(empty, pl.DataFrame)
    return dict(zip(empty.columns, empty.dtypes, strict=True))


def read_chunks(path: Path, columns: Sequence[str], separator: str, rows_max: int) -> Iterator[Chunk]:
    """Yield the rows of a file in order, the columns asked for, at most `rows_max` at a time.

    Raises:
        LogError: If the file cannot be read, up to its last byte.
    """
    readers = {"parquet": _parquet_chunks, "csv": _csv_chunks, "ndjson": _ndjson_chunks}
    try:
        for chunk in readers[_format(path)](path, columns, separator, rows_max):
            first, *others = chunk.frame.iter_slices(rows_max) if chunk.frame.height else [chunk.frame]
            yield Chunk(first, chunk.broken)
            yield from map(Chunk, others)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def read_whole(path: Path, columns: Sequence[str], separator: str) -> pl.DataFrame:
    """Return all rows of a file, the columns asked for: each has one type.

    Raises:
        LogError: If the file cannot be read, is empty, or has a row that is none.
    """
    chunks = list(read_chunks(path, columns, separator, _WHOLE))
    if not chunks or any(chunk.broken for chunk in chunks):
        raise LogError(f"{path} must hold rows and nothing else: it is empty or has broken rows")
    return pl.concat([chunk.frame for chunk in chunks])


_WHOLE = 1 << 30  # rows: read as one chunk


def _format(path: Path) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    formats = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
    if suffix not in formats:
        raise LogError(f"[log] files must end in {', '.join(formats)} (the last four also .gz), got {path.name}")
    return formats[suffix]


def _unreadable(path: Path, error: Exception) -> LogError:
    if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
        return LogError(f"{path} must be UTF-8 text, got other bytes; save it as UTF-8")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return LogError(f"{path} must be a readable {_format(path)} file, got: {reason}")


def _parquet_chunks(path: Path, columns: Sequence[str], _: str, rows_max: int) -> Iterator[Chunk]:
    with pa.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows_max, columns=list(columns)):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield Chunk(frame)


def _csv_header(path: Path, separator: str) -> list[str]:
    with pa.input_stream(path, compression="detect") as stream:
        head = stream.read(CSV_BLOCK_BYTES)
    if not head.strip():
        raise LogError(f"{path} must hold a header and rows, got an empty file")
    line = head.split(b"\n", 1)[0] + b"\n"
    names: list[str] = pa.csv.read_csv(pa.py_buffer(line), parse_options=_parse_options(separator)).column_names
    return names


def _parse_options(separator: str) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True)


def _csv_chunks(path: Path, columns: Sequence[str], separator: str, _: int) -> Iterator[Chunk]:
    broken = 0

    def skip(row: pa.csv.InvalidRow) -> str:  # noqa: ARG001 - the signature is Arrow's
        nonlocal broken
        broken += 1
        return "skip"

    options = _parse_options(separator)
    options.invalid_row_handler = skip
    with pa.input_stream(path, compression="detect") as stream:
        # Everything is text at first: a column that changes its type half-way is still one column.
        reader = pa.csv.open_csv(
            stream,
            pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False),
            options,
            pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)),
        )
        for batch in reader:
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield Chunk(frame, broken)
            broken = 0
    if broken:
        yield Chunk(pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), broken)


def _ndjson_chunks(path: Path, columns: Sequence[str], _: str, rows_max: int) -> Iterator[Chunk]:
    rows: list[dict[str, Any]] = []
    broken = 0
    with _open_lines(path) as lines:
        for line in lines:
            if not line.strip():
                continue
            row = _json_object(line)
            if row is None:
                broken += 1
            else:
                rows.append(row)
            if len(rows) == rows_max:
                yield Chunk(_columns_from(rows, columns), broken)
                rows, broken = [], 0
    if rows or broken:
        yield Chunk(_columns_from(rows, columns), broken)


def _ndjson_head(path: Path) -> pl.DataFrame:
    rows = []
    with _open_lines(path) as lines:
        for line, _ in zip(lines, range(NDJSON_SCHEMA_LINES), strict=False):
            rows.append(_json_object(line) or {})
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise LogError(f"{path} must hold one JSON object a line, got none in its first lines")
    return _columns_from(rows, names)


def _open_lines(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        try:
            row = json.loads(line.decode())  # also takes NaN and Infinity, which many programs write
        except (json.JSONDecodeError, RecursionError):
            return None
    return row if isinstance(row, dict) else None


def _columns_from(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pl.DataFrame:
    """Return rows as columns; one whose values are of several types becomes text."""
    frame = {name: _column([row.get(name) for row in rows]) for name in columns}
    return pl.DataFrame(frame)


def _column(values: list[Any]) -> pl.Series:
    types = {type(value) for value in values} - {type(None)}
    if types == {int} and all(value is None or abs(value) < 2**63 for value in values):
        return pl.Series(values, dtype=pl.Int64)
    if types in ({float}, {int, float}):
        return pl.Series(values, dtype=pl.Float64, strict=False)
    if types == {list}:
        texts = [value and [None if one is None else _text(one) for one in value] for value in values]
        return pl.Series(texts, dtype=pl.List(pl.String))
    return pl.Series([None if value is None else _text(value) for value in values], dtype=pl.String)


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
