"""The rows of a slide, ready to be scored and learnt: keys, and what had settled when each was shown.

Owns which rows count as examples, whose they are, and the law that a label comes later than the row. Must not know
networks.

Invariants: an example sees the counts as of its request, so neither its own label nor that of a row beside it; a row
whose moment is too old for exact counts is no example (it still counts once it has settled); a row that corrects an
impression is no example either, it adds its click to the counts and nothing more.

Shape legend: `N` examples, `S` slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.encode import Keys, encode, hash_strings, mix
from features.fields import Field, id_field, slot_counts
from features.point_in_time import point_in_time
from features.priors import CORRECTION, Counts, Floats, Ints, SettledRows
from models.gate import slice_items
from models.snapshot import Snapshot
from models.window import Slide


@dataclass(frozen=True)
class Examples:
    """What is learnt of a slide.

    Attributes:
        settled: All rows that settled since the counts' moment: those too old to be examples and corrections included.
        keys: (N, S).
        counts: What had settled when each example was shown.
        clicks: 0 or 1, (N,).
        groups: Whose rows are compared with each other: requests when they have two rows on average, else users, (N,).
        buckets: The gate's bucket of each example's user, (N,).
        slices: The gate's slice of each example's item, (N,).
    """

    settled: SettledRows
    keys: Keys
    counts: Counts
    clicks: Floats
    groups: Ints
    buckets: Ints
    slices: Ints


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
    if (is_correction := (frame["kind"] == CORRECTION).to_numpy()).any():
        frame, keys = frame.filter(~is_correction), keys[~is_correction]
    shown_s = frame.select(pl.col("time_s").min().over("request_id")).to_series().to_numpy()  # as of the request
    fresh = shown_s >= before.base.as_of_s
    if not fresh.all():
        frame, keys, shown_s = frame.filter(pl.Series(fresh)), keys[fresh], shown_s[fresh]
    users = _user_ids(frame, keys, before.fields)
    requests = frame["request_id"].n_unique()
    counts = point_in_time(before.base, settled, keys, shown_s, slot_counts(before.fields))
    return Examples(
        settled=settled,
        keys=keys,
        counts=counts,
        clicks=frame["click"].to_numpy().astype(np.float64),
        groups=(users if len(frame) < 2 * requests else hash_strings(frame["request_id"])).view(np.int64),
        buckets=(mix(users) % np.uint64(n_buckets)).astype(np.int64),
        slices=slice_items(_item_impressions(counts, before)),
    )


def _user_ids(frame: pl.DataFrame, keys: Keys, fields: Sequence[Field]) -> Keys:
    """Return a number per row that names its user, or its request when the fields name no user."""
    user = id_field(fields, "user")
    return hash_strings(frame["request_id"]) if user is None else keys[:, _slot(fields, user)]


def _item_impressions(counts: Counts, before: Snapshot) -> Floats:
    """Return what had settled of each row's item in the longest memory; of all items when the fields name none."""
    longest = int(np.argmax(before.base.half_lives_s))
    item = id_field(before.fields, "item")
    return counts.root_n[:, longest] if item is None else counts.n[:, _slot(before.fields, item), longest]


def _slot(fields: Sequence[Field], field: Field) -> int:
    """Return the first slot of a field."""
    return sum(slot_counts(fields)[: fields.index(field)])


def _check_delay(slide: Slide) -> None:
    early = slide.frame.filter(pl.col("settled_s") <= pl.col("time_s"))
    if len(early):
        raise ValueError(
            f"slide {slide.index}: a row must settle after it was shown, got request_id"
            f' "{early["request_id"][0]}" shown and settled at {early["settled_s"][0]}; [ledger] wait_s must be > 0'
        )
