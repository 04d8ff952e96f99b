"""What the trainer announces on `snapshots` after each slide: which model serves now, and why.

Owns that record. The topic alone says what serves; the registry only holds bytes. Must not load a snapshot.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec

from stream.kafka import read_range
from stream.roles import Cluster

VERSION = 1


class Promotion(msgspec.Struct, frozen=True):
    """The decision since which the champion serves: `slide`, `decision`, ... as in its announcement.

    Attributes:
        former: Version of what served before.
    """

    slide: int
    decision: str
    reason: str
    evidence: dict[str, Any]
    guards: list[dict[str, Any]]
    former: str


class Announcement(msgspec.Struct, frozen=True):
    """One decision about one model family; the key of the record is the family.

    Attributes:
        slide: The slide that was scored, and then learnt.
        champion: Version of the snapshot that serves from now on.
        latest: Version of the newest snapshot of the lineage that learns.
        decision: warmup | promote | hold | reject | rollback.
        reason: Why, for people.
        evaluation: `champion` and `latest` on the slide before it was learnt: rows, clicks, logloss, auc, ...
        evidence: The gate's mean log-loss difference with its bounds and how many slides it rests on.
        guards: The gate's guardrails with what was found, its limits and whether it passed.
        former: Version of the champion before, while it is watched whether the promotion was right; else empty.
        since: The decision since which the champion serves; None before the first slide or where it is not known.
        drift: Detectors that raised an alarm over the champion's log losses.
        left_out: Rows beyond `[update] rows_max`: counted, not scored or learnt.
        commands: Offset after the last record of `commands` that was heeded.
        start_s: Begin of the slide, event time.
        end_s: End of the slide, event time.
        lost: Slides thrown away by a reject or a rollback.
        learn_s: Wall time that scoring and learning took, seconds.
    """

    family: str
    slide: int
    champion: str
    latest: str
    decision: str
    reason: str
    evaluation: dict[str, dict[str, Any]]
    evidence: dict[str, Any]
    start_s: float
    end_s: float
    lost: list[int] = []
    learn_s: float = 0.0
    guards: list[dict[str, Any]] = []
    former: str = ""
    since: Promotion | None = None
    drift: list[str] = []
    left_out: int = 0
    commands: int = 0
    v: int = VERSION


def encode_announcement(announcement: Announcement) -> bytes:
    """Return its JSON."""
    return msgspec.json.encode(announcement)


def decode_announcement(value: bytes) -> Announcement:
    """Return the announcement that the bytes hold.

    Raises:
        ValueError: If they hold none of a version that this program reads.
    """
    try:
        announcement = msgspec.json.decode(value, type=Announcement)
    except msgspec.DecodeError as error:
        raise ValueError(f"a record of `snapshots` must be an announcement, got: {error}") from None
    if announcement.v != VERSION:
        raise ValueError(f"an announcement must have version {VERSION}, got {announcement.v}; update freshrank")
    return announcement


async def newest_announcement(cluster: Cluster, family: str) -> Announcement | None:
    """Return the last committed announcement of a family, or None."""
    newest = None
    async with aclosing(read_range(cluster.topic("snapshots"), 0, None, None, options=cluster.options)) as records:
        async for record in records:
            if record.key == family.encode() and record.value is not None:
                newest = decode_announcement(record.value)
    return newest
