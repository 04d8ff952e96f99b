"""The reference to what serves now.

Owns one slot. Must not know what stands in it. A reader takes `current` once and keeps it for as long as its request
lasts, so a swap never changes a request that has begun.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Holder(Generic[T]):
    """What serves now, or None before there is anything; to read and to swap is one reference, so no lock is needed."""

    def __init__(self) -> None:
        """Start empty."""
        self._current: T | None = None

    @property
    def current(self) -> T | None:
        """What serves now."""
        return self._current

    def swap(self, new: T | None) -> T | None:
        """Let something new serve, or nothing, and return what served before."""
        before, self._current = self._current, new
        return before
