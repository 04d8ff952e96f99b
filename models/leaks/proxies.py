"""Fields that know the label, and fields that know the labels of a request's other rows.

Owns what is too good to be known before the click. Must not know files.

An honest field may be strong, but what it tells is tied to something: to the ad, the user, the place or the request. It
tells little about which of two rows of the same ad, or of the same user, is clicked. What is known only after the click
tells it for every row alike. So a field must be either plainly too good, or too good within all of these at once.

Shape legend: `N` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from models.leaks.findings import Finding
from models.leaks.scores import auc, rates, score_codes
from models.leaks.table import Bools, Column, Floats, Ints, Table, combine

ROWS_MAX = 300_000  # for AUCs: an error of a thousandth; every i-th request is taken
AUC_MAX = 0.9  # whole models for ads reach 0.75 to 0.85; no single field known before the click comes near
AUC_WITHIN_MAX = 0.8  # the same, among rows of one ad, of one user, of one place and of one request
AUC_FEW_MAX = 0.75  # the same, of a field with few values: a relevance may reach it, a flag does not
FEW = 8  # values
PURE_RATE = 0.95  # of rows that a field calls clicks; people are not as predictable
PURE_BASE_MAX = 0.7  # a log with more clicks than this has pure values by nature
PURE_SHARE = 0.003  # of all clicks: fewer may be one odd placement, or one odd user
PURE_LIFT = 1.5  # over the best that the row's ad and user have shown
BARE_RATE = 0.01  # clicks of rows that a field calls none, over the overall rate
BARE_SHARE = 0.3  # of all rows
NAMED_ODDS = 2.5  # odds ratio from which on a field whose name says "after the click" is believed to be that
SURE_SD = 5.0  # standard errors
SIBLING_AUC = 0.75  # how well a field may tell a sibling's click; competitors' features reach about 0.6
SIBLING_GAP = 0.05  # and how much better than its own row's
ROWS_MIN, CLICKS_MIN = 200, 20  # below it nothing can be said

# Words that name what happens after an impression, as public logs write them. A name alone is no evidence.
OUTCOMES = frozenset(
    [
        "like",
        "liked",
        "follow",
        "followed",
        "comment",
        "commented",
        "forward",
        "share",
        "shared",
        "hate",
        "play",
        "played",
        "watch",
        "watched",
        "finish",
        "finished",
        "dwell",
        "stay",
        "converted",
        "conversion",
        "purchase",
        "purchased",
        "buy",
        "bought",
        "order",
        "ordered",
        "cart",
        "install",
        "installed",
        "view",
        "viewed",
        "click",
        "clicked",
        "rating",
        "rated",
        "revenue",
        "bounce",
        "profile",
    ]
)
# And words by which a name says that it counts the past.
PAST = frozenset(
    [
        "past",
        "prev",
        "previous",
        "prior",
        "hist",
        "history",
        "historical",
        "last",
        "before",
        "lag",
        "cnt",
        "count",
        "counts",
        "num",
        "rate",
    ]
)


def check_proxies(table: Table) -> Iterator[Finding]:
    """Yield the fields that know the label, at most one finding a field."""
    if not _enough(table.clicks):
        return
    sample = _sample(table)
    clicks = table.clicks[sample]
    strata = [codes[sample] for codes in _strata(table)]
    for column in table.columns:
        scores, n_past = rates(score_codes(column)[sample], clicks, table.requests[sample])
        finding = (
            _too_good(column, scores, clicks, strata)
            or (None if column.name in (table.user, table.item) else _too_pure(column, scores, n_past, clicks, strata))
            or _too_bare(column.name, scores, n_past, clicks)
        )
        if finding is not None:
            yield finding


def check_siblings(table: Table) -> Iterator[Finding]:
    """Yield the fields that tell the clicks of the other rows of their request better than that of their own."""
    requests = combine([table.requests, np.unique(table.time_s, return_inverse=True)[1].astype(np.int64)])
    sizes = np.bincount(requests)[requests]
    clicks_beside = np.bincount(requests, table.clicks)[requests] - table.clicks
    rows = np.flatnonzero(sizes > 1)
    if len(rows) > ROWS_MAX:
        rows = rows[requests[rows] % -(-len(rows) // ROWS_MAX) == 0]
    if not _enough(table.clicks[rows]):
        return
    beside = (clicks_beside[rows] > 0).astype(np.float64)
    place = combine([sizes[rows], np.minimum(table.positions[rows], 1 << 20)])
    for column in table.columns:
        codes = score_codes(column)[rows]
        told = auc(rates(codes, beside, requests[rows])[0], beside, place)
        if told < SIBLING_AUC:
            continue
        own = auc(rates(codes, table.clicks[rows], requests[rows])[0], table.clicks[rows], place)
        if told > own + SIBLING_GAP:
            evidence = {"sibling_auc": round(told, 4), "own_auc": round(own, 4), "rows": len(rows)}
            message = f"it tells whether other rows of the request are clicked: AUC {told:.3f}, its own row's {own:.3f}"
            yield Finding("sibling_label", column.name, evidence, message)


def _enough(clicks: Floats) -> bool:
    return len(clicks) >= ROWS_MIN and CLICKS_MIN <= clicks.sum() <= len(clicks) - CLICKS_MIN


def _sample(table: Table) -> Ints:
    """Return the rows of every i-th request, at most about `ROWS_MAX`, in time order."""
    every = -(-len(table) // ROWS_MAX)
    return np.flatnonzero(table.requests % every == 0) if every > 1 else np.arange(len(table))


def _strata(table: Table) -> list[Ints]:
    """Return what honest fields are tied to: the ad, the user, the place and the request."""
    strata = [table.column(table.item).codes + 1, table.positions]
    if table.user is not None:
        strata.append(table.column(table.user).codes + 1)
    if table.requests.max() < len(table) / 1.5:
        strata.append(combine([table.requests, np.unique(table.time_s, return_inverse=True)[1].astype(np.int64)]))
    return strata


def _too_good(column: Column, scores: Floats, clicks: Floats, strata: Sequence[Ints]) -> Finding | None:
    told = auc(scores, clicks)
    limit = AUC_FEW_MAX if column.codes.max(initial=0) < FEW else AUC_WITHIN_MAX
    if told < limit:
        return None
    within = min(auc(scores, clicks, codes) for codes in strata)
    if told < AUC_MAX and within < limit:
        return None
    evidence = {"auc": round(told, 4), "auc_within": round(within, 4), "rows": len(clicks)}
    message = (
        f"alone it tells clicks with an AUC of {told:.3f}, and of {within:.3f} or more among rows of one ad, user,"
        " place or request: no value known before the click does"
    )
    return Finding("label_proxy", column.name, evidence, message)


def _too_pure(column: Column, scores: Floats, n_past: Ints, clicks: Floats, strata: Sequence[Ints]) -> Finding | None:
    """Return a finding when rows that the field's past calls clicks are clicks, and their ads and users are not."""
    base = float(clicks.mean())
    is_named = _names_an_outcome(column.name)
    called = (scores > base) & (n_past >= CLICKS_MIN)
    if not called.any() or base > PURE_BASE_MAX:
        return None
    pure = called & (scores >= PURE_RATE - 0.05)
    n_pure, rate = int(pure.sum()), float(clicks[pure].mean()) if pure.any() else 0.0
    lift = rate / _rate_beside(pure, clicks, strata) if n_pure else 0.0
    if rate >= PURE_RATE and clicks[pure].sum() >= max(PURE_SHARE * clicks.sum(), CLICKS_MIN) and lift >= PURE_LIFT:
        evidence = {"rate": round(rate, 4), "rows": n_pure, "base": round(base, 4)}
        message = f"{rate:.1%} of the {n_pure:,} rows with its highest values are clicked, {base:.1%} of all"
        return Finding("label_proxy", column.name, evidence, message)
    if not is_named:
        return None
    rate, beside = float(clicks[called].mean()), _rate_beside(called, clicks, strata)
    odds = rate / max(1.0 - rate, 1e-9) * (1.0 - beside) / max(beside, 1e-9)
    if odds >= NAMED_ODDS and rate - beside > SURE_SD * np.sqrt(beside * (1.0 - beside) / called.sum()):
        evidence = {"odds_ratio": round(odds, 2), "rate": round(rate, 4), "rows": int(called.sum())}
        message = (
            f"its name says that it happens after the impression, and {rate:.1%} of the {int(called.sum()):,} rows that"
            f" it marks are clicked, where their ads and users have {beside:.1%}"
        )
        return Finding("label_proxy", column.name, evidence, message)
    return None


def _rate_beside(marked: Bools, clicks: Floats, strata: Sequence[Ints]) -> float:
    """Return the click rate that the marked rows' ads, users and places have in their other rows: the highest one."""
    best = float(clicks.mean())
    for codes in strata:
        n_rows = np.bincount(codes, ~marked)
        n_clicks = np.bincount(codes, clicks * ~marked)
        weight = np.bincount(codes, marked) * (n_rows > 0)
        if weight.sum() >= CLICKS_MIN:
            best = max(best, float(np.average(n_clicks / np.maximum(n_rows, 1.0), weights=weight)))
    return best


def _names_an_outcome(name: str) -> bool:
    words = set(name.lower().replace("-", "_").replace(".", "_").split("_"))
    return bool(words & OUTCOMES) and not words & PAST


def _too_bare(name: str, scores: Floats, n_past: Ints, clicks: Floats) -> Finding | None:
    """Return a finding when a great part of the rows is known to hold no clicks."""
    base = float(clicks.mean())
    bare = (scores < 0.02 * base) & (n_past > 0)
    if bare.mean() < BARE_SHARE or bare.sum() * base < 4 * CLICKS_MIN:
        return None
    rate = float(clicks[bare].mean())
    if rate > BARE_RATE * base:
        return None
    evidence = {"rate": rate, "rows": int(bare.sum()), "base": round(base, 4)}
    n_clicks = int(clicks[bare].sum())
    message = f"the {int(bare.sum()):,} rows with its lowest values have {n_clicks} clicks, where {base:.1%} of all do"
    return Finding("label_proxy", name, evidence, message)
