"""The rows of a slide, ready to be scored and learnt: keys, and what had settled when each was shown.

Owns which rows count as examples, whose they are, and the law that a label comes later than the row. Must not know
networks.

Invariants: an example sees the counts as of its request, so neither its own label nor that of a row beside it; no
counts of values are made for a model that sees none, nor evidence until somebody asks for it; a row
whose moment is too old for exact counts is no example (it still counts once it has settled); a row that corrects an
impression is no example either: it is learnt as what it is, and never scored.

Shape legend: `N` examples, `S` slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from features.encode import Keys, encode, hash_strings, mix
from features.fields import Field, id_field, slot_counts
from features.point_in_time import point_in_time
from features.priors import CORRECTION, Counts, Floats, Ints, SettledRows, lookup, one_memory
from models.gate import slice_items
from models.snapshot import Snapshot
from models.window import Slide

_SALT = np.uint64(0xA0761D6478BD642F)  # any odd number would do


@dataclass(frozen=True)
class LateRows:
    """Impressions that were learnt as not clicked and were clicked after all.

    Attributes:
        frame: Their rows of the slide.
        keys: (L, S).
        counts: What had settled when each was shown: the same as when it was learnt.
        shown_s: When that was, (L,).
    """

    frame: pl.DataFrame
    keys: Keys
    counts: Counts
    shown_s: Floats


@dataclass(frozen=True)
class Examples:
    """What is learnt of a slide.

    Attributes:
        settled: All rows that settled since the counts' moment: those too old to be examples and corrections included.
        frame: Their rows of the slide.
        keys: (N, S).
        counts: What had settled when each example was shown; overall alone, without slots, for a model without prior.
        clicks: 0 or 1, (N,).
        shown_s: When each was shown: its request's first impression, (N,).
        groups: Whose rows are compared with each other: requests when they have two rows on average, else users, (N,).
        buckets: The gate's bucket of each example's user, (N,).
        late: What corrects earlier slides' examples.
        left_out: Rows that would be examples, had the slide not more than can be learnt.
        before: The snapshot that they were read for.
    """

    settled: SettledRows
    frame: pl.DataFrame
    keys: Keys
    counts: Counts
    clicks: Floats
    shown_s: Floats
    groups: Ints
    buckets: Ints
    late: LateRows
    left_out: int
    before: Snapshot

    @cached_property
    def evidence(self) -> Floats:
        """Impressions behind the least known value of each, crosses left out, longest memory, (N,)."""
        raw = [field for field in self.before.fields if field.side != "cross"]
        known = np.where(self.keys[:, _slots(self.before.fields, raw)] != 0, self._impressions(raw), np.inf)
        return np.asarray(known.min(axis=1, initial=np.inf))

    @cached_property
    def item_evidence(self) -> Floats:
        """Impressions behind the item of each, longest memory, (N,)."""
        item = id_field(self.before.fields, "item")
        assert item is not None
        return self._impressions([item])[:, 0]

    @property
    def slices(self) -> Ints:
        """The gate's slice of each example's item, (N,)."""
        return slice_items(self.item_evidence)

    def _impressions(self, fields: Sequence[Field]) -> Floats:
        """Return the impressions behind the values of some fields, longest memory, one column a slot."""
        before, slots = self.before, _slots(self.before.fields, fields)
        longest = int(np.argmax(before.base.half_lives_s))
        if before.prior != "none":
            return self.counts.n[:, slots, longest]
        rows = dataclasses.replace(self.settled, keys=self.settled.keys[:, slots])
        base = one_memory(before.base, longest)
        return point_in_time(base, rows, self.keys[:, slots], self.shown_s, slot_counts(fields)).n[:, :, 0]


def read_examples(slide: Slide, before: Snapshot, n_buckets: int, rows_max: int = 0) -> Examples:
    """Return the rows of a slide that can be scored and learnt by models that go on from a snapshot.

    Rows shown before the moment of the snapshot's counts are left out: what had settled then is not known any more. So
    are corrections of impressions that were examples before. Of a slide with more rows than `rows_max` (0: any number)
    about so many are kept, whole requests by their hash, and of its corrections the same share; all rows are counted.
    As each is as likely to be kept, each would weigh the same: the mean loss of what is kept is that of all, up to
    noise, with no weight at all.

    Raises:
        ValueError: If a row settled when it was shown or before: its own label would be among its inputs.
    """
    frame = slide.frame
    _check_delay(slide)
    keys = encode(frame, before.fields)
    settled = before.recent.followed_by(SettledRows.from_frame(frame, keys))
    shown_s = frame.select(pl.col("time_s").min().over("request_id")).to_series().to_numpy()  # as of the request
    fresh = shown_s >= before.base.as_of_s
    corrects = (frame["kind"] == CORRECTION).to_numpy()
    n_fresh = int((fresh & ~corrects).sum())
    if 0 < rows_max < n_fresh:
        fresh &= hash_share(hash_strings(frame["request_id"])) < rows_max / n_fresh
    is_late = fresh & corrects
    late_keys, late_s = keys[is_late], shown_s[is_late]
    late = LateRows(frame.filter(pl.Series(is_late)), late_keys, _counts(before, settled, late_keys, late_s), late_s)
    fresh &= ~corrects
    if not fresh.all():
        frame, keys, shown_s = frame.filter(pl.Series(fresh)), keys[fresh], shown_s[fresh]
    users = user_ids(frame, keys, before.fields)
    requests = frame["request_id"].n_unique()
    return Examples(
        settled=settled,
        frame=frame,
        keys=keys,
        counts=_counts(before, settled, keys, shown_s),
        clicks=frame["click"].to_numpy().astype(np.float64),
        shown_s=shown_s,
        groups=(users if len(frame) < 2 * requests else hash_strings(frame["request_id"])).view(np.int64),
        buckets=(mix(users) % np.uint64(n_buckets)).astype(np.int64),
        late=late,
        left_out=n_fresh - len(frame),
        before=before,
    )


def _counts(before: Snapshot, settled: SettledRows, keys: Keys, shown_s: Floats) -> Counts:
    """Return the counts that rows shown at these moments see."""
    if before.prior == "frozen":
        return lookup(before.priors, keys, np.maximum(shown_s, before.end_s))
    if before.prior == "none":
        rows = dataclasses.replace(settled, keys=settled.keys[:, :0])
        return point_in_time(before.base, rows, keys[:, :0], shown_s, ())
    return point_in_time(before.base, settled, keys, shown_s, slot_counts(before.fields))


def hash_share(hashes: Keys) -> Floats:
    """Return a number in [0, 1) for each hash, by a hash of it that no bucket of users goes by, (N,)."""
    return np.asarray((mix(hashes + _SALT) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def user_ids(frame: pl.DataFrame, keys: Keys, fields: Sequence[Field]) -> Keys:
    """Return a number per row that names its user, or its request when the fields name no user."""
    user = id_field(fields, "user")
    if user is None:
        return hash_strings(frame["request_id"])
    return keys[:, _slots(fields, [user])[0]]


def _slots(fields: Sequence[Field], wanted: Sequence[Field]) -> Ints:
    """Return the slots of some of the fields, field by field."""
    return np.flatnonzero(np.repeat([field in wanted for field in fields], slot_counts(fields)))


def _check_delay(slide: Slide) -> None:
    early = slide.frame.filter(pl.col("settled_s") <= pl.col("time_s"))
    if len(early):
        raise ValueError(
            f"slide {slide.index}: a row must settle after it was shown, got request_id"
            f' "{early["request_id"][0]}" shown and settled at {early["settled_s"][0]}; [ledger] wait_s must be > 0'
        )
