"""Which values own an embedding row: those that the prior has evidence for.

Owns admission, expiry and the numbering of rows. Must not know embeddings or counts other than a value's evidence.

Invariants: one value, one row (no collisions); row 0 stands for all values that own none; rows stand in the order of
their keys, so the numbering depends on which values are known and on nothing else; it changes at slide boundaries
only; its size is bounded, by `values_max` and by the evidence: at most (impressions in the longest memory) /
`forget_min` rows per slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.encode import Keys
from features.priors import Ints, PriorTable, codes, find, strongest

UNKNOWN_ROW = 0


@dataclass(frozen=True)
class Vocabulary:
    """The values that own a row; `len` counts row 0 too.

    Attributes:
        keys: Ascending, (R,); the value keys[i] owns row i + 1.
    """

    keys: Keys

    @classmethod
    def empty(cls) -> Vocabulary:
        """Return a vocabulary that knows no value."""
        return cls(np.zeros(0, np.uint64))

    def __len__(self) -> int:
        """Return how many rows there are, row 0 included."""
        return len(self.keys) + 1

    def rows(self, keys: Keys) -> Ints:
        """Return the row of each key, in the shape of `keys`; 0 for unknown and for absent ones."""
        distinct, code = codes(keys.ravel())  # values come often: so each is searched for once, in order
        at, found = find(self.keys, distinct)
        return np.where(found, at + 1, UNKNOWN_ROW)[code].reshape(keys.shape)


def revise(
    vocabulary: Vocabulary, table: PriorTable, *, admit_min: float, forget_min: float, values_max: int
) -> tuple[Vocabulary, npt.NDArray[np.int64], int]:
    """Return the vocabulary that the evidence asks for, where each of its rows was before, and how many go without.

    A new row was at -1. Those that go without are values that the evidence gives a row and `values_max` does not.

    Args:
        vocabulary: What is known now.
        table: The counts at the slide boundary.
        admit_min: Impressions in the longest memory from which on a value gets a row.
        forget_min: Impressions below which it loses it.
        values_max: How many values may own one; where more could, those with the most evidence do.
    """
    _, known = find(vocabulary.keys, table.keys)
    wanted = table.evidence >= np.where(known, forget_min, admit_min)
    keys = table.keys[wanted]
    revised = Vocabulary(keys[strongest(table.evidence[wanted], values_max)])
    at, is_old = find(vocabulary.keys, revised.keys)
    source = np.concatenate([[UNKNOWN_ROW], np.where(is_old, at + 1, -1)])
    return revised, source, len(keys) - len(revised.keys)
