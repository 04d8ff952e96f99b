"""What a ledger must have written about a partition, worked out again from `events` alone.

Owns the watermark at every offset, and when and in which order rows and chains leave. What became of each request,
stream/audit/story.py says, one request at a time. Must not know Kafka or blocks, and imports nothing that the ledger is
made of.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stream.audit.events import Logged, Place, Tick, read_event
from stream.audit.story import Expected, Row, Rules, Seen, Story, refuse


class Reading:
    """The records of one partition, taken one by one; at the end it says what must have been written about them."""

    def __init__(
        self,
        place: Place,
        rules_at: Callable[[int], Rules],
        *,
        start_s: float = 0.0,
        floors: Sequence[tuple[int, float]] = (),
        refused: Mapping[int, str] | None = None,
    ) -> None:
        """Begin before the first record.

        Args:
            place: Which partition, and what the settings say about events.
            rules_at: The rules that held for the record at an offset.
            start_s: The watermark just before the first record.
            floors: (offset, watermark), in order: from there on it is at least that; where rules changed.
            refused: Rules of dead letters, by offset, that rest on records before the first one: they are not judged.
        """
        self._place = place
        self._rules_at = rules_at
        self._watermark_s = start_s
        self._floors = deque(floors)
        self._refused = refused or {}
        self._found = Expected()
        self._by_request: defaultdict[str, list[Seen]] = defaultdict(list)

    def take(self, record: Logged) -> None:
        """Read the next record: its watermark, and whether it is an event at all."""
        found, offset, rules = self._found, record.offset, self._rules_at(record.offset)
        while self._floors and self._floors[0][0] <= offset:
            self._watermark_s = max(self._watermark_s, self._floors.popleft()[1])
        event, rule = read_event(record, self._place, self._watermark_s)
        if event is not None:
            self._watermark_s = max(self._watermark_s, event.time_s - rules.disorder_s)
        found.offsets.append(offset)
        found.watermarks.append(self._watermark_s)
        found.changes.append((offset, "records", 1))
        if event is None or offset in self._refused:
            refuse(found, offset, self._refused.get(offset, rule))
        elif isinstance(event, Tick):
            found.changes.append((offset, "ticks", 1))
        else:
            self._by_request[event.request_id].append(Seen(offset, self._watermark_s, rules, event))

    def finish(self) -> Expected:
        """Return what must have been written: one request at a time."""
        for seen in self._by_request.values():
            Story(self._found, self._place).tell(seen)
        _put_in_order(self._found)
        return self._found


def _put_in_order(found: Expected) -> None:
    """Find where each row and chain leaves: at the first record, from its own on, whose watermark reaches its moment.

    Those that leave at one record are in the order of their moments, then offsets.
    """
    offsets, watermarks = np.array(found.offsets), np.array(found.watermarks)

    def left_at(settled_s: float, since: int) -> float:
        place = max(np.searchsorted(watermarks, settled_s), np.searchsorted(offsets, since))
        return float(offsets[place]) if place < len(offsets) else math.inf

    rows = [replace(row, left_at=left_at(row.settled_s, row.since)) for row in found.rows]
    chains = [replace(chain, left_at=left_at(chain.settled_s, chain.offset)) for chain in found.chains]
    found.rows = sorted(rows, key=_row_order)
    found.chains = sorted(chains, key=lambda chain: (chain.left_at, chain.settled_s, chain.offset))
    found.changes.sort()
    found.timeouts.sort()


def _row_order(row: Row) -> tuple[float, float, bool, int, int]:
    """Return the place of a row: a correcting one stands behind its own, or, if that has left, behind all."""
    is_behind = row.since != row.offset and row.since == row.left_at
    return row.left_at, row.settled_s, is_behind, row.offset, row.since
