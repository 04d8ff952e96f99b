"""What the ledger knows of a request and its impressions, and the columns in which they leave.

Owns the small objects of which millions are held, the check of values against the fields, and how rows and chains
become columns. Must not decide anything: stream/ledger.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from features.fields import Field, raw_fields
from stream.blocks import REQUEST_SIDES, Chains, Columns
from stream.events import Candidate, EventError, Impression, Request, Value

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


class KnownRequest:
    """A request that is not forgotten.

    A resume may begin here: `watermark_s` and `horizon_s` are the clocks as it moved them, `letters` the dead letters
    before it.
    `gone_at` is the offset of the record on whose account it was forgotten.
    """

    __slots__ = (
        "candidates",
        "due_s",
        "gone_at",
        "horizon_s",
        "letters",
        "n_bytes",
        "n_pending",
        "offset",
        "request_id",
        "rows",
        "time_s",
        "until_s",
        "values",
        "watermark_s",
    )

    def __init__(self, event: Request, offset: int, n_bytes: int, until_s: float, candidates_max: int) -> None:
        self.request_id = event.request_id
        self.time_s = event.time_s
        self.values = event.values
        self.candidates = event.candidates
        if len(self.candidates) > candidates_max:
            self.candidates = self.candidates[:candidates_max]
        self.offset = offset
        self.n_bytes = n_bytes
        self.until_s = self.due_s = until_s
        self.n_pending = 0
        self.rows: dict[int, Row] = {}  # by position
        self.gone_at = NOT_GONE
        self.watermark_s = self.horizon_s = 0.0
        self.letters = 0

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


class Row:
    """An impression: pending, then settled and known until its request is forgotten."""

    __slots__ = (
        "ad",
        "candidate",
        "click",
        "is_late",
        "is_pending",
        "offset",
        "position",
        "propensity",
        "request",
        "settled_s",
        "time_s",
        "wait_s",
    )

    def __init__(self, event: Impression, offset: int, request: KnownRequest) -> None:
        self.candidate = request.find(event.position, event.ad_id)
        self.ad = request.candidates[self.candidate]
        self.position = event.position
        self.time_s = event.time_s
        self.propensity = event.propensity
        self.offset = offset
        self.request = request
        self.wait_s = self.settled_s = 0.0
        self.click = 0
        self.is_late = False  # pending, and its only click is a late one that will correct it
        self.is_pending = True


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


class Left(NamedTuple):
    """A row as it left: the row itself may still be corrected."""

    row: Row
    kind: str
    settled_s: float


def row_bytes(row: Row) -> int:
    """Return about how many bytes a row adds to a block, never far too few."""
    request = row.request
    if request.n_bytes <= SMALL_REQUEST_BYTES:
        return request.n_bytes
    return 100 + sum(
        len(name) + (len(value) if isinstance(value, str) else 8 + 32 * len(value) if isinstance(value, list) else 8)
        for values in (request.values, row.ad.values)
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
        rows = [one.row for one in left]
        requests = [row.request for row in rows]
        ads = [row.ad for row in rows]
        columns: Columns = {
            "request_id": [request.request_id for request in requests],
            "position": [row.position for row in rows],
            "kind": [one.kind for one in left],
            "time_s": [row.time_s for row in rows],
            "settled_s": [one.settled_s for one in left],
            "click": [0 if one.kind == "expired_negative" else 1 for one in left],
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
        of_requests: Columns = {
            "request_id": [request.request_id for request in requests],
            "time_s": [request.time_s for request in requests],
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
            of_requests | _value_columns(requests, self._request_fields),
            [len(request.candidates) for request in requests],
            of_ads | _value_columns(ads, self._ad_fields),
        )


def _check_values(values: dict[str, Value], types: list[tuple[str, frozenset[type]]]) -> None:
    get = values.get
    for name, allowed in types:
        value = get(name)
        if value.__class__ not in allowed or (value.__class__ is int and not _is_sane(value)):
            raise EventError("bad_value", name, value)


def _value_columns(owners: Sequence[KnownRequest | Candidate], fields: Sequence[Field]) -> Columns:
    gets = [owner.values.get for owner in owners]
    return {field.column: _canonical([get(field.name) for get in gets], field.kind) for field in fields}


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
    return None if isinstance(value, list | int) and not _is_sane(value) else str(value)


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, int) and _is_sane(value) else None


def _is_sane(value: Value) -> bool:
    """Tell whether a value is a whole number of 64 bits: JSON's may have hundreds of digits."""
    return isinstance(value, int) and -(2**63) <= value < 2**64
