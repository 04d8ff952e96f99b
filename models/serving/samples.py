"""A few recent real requests, of different sizes: what a new snapshot proves itself on before it serves.

Owns which of them are kept. Must not know what a sample holds or who is warmed up.

Invariants: never more than `SAMPLES_MAX` are kept; the newest is among them; of the sizes that have come, one that is
rare is not driven out by one that is common; what was handed out never changes, so that another thread may read it.
"""

from __future__ import annotations

from typing import Generic, TypeVar

SAMPLES_MAX = 8  # by hand: of the keys of 200 candidates with 20 slots each, 256 kB in all

T = TypeVar("T")


class Samples(Generic[T]):
    """Keeps the newest of each size, where a size is as large as its power of two, up to a number of them."""

    def __init__(self, first: T) -> None:
        """Begin with one that is none of a request; it goes when the first real one comes."""
        self._first = first
        self._sizes: tuple[int, ...] = ()
        self._held: tuple[T, ...] = ()

    @property
    def held(self) -> tuple[T, ...]:
        """What is kept, the oldest first; never empty."""
        return self._held or (self._first,)

    def add(self, sample: T, size: int) -> None:
        """Keep a sample; beyond the number, the oldest of the size that most are of goes.

        Args:
            sample: Of a request.
            size: How many candidates it has.
        """
        sizes, held = (*self._sizes, size.bit_length()), (*self._held, sample)
        if len(held) > SAMPLES_MAX:
            gone = sizes.index(max(sizes, key=sizes.count))
            sizes, held = sizes[:gone] + sizes[gone + 1 :], held[:gone] + held[gone + 1 :]
        self._sizes, self._held = sizes, held
