"""Why an ad got its score: what was known of each field, what the base and the network made of it, and what counted.

Owns how a score is taken apart, and the answer that says so. Must not know HTTP or Kafka, nor how a request is ranked
(pipeline.py): it takes apart what that came to.

Invariants: an ad's probability is the one that ranking gave it; terms of a logit add up to it; a field's effect is
the probability as it is minus the one that the same model gives without the field, so what two fields say only together
counts for both.

Shape legend: `A` ads, `F` fields, `S` slots, `H` half-lives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from features.encode import Keys
from features.fields import Field, field_slots
from features.posteriors import posterior_rates
from models.networks.logistic import calibration_inputs
from models.serving.ad_table import Resolved
from models.serving.rank import Scorer, Scores, best_first
from models.serving.schema import (
    EXPLAINED_MAX,
    Clean,
    Evidence,
    ExplainAnswer,
    ExplainedAd,
    ExplainedField,
    RankQuery,
    Terms,
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """A request that was ranked, with all that came of it.

    Attributes:
        fields: Of the deployment.
        values: Of the request and its user.
        found: The candidates that may be ranked, with the creatives that were chosen.
        kept: Places of those that were ranked.
        pctrs: Theirs.
        prerank_scores: Of all candidates; None: they were few enough to rank them all.
        keys: Gives the keys of candidates by their places.
    """

    fields: Sequence[Field]
    request_id: str
    query: RankQuery
    time_s: float
    scorer: Scorer
    values: Mapping[str, Clean]
    found: Resolved
    kept: list[int]
    pctrs: Scores
    prerank: str
    prerank_scores: Scores | None
    degraded: list[str]
    keys: Callable[[Sequence[int]], Keys]

    def at(self, index: int) -> dict[str, Clean]:
        """Return the values that a candidate was scored on."""
        return {**self.values, **self.found.values(index)}


@dataclass(frozen=True)
class _Parts:
    """Scores of the ads that are explained, taken apart.

    Attributes:
        pctrs: (A, 1 + F).
        terms: Of each ad.
        n: Impressions, (A, S, H).
        c: Clicks, at most as many, (A, S, H).
        rates: (A, S, H).
        rows: Embedding rows, 0 where there is none, (A, S).
    """

    keys: Keys
    pctrs: Scores
    terms: list[Terms]
    n: Floats
    c: Floats
    rates: Floats
    rows: npt.NDArray[np.int64]


class _Standing(NamedTuple):
    """Places of candidates, best first: those that were ranked, and all as they were pre-ranked."""

    ranked: list[int]
    preranked: list[int] | None


def explain(trace: Trace, wanted: Sequence[str]) -> ExplainAnswer:
    """Return why ads of a request have their scores.

    Args:
        trace: The request.
        wanted: Which ads; none: the best, as many as an answer holds, `EXPLAINED_MAX` at most.
    """
    found, kept = trace.found, trace.kept
    order = [kept[index] for index in _order(trace.pctrs * found.bids(kept))]
    places = {ad_id: index for index, ad_id in enumerate(found.ids)}
    chosen = [places[ad_id] for ad_id in wanted if ad_id in places]
    if not wanted:
        chosen = order[: min(trace.query.top, EXPLAINED_MAX)]
    ads: list[ExplainedAd] = []
    if chosen:
        parts = _take_apart(trace, trace.keys(chosen))
        standing = _Standing(order, None if trace.prerank_scores is None else _order(trace.prerank_scores))
        ads = [_explained(trace, standing, parts, number, index) for number, index in enumerate(chosen)]
    return ExplainAnswer(
        request_id=trace.request_id,
        snapshot=trace.scorer.version,
        time_s=trace.time_s,
        half_lives_s=trace.scorer.table.half_lives_s.tolist(),
        ads=ads,
        prerank=trace.prerank,
        unexplained=[ad_id for ad_id in wanted if ad_id not in places],
        degraded=trace.degraded,
        ignored_fields=trace.query.ignored_fields,
    )


def _take_apart(trace: Trace, keys: Keys) -> _Parts:
    scorer, fields, time_s = trace.scorer, trace.fields, trace.time_s
    rows = np.concatenate([keys[:, None], without_each(keys, fields)], axis=1)  # (A, 1 + F, S)
    counts = scorer.counts(keys, time_s)
    return _Parts(
        keys=keys,
        pctrs=scorer.score(rows.reshape(-1, keys.shape[1]), time_s).reshape(len(keys), -1),
        terms=_terms(scorer, scorer.logits(keys, time_s)),
        n=counts.n,
        c=np.minimum(counts.c, counts.n),
        rates=posterior_rates(counts, keys, scorer.table, fields, scorer.snapshot.levels),
        rows=scorer.snapshot.vocabulary.rows(keys),
    )


def _explained(trace: Trace, standing: _Standing, parts: _Parts, number: int, index: int) -> ExplainedAd:
    found, scores = trace.found, trace.prerank_scores
    is_ranked = index in trace.kept
    pctr = float(trace.pctrs[trace.kept.index(index)] if is_ranked else parts.pctrs[number, 0])
    bid_micros, creative = int(found.bids([index])[0]), found.chosen.get(index)
    return ExplainedAd(
        ad_id=found.ids[index],
        position=standing.ranked.index(index) if is_ranked else None,
        pctr=pctr,
        known=found.held(index) is not None,
        bid_micros=bid_micros,
        ecpm_micros=pctr * bid_micros * 1000.0,
        creative_id=creative.creative_id if creative else "",
        prerank_score=None if scores is None else float(scores[index]),
        prerank_position=None if standing.preranked is None else standing.preranked.index(index),
        terms=parts.terms[number],
        fields=_fields(trace.fields, trace.at(index), parts, number),
    )


def _order(scores: npt.NDArray[np.floating]) -> list[int]:
    order: list[int] = best_first(scores, len(scores)).tolist()
    return order


def _fields(fields: Sequence[Field], values: Mapping[str, Clean], parts: _Parts, number: int) -> list[ExplainedField]:
    n, c, rates = parts.n[number], parts.c[number], parts.rates[number]
    return [
        ExplainedField(
            name=field.name,
            values={name: values.get(name) for name in field.of or (field.name,)},
            evidence=[
                Evidence(
                    n[slot].tolist(), c[slot].tolist(), rates[slot].tolist(), has_row=bool(parts.rows[number, slot] > 0)
                )
                for slot in range(place.start, place.stop)
                if parts.keys[number, slot] != 0
            ],
            effect=float(parts.pctrs[number, 0]) - float(parts.pctrs[number, 1 + f]),
        )
        for f, (field, place) in enumerate(zip(fields, field_slots(fields), strict=True))
    ]


def without_each(keys: Keys, fields: Sequence[Field]) -> Keys:
    """Return rows without one field each, and without the crosses of which it is a part, (A, F, S)."""
    found = np.repeat(keys[:, None], len(fields), axis=1)
    for number, field in enumerate(fields):
        for other, place in zip(fields, field_slots(fields), strict=True):
            if other == field or field.name in other.of:
                found[:, number, place] = 0
    return found


def _terms(scorer: Scorer, logits: Scores) -> list[Terms]:
    """Return what base and network say of each row, as they are and as the calibration weighs them."""
    read = calibration_inputs(torch.from_numpy(logits).to(torch.float64))
    weighed = (read * scorer.snapshot.tensors["calibration.weight"]).numpy()
    return [
        Terms(
            base_logit=float(base),
            network_logit=float(network),
            calibrated_base=float(of_base),
            calibrated_network=float(of_network),
            calibrated_level=float(of_level),
        )
        for (base, network), (of_base, of_network, of_level) in zip(logits, weighed, strict=True)
    ]
