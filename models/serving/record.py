"""What was answered and on which values, as the log is to have it.

Owns what of a request is remembered: what was shown with its probabilities, what was ranked beside, and a sample of the
rest. Must not know how it was ranked, or how events are written.

Invariants: an ad's probability stands only beside the values that it was computed on; a retry of a request samples the
same.

Shape legend: `K` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from models.serving.ad_table import Creative
from models.serving.schema import Served
from models.serving.work import Work

_SAMPLE = 1  # the stream of a request's draws for what is sampled; chooser.py has another


def to_served(
    work: Work,
    kept: list[int],
    shown: Mapping[int, float],
    ranked_with: Mapping[int, Creative],
    *,
    split: str,
    sample_rate: float | None,
) -> Served:
    """Return the record of a request that is answered.

    Args:
        work: The request.
        kept: Places of the candidates that were ranked.
        shown: Places of those that are shown, best first, with their click probabilities.
        ranked_with: The creatives that candidates were ranked with, by place.
        split: Name of the experiment.
        sample_rate: With which probability others stand in the record, beside those that were ranked; None: neither.
    """
    found, is_ranked = work.found, "rank" not in work.degraded
    chosen = found.chosen
    pctrs = [pctr if ranked_with.get(index) is chosen.get(index) else None for index, pctr in shown.items()]
    served = Served(
        work.request_id,
        work.time_s,
        work.values,
        found.ads(shown),
        work.models.scorer.version,
        pctrs=pctrs if is_ranked else [],
        counts_s=work.models.scorer.counts_s,
        split=split if work.arm else "",
        arm=work.arm,
    )
    if sample_rate is None:
        return served
    others = np.ones(len(found), bool)  # (K,)
    others[kept] = False
    rest = np.flatnonzero(others)
    drawn = rest[np.random.default_rng([work.seed, _SAMPLE]).random(len(rest)) < sample_rate]
    return msgspec.structs.replace(
        served,
        ranked=found.ads_json([index for index in kept if index not in shown]),
        sampled=found.ads_json(drawn.tolist()),
        sample_rate=sample_rate,
    )
