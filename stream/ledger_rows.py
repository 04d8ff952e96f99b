"""What the ledger knows of a request and its impressions, and the columns in which they leave.

Owns the small objects of which millions are held, and how rows and chains become columns. What requests and candidates
were scored on is in slabs (stream/slabs.py). Must not decide anything: stream/ledger.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from features.fields import Field, raw_fields
from stream.blocks import ARM_COLUMNS, OPTIONAL_COLUMNS, REQUEST_SIDES, SERVED_COLUMNS, Chains, Columns
from stream.events import Candidate, EventError, Request, Value
from stream.slabs import Cells, Slab, Slabs

SMALL_REQUEST_BYTES = 4096  # a row of a request up to this size is taken to be as large as the whole request

NOT_GONE = 2**63  # beyond every offset


class KnownRequest(msgspec.Struct, eq=False, gc=False):
    """A request that is not forgotten.

    It refers to its rows and they not to it: no cycle, so the garbage collector need not know of millions of them.

    Attributes:
        request_id: Its id.
        ad_ids: Of as many of its candidates as are kept.
        slab: Where its values are.
        place: Its place there.
        ads: Where those of its candidates are.
        first_ad: The place there of its first candidate.
        offset: Of its record. A resume may begin here.
        n_bytes: Size of its record.
        ad_bytes: About how many bytes a row of each candidate adds to a block; empty: as many as the record has.
        until_s: Up to when (horizon) it takes impressions.
        due_s: When it is forgotten.
        watermark_s: The watermark as it moved it.
        horizon_s: The horizon likewise.
        letters: How many dead letters came before it.
        rows: Its impressions by position.
        n_pending: How many of them are pending.
        gone_at: Offset of the record on whose account it was forgotten.
    """

    request_id: str
    ad_ids: list[str]
    slab: Slab
    place: int
    ads: Slab
    first_ad: int
    offset: int
    n_bytes: int
    ad_bytes: Sequence[int]
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
        ad_ids = self.ad_ids
        if position < len(ad_ids) and ad_ids[position] == ad_id:
            return position
        if ad_id in ad_ids:
            return ad_ids.index(ad_id)
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


def ad_bytes(request: Request) -> list[int]:
    """Return about how many bytes a row of each candidate adds to a block, never far too few."""
    served = 8 * len(SERVED_COLUMNS) + len(request.snapshot)
    of_request = 100 + _values_bytes(request.values) + (sum(map(len, _arm_cells(request))) if request.arm else 0)
    return [
        of_request + _values_bytes(candidate.values) + (served if candidate.pctr is not None else 0)
        for candidate in request.candidates
    ]


def _arm_cells(request: Request) -> tuple[str, str, str]:
    """Return what a request says in `ARM_COLUMNS`: no experiment without an arm."""
    return (request.split if request.arm else "", request.arm, request.snapshot)


def _values_bytes(values: dict[str, Value]) -> int:
    return sum(
        len(name) + (len(value) if isinstance(value, str) else 8 + 32 * len(value) if isinstance(value, list) else 8)
        for name, value in values.items()
    )


class RowColumns:
    """Where requests and their candidates are put when they come, and the columns of what leaves."""

    def __init__(self, partition: int, fields: Sequence[Field]) -> None:
        """Begin with nothing."""
        self._partition = partition
        raw = raw_fields(fields)
        of_requests = [field for field in raw if field.side in REQUEST_SIDES]
        of_ads = [field for field in raw if field.side not in REQUEST_SIDES]
        of_request = {"request_id": pa.string(), "time_s": pa.float64(), **ARM_COLUMNS, "counts_s": pa.float64()}
        of_ad = {"ad_id": pa.string(), "stage": pa.string(), "sample_rate": pa.float64(), "pctr": pa.float64()}
        self._requests = Slabs(of_request, of_requests)
        self._ads = Slabs(of_ad, of_ads)

    def request_cells(self, event: Request) -> Cells:
        """Return what rows and chains take from a request itself."""
        own = (event.request_id, event.time_s, *_arm_cells(event), event.counts_s)
        return (*own, *map(event.values.get, self._requests.names))

    def check_request(self, cells: Cells) -> None:
        """Check the user's and the context's values: EventError `bad_value` if one is not of its field's kind."""
        self._requests.check(cells)

    def check_ad(self, request: KnownRequest, candidate: int) -> None:
        """Check the item's and the creative's values likewise."""
        self._ads.check_at(request.ads, request.first_ad + candidate)

    def put(self, cells: Cells, candidates: Sequence[Candidate]) -> tuple[Slab, int, Slab, int]:
        """Put a request and its candidates where rows and chains will take them from; return those places."""
        names = self._ads.names
        ads = [(ad.ad_id, ad.stage, ad.sample_rate, ad.pctr, *map(ad.values.get, names)) for ad in candidates]
        return *self._requests.add([cells]), *self._ads.add(ads)

    def examples(self, left: Sequence[Left]) -> Columns:
        """Return rows that left in the columns of `row_schema`, with the optional ones that one of them fills."""
        rows, kinds, settled_s, requests = zip(*left, strict=True) if left else ((), (), (), ())
        of_requests = self._requests.take([one.slab for one in requests], [one.place for one in requests])
        places = [request.first_ad + row.candidate for row, request in zip(rows, requests, strict=True)]
        of_ads = self._ads.take([one.ads for one in requests], places)
        of_rows: Columns = {
            "position": [row.position for row in rows],
            "kind": list(kinds),
            "time_s": [row.time_s for row in rows],
            "settled_s": list(settled_s),
            "click": [0 if kind == "expired_negative" else 1 for kind in kinds],
            "propensity": [row.propensity for row in rows],
            "source_partition": self._partitions(len(rows)),
            "source_offset": [row.offset for row in rows],
        }
        optional = _optional(of_requests, of_ads) if rows else {}
        known = {name: column for name, column in (of_requests | of_ads).items() if name not in OPTIONAL_COLUMNS}
        return known | of_rows | optional

    def chains(self, requests: Sequence[KnownRequest]) -> Chains:
        """Return forgotten requests, and what became of their candidates, in the columns of `chain_schema`."""
        n_candidates = [len(request.ad_ids) for request in requests]
        labels, positions = _outcomes(requests, sum(n_candidates))
        of_requests = self._requests.take([one.slab for one in requests], [one.place for one in requests])
        of_ads = self._ads.take(
            [request.ads for request in requests for _ in request.ad_ids],
            [request.first_ad + index for request in requests for index in range(len(request.ad_ids))],
        )
        of_requests |= {
            "settled_s": [request.due_s for request in requests],
            "source_partition": self._partitions(len(requests)),
            "source_offset": [request.offset for request in requests],
        }
        of_ads |= {
            "candidate": list(chain.from_iterable(map(range, n_candidates))),
            "label": labels,
            "position": positions,
        }
        return Chains(of_requests, n_candidates, of_ads)

    def _partitions(self, n_rows: int) -> pa.Array:
        return pa.repeat(pa.scalar(self._partition, pa.int32()), n_rows)


def _optional(of_requests: Columns, of_ads: Columns) -> Columns:
    """Return those of `OPTIONAL_COLUMNS` that a row fills: those of an arm, those of what it was served with."""
    has_arm, is_served = pc.not_equal(of_requests["arm"], ""), pc.is_valid(of_ads["pctr"])
    found: Columns = {}
    if pc.any(has_arm).as_py():
        found |= {"split": of_requests["split"], "arm": of_requests["arm"]}
    if pc.any(is_served).as_py():
        names = {"counts_s": of_requests["counts_s"], "request_s": of_requests["time_s"]}
        nothing = pa.scalar(None, pa.float64())
        found |= {"pctr": of_ads["pctr"]}
        found |= {name: pc.if_else(is_served, column, nothing) for name, column in names.items()}
    if found:
        found["snapshot"] = pc.if_else(pc.or_(has_arm, is_served), of_requests["snapshot"], "")
    return found


def _outcomes(requests: Sequence[KnownRequest], n_candidates: int) -> tuple[list[str], list[int | None]]:
    """Return label and position of each candidate."""
    labels = ["unexposed"] * n_candidates
    positions: list[int | None] = [None] * n_candidates
    first = 0
    for request in requests:
        rows = request.rows
        for position in sorted(rows, reverse=True):
            row = rows[position]
            at = first + row.candidate
            positions[at] = position
            if row.click:
                labels[at] = "clicked"
            elif labels[at] == "unexposed":
                labels[at] = "exposed"
        first += len(request.ad_ids)
    return labels, positions
