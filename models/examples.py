"""The rows of a slide, ready to be scored and learnt: keys, and what had settled when each was shown.

Owns which rows count as examples, whose they are, and the law that a label comes later than the row. Must not know
networks.

Invariants: an example sees the counts as of its request, so neither its own label nor that of a row beside it; a row
whose moment is too old for exact counts is no example (it still counts once it has settled); a row that corrects an
impression is no example either: it is learnt as what it is, and never scored.

Shape legend: `N` examples, `S` slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import Keys, encode, hash_strings, mix
from features.fields import Field, id_field, slot_counts
from features.point_in_time import point_in_time
from features.priors import CORRECTION, Counts, Floats, Ints, SettledRows, lookup
from models.gate import slice_items
from models.snapshot import Snapshot
from models.window import Slide


@dataclass(frozen=True)
class LateRows:
    """Impressions that were learnt as not clicked and were clicked after all.

    Attributes:
        keys: (L, S).
        counts: What had settled when each was shown: the same as when it was learnt.
    """

    keys: Keys
    counts: Counts


@dataclass(frozen=True)
class Examples:
    """What is learnt of a slide.

    Attributes:
        settled: All rows that settled since the counts' moment: those too old to be examples and corrections included.
        frame: Their rows of the slide.
        keys: (N, S).
        counts: What had settled when each example was shown.
        clicks: 0 or 1, (N,).
        shown_s: When each was shown: its request's first impression, (N,).
        evidence: Impressions behind the least known value of each, longest memory, (N,).
        item_evidence: Impressions behind its item, likewise, (N,).
        groups: Whose rows are compared with each other: requests when they have two rows on average, else users, (N,).
        buckets: The gate's bucket of each example's user, (N,).
        slices: The gate's slice of each example's item, (N,).
        late: What corrects earlier slides' examples.
    """

    settled: SettledRows
    frame: pl.DataFrame
    keys: Keys
    counts: Counts
    clicks: Floats
    shown_s: Floats
    evidence: Floats
    item_evidence: Floats
    groups: Ints
    buckets: Ints
    slices: Ints
    late: LateRows


def read_examples(slide: Slide, before: Snapshot, n_buckets: int) -> Examples:
    """Return the rows of a slide that can be scored and learnt by models that go on from a snapshot.

    Rows shown before the moment of the snapshot's counts are left out: what had settled then is not known any more. So
    are corrections of impressions that were examples before.

    Raises:
        ValueError: If a row settled when it was shown or before: its own label would be among its inputs.
    """
    frame = slide.frame
    _check_delay(slide)
    keys = encode(frame, before.fields)
    settled = before.recent.followed_by(SettledRows.from_frame(frame, keys))
    shown_s = frame.select(pl.col("time_s").min().over("request_id")).to_series().to_numpy()  # as of the request
    fresh = shown_s >= before.base.as_of_s
    is_late = fresh & (frame["kind"] == CORRECTION).to_numpy()
    late_keys = keys[is_late]
    late = LateRows(late_keys, _counts(before, settled, late_keys, shown_s[is_late]))
    fresh &= (frame["kind"] != CORRECTION).to_numpy()
    if not fresh.all():
        frame, keys, shown_s = frame.filter(pl.Series(fresh)), keys[fresh], shown_s[fresh]
    users = user_ids(frame, keys, before.fields)
    requests = frame["request_id"].n_unique()
    counts = _counts(before, settled, keys, shown_s)
    evidence = counts.n[:, :, int(np.argmax(before.base.half_lives_s))]  # (N, S)
    item_evidence = evidence[:, _first_slot(before.fields, id_field(before.fields, "item"))]
    return Examples(
        settled=settled,
        frame=frame,
        keys=keys,
        counts=counts,
        clicks=frame["click"].to_numpy().astype(np.float64),
        shown_s=shown_s,
        evidence=np.where(keys != 0, evidence, np.inf)[:, _raw_slots(before.fields)].min(axis=1, initial=np.inf),
        item_evidence=item_evidence,
        groups=(users if len(frame) < 2 * requests else hash_strings(frame["request_id"])).view(np.int64),
        buckets=(mix(users) % np.uint64(n_buckets)).astype(np.int64),
        slices=slice_items(item_evidence),
        late=late,
    )


def _counts(before: Snapshot, settled: SettledRows, keys: Keys, shown_s: Floats) -> Counts:
    """Return the counts that rows shown at these moments see."""
    if before.prior == "frozen":
        return lookup(before.priors, keys, np.maximum(shown_s, before.end_s))
    return point_in_time(before.base, settled, keys, shown_s, slot_counts(before.fields))


def user_ids(frame: pl.DataFrame, keys: Keys, fields: Sequence[Field]) -> Keys:
    """Return a number per row that names its user, or its request when the fields name no user."""
    user = id_field(fields, "user")
    if user is None:
        return hash_strings(frame["request_id"])
    return keys[:, _first_slot(fields, user)]


def _first_slot(fields: Sequence[Field], field: Field | None) -> int:
    assert field is not None
    return sum(slot_counts(fields)[: fields.index(field)])


def _raw_slots(fields: Sequence[Field]) -> npt.NDArray[np.bool_]:
    """Return which slots hold values of their own, (S,): all but those of crosses."""
    return np.repeat([field.side != "cross" for field in fields], slot_counts(fields))


def _check_delay(slide: Slide) -> None:
    early = slide.frame.filter(pl.col("settled_s") <= pl.col("time_s"))
    if len(early):
        raise ValueError(
            f"slide {slide.index}: a row must settle after it was shown, got request_id"
            f' "{early["request_id"][0]}" shown and settled at {early["settled_s"][0]}; [ledger] wait_s must be > 0'
        )
