"""From thousands of candidates to the hundreds that are worth the ranker's time.

Owns the `Preranker`, which holds the halves of the catalog's ads for one snapshot, and pre-ranking by the prior alone,
for deployments that learn no pre-ranker. Must not know requests' bodies, the catalog's records or where snapshots come
from.

Invariants: a pre-ranker never changes: other ads make a new one; an ad's half is the same whether it was made with the
snapshot or within a request.

Shape legend: `K` candidates, `A` ads, `W` width of a half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from features.encode import encode, field_key
from features.fields import Field, id_field
from features.priors import PriorTable, lookup
from models.prerank.build import PRERANKERS, trunk_of
from models.prerank.heads import head_scores
from models.prerank.inputs import is_of_ad, pool, shares_of
from models.prerank.task import vectors_of
from models.prerank.trunk import Trunk
from models.serving.rank import Scores, candidate_frame
from models.serving.schema import Ad, Clean
from models.snapshot import Snapshot


class Preranker:
    """Scores of candidates by one snapshot.

    Attributes:
        version: The snapshot's.
        slide: The last slide that it has seen; None: none.
    """

    def __init__(
        self, snapshot: Snapshot, trunk: Trunk, vectors: Tensor, rows: Mapping[str, int], halves: Tensor
    ) -> None:
        """Put the parts together; `from_snapshot` is the way in."""
        self.version = snapshot.version
        self.slide = snapshot.slide
        self._snapshot = snapshot
        self._head = PRERANKERS[snapshot.network].head
        self._trunk = trunk
        self._vectors = vectors
        self._rows = rows
        self._halves = halves
        self._of_ad = tuple(field for field in snapshot.fields if is_of_ad(field))
        self._of_request = tuple(field for field in snapshot.fields if not is_of_ad(field))

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> Preranker:
        """Return a pre-ranker that holds no ad's half yet."""
        trunk = trunk_of(snapshot)
        empty = cls(snapshot, trunk, vectors_of(snapshot), {}, torch.zeros(0))
        return cls(snapshot, trunk, empty._vectors, {}, empty._ad_halves([Ad("", {})])[:0])

    def with_ads(self, ads: Mapping[str, Ad | None]) -> Preranker:
        """Return a pre-ranker that holds the halves of these ads as they are now; None: the ad is gone."""
        there = [ad for ad in ads.values() if ad is not None]
        kept = [(ad_id, row) for ad_id, row in self._rows.items() if ad_id not in ads]
        halves = self._halves[[row for _, row in kept]]
        if there:
            halves = torch.cat([halves, self._ad_halves(there)])
        order = [*(ad_id for ad_id, _ in kept), *(ad.ad_id for ad in there)]
        rows = {ad_id: row for row, ad_id in enumerate(order)}
        return Preranker(self._snapshot, self._trunk, self._vectors, rows, halves)

    def score(self, values: dict[str, Clean], ads: Sequence[Ad], from_catalog: Sequence[bool]) -> Scores:
        """Return what candidates are ranked by, (K,).

        Args:
            values: Of the request.
            ads: With all their values.
            from_catalog: Which of them have the values that the catalog holds, and no other.
        """
        if not ads:
            return np.zeros(0, np.float32)
        places = [self._rows.get(ad.ad_id, -1) if known else -1 for ad, known in zip(ads, from_catalog, strict=True)]
        with torch.inference_mode():
            at = torch.tensor(places)
            if new := [ad for ad, place in zip(ads, places, strict=True) if place < 0]:
                halves = torch.empty(len(ads), self._halves.shape[1])
                halves[at >= 0] = self._halves[at[at >= 0]]
                halves[at < 0] = self._ad_halves(new)
            else:
                halves = self._halves[at]
            outputs = self._trunk.join(self._request_half(values), halves)
            return head_scores(self._head, outputs).numpy()

    def _request_half(self, values: dict[str, Clean]) -> Tensor:
        return self._trunk.request_half(self._pooled(self._of_request, values, [Ad("", {})]))

    def _ad_halves(self, ads: Sequence[Ad]) -> Tensor:
        """Return the halves of ads, (A, W)."""
        with torch.inference_mode():
            return self._trunk.ad_half(self._pooled(self._of_ad, {}, ads))

    def _pooled(self, fields: Sequence[Field], values: dict[str, Clean], ads: Sequence[Ad]) -> Tensor:
        keys = encode(candidate_frame(fields, values, ads), fields)
        rows = torch.from_numpy(self._snapshot.vocabulary.rows(keys))
        return pool(rows, shares_of(keys, fields), self._vectors, fields)


def prior_rates(table: PriorTable, fields: Sequence[Field], ad_ids: Sequence[str], time_s: float) -> Scores:
    """Return the click rate of each ad as its counts alone say, in (0, 1), (K,).

    Args:
        table: Counts of the click model.
        fields: Of those counts.
        ad_ids: Of the candidates.
        time_s: Event time of the request; counts decay to it.
    """
    item = id_field(fields, "item")
    assert item is not None, "check_fields asks for an item id"
    keys = np.array([field_key(item, ad_id) for ad_id in ad_ids], np.uint64)
    found = lookup(table, keys[:, None], max(time_s, table.as_of_s))
    h = int(np.argmax(table.half_lives_s))
    root: npt.NDArray[np.float64] = (found.root_c[:, h] + 1.0) / (found.root_n[:, h] + 2.0)
    n, c = found.n[:, 0, h], np.minimum(found.c[:, 0, h], found.n[:, 0, h])
    strength = float(table.strength[fields.index(item), h])
    rates: Scores = ((c + strength * root) / (n + strength)).astype(np.float32)
    return rates
