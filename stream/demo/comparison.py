"""What learning on was worth: the models that went on learning against one that was left as it was.

Owns the scoring of later slides with a frozen snapshot, and the sums over slides. Must not know processes or screens.

The frozen model is what a deployment serves that is trained once: weights, vocabulary and counts stay those of the
snapshot. (Were its counts to decay on, its log loss would be 0.607 instead of 0.601 on MovieLens-1M, and 0.187 instead
of 0.189 in the simulated world.) All three models are judged on the same rows of the same slides, each before it could
have seen them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from infra.settings import Settings
from stream.families import example_decoder
from stream.feed import BlockFeed
from stream.roles import Cluster

if TYPE_CHECKING:
    from models.snapshot import Snapshot
    from models.window import Slide


class Score(msgspec.Struct, frozen=True):
    """How good one model's predictions were on some rows; None where that is not defined (one class only)."""

    rows: int
    clicks: int
    logloss: float | None
    auc: float | None
    calibration: float | None


@dataclass(frozen=True)
class Compared:
    """One slide, judged with three models."""

    slide: int
    frozen: Score
    champion: Score
    latest: Score


def to_score(evaluation: Mapping[str, Any]) -> Score:
    """Return the part of an announced evaluation that is compared."""
    return Score(**{name: evaluation[name] for name in Score.__struct_fields__})


def total(scores: Sequence[Score]) -> Score:
    """Return the score over all slides.

    Log loss and calibration are those of all rows together. Predictions of different slides come from different
    models, so AUC is the mean over slides, weighted by rows.
    """
    judged = [score for score in scores if score.logloss is not None]
    sums = [(score.rows, score.clicks, score.logloss or 0.0, score.calibration) for score in judged]
    rows, clicks = sum(score.rows for score in scores), sum(score.clicks for score in scores)
    rows_judged = sum(n for n, _, _, _ in sums)
    with_auc = [(score.rows, score.auc) for score in scores if score.auc is not None]
    rows_auc = sum(n for n, _ in with_auc)
    calibrated = [(n_clicks, ratio) for _, n_clicks, _, ratio in sums if ratio is not None]
    clicks_calibrated = sum(n_clicks for n_clicks, _ in calibrated)
    return Score(
        rows,
        clicks,
        logloss=sum(n * loss for n, _, loss, _ in sums) / rows_judged if rows_judged else None,
        auc=sum(n * auc for n, auc in with_auc) / rows_auc if rows_auc else None,
        calibration=sum(n * ratio for n, ratio in calibrated) / clicks_calibrated if clicks_calibrated else None,
    )


async def score_frozen(settings: Settings, cluster: Cluster, snapshot: Snapshot) -> AsyncIterator[tuple[int, Score]]:
    """Yield each later slide of `examples` with the score of a snapshot that learns nothing more."""
    from models.batch import Predictor
    from models.window import Slides, Window

    predictor = Predictor(snapshot)
    assert snapshot.slide is not None
    slides = Slides(slide_s=settings.window.slide_s, edges=settings.window.edges)
    window = Window(cluster.partitions, slides, first_open=snapshot.slide + 1)
    feed = BlockFeed(cluster, {}, "examples", example_decoder(settings.fields))
    async for block in feed.catch_up():
        window.add(block.header.partition, block.offset, block.header.watermark_s, block.frame)
        for slide in window.closed():
            yield slide.index, _score(slide, snapshot, predictor)


def _score(slide: Slide, snapshot: Snapshot, predictor: Any) -> Score:
    from features.encode import encode
    from features.priors import lookup
    from models.evaluate import evaluate

    keys = encode(slide.frame, snapshot.fields)
    predictions = predictor(keys, lookup(snapshot.priors, keys, snapshot.priors.as_of_s))
    evaluation = evaluate(predictions, slide.frame["click"].to_numpy())
    return Score(evaluation.rows, evaluation.clicks, evaluation.logloss, evaluation.auc, evaluation.calibration)
