"""What the ledger knows of a request and its impressions, and the columns in which they leave.

Owns the small objects of which millions are held, the check of values against the fields, and how rows and chains
become columns. Must not decide anything: stream/ledger.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from features.fields import Field, raw_fields
from stream.blocks import REQUEST_SIDES, Chains, Columns
from stream.events import Candidate, EventError, Request, Value, fits_64_bits

SMALL_REQUEST_BYTES = 4096  # a row of a request up to this size is taken to be as large as the whole request

NOT_GONE = 2**63  # beyond every offset

_TYPES: dict[str, frozenset[type]] = {
    "category": frozenset({str, int, type(None)}),
    "categories": frozenset({list, type(None)}),
    "number": frozenset({int, float, type(None)}),
}
# What a column takes without a change; a list may still hold numbers.
_AS_IT_IS: dict[str, frozenset[type]] = {
    "category": frozenset({str, type(None)}),
    "categories": frozenset({type(None)}),
    "number": frozenset({float, type(None)}),
}


class KnownRequest(msgspec.Struct, eq=False, gc=False):
    """A request that is not forgotten.

    It refers to its rows and they not to it: no cycle, so the garbage collector need not know of millions of them.

    Attributes:
        event: The request itself.
        candidates: As many of its candidates as are kept.
        offset: Of its record. A resume may begin here.
        n_bytes: Size of its record.
        until_s: Up to when (horizon) it takes impressions.
        due_s: When it is forgotten.
        watermark_s: The watermark as it moved it.
        horizon_s: The horizon likewise.
        letters: How many dead letters came before it.
        rows: Its impressions by position.
        n_pending: How many of them are pending.
        gone_at: Offset of the record on whose account it was forgotten.
    """

    event: Request
    candidates: list[Candidate]
    offset: int
    n_bytes: int
    until_s: float
    due_s: float
    watermark_s: float
    horizon_s: float
    letters: int
    rows: dict[int, Row] = msgspec.field(default_factory=dict)
    n_pending: int = 0
    gone_at: int = NOT_GONE

    def prolong(self, due_s: float) -> None:
        """Remember that nothing may be forgotten before this moment."""
        self.due_s = max(self.due_s, due_s)

    def find(self, position: int, ad_id: str) -> int:
        """Return the index of the candidate that was shown: most often the one at its position."""
        candidates = self.candidates
        if position < len(candidates) and candidates[position].ad_id == ad_id:
            return position
        for index, candidate in enumerate(candidates):
            if candidate.ad_id == ad_id:
                return index
        raise EventError("not_a_candidate", "ad_id", ad_id)


class Row(msgspec.Struct, eq=False, gc=False):
    """An impression: pending, then settled and known until its request is forgotten.

    Attributes:
        request_id: The very text that its request holds: a million rows share it.
        position: Of the impression.
        time_s: Of the impression.
        propensity: Of the impression.
        offset: Of its record.
        candidate: Which of its request's candidates was shown.
        ad: That candidate.
        wait_s: How long its click may take.
        settled_s: Its deadline.
        click: 1 once it is clicked, also by a late click that corrected it.
        is_late: It is pending, and its only click is a late one that will correct it.
        is_pending: It has not left yet.
    """

    request_id: str
    position: int
    time_s: float
    propensity: float
    offset: int
    candidate: int
    ad: Candidate
    wait_s: float
    settled_s: float
    click: int = 0
    is_late: bool = False
    is_pending: bool = True


class Held(msgspec.Struct):
    """A click that came before its impression; `watermark_s`, `horizon_s` and `letters` as in a request."""

    key: tuple[str, int]
    time_s: float
    until_s: float
    ad_id: str
    offset: int
    watermark_s: float
    horizon_s: float
    letters: int = 0


Left = tuple[Row, str, float, KnownRequest]
"""A row as it left: with its kind, when it settled, and its request. The row itself may still be corrected."""


def row_bytes(row: Row, request: KnownRequest) -> int:
    """Return about how many bytes a row adds to a block, never far too few."""
    if request.n_bytes <= SMALL_REQUEST_BYTES:
        return request.n_bytes
    return 100 + sum(
        len(name) + (len(value) if isinstance(value, str) else 8 + 32 * len(value) if isinstance(value, list) else 8)
        for values in (request.event.values, row.ad.values)
        for name, value in values.items()
    )


class RowColumns:
    """How rows and chains of a deployment's fields are checked and put into columns."""

    def __init__(self, partition: int, fields: Sequence[Field]) -> None:
        self._partition = partition
        raw = raw_fields(fields)
        self._request_fields = [field for field in raw if field.side in REQUEST_SIDES]
        self._ad_fields = [field for field in raw if field.side not in REQUEST_SIDES]
        self._request_types = [(field.name, _TYPES[field.kind]) for field in self._request_fields]
        self._ad_types = [(field.name, _TYPES[field.kind]) for field in self._ad_fields]

    def check_request(self, values: dict[str, Value]) -> None:
        """Check the user's and the context's values: EventError `bad_value` if one is not of its field's kind."""
        _check_values(values, self._request_types)

    def check_ad(self, values: dict[str, Value]) -> None:
        """Check the item's and the creative's values likewise."""
        _check_values(values, self._ad_types)

    def examples(self, left: Sequence[Left]) -> Columns:
        """Return rows that left in the columns of `row_schema`."""
        rows = [row for row, _, _, _ in left]
        requests = [request.event for _, _, _, request in left]
        ads = [row.ad for row in rows]
        columns: Columns = {
            "request_id": [row.request_id for row in rows],
            "position": [row.position for row in rows],
            "kind": [kind for _, kind, _, _ in left],
            "time_s": [row.time_s for row in rows],
            "settled_s": [settled_s for _, _, settled_s, _ in left],
            "click": [0 if kind == "expired_negative" else 1 for _, kind, _, _ in left],
            "propensity": [row.propensity for row in rows],
            "ad_id": [ad.ad_id for ad in ads],
            "source_partition": [self._partition] * len(rows),
            "source_offset": [row.offset for row in rows],
        }
        return columns | _value_columns(requests, self._request_fields) | _value_columns(ads, self._ad_fields)

    def chains(self, requests: Sequence[KnownRequest]) -> Chains:
        """Return forgotten requests, and what became of their candidates, in the columns of `chain_schema`."""
        ads = [ad for request in requests for ad in request.candidates]
        labels, positions = ["unexposed"] * len(ads), [None] * len(ads)
        first = 0
        for request in requests:
            for position in sorted(request.rows, reverse=True):
                row = request.rows[position]
                at = first + row.candidate
                positions[at] = position  # type: ignore[call-overload]  # None or a position
                if row.click:
                    labels[at] = "clicked"
                elif labels[at] == "unexposed":
                    labels[at] = "exposed"
            first += len(request.candidates)
        events = [request.event for request in requests]
        of_requests: Columns = {
            "request_id": [event.request_id for event in events],
            "time_s": [event.time_s for event in events],
            "settled_s": [request.due_s for request in requests],
            "source_partition": [self._partition] * len(requests),
            "source_offset": [request.offset for request in requests],
        }
        of_ads: Columns = {
            "candidate": [index for request in requests for index in range(len(request.candidates))],
            "ad_id": [ad.ad_id for ad in ads],
            "stage": [ad.stage for ad in ads],
            "label": labels,
            "position": positions,
        }
        return Chains(
            of_requests | _value_columns(events, self._request_fields),
            [len(request.candidates) for request in requests],
            of_ads | _value_columns(ads, self._ad_fields),
        )


def _check_values(values: dict[str, Value], types: list[tuple[str, frozenset[type]]]) -> None:
    get = values.get
    for name, allowed in types:
        value = get(name)
        if value.__class__ not in allowed or (value.__class__ is int and not fits_64_bits(value)):
            raise EventError("bad_value", name, value)


def _value_columns(owners: Sequence[Request | Candidate], fields: Sequence[Field]) -> Columns:
    values = [owner.values for owner in owners]
    return {field.column: _canonical([one.get(field.name) for one in values], field.kind) for field in fields}


def _canonical(values: list[Any], kind: str) -> list[Any]:
    """Return values as their column holds them: text for categories, however the producer wrote them.

    A value of another kind can only come from events that were taken under other fields: it is unknown now.
    """
    if set(map(type, values)) <= _AS_IT_IS[kind]:
        return values
    if kind == "category":
        return [value if value is None or value.__class__ is str else _text(value) for value in values]
    if kind == "categories":
        return [None if value.__class__ is not list else [str(one) for one in value] for value in values]
    return [value if value is None or value.__class__ is float else _number(value) for value in values]


def _text(value: Value) -> str | None:
    return None if isinstance(value, list) or (isinstance(value, int) and not fits_64_bits(value)) else str(value)


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, int) and fits_64_bits(value) else None
