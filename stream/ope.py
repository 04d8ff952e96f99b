"""What other ways of choosing would have been worth on a log: learnt on its earlier part, judged on its later one.

Owns which slides are learnt and which are judged, the candidates of a row, and the names of the policies. Must not hold
estimators (models/ope/estimates.py) or learn otherwise than a backtest does.

A slide is judged by what would have served it: the champion as of the slide's start, with the counts that it has then.
After that it is learnt. So no row is judged by a model that knows its label.

Invariants: candidates of a row are the ads of the file that the log joins on the ad's id, or, without one, the ads
that the log has shown up to the end of the row's slide; what was shown but is none of them would never have been
chosen, and is counted; the same log, settings and seed give the same figures.

Shape legend: `N` rows of a slide, `K` candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import hash_strings
from features.fields import Field, id_field
from features.priors import CORRECTION, Floats
from infra.settings import LogSettings, Settings, SettingsError
from models.batch import Predictor
from models.click_task import ClickTask
from models.ope.candidates import ad_fields, ad_posteriors, places, score_pairs
from models.ope.estimates import Logged, Weights, dr, ips, logged_rate, snips, weigh
from models.ope.policies import epsilon_greedy, thompson, uniform
from models.snapshot import Snapshot
from models.update import Learner
from models.window import Slide, fit_columns
from stream.backtest import Backtest
from stream.logs.ads import read_ads
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals, read_frames
from stream.plan import new_plan

Policy = Literal["uniform", "greedy", "epsilon-greedy", "thompson"]
Cluster = Literal["request", "user-day"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

DAY_S = 86_400.0
PAIRS_MAX = 32_768  # pairs of a row and a candidate that are scored at a time: bounds the temporaries
THOMPSON_DRAWS = 10_000  # a probability of 1 % is counted to a tenth of itself
THOMPSON_FLOOR = 0.01  # chosen by hand: one choice in a hundred is blind
EFFECTIVE_ROWS_MIN = 100.0  # chosen by hand: 100 rows of a log of ads hold a handful of clicks
ERRORS_MAX = 4.0  # by so many standard errors may the mean weight differ from 1 before it is said
ROUNDING = 1e-9  # of a mean of weights that are all 1


@dataclass(frozen=True)
class Question:
    """What is asked of a log.

    Attributes:
        policies: Which.
        share: Of the log's rows that are learnt before the first one is judged, in [0, 1).
        epsilon: Share of blind choices of `epsilon-greedy`.
        alpha: Intervals hold with probability 1 - alpha.
        cluster: Which rows count as dependent.
        seed: Of Thompson's draws.
    """

    policies: tuple[Policy, ...] = POLICIES
    share: float = 0.5
    epsilon: float = 0.1
    alpha: float = 0.05
    cluster: Cluster = "request"
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """Some rows and what each policy would have made of them.

    Attributes:
        clicks: 0 or 1, (N,).
        propensities: With which they were shown, (N,).
        clusters: Hashes, (N,).
        predicted: The model's probability of what was shown; 0 where that is no candidate, (N,).
        chosen: Probability with which each policy shows what was shown, (N,) each.
        expected: Mean of the model's probabilities over what each policy shows, (N,) each.
        outside: Whether what was shown is no candidate, (N,).
    """

    clicks: Floats
    propensities: Floats
    clusters: npt.NDArray[np.int64]
    predicted: Floats
    chosen: dict[Policy, Floats]
    expected: dict[Policy, Floats]
    outside: npt.NDArray[np.bool_]


def check_question(settings: Settings, question: Question) -> LogSettings:
    """Check that a log can be asked this; return its settings.

    Raises:
        SettingsError: If not.
    """
    if settings.log is None:
        raise SettingsError("the file must hold a section [log] to judge policies on, got none; add it")
    if not settings.log.propensity:
        raise SettingsError(
            "[log] propensity must name the column with the probability with which each ad was shown, got none;"
            " without it nothing can be said of another policy: log it from now on (docs/ope.md)"
        )
    if not 0.0 <= question.share < 1.0:
        raise SettingsError(f"--share must be at least 0 and below 1, got {question.share}")
    if not 0.0 < question.alpha < 1.0:
        raise SettingsError(f"--alpha must be above 0 and below 1, got {question.alpha}")
    if not 0.0 <= question.epsilon <= 1.0:
        raise SettingsError(f"--epsilon must be 0 to 1, got {question.epsilon}")
    if question.cluster == "user-day" and id_field(settings.fields, "user") is None:
        raise SettingsError(
            '--cluster user-day needs one of [[fields]] of side = "user", kind = "category", got none; take request'
        )
    return settings.log


def policies_of(names: Sequence[str]) -> tuple[Policy, ...]:
    """Return the policies of these names, each once; all if none is named.

    Raises:
        SettingsError: If there is none of a name.
    """
    for name in names:
        if name not in POLICIES:
            raise SettingsError(f'--policy must be one of {", ".join(POLICIES)}, got "{name}"')
    return tuple(policy for policy in POLICIES if policy in names) or POLICIES


def run_ope(
    settings: Settings,
    bases: Sequence[Path],
    question: Question,
    rows: RowCounts,
    *,
    limit: int | None = None,
    on_slide: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the JSON object of `freshrank ope`: see docs/cli.md. The log is read twice: its rows are counted first.

    Args:
        settings: Of the deployment.
        bases: Where the log's files are looked for, in this order.
        question: What is asked.
        rows: Counts up as rows are read.
        limit: Stop after this many rows of the log.
        on_slide: Called with what has been done.

    Raises:
        SettingsError: As `check_question`; or if nothing is left to judge.
        LogError: If the log cannot be read or used.
    """
    log = check_question(settings, question)
    table = joined_ads(settings, log, bases)
    counted = RowCounts()
    for _ in read_frames(settings, bases, counted, limit=limit):
        pass
    n_rows = counted.used - counted.unexposed
    slides = Backtest(settings, read_arrivals(settings, bases, rows, limit=limit)).slides()
    found = judge_policies(settings, table, slides, question, n_rows=n_rows, on_slide=on_slide)
    return found | {"log": msgspec.to_builtins(rows)}


def judge_policies(
    settings: Settings,
    table: pl.DataFrame | None,
    slides: Iterable[Slide],
    question: Question,
    *,
    n_rows: int,
    on_slide: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return what slides say of policies.

    Args:
        settings: Of the deployment.
        table: Ads that may be chosen, of `joined_ads`; None: those that the log has shown.
        slides: Of the log, as a backtest cuts them.
        question: What is asked.
        n_rows: Of the log.
        on_slide: Called with what has been done.

    Raises:
        SettingsError: If nothing is left to judge, or there are too many candidates.
    """
    learner, rng = Learner(ClickTask(new_plan(settings))), np.random.default_rng(question.seed)
    ads, n_learnt, judged = table, 0, list[Judged]()
    for slide in slides:
        ads = _with_shown(ads, slide, settings.fields, is_closed=table is not None)
        if n_learnt < question.share * n_rows:
            n_learnt += slide.frame.height
        else:
            _check_number(ads, settings)
            judged += _judge_slide(slide, learner.champion, ads, question, rng)
        learner.learn(slide)
        on_slide(f"slide {slide.index} {'judged and ' if judged else ''}learnt")
    if not judged:
        raise SettingsError(
            f"--share must leave slides to judge, got {question.share}; make it smaller or [window] slide_s shorter"
        )
    assert ads is not None
    return {"name": settings.name, "learnt_rows": n_learnt, "candidates": ads.height} | _report(judged, question)


def joined_ads(settings: Settings, log: LogSettings, bases: Sequence[Path]) -> pl.DataFrame | None:
    """Return the ads of the files that the log is joined with: `ad_id` and a column per field of a candidate.

    A field that the files do not hold is null. None if no file is joined on the ad's id.
    """
    if not (found := read_ads(log, settings.fields, bases).ads):
        return None
    fields = ad_fields(settings.fields)
    values = {field.column: [ad.values.get(field.name) for ad in found.values()] for field in fields}
    return fit_columns(pl.DataFrame({"ad_id": list(found)} | values), fields)


def _with_shown(ads: pl.DataFrame | None, slide: Slide, fields: Sequence[Field], *, is_closed: bool) -> pl.DataFrame:
    """Return the candidates with the values that they were last shown with; a closed table gains none."""
    shown = slide.frame.select("ad_id", *(field.column for field in ad_fields(fields)))
    if ads is None:
        return shown.unique("ad_id", keep="last", maintain_order=True)
    if is_closed:
        shown = shown.join(ads, on="ad_id", how="semi")
    return pl.concat([ads.select(shown.columns), shown]).unique("ad_id", keep="last", maintain_order=True)


def _check_number(ads: pl.DataFrame, settings: Settings) -> None:
    if ads.height > settings.serve.candidates_max:
        raise SettingsError(
            f"a row may have [serve] candidates_max = {settings.serve.candidates_max} candidates, got {ads.height}"
            "; join a table of those that could have been shown, or raise it"
        )


def _judge_slide(
    slide: Slide, snapshot: Snapshot, ads: pl.DataFrame, question: Question, rng: np.random.Generator
) -> Iterator[Judged]:
    frame, predictor = slide.frame.filter(pl.col("kind") != CORRECTION), Predictor(snapshot)
    choosers = _choosers(snapshot, ads, question, rng)
    for rows in frame.iter_slices(max(PAIRS_MAX // ads.height, 1)):
        scores = score_pairs(snapshot, predictor, rows, ads)  # (N, K)
        probabilities = {name: choose(scores) for name, choose in choosers.items()}  # (N, K) each
        place = places(rows, ads)
        outside, shown = place < 0, (np.arange(rows.height), np.maximum(place, 0))
        yield Judged(
            clicks=rows["click"].to_numpy().astype(np.float64),
            propensities=rows["propensity"].to_numpy(),
            clusters=_clusters(rows, snapshot.fields, question.cluster),
            predicted=np.where(outside, 0.0, scores[shown]),
            chosen={name: np.where(outside, 0.0, one[shown]) for name, one in probabilities.items()},
            expected={name: (one * scores).sum(axis=1) for name, one in probabilities.items()},
            outside=outside,
        )


def _choosers(
    snapshot: Snapshot, ads: pl.DataFrame, question: Question, rng: np.random.Generator
) -> dict[Policy, Callable[[Floats], Floats]]:
    """Return how each policy turns scores, (N, K), into probabilities."""
    choosers: dict[Policy, Callable[[Floats], Floats]] = {
        "uniform": lambda scores: uniform(scores.shape),
        "greedy": lambda scores: epsilon_greedy(scores, 0.0),
        "epsilon-greedy": lambda scores: epsilon_greedy(scores, question.epsilon),
    }
    if "thompson" in question.policies:
        drawn = thompson(*ad_posteriors(snapshot, ads), draws=THOMPSON_DRAWS, floor=THOMPSON_FLOOR, rng=rng)
        choosers["thompson"] = lambda scores: np.broadcast_to(drawn, scores.shape)
    return {name: choosers[name] for name in question.policies}


def _clusters(rows: pl.DataFrame, fields: Sequence[Field], cluster: Cluster) -> npt.NDArray[np.int64]:
    """Return a hash per row of what it belongs to; a row without a user belongs to its request."""
    name = pl.col("request_id")
    if cluster == "user-day":
        user = id_field(fields, "user")
        assert user is not None, "check_question asks for a user id"
        day = (pl.col("time_s") // DAY_S).cast(pl.Int64).cast(pl.String)
        name = pl.coalesce(pl.concat_str([pl.col(user.column), day], separator="\x1f"), name)
    return hash_strings(rows.select(name.alias("name"))["name"]).view(np.int64)


def _report(judged: Sequence[Judged], question: Question) -> dict[str, Any]:
    def column(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in judged])

    logged = Logged(column("clicks"), column("propensities"), column("clusters"))
    predicted, alpha = column("predicted"), question.alpha
    policies = {}
    for name in question.policies:
        chosen = np.concatenate([part.chosen[name] for part in judged])
        expected = np.concatenate([part.expected[name] for part in judged])
        weights = weigh(logged, chosen)
        estimates = {
            "ips": ips(logged, chosen, alpha),
            "snips": snips(logged, chosen, alpha),
            "dr": dr(logged, chosen, predicted, expected, alpha),
        }
        policies[name] = {key: asdict(one) for key, one in estimates.items()} | asdict(weights)
        policies[name]["warnings"] = _warnings(weights)
    return {
        "rows": len(logged.clicks),
        "clicks": int(logged.clicks.sum()),
        "clusters": len(np.unique(logged.clusters)),
        "outside": int(column("outside").sum()),
        "question": asdict(question) | {"draws": THOMPSON_DRAWS, "floor": THOMPSON_FLOOR},
        "logged": asdict(logged_rate(logged, alpha)),
        "policies": policies,
    }


def _warnings(weights: Weights) -> list[str]:
    lines = []
    if weights.effective_rows < EFFECTIVE_ROWS_MIN:
        lines.append(f"{weights.effective_rows:.0f} effective rows: the log says next to nothing about it")
    if abs(weights.mean - 1.0) > ERRORS_MAX * weights.mean_error + ROUNDING:
        lines.append(
            f"weights must be 1 in the mean, got {weights.mean:.3f}: wrong propensities, or candidates never shown"
        )
    return lines
