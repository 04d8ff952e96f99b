"""What leaks from test to train in a deployment's log: its rows through every check.

Owns what is read for the checks and which settings they take. Must not know how anything is found.

Invariants: each row of the log is read once, in the order of the files; of a log with more than `ROWS_MAX` usable rows,
whole requests are taken by a hash of theirs, so that memory is bounded; time order is judged on every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from features.fields import COLUMN_PREFIX, Field, id_field
from infra.settings import LogSettings, Settings, SettingsError
from models.leaks.findings import Finding
from models.leaks.futures import check_futures
from models.leaks.order import Clock, check_clock, check_delays, check_slides, train_end_s
from models.leaks.proxies import check_proxies, check_siblings
from models.leaks.repeats import check_forbidden, check_repeats, check_requests
from models.leaks.table import REQUEST, Table, compact, to_table
from stream.logs.columns import EXPOSED
from stream.logs.histories import logged_fields
from stream.logs.reader import RowCounts, read_in_file_order
from stream.wiring import new_slides

ROWS_MAX = 2_000_000  # rows that are kept: 16 bytes a field each, some hundred bytes in all


def leakcheck(
    settings: Settings,
    bases: Sequence[Path],
    *,
    forbid: Sequence[str] = (),
    limit: int | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the JSON object of `freshrank leakcheck`: see docs/leakcheck.md.

    Args:
        settings: With a [log] section.
        bases: Where the log's files are looked for, in this order.
        forbid: Fields, or `user` and `item`, whose values may not stand on both sides of the split.
        limit: Stop after about this many usable rows.
        on_progress: Called with what is being done.

    Raises:
        SettingsError: If there is no [log] section, or `forbid` names no field.
        LogError: If the log cannot be read or used.
    """
    if settings.log is None:
        raise SettingsError("the file must hold a section [log] to be checked for leaks, got none; add it")
    # Histories follow from the other fields, and from settled rows alone.
    fields = logged_fields(settings.fields, settings.log.histories)
    forbidden = [_field_name(name, fields) for name in forbid]
    labels = list(_label_fields(settings.log, fields))
    clock = Clock(disorder_s=settings.ledger.disorder_s, wait_s=settings.ledger.wait_s)
    counts = RowCounts()
    table, share, is_whole = _read(settings.log, fields, bases, clock, counts, limit=limit)
    findings = labels + list(_time_findings(settings, clock, is_whole=is_whole))
    for name, check in _checks(settings, table, clock, forbidden):
        on_progress(name)
        seen = {finding.field for finding in findings if finding.field}
        findings += [finding for finding in check if finding.field not in seen]
    return {
        "name": settings.name,
        "rows": counts.read,
        "checked_rows": len(table),
        "sample": share,
        "findings": [msgspec.to_builtins(finding) | {"next": finding.next} for finding in findings],
        "checked": ["time", "split", *(name for name, _ in _checks(settings, table, clock, forbidden))],
        "fields": [column.name for column in table.columns],
    }


def _checks(
    settings: Settings, table: Table, clock: Clock, forbidden: Sequence[str]
) -> list[tuple[str, Iterator[Finding]]]:
    """Return what is looked at, in order; nothing is computed before it is asked for."""
    first_s = clock.oldest_s + settings.ledger.wait_s
    end_s = train_end_s(first_s, new_slides(settings), warmup_s=settings.window.warmup_s) - settings.ledger.wait_s
    checks = [
        ("repeated rows", check_repeats(table)),
        ("requests", check_requests(table, wait_s=settings.ledger.wait_s)),
        ("label proxies", check_proxies(table)),
        ("sibling labels", check_siblings(table)),
        ("future statistics", check_futures(table)),
    ]
    if forbidden:
        checks.append((f"forbidden keys {', '.join(forbidden)}", check_forbidden(table, forbidden, end_s=end_s)))
    return checks


def _field_name(name: str, fields: Sequence[Field]) -> str:
    """Return the field that a key of --forbid means."""
    sides = {"user": id_field(fields, "user"), "item": id_field(fields, "item")}
    names = [field.name for field in fields]
    if name in names:
        return name
    if (field := sides.get(name)) is not None:
        return field.name
    raise SettingsError(f'--forbid must name fields, user or item, got "{name}"; fields: {", ".join(names)}')


def _label_fields(log: LogSettings, fields: Sequence[Field]) -> Iterator[Finding]:
    """Yield fields that are the label's own column, and requests that are made of it."""
    label = log.click_time or log.label
    for field in fields:
        if field.name in (log.label, log.click_time):
            yield Finding("label_proxy", field.name, {"column": field.name}, "it is the column of the label itself")
    if label in log.request:
        message = f'requests are made of the label "{label}": their rows agree in it'
        yield Finding("sibling_label", "[log] request", {"column": label}, message)
    for join in log.joins:
        if join.on == label:
            message = f'"{join.file}" is joined on the label: its columns are the label'
            yield Finding("label_proxy", "[log] joins", {"column": label}, message)


def _time_findings(settings: Settings, clock: Clock, *, is_whole: bool) -> Iterator[Finding]:
    assert settings.log is not None
    ledger = settings.ledger
    yield from check_clock(clock, disorder_s=ledger.disorder_s)
    yield from check_delays(
        clock,
        has_click_times=bool(settings.log.click_time),
        delay_mean_s=settings.log.click_delay_s.mean,
        wait_s=ledger.wait_s,
        is_corrected=ledger.late_clicks == "correct",
    )
    if is_whole:
        first_s, last_s = clock.oldest_s + ledger.wait_s, clock.newest_s + ledger.wait_s
        yield from check_slides(first_s, last_s, new_slides(settings), warmup_s=settings.window.warmup_s)


def _read(
    log: LogSettings,
    fields: Sequence[Field],
    bases: Sequence[Path],
    clock: Clock,
    counts: RowCounts,
    *,
    limit: int | None,
) -> tuple[Table, float, bool]:
    """Return the rows, the share of requests that they are, and whether the log was read to its end."""
    made_of = [name for name in log.request if name != log.time]
    known = {field.name for field in fields}
    is_explicit = any(name not in known for name in made_of)
    extra = tuple(Field(name, "context") for name in made_of if name not in known)
    columns = [COLUMN_PREFIX + name for name in made_of] if is_explicit else ["request_id"]
    parts: list[pl.DataFrame] = []
    n_kept, every, is_whole = 0, 1, True
    for chunk in read_in_file_order(log, (*fields, *extra), bases, counts):
        clock.add(chunk)
        usable = chunk.filter(pl.col("rule").is_null())
        if "stage" in usable.columns:
            usable = usable.filter(pl.col("stage") == EXPOSED)
        counts.used += usable.height
        rows = _every(compact(usable, fields, columns), every)
        parts.append(rows)
        n_kept += rows.height
        while n_kept > ROWS_MAX:
            every *= 2
            parts = [_every(part, every) for part in parts]
            n_kept = sum(part.height for part in parts)
        if limit is not None and counts.used >= limit:
            is_whole = False
            break
    if not n_kept:
        raise SettingsError(f"the log must hold usable rows, got none of {counts.read}; check [log] and time_unit")
    table = to_table(pl.concat(parts), fields, is_explicit=is_explicit, has_positions=bool(log.position))
    return table, 1.0 / every, is_whole


def _every(rows: pl.DataFrame, every: int) -> pl.DataFrame:
    return rows if every == 1 else rows.filter(pl.col(REQUEST) % every == 0)
