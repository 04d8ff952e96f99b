"""A log bigger than memory as frames of impressions in event-time order, joins and counts included.

Owns the generic mapping that `[log]` describes: which files, which columns, which joins, what makes a request. Must not
know events, topics or what the rows are used for.

Invariants: once all is read, `read = used + unusable`, row for row; rows of one request stand in one frame, in order of
position; within a frame rows sort by (time_s, request_id, position), so the rows of a log in time order do not depend
on `rows_max`; a request's id depends on its own columns and its time alone.

Files are expected in time order. Disorder within a chunk is mended; a row older than what has already left by more than
`disorder_s` is sent all the same and counted as `out_of_order`: the ledger decides what it is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import polars as pl

from features.fields import Field, id_field
from infra.settings import Join, LogSettings
from stream.logs.clicks import with_click_times
from stream.logs.columns import categories, kind_of, normalise, unreadable
from stream.logs.files import Chunk, LogError, columns_of, find_files, read_chunks, read_whole
from stream.logs.histories import Histories, logged_fields
from stream.logs.requests import in_order, request_ids, whole_requests

ROWS_MAX = 16_384  # rows in memory at a time: chosen by measurement, larger ones only cost cache and memory


class RowCounts(msgspec.Struct):
    """What became of the rows of a log so far.

    Attributes:
        read: Rows read, those that are no rows included.
        used: Rows that became impressions, or candidates that were not shown.
        unexposed: How many of those were not shown.
        clicks: How many of those were clicked.
        unusable: Rows that were left out, by the rule that they break.
        unreadable: Values that are no number though their field is one, by field; they count as missing.
        unmatched: Rows whose key has no partner in a joined file, by file; the joined values are missing.
        out_of_order: Rows sent later than their time allows; the ledger may find them too late.
        forgotten: Users whose histories began anew because too many were known.
    """

    read: int = 0
    used: int = 0
    unexposed: int = 0
    clicks: int = 0
    unusable: dict[str, int] = {}
    unreadable: dict[str, int] = {}
    unmatched: dict[str, int] = {}
    out_of_order: int = 0
    forgotten: int = 0

    def warnings(self) -> list[str]:
        """Return one line for each thing that a user should know, worst first."""
        lines = []
        if self.used and self.clicks in (0, self.used):
            every = "every" if self.clicks else "no"
            lines.append(f"{every} row is a click: there is nothing to learn to tell apart; check [log] label")
        lines += [f"{count} of {self.read} rows left out: {rule}" for rule, count in self.unusable.items()]
        lines += [f"{count} values of {name} are no numbers: missing" for name, count in self.unreadable.items()]
        lines += [f"{count} rows have no partner in {file}: values missing" for file, count in self.unmatched.items()]
        if self.out_of_order:
            lines.append(f"{self.out_of_order} rows come later than [ledger] disorder_s allows: sort the log by time")
        if self.forgotten:
            lines.append(
                f"{self.forgotten} users forgotten: their [log] histories begin anew; drop these or split the log"
            )
        return lines


class Source(NamedTuple):
    """One file of the log, or one joined to it, and the columns taken from it."""

    path: Path
    columns: tuple[str, ...]
    join: Join | None = None


def check_log(log: LogSettings, fields: Sequence[Field], bases: Sequence[Path]) -> list[Source]:
    """Return which columns come from which file; reads schemas only, for `freshrank check`.

    Args:
        bases: Where relative names are looked for, in this order.

    Raises:
        LogError: If a file cannot be read or a column is missing or cannot be what it is used as.
    """
    fields, item = logged_fields(fields, log.histories), id_field(fields, "item")
    paths = list(dict.fromkeys(path for pattern in log.files for path in find_files(pattern, bases)))
    needed = _needed(log, fields)
    found = columns_of(paths[0], log.separator)
    own = tuple(name for name in needed if name in found)
    sources = [Source(path, own) for path in paths]
    for path in paths[1:]:
        _check_columns(own, columns_of(path, log.separator), path)
    for join in log.joins:
        _check_columns([join.on], found, paths[0])
        source, types = _joined_source(join, log, bases, wanted=[name for name in needed if name not in found])
        if log.bid_micros and join.on == (item.name if item else None):
            _check_columns([log.bid_micros], types, source.path)
        sources.append(source)
        found |= {name: types[name] for name in source.columns if name != join.on}
    names = ", ".join(source.path.name for source in sources)
    for name in needed:
        if name not in found:
            raise LogError(f'the log must have the column "{name}", got none in {names}; columns: {", ".join(found)}')
    _check_kinds(log, fields, found)
    return sources


def read_rows(
    log: LogSettings,
    fields: Sequence[Field],
    bases: Sequence[Path],
    counts: RowCounts,
    *,
    wait_s: float,
    disorder_s: float = 0.0,
    limit: int | None = None,
    rows_max: int = ROWS_MAX,
) -> Iterator[pl.DataFrame]:
    """Yield the usable rows: time_s, click, click_time_s, request_id, position, propensity, ad_id, raw fields.

    With `[log] stages` also stage and sample_rate; a candidate that was not shown has no position. A click whose time
    the log does not hold has one that is drawn.

    Args:
        counts: Counts up as rows are read; complete once the iterator is exhausted.
        wait_s: How long after it was shown a row without a click enters its user's histories.
        disorder_s: How far behind the newest row another may come without being counted as `out_of_order`.
        limit: Stop after this many usable rows, > 0; a few more may have been read.
        rows_max: Rows in memory at a time.

    Raises:
        LogError: As `check_log`; or if the log turns out unreadable, empty, or to hold no usable row at all.
    """
    usable = _usable_rows(log, fields, bases, counts, disorder_s=disorder_s, limit=limit, rows_max=rows_max)
    histories = Histories(log.histories, fields, wait_s=wait_s)
    for frame in histories.added_to(usable):
        counts.forgotten = histories.forgotten
        yield frame
    if not counts.used:
        got = ", ".join(f"{rule} {count}" for rule, count in counts.unusable.items())
        raise LogError(f"the log must hold usable rows, got none of {counts.read} ({got}); check [log] and time_unit")


def _usable_rows(
    log: LogSettings,
    fields: Sequence[Field],
    bases: Sequence[Path],
    counts: RowCounts,
    *,
    disorder_s: float,
    limit: int | None,
    rows_max: int,
) -> Iterator[pl.DataFrame]:
    """Yield the rows of `read_rows` without their histories."""
    newest_s = 0.0
    usable = (
        chunk.filter(pl.col("rule").is_null()).drop("rule")
        for chunk in read_in_file_order(log, fields, bases, counts, rows_max=rows_max)
    )
    for frame in whole_requests(usable, rows_max):
        ready, n_cut = in_order(frame, logged_fields(fields, log.histories))
        if n_cut:
            _add(counts.unusable, "request_too_big", n_cut)
        if limit is not None:
            ready = ready.head(limit - counts.used)
        counts.used += ready.height
        counts.clicks += int(ready["click"].sum())
        counts.unexposed += ready["position"].null_count()
        counts.out_of_order += int((ready["time_s"] < newest_s - disorder_s).sum())
        newest_s = max(newest_s, float(ready["time_s"][-1]))
        delay = log.click_delay_s
        yield with_click_times(ready, delay_mean_s=delay.mean, delay_seed=delay.seed)
        if counts.used == limit:
            return


def _needed(log: LogSettings, fields: Sequence[Field]) -> tuple[str, ...]:
    label = log.click_time or log.label
    optional = [name for name in (log.position, log.propensity, log.sample_rate) if name]
    names = [log.time, label, *log.request, *optional, *log.stages, *(join.on for join in log.joins)]
    return tuple(dict.fromkeys([*names, *(field.name for field in fields)]))


def _check_columns(names: Sequence[str], found: dict[str, pl.DataType], path: Path) -> None:
    for name in names:
        if name not in found:
            raise LogError(f'{path} must have the column "{name}", got {", ".join(found)}')


def _joined_source(
    join: Join, log: LogSettings, bases: Sequence[Path], *, wanted: Sequence[str]
) -> tuple[Source, dict[str, pl.DataType]]:
    path, *others = find_files(join.file, bases)
    if others:
        raise LogError(f'[log] joins must name one file each, got {1 + len(others)} for "{join.file}"')
    types = columns_of(path, log.separator)
    _check_columns([join.on], types, path)
    return Source(path, (join.on, *(name for name in wanted if name in types and name != join.on)), join), types


def _check_kinds(log: LogSettings, fields: Sequence[Field], found: dict[str, pl.DataType]) -> None:
    iso = log.time_unit == "iso"
    times = ("text", "time") if iso else ("number", "time", "text")
    rules: list[tuple[str, str, tuple[str, ...]]] = [(log.time, "time", times)]
    rules.append((log.click_time, "click_time", times) if log.click_time else (log.label, "label", ("number", "text")))
    rules += [(name, "stages", ("number", "text")) for name in log.stages]
    rules += [(log.sample_rate, "sample_rate", ("number", "text"))] if log.sample_rate else []
    rules += [(field.name, field.kind, _KINDS[field.kind]) for field in fields]
    for name, role, kinds in rules:
        if (kind := kind_of(found[name])) not in kinds:
            raise LogError(f'the column "{name}" is used as {role} and must hold {" or ".join(kinds)}, got {kind}')


_KINDS = {
    "category": ("number", "text", "time"),
    "categories": ("number", "text", "list"),
    "number": ("number", "text"),
}


class _JoinTable:
    """A joined file in memory: its key as text, so that 17, 17.0 and "17" meet."""

    def __init__(self, source: Source, separator: str) -> None:
        assert source.join is not None
        table = read_whole(source.path, source.columns, separator)
        keyed = table.with_columns(categories(table[source.join.on]).alias(_KEY)).drop_nulls(_KEY)
        twice = keyed.filter(pl.col(_KEY).is_duplicated())
        if twice.height:
            value = twice[_KEY][0]
            raise LogError(f'{source.path} must hold each "{source.join.on}" once, got "{value}" more often')
        self.on = source.join.on
        self.file = source.path.name
        self._table = keyed.drop(self.on)

    def add_to(self, raw: pl.DataFrame, counts: RowCounts) -> pl.DataFrame:
        """Return the rows with the columns of this table, null where it has no partner."""
        keys = raw.with_columns(categories(raw[self.on]).alias(_KEY))
        n_missing = keys.drop_nulls(_KEY).join(self._table, on=_KEY, how="anti").height
        if n_missing:
            _add(counts.unmatched, self.file, n_missing)
        return keys.join(self._table, on=_KEY, how="left", maintain_order="left").drop(_KEY)


_KEY = "join key"


def read_in_file_order(
    log: LogSettings,
    fields: Sequence[Field],
    bases: Sequence[Path],
    counts: RowCounts,
    *,
    rows_max: int = ROWS_MAX,
) -> Iterator[pl.DataFrame]:
    """Yield every row as the files have it, `rule` (null: the row can be used) beside the columns of `read_rows`.

    Histories are not among them: files need not be in time order.

    Args:
        counts: Counts up what is read and why rows cannot be used.
        rows_max: Rows in memory at a time.

    Raises:
        LogError: As `check_log`; or if the log turns out unreadable or empty.
    """
    sources = check_log(log, fields, bases)
    fields = logged_fields(fields, log.histories)
    joins = [_JoinTable(source, log.separator) for source in sources if source.join]
    for source in sources:
        if source.join is None:
            for chunk in read_chunks(source.path, source.columns, log.separator, rows_max):
                raw = chunk.frame
                for join in joins:
                    raw = join.add_to(raw, counts)
                yield _normal_rows(raw, chunk, log, fields, counts)
    if not counts.read:
        raise LogError(f"the log must hold rows, got none in {', '.join(source.path.name for source in sources)}")


def _normal_rows(
    raw: pl.DataFrame, chunk: Chunk, log: LogSettings, fields: Sequence[Field], counts: RowCounts
) -> pl.DataFrame:
    frame = normalise(
        raw,
        fields,
        time=log.time,
        time_unit=log.time_unit,
        label=log.label,
        label_at_least=log.label_at_least,
        click_time=log.click_time,
        position=log.position,
        propensity=log.propensity,
        stages=log.stages,
        sample_rate=log.sample_rate,
    )
    for name, count in unreadable(raw, frame, fields).items():
        _add(counts.unreadable, name, count)
    for rule, count in frame["rule"].drop_nulls().value_counts(sort=True).rows():
        _add(counts.unusable, rule, count)
    if chunk.broken:
        _add(counts.unusable, "broken_row", chunk.broken)
    frame = frame.with_columns(request_ids(raw, frame["time_s"], log.request, counts.read))
    counts.read += raw.height + chunk.broken
    return frame


def _add(counts: dict[str, int], name: str, count: int) -> None:
    counts[name] = counts.get(name, 0) + count
