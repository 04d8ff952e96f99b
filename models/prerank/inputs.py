"""What a pre-ranker reads of a candidate: the vectors of its values, pooled by field.

Owns that a value's vector is its embedding beside what counts say of it: how far the rate at which candidates with it
are exposed (with the head `exposed`: clicked once exposed) lies from the overall rate, and how many there were. A
field's vector is the mean over its values. So all that an ad brings follows from the snapshot alone. Must not know
architectures or labels.

Invariants: the vector of unknown values is zeros; several values of a field are averaged, absent ones left out.

Source: the counts beside embeddings are ours, after the feature prior of arXiv:2312.15903.

Shape legend: `N` candidates, `S` slots, `R` vectors, `D` width of an embedding, `F` fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from features.encode import Keys
from features.fields import Field, field_slots
from features.posteriors import LOG_COUNT_SCALE, deviations, shares
from features.priors import PriorTable, find
from features.vocabulary import Vocabulary

DENSE = 2  # numbers that counts say of a value


def prerank_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields that pre-rankers read: of the request and of the ad; a cross would need both at once."""
    return tuple(field for field in fields if field.side in ("user", "context", "item"))


def creative_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields that creative rankers read: those of a pre-ranker, and the creative's."""
    return tuple(field for field in fields if field.side in ("user", "context", "item", "creative"))


def is_of_ad(field: Field) -> bool:
    """Tell whether a field belongs to the ad's half: that of an ad, or of one of its creatives."""
    return field.side in ("item", "creative")


def told_by_counts(vocabulary: Vocabulary, table: PriorTable) -> Tensor:
    """Return what counts say of each value that owns a row, (R, 2); zeros for row 0 and where there are no counts."""
    told = np.zeros((len(vocabulary), DENSE), np.float32)
    at, is_counted = find(table.keys, vocabulary.keys)
    h = int(np.argmax(table.half_lives_s))
    told[1:][is_counted, 0] = deviations(table, vocabulary.keys[is_counted])
    told[1:][is_counted, 1] = np.log1p(table.n[at[is_counted], h]) * LOG_COUNT_SCALE
    return torch.from_numpy(told)


def shares_of(keys: Keys, fields: Sequence[Field]) -> Tensor:
    """Return each slot's share in its field's mean, (N, S)."""
    return torch.from_numpy(shares(keys, fields).astype(np.float32))


def pool(rows: Tensor, share: Tensor, vectors: Tensor, fields: Sequence[Field]) -> Tensor:
    """Return the mean vector of each field, (N, F, D + 2).

    Args:
        rows: Which vector each slot has, (N, S).
        share: See `shares_of`, (N, S).
        vectors: (R, D + 2).
        fields: Of the slots.
    """
    return pool_slots(functional.embedding(rows, vectors), share, fields)


def pool_slots(slots: Tensor, share: Tensor, fields: Sequence[Field]) -> Tensor:
    """Return the same of the vectors of slots, (N, S, D + 2)."""
    if slots.shape[1] == len(fields):
        return slots  # an absent value's vector is zeros already
    weighed = slots * share[:, :, None]
    return torch.stack([weighed[:, place].sum(dim=1) for place in field_slots(fields)], dim=1)


def split(pooled: Tensor, fields: Sequence[Field]) -> tuple[Tensor, Tensor]:
    """Return the fields of the request and those of the ad, (N, their F, D + 2)."""
    of_ad = torch.tensor([is_of_ad(field) for field in fields])
    return pooled[:, ~of_ad], pooled[:, of_ad]
