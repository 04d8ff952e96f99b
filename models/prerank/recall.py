"""How good a pre-ranker is: recall of what was shown and clicked over all candidates, and AUC on what was shown.

Owns the definitions. Must not know models.

Invariants: requests without a target are left out, and how many were left is said; a tie is broken against the target,
so a model that scores all alike recalls nothing by chance.

Source: the metrics of arXiv:2310.08039.

Shape legend: `N` candidates, `T` targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.evaluate import Floats, Ints

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recall:
    """Mean share of a request's targets among its first K candidates.

    Attributes:
        requests: How many requests have a target.
        at: By K.
    """

    requests: int
    at: dict[int, float]


def recall(scores: npt.NDArray[np.floating], targets: Flags, requests: Ints, ks: Sequence[int]) -> Recall:
    """Return the recall over all candidates of each request.

    Args:
        scores: (N,), higher is better.
        targets: Which candidates are to be found, (N,).
        requests: Whose candidate each is, (N,).
        ks: How many candidates go on to the next stage.
    """
    _, request = np.unique(requests, return_inverse=True)
    order = np.lexsort((targets, -scores.astype(np.float64), request))  # of equal scores the targets stand last
    request, targets = request[order], targets[order]
    sizes = np.bincount(request)
    place = np.arange(len(request)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    n_targets = np.bincount(request, targets)
    with_any = n_targets > 0
    at = {k: np.bincount(request, targets & (place < k))[with_any] / n_targets[with_any] for k in ks}
    return Recall(int(with_any.sum()), {k: float(share.mean()) if len(share) else 0.0 for k, share in at.items()})


def agreement(scores: npt.NDArray[np.floating], ranker: Floats, requests: Ints, k: int) -> float:
    """Return the mean share of the ranker's first `k` candidates of a request that are among the pre-ranker's first.

    Args:
        scores: The pre-ranker's, (N,).
        ranker: The ranker's, (N,).
        requests: Whose candidate each is, (N,).
        k: How many candidates of a request.
    """
    _, request = np.unique(requests, return_inverse=True)
    order = np.lexsort((-ranker, request))
    sizes = np.bincount(request)
    place = np.empty(len(request), np.int64)
    place[order] = np.arange(len(request)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return recall(scores, place < k, requests, [k]).at[k]
