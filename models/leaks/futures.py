"""Fields that are statistics of the log's own future: rates, counts, predictions and scales.

Owns which keys and spans of time are looked at, and what counts as found. Must not know files.

A field is held to four laws, each of which an honest field keeps however strong it is:
1. it does not foretell the chance in later clicks (`scatter`) of a key, of its day or hour, or of a run of its rows;
2. it does not foretell a key's number of rows better than a Poisson variable can be foretold;
3. its step from one row of a key to the next does not tell the click of the row where it lands;
4. it is not centred and scaled, or spread, more exactly over the whole log than the training side could make it.

Shape legend: `N` rows, `K` keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.leaks.findings import Finding
from models.leaks.scatter import GROUPS_MIN, Groups, Scatter, cut
from models.leaks.scores import auc
from models.leaks.table import Column, Floats, Ints, Table, combine

SPANS_S = {" and day": 86_400.0, " and hour": 3_600.0}
RUNS = {", 8 rows": 8, ", 32 rows": 32, ", 128 rows": 128}  # of a key, foretold together: by hand, a few scales
RATIO_MAX = 0.75  # honest fields stay at 1; fixed mixes of rows within a group can lower it to about 0.85
RESIDUAL_RATIO_MAX = 0.6  # past rates of few rows over-react, which lowers it a little more than that
Z_MIN = 5.0  # one test in three million by chance, and some hundreds are made
COUNT_RATIO_MAX = 0.3  # squared error of a forecast count over that of a Poisson variable: honest fields stay at 1
STEP_AUC = 0.8  # clicks in a row (sessions) bring honest steps to about 0.6
EXACT = 1e-3  # of mean 0 and deviation 1: float32 and rounded values keep to it, the training side's scale does not
KS_MAX = 0.3  # Kolmogorov's statistic times sqrt(N): an honest uniform sample is below it once in 100,000 times
VALUES_MIN = 100  # distinct values of a scaled column


def check_futures(table: Table) -> Iterator[Finding]:
    """Yield the fields that know the future of the log, at most one finding a field."""
    keys = [_Key(name, codes, table) for name, codes in _keys(table).items()]
    for column in table.columns:
        if _is_statistic(column, table):
            finding = _check_scale(column) or next(_check_field(column, keys, table), None)
            if finding is not None:
                yield finding


class _Key:
    """Rows by one key, and their groups per span, which are cut once for all fields."""

    def __init__(self, name: str, codes: Ints, table: Table) -> None:
        self.name = name
        self.order = np.argsort(codes, kind="stable")
        self.starts, _ = cut(self.order, codes)
        self.within = np.arange(len(codes)) - np.repeat(self.starts, np.diff(np.append(self.starts, len(codes))))
        self._codes = codes
        self._table = table
        self._groups: dict[str, Groups] = {}

    def groups(self, span: str) -> Groups:
        """Return the rows of each key, or of each key and span."""
        if span not in self._groups:
            by = self._spans(span)
            self._groups[span] = Groups(self.order, self._table.clicks, *cut(self.order, self._codes, by))
        return self._groups[span]

    def _spans(self, span: str) -> Ints | None:
        if span in SPANS_S:
            return (self._table.time_s // SPANS_S[span]).astype(np.int64)
        if not span:
            return None
        by = np.empty(len(self.order), np.int64)
        by[self.order] = self.within // RUNS[span]
        return by

    def is_steady(self, numbers: Floats) -> bool:
        """Return whether a field keeps its value for as long as its key lives, but for stray rows."""
        x = numbers[self.order]
        same = (x[1:] == x[:-1]) | (np.isnan(x[1:]) & np.isnan(x[:-1]))
        same = same[self.within[1:] > 0]
        return len(same) >= GROUPS_MIN and bool(same.mean() > 0.999)


def _check_field(column: Column, keys: list[_Key], table: Table) -> Iterator[Finding]:
    """Yield what a field knows of each key.

    A field that is constant for some keys is looked at per such key and per value, else per every key and span.
    """
    assert column.numbers is not None
    steady = [key for key in keys if key.is_steady(column.numbers)]
    if steady:
        value = _Key("value of it", column.codes + 1, table)
        for key in (*steady, value):
            yield from _check_group(column, key.name, key.groups(""), is_steady=True)
        return
    for key in keys:
        for span in ("", *SPANS_S, *RUNS):
            yield from _check_group(column, key.name + span, key.groups(span), is_steady=False)
        if key.name not in ("request", "time"):
            yield from _check_steps(column, key, table)


def _is_statistic(column: Column, table: Table) -> bool:
    """Return whether a field may be a statistic: it has numbers that differ and is no id."""
    if column.numbers is None or column.name in (table.user, table.item):
        return False
    present = column.numbers[np.isfinite(column.numbers)]
    return len(present) >= GROUPS_MIN and bool(np.ptp(present) > 0.0)


def _keys(table: Table) -> dict[str, Ints]:
    """Return what statistics may be counted by: fields, user and ad together, requests, and nothing but time."""
    keys = {name: codes for name, codes in table.keys().items() if 0 < len(np.unique(codes)) <= len(table) / 2}
    requests = table.requests
    if not table.is_explicit:
        requests = combine([requests, np.unique(table.time_s, return_inverse=True)[1].astype(np.int64)])
    if requests.max() < len(table) / 2:
        keys["request"] = requests
    return keys | {"time": np.zeros(len(table), np.int64)}


def _check_group(column: Column, key: str, groups: Groups, *, is_steady: bool) -> Iterator[Finding]:
    assert column.numbers is not None
    scatter = groups.foretold(column.numbers)
    if scatter is not None and scatter.is_too_even(RATIO_MAX, Z_MIN):
        yield _scatter_finding(column.name, key, scatter, "clicks that come after it")
    if ", " in key:  # runs have the size that they are cut to
        return
    if not is_steady:
        residual = groups.residual(column.numbers)
        if residual is not None and residual.is_too_even(RESIDUAL_RATIO_MAX, Z_MIN):
            yield _scatter_finding(column.name, key, residual, "clicks of the rows that it was given for")
    if (ratio := _count_ratio(column.numbers, groups)) is not None and ratio < COUNT_RATIO_MAX:
        message = f"it tells how many rows each {key} will have: squared error {ratio:.2f} of what chance leaves"
        yield Finding("future_statistic", column.name, {"key": key, "count_error": round(ratio, 3)}, message)


def _scatter_finding(name: str, key: str, scatter: Scatter, what: str) -> Finding:
    evidence = {
        "key": key,
        "scatter": round(scatter.ratio, 3),
        "scatter_without": round(scatter.ratio_without, 3),
        "z": round(scatter.z, 1),
        "groups": scatter.groups,
    }
    message = (
        f"it foretells the chance in {what}: they scatter by {scatter.ratio:.2f} of the binomial variance per {key}"
        f" ({scatter.groups:,} groups), where no honest field leaves less than 1"
    )
    return Finding("future_statistic", name, evidence, message)


def _count_ratio(numbers: Floats, groups: Groups) -> float | None:
    """Return the median squared error of group sizes read off the neighbours in order of the field, over chance's.

    None where there are too few groups or where sizes hardly differ, as when each user was given the same number.
    """
    first = numbers[groups.order[groups.starts]]
    use = np.isfinite(first) & (groups.sizes >= ROWS_OF_COUNT)
    if use.sum() < GROUPS_MIN:
        return None
    x, n = first[use], groups.sizes[use].astype(np.float64)
    if n.var() < 0.5 * n.mean() or len(np.unique(x)) < SIZES_MIN:
        return None
    n = n[np.argsort(x, kind="stable")]  # equal values stand in the order of their keys, which knows no sizes
    error = (n[1:-1] - (n[:-2] + n[2:]) / 2.0) ** 2 / n[1:-1]
    return float(np.median(error)) / CHANCE_ERROR


ROWS_OF_COUNT = 8  # smaller counts are too coarse to tell chance from knowledge
SIZES_MIN = 5  # distinct values of a field that may be a count
CHANCE_ERROR = 0.68  # median of (n - mean of two neighbours)^2 / n for Poisson counts: 1.5 times that of chi-squared


def _check_steps(column: Column, key: _Key, table: Table) -> Iterator[Finding]:
    """Yield a field whose step onto a row, or off it against the field's own sense, tells the row's click."""
    assert column.numbers is not None
    x, clicks = column.numbers[key.order], table.clicks[key.order]
    onto = np.where(key.within > 0, np.diff(x, prepend=np.nan), np.nan)
    off = np.append(onto[1:], np.nan)
    onto_present, present = np.isfinite(onto), np.isfinite(x)
    told = _told(onto, key.within, clicks)
    if abs(told - 0.5) >= STEP_AUC - 0.5:
        yield _step_finding(column.name, key.name, told, "its step onto a row")
        return
    is_count = not onto_present.any() or (onto[onto_present] >= 0.0).mean() > 0.99
    sense = 1.0 if auc(x[present], clicks[present]) >= 0.5 else -1.0
    if not is_count and (told := _told(sense * off, key.within, clicks)) <= 1.0 - STEP_AUC:
        yield _step_finding(column.name, key.name, told, "its fall after a row")


def _told(step: Floats, within: Ints, clicks: Floats) -> float:
    """Return the AUC of a step, weighed by the rows that a mean would rest on, against the click."""
    present = np.isfinite(step)
    if present.sum() < GROUPS_MIN:
        return 0.5
    return auc(step[present] * (within[present] + 1.0), clicks[present])


def _step_finding(name: str, key: str, told: float, what: str) -> Finding:
    message = f"{what} of the same {key} tells that row's click with an AUC of {max(told, 1.0 - told):.3f}"
    return Finding("future_statistic", name, {"key": key, "step_auc": round(told, 4)}, message)


@np.errstate(over="ignore")  # the deviation of numbers that are far out is infinite: nobody scaled them
def _check_scale(column: Column) -> Finding | None:
    """Return a finding when a number was scaled by the whole log, its test side included."""
    if column.kind != "number":
        return None
    assert column.numbers is not None
    x = column.numbers[np.isfinite(column.numbers)]
    values = np.unique(x)
    if len(values) < VALUES_MIN:
        return None
    mean, deviation = float(x.mean()), float(x.std())
    # By chance the mean of N rows misses 0 by deviation / sqrt(N): where that is as small, nothing can be told.
    tolerance = min(EXACT, 0.05 / np.sqrt(len(x)))
    if abs(mean) < tolerance and abs(deviation - 1.0) < max(tolerance, 1.0 / len(x)):
        message = f"its mean over the whole log is {mean:.1e} and its deviation {deviation:.6f}: the test side was used"
        return Finding("normaliser", column.name, {"mean": mean, "deviation": deviation, "rows": len(x)}, message)
    if len(values) < len(x) / 2:
        return None
    low, high = float(values[0]), float(values[-1])
    if (low, high) == (0.0, 1.0) and (x == low).sum() == 1 and (x == high).sum() == 1:
        message = "its least value in the whole log is exactly 0 and its greatest exactly 1: the test side was used"
        return Finding("normaliser", column.name, {"min": low, "max": high, "rows": len(x)}, message)
    spread = np.sort((x - low) / (high - low))
    distance = float(np.abs(spread - np.arange(len(x)) / max(len(x) - 1, 1)).max()) * np.sqrt(len(x))
    if distance < KS_MAX and not _follows_time(column.numbers):
        message = "its values are spread evenly over the whole log, as ranks are: the test side was used"
        return Finding("normaliser", column.name, {"ks": round(distance, 4), "rows": len(x)}, message)
    return None


def _follows_time(numbers: Floats) -> bool:
    steps = np.diff(numbers[np.isfinite(numbers)])
    return bool(max((steps >= 0.0).mean(), (steps <= 0.0).mean()) > 0.99)
