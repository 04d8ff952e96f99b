"""Rows that stand there twice, and requests or other keys that stand on both sides of a split.

Owns what makes two rows one impression. Must not know statistics of labels.

Rows of one ad in one request or instant need not be copies: where a log names neither users nor positions, two people
may see the same ad in the same second. So pairs that agree are held against how often rows that lie a little apart in
time, and surely are different impressions, agree in the same way.

Shape legend: `N` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from models.leaks.findings import Finding
from models.leaks.table import Ints, Table, combine

LAGS = (17, 101, 997)  # rows apart: far enough to be other requests, near enough to be the same time of day; by hand
CHANCE_FACTOR = 2.0  # requests are more alike inside than neighbours are: chance is allowed twice what the lags show
CHANCE_SD = 5.0  # standard deviations of a count that chance is allowed beyond that


def check_repeats(table: Table) -> Iterator[Finding]:
    """Yield rows that are the same impression: of one request, time, place, ad and values.

    Copies of a request at another time are found where a column of the log names requests.
    """
    values = [column.codes for column in table.columns]
    place = [table.positions] if table.has_positions else []
    ticks = _ticks(table)
    who = [table.requests] if table.is_explicit else [table.column(table.user).codes] if table.user else []
    group = combine([ticks, *who, *place])
    same = combine([group, *values])
    n_pairs, n_rows = _pairs(same), len(table) - int(same.max()) - 1
    by_chance = _agreeing_by_chance(table, is_named=bool(who)) * _pairs(group)
    if n_pairs > CHANCE_FACTOR * by_chance + CHANCE_SD * np.sqrt(by_chance):
        yield Finding(
            "repeated_rows",
            "",
            {"rows": n_rows, "of": len(table), "pairs": n_pairs, "pairs_by_chance": round(by_chance, 1)},
            f"{n_rows:,} of {len(table):,} rows repeat another: same request, time, ad and values",
        )
    if table.is_explicit:
        yield from _moved_copies(table, place)


def _moved_copies(table: Table, place: Sequence[Ints]) -> Iterator[Finding]:
    """Yield rows of one request, ad and place that stand at several times."""
    impression = combine([table.requests, table.column(table.item).codes, *place])
    moments = combine([impression, _ticks(table)])
    n_moved = int(moments.max()) - int(impression.max())
    if n_moved and place:
        message = f"{n_moved:,} rows repeat an impression of their request at another time"
        yield Finding("repeated_rows", "", {"rows": n_moved, "of": len(table), "at_another_time": 1}, message)


def check_requests(table: Table, *, wait_s: float) -> Iterator[Finding]:
    """Yield requests whose rows are shown so far apart that one's label has settled before another is shown."""
    if not table.is_explicit:
        return
    n_requests = int(table.requests.max()) + 1
    first_s, last_s = np.full(n_requests, np.inf), np.full(n_requests, -np.inf)
    np.minimum.at(first_s, table.requests, table.time_s)
    np.maximum.at(last_s, table.requests, table.time_s)
    spread_s = last_s - first_s
    n_split = int((spread_s >= wait_s).sum())
    if n_split:
        message = (
            f"{n_split:,} of {n_requests:,} requests are spread over more than wait_s = {wait_s:g} s, up to"
            f" {spread_s.max():,.0f} s: labels of some of their rows are known when others are shown"
        )
        evidence = {"requests": n_split, "of": n_requests, "spread_s_max": float(spread_s.max())}
        yield Finding("split_request", "[log] request", evidence, message)


def check_forbidden(table: Table, names: Sequence[str], *, end_s: float) -> Iterator[Finding]:
    """Yield keys that a split forbids to stand on both sides.

    Args:
        table: All rows.
        names: Fields.
        end_s: Rows shown before this moment are the training side.
    """
    is_train = table.time_s < end_s
    for name in names:
        codes = table.column(name).codes
        shared = np.intersect1d(codes[is_train], codes[~is_train])
        shared = shared[shared >= 0]
        if len(shared):
            n_rows = int(np.isin(codes[~is_train], shared).sum())
            message = f"{len(shared):,} values stand on both sides of the split, in {n_rows:,} rows of the test side"
            evidence = {"values": len(shared), "test_rows": n_rows, "train_end_s": end_s}
            yield Finding("shared_key", name, evidence, message)


def _ticks(table: Table) -> Ints:
    return np.unique(table.time_s, return_inverse=True)[1].astype(np.int64)


def _pairs(codes: Ints) -> int:
    counts = np.bincount(codes)
    return int((counts * (counts - 1) // 2).sum())


def _agreeing_by_chance(table: Table, *, is_named: bool) -> float:
    """Return how likely two rows of different requests agree in what may differ within a request."""
    sides = ("item", "creative") if is_named else ("user", "context", "item", "creative")
    values = combine([column.codes for column in table.columns if column.side in sides])
    pairs = [(values[lag:] == values[:-lag]) for lag in LAGS if lag < len(table)]
    return float(np.concatenate(pairs).mean()) if pairs else 0.0
