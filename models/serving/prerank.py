"""From thousands of candidates to the hundreds that are worth the ranker's time.

Owns the `Preranker`, which holds the halves of the catalog's ads for one snapshot, and pre-ranking by the prior alone,
for deployments that learn no pre-ranker. Must not know requests' bodies, the catalog's records or where snapshots come
from.

Invariants: a pre-ranker never changes: other ads make a new one; an ad's half is the same whether it was made with the
snapshot or within a request.

Shape legend: `K` candidates, `A` ads, `W` width of a half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from features.encode import Keys
from features.fields import Field, id_field, slot_counts
from features.posteriors import overall_rate, smoothed
from features.priors import Floats, Ints, PriorTable, find, lookup_longest
from models.prerank.build import PRERANKERS, trunk_of
from models.prerank.heads import head_scores
from models.prerank.inputs import is_of_ad, pool, shares_of
from models.prerank.task import vectors_of
from models.prerank.trunk import Trunk
from models.serving.rank import Scores
from models.snapshot import Snapshot

NO_ADS = np.zeros(0, np.int64)


class Preranker:
    """Scores of candidates by one snapshot.

    Attributes:
        version: The snapshot's.
        slide: The last slide that it has seen; None: none.
        numbers: Of the ads whose halves it holds, ascending, (A,).
    """

    def __init__(self, snapshot: Snapshot, trunk: Trunk, vectors: Tensor, numbers: Ints, halves: Tensor) -> None:
        """Put the parts together; `from_snapshot` is the way in."""
        self.version = snapshot.version
        self.slide = snapshot.slide
        self._snapshot = snapshot
        self._head = PRERANKERS[snapshot.network].head
        self._trunk = trunk
        self._vectors = vectors
        self.numbers = numbers
        self._halves = halves
        self._of_ad = tuple(field for field in snapshot.fields if is_of_ad(field))
        self._of_request = tuple(field for field in snapshot.fields if not is_of_ad(field))

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> Preranker:
        """Return a pre-ranker that holds no ad's half yet."""
        bare = cls(snapshot, trunk_of(snapshot), vectors_of(snapshot), NO_ADS, torch.zeros(0))
        nothing = np.zeros((1, sum(slot_counts(bare._of_ad))), np.uint64)
        return cls(snapshot, bare._trunk, bare._vectors, NO_ADS, bare._ad_halves(nothing)[:0])

    def with_ads(self, ads: Mapping[int, Keys | None]) -> Preranker:
        """Return a pre-ranker that holds the halves of ads with these keys, (S,) each, by number; None: it is gone."""
        there = {number: keys for number, keys in ads.items() if keys is not None}
        kept = ~np.isin(self.numbers, list(ads))
        numbers, halves = self.numbers[kept], self._halves[torch.from_numpy(kept)]
        if there:
            numbers = np.concatenate([numbers, np.fromiter(there, np.int64)])
            halves = torch.cat([halves, self._ad_halves(np.stack(list(there.values())))])
        order = np.argsort(numbers)
        return Preranker(self._snapshot, self._trunk, self._vectors, numbers[order], halves[torch.from_numpy(order)])

    def score(self, request: Keys, numbers: Ints, keys: Callable[[Sequence[int]], Keys]) -> Scores:
        """Return what candidates are ranked by, (K,).

        Args:
            request: Keys of the request's values, (S,).
            numbers: Of what the candidates are known by, (K,); negative: it has none.
            keys: Gives the keys of candidates, by their places: of those whose halves it does not hold.
        """
        if not len(numbers):
            return np.zeros(0, np.float32)
        rows, is_held = find(self.numbers, numbers)
        with torch.inference_mode():
            halves = functional.embedding(torch.from_numpy(rows), self._halves) if len(self.numbers) else None
            if len(new := np.flatnonzero(~is_held)):
                made = self._ad_halves(keys(new.tolist()))
                halves = made.new_empty(len(numbers), made.shape[1]) if halves is None else halves
                halves[torch.from_numpy(new)] = made
            assert halves is not None
            outputs = self._trunk.join(self._half(self._trunk.request_half, request[None], self._of_request), halves)
            return head_scores(self._head, outputs).numpy()

    def _ad_halves(self, keys: Keys) -> Tensor:
        """Return the halves of ads, (A, W)."""
        with torch.inference_mode():
            return self._half(self._trunk.ad_half, keys, self._of_ad)

    def _half(self, half: Callable[[Tensor], Tensor], keys: Keys, fields: Sequence[Field]) -> Tensor:
        rows = torch.from_numpy(self._snapshot.vocabulary.rows(keys))
        return half(pool(rows, shares_of(keys, fields), self._vectors, fields))


def item_slots(fields: Sequence[Field]) -> npt.NDArray[np.int64]:
    """Return which slots of an ad's keys, in the order of these fields, a pre-ranker reads: not its creative's."""
    return np.flatnonzero(np.repeat([field.side == "item" for field in fields], slot_counts(fields)))


def prior_rates(table: PriorTable, fields: Sequence[Field], id_keys: Keys, time_s: float) -> Scores:
    """Return the click rate of each ad as its counts alone say, in (0, 1), (K,); arguments as for `prior_posterior`."""
    clicks, others = prior_posterior(table, fields, id_keys, time_s)
    rates: Scores = (clicks / (clicks + others)).astype(np.float32)
    return rates


def prior_posterior(table: PriorTable, fields: Sequence[Field], id_keys: Keys, time_s: float) -> tuple[Floats, Floats]:
    """Return the Beta posterior of each ad's click rate: clicks and others with the overall rate's, (K,) both.

    Args:
        table: Counts of the click model.
        fields: Of those counts.
        id_keys: Of the candidates, (K,).
        time_s: Event time of the request; counts decay to it.
    """
    item = id_field(fields, "item")
    assert item is not None, "check_fields asks for an item id"
    n, c, *root = lookup_longest(table, id_keys, max(time_s, table.as_of_s))
    return smoothed(n, c, overall_rate(*root), table.strength[fields.index(item), int(np.argmax(table.half_lives_s))])
