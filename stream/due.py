"""What falls due when: a queue by moment, whose cost per item does not grow with how many wait.

Owns the order (moment, offset). Must not know what waits. A ledger holds millions of items that come nearly in order:
they are kept in buckets of event time, and a bucket is sorted when it becomes the first.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class DueQueue(Generic[T]):
    """Items in the order in which they fall due; items of one moment in the order of their offsets.

    Attributes:
        first_s: When the first item falls due; inf when there is none.
    """

    __slots__ = ("_at", "_buckets", "_first", "_first_bucket", "_later", "_n_items", "_width_s", "first_s")

    def __init__(self, width_s: float) -> None:
        """Start empty; `width_s` is how much time shares a bucket, > 0."""
        self.first_s = math.inf
        self._width_s = width_s
        self._first: list[tuple[float, int, T]] = []  # the first bucket, sorted, from `_at` on
        self._at = 0
        self._first_bucket = 0
        self._buckets: dict[int, list[tuple[float, int, T]]] = {}  # those after it, unsorted
        self._later: list[int] = []  # their numbers, a heap
        self._n_items = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._n_items

    def put(self, due_s: float, offset: int, item: T) -> None:
        """Add an item; no two items share both moment and offset."""
        bucket = int(due_s // self._width_s)
        if not self._n_items:
            self._first, self._at, self._first_bucket = [(due_s, offset, item)], 0, bucket
            self.first_s = due_s
        elif bucket > self._first_bucket:
            waiting = self._buckets.get(bucket)
            if waiting is None:
                self._buckets[bucket] = [(due_s, offset, item)]
                heapq.heappush(self._later, bucket)
            else:
                waiting.append((due_s, offset, item))
        else:
            entry = (due_s, offset, item)
            if entry > self._first[-1]:
                self._first.append(entry)
            else:
                insort(self._first, entry, lo=self._at)
                self.first_s = self._first[self._at][0]
        self._n_items += 1

    def pop(self) -> T:
        """Return the first item and remove it."""
        item = self._first[self._at][2]
        self._at += 1
        self._n_items -= 1
        if self._at == len(self._first):
            self._open_next()
        self.first_s = self._first[self._at][0] if self._n_items else math.inf
        return item

    def in_order(self) -> Iterator[tuple[float, T]]:
        """Yield all items with their moments, first to last; they stay."""
        for due_s, _, item in self._first[self._at :]:
            yield due_s, item
        for bucket in sorted(self._buckets):
            for due_s, _, item in sorted(self._buckets[bucket]):
                yield due_s, item

    def _open_next(self) -> None:
        self._at = 0
        if not self._later:
            self._first = []
            return
        self._first_bucket = heapq.heappop(self._later)
        self._first = self._buckets.pop(self._first_bucket)
        self._first.sort()
