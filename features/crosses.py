"""Which pairs of fields are worth a prior of their own: chosen by the rows of a warm-up.

Owns the choice of crosses. Must not know networks, settings or what is done with the choice.

A cross is judged as it would be used: by the dense inputs of its live counts, beside those of the fields that are there
already, in a logistic regression that predicts each stretch of time before it learns it. Its gain is what it takes off
the log loss of rows that came later than those it was fitted on.

Invariants: a row sees what had settled as of its request, never its own label or that of a row beside it; a gain is
counted on rows that came after those which fitted it; the choice is a function of the rows; the first cross is beyond
chance, so a log without interactions gets hardly any; of those that follow up to about half may be chance.

Shape legend: `N` rows judged, `M` settled rows, `S` slots, `P` dense inputs, `Q` those of one candidate, `E` stretches.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import Keys, cross_keys, encode, slot_fields
from features.fields import Field, raw_fields, slot_counts
from features.point_in_time import point_in_time
from features.posteriors import ROOT_INPUT, dense_inputs
from features.priors import CORRECTION, Floats, PriorTable, SettledRows, advance, codes
from features.strength import fit_strength

ROWS_MAX = 160_000  # newest rows judged: bounds time and memory; chosen by hand
ROW_PAIRS_MAX = 32_000_000  # rows times candidates: more fields are screened on fewer rows, in the same time
COUNTED_PER_JUDGED = 4  # so many times as many older rows are counted, though not judged: they are far cheaper
FITTED_SHARE = 1 / 3  # of the rows judged, the oldest, which fit before any gain is counted; chosen by hand
STRETCHES = 16  # of the later rows: each is predicted by what was fitted before it; chosen by hand
CLUSTERS = 48  # pieces of time whose sums are taken as independent; chosen by hand
CHANCE = 0.05  # probability of choosing anything from a log without interactions, over all candidates together; usual
FALSE_SHARE = 0.5  # of the chosen, once one is: a false cross costs less than a right one brings (docs/results.md)
GAIN_MIN = 1e-4  # share of the log loss that a cross must be worth: about what a useless one costs on two logs
FINALISTS = 32  # candidates, best first, that are judged with all memories; chosen by hand
BATCH = 8  # candidates counted in one pass; more would save little and take more memory
CLASS_MIN = 100  # clicks, and others, in each part of the rows judged: sums of fewer are far from normal
REPEATS_MIN = 0.05  # share of values that come again: with fewer there is nothing to count; chosen by hand
RIDGE = 10.0  # doubt about each weight, in curvature, as in models/networks/logistic.py
NEWTON_STEPS = 6  # from the overall rate on; chosen by hand


@dataclass(frozen=True)
class ChosenCross:
    """A cross that pays.

    Attributes:
        field: It, with side `cross`.
        gain: What it takes off the log loss beside the fields and the crosses chosen before it, nats per row: off later
            rows than those it was fitted on, once its weights are known.
        z_score: How far its rate and what is left of the clicks go together, in standard errors.
        cells: Its distinct values among the rows counted.
    """

    field: Field
    gain: float
    z_score: float
    cells: int


def choose_crosses(
    frame: pl.DataFrame,
    fields: Sequence[Field],
    *,
    half_lives_s: Sequence[float],
    levels: Sequence[str],
    crosses_max: int,
    cells_max: int,
) -> list[ChosenCross]:
    """Return the pairs of fields whose crosses lower the log loss of later rows, in the order in which they were taken.

    Greedy: the best candidate beside what is there, then the best beside that. The first must be beyond chance: it says
    that fields act together at all. Where they do more are taken, until over `FALSE_SHARE` of them could be chance: a
    right one missed costs more than a false one taken. Time and memory are bounded, however long the frame: of a long
    one the newest rows are judged.

    Args:
        frame: A frame of examples: the rows of the warm-up.
        fields: What is there already, crosses included; candidates are the pairs that they do not name.
        half_lives_s: Memories of the priors.
        levels: Back-off of the priors, fine to coarse.
        crosses_max: How many crosses to choose at most.
        cells_max: How many distinct values they may have among them.

    Source: ours; forward selection by the partial regression (Frisch, Waugh 1933; Lovell 1963) of one Fisher step.
    """
    pairs = _pairs(fields) if crosses_max > 0 else []
    log = _read(frame, fields, min(ROWS_MAX, ROW_PAIRS_MAX // len(pairs))) if pairs else None
    if log is None:
        return []
    dense = _inputs(log, fields, log.keys, log.settled.keys, half_lives_s=half_lives_s, levels=levels)
    base = _fit(dense.astype(np.float64), log)
    candidates = _promising(log, pairs, cells_max)
    if not candidates:
        return []
    finalists = _finalists(log, base, candidates, max(half_lives_s), _z_min(crosses_max, len(candidates)))
    inputs = {one.field.name: _cross_inputs(log, [one.field], half_lives_s)[0] for one in finalists}
    finalists = [_judged(base, one, inputs[one.field.name].astype(np.float64)) for one in finalists]
    chosen: list[ChosenCross] = []
    while len(chosen) < crosses_max:
        room, z_min = cells_max - sum(one.cells for one in chosen), _z_min(len(chosen) + 1, len(candidates))
        best = _best(base, finalists, inputs, room, z_min)
        if best is None:
            break
        chosen.append(best)
        finalists = [one for one in finalists if one.field != best.field]
        base = _fit(np.concatenate([base.x, inputs[best.field.name]], axis=1), log)
    return chosen


@dataclass(frozen=True)
class _Log:
    """The rows judged, by the moment of their requests, and what settled.

    Attributes:
        fields: Of the slots.
        keys: (N, S).
        shown_s: Ascending, (N,).
        clicks: 0 or 1, (N,).
        settled: Every row counted, (M,).
        bounds: Where the fitted rows end and each stretch after them, E + 1 places.
    """

    fields: tuple[Field, ...]
    keys: Keys
    shown_s: Floats
    clicks: Floats
    settled: SettledRows
    bounds: tuple[int, ...]


@dataclass(frozen=True)
class _Base:
    """A logistic regression fitted on the first rows, and what each stretch of later rows would have it learn.

    Attributes:
        x: (N, P).
        residual: Click less predicted rate by the fit on the first rows, (N,).
        weight: Second derivative of the log loss there, (N,).
        inverse: Of the curvature of all rows before each stretch, and of all rows, (E + 1, P, P).
        gradient: Of all rows before each stretch, (E, P).
        scores: Of pieces of time, (CLUSTERS, P).
        logits: Those of the later rows by what was learnt before their stretch, (N,).
        losses: Log loss of each of the later rows.
        clicks: 0 or 1, (N,).
        bounds: Those of the log.
    """

    x: Floats
    residual: Floats
    weight: Floats
    inverse: Floats
    gradient: Floats
    scores: Floats
    logits: Floats
    losses: Floats
    clicks: Floats
    bounds: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean log loss of the later rows, nats."""
        return float(self.losses.mean())


def _pairs(fields: Sequence[Field]) -> list[Field]:
    """Return all crosses of two fields that are not named already and that can be encoded."""
    names, there = {field.name for field in fields}, {frozenset(field.of) for field in fields}
    crosses = []
    for a, b in itertools.combinations(raw_fields(fields), 2):
        if a.kind == b.kind == "categories" or {a.name, b.name} in there:
            continue
        name = f"{a.name}_x_{b.name}"
        while name in names:
            name += "_"
        crosses.append(Field(name, "cross", of=(a.name, b.name)))
    return crosses


def _read(frame: pl.DataFrame, fields: Sequence[Field], rows_max: int) -> _Log | None:
    """Return the newest rows, or None when they are too few to tell anything.

    Rows shown before anything had settled are not judged: where clicks are long waited for they would be all that fits.
    """
    frame = frame.sort("settled_s", maintain_order=True).tail((1 + COUNTED_PER_JUDGED) * rows_max)
    keys = encode(frame, fields)
    shown = pl.col("time_s").min().over("request_id")  # as of the request
    judged = (pl.col("kind") != CORRECTION) & (shown > pl.col("settled_s").min())
    shown_s, is_judged = (column.to_numpy() for column in frame.select(s=shown, j=judged))
    order = np.argsort(shown_s, kind="stable")
    order = order[is_judged[order]][-rows_max:]
    clicks = frame["click"].to_numpy().astype(np.float64)[order]
    edges = np.linspace(FITTED_SHARE, 1.0, STRETCHES + 1) * len(order)
    bounds = tuple(int(edge) for edge in edges)
    parts = clicks[: bounds[0]], clicks[bounds[0] :]
    if min(min(part.sum(), (1.0 - part).sum()) for part in parts) < CLASS_MIN:
        return None
    return _Log(tuple(fields), keys[order], shown_s[order], clicks, SettledRows.from_frame(frame, keys), bounds)


def _inputs(
    log: _Log,
    fields: Sequence[Field],
    keys: Keys,
    settled_keys: Keys,
    *,
    half_lives_s: Sequence[float],
    levels: Sequence[str] = (),
) -> npt.NDArray[np.float32]:
    """Return the dense inputs of the rows judged; strengths are those that the fitted rows speak for."""
    settled, slot_field = dataclasses.replace(log.settled, keys=settled_keys), slot_fields(fields)
    first_s, fitted = np.nextafter(log.shown_s[0], -np.inf), slice(0, log.bounds[0])
    table = PriorTable.empty(half_lives_s, len(fields))
    table = advance(table, settled.between(-np.inf, first_s), first_s, slot_field=slot_field)
    later = settled.between(first_s, log.shown_s[-1])
    counts = point_in_time(table, later, keys, log.shown_s, slot_counts(fields))
    table = fit_strength(counts.take(fitted), keys[fitted], log.clicks[fitted], table, fields, levels)
    return dense_inputs(counts, keys, table, fields, levels)


def _cross_keys(log: _Log, cross: Field, keys: Keys) -> Keys:
    """Return the keys of a cross from those of all fields."""
    slot_field, names = slot_fields(log.fields), [field.name for field in log.fields]
    parts = [keys[:, slot_field == names.index(part)] for part in cross.of]
    return cross_keys(cross, parts, max(part.shape[1] for part in parts))


def _cross_inputs(log: _Log, crosses: Sequence[Field], half_lives_s: Sequence[float]) -> list[npt.NDArray[np.float32]]:
    """Return the dense inputs of each cross alone, (N, Q) each."""
    judged, settled = ([_cross_keys(log, cross, keys) for cross in crosses] for keys in (log.keys, log.settled.keys))
    alone = [
        Field(cross.name, "item", "categories", values_max=keys.shape[1])
        for cross, keys in zip(crosses, judged, strict=True)
    ]
    h = len(half_lives_s)
    keys, settled_keys = (np.concatenate(parts, axis=1) for parts in (judged, settled))
    dense = _inputs(log, alone, keys, settled_keys, half_lives_s=half_lives_s)
    by_kind = dense[:, 1 + h :].reshape(len(dense), 2, len(crosses), h)  # rates, then evidence
    return [by_kind[:, :, i].reshape(len(dense), 2 * h) for i in range(len(crosses))]


def _fit(x: Floats, log: _Log) -> _Base:
    """Return the regression on (N, P) inputs."""
    y, bounds, first = log.clicks, log.bounds, slice(0, log.bounds[0])
    start = np.zeros(x.shape[1])
    start[ROOT_INPUT] = 1.0
    weights = start
    for _ in range(NEWTON_STEPS):
        p = _rate(x[first] @ weights)
        gradient = x[first].T @ (y[first] - p) + RIDGE * (start - weights)
        weights = weights + np.linalg.solve(_curvature(x[first], p * (1.0 - p)) + RIDGE * np.eye(len(start)), gradient)
    logits = x @ weights
    p = _rate(logits)
    residual, weight = y - p, p * (1.0 - p)
    curvature = RIDGE * np.eye(len(start)) + _curvature(x[first], weight[first])
    gradient = RIDGE * (start - weights) + x[first].T @ residual[first]
    inverses, gradients = [], []
    for stretch in _stretches(bounds):
        inverses.append(np.linalg.inv(curvature))
        gradients.append(gradient)
        logits[stretch] += x[stretch] @ (inverses[-1] @ gradient)
        curvature = curvature + _curvature(x[stretch], weight[stretch])
        gradient = gradient + x[stretch].T @ residual[stretch]
    later = slice(bounds[0], None)
    return _Base(
        x=x,
        residual=residual,
        weight=weight,
        inverse=np.stack([*inverses, np.linalg.inv(curvature)]),
        gradient=np.stack(gradients),
        scores=_by_cluster(x * residual[:, None]),
        logits=logits,
        losses=_losses(logits[later], y[later]),
        clicks=y,
        bounds=bounds,
    )


def _best(
    base: _Base, finalists: Sequence[ChosenCross], inputs: dict[str, npt.NDArray[np.float32]], room: int, z_min: float
) -> ChosenCross | None:
    """Return the candidate that gains the most beside a base, of those that fit, are worth it and are hardly chance."""
    best: ChosenCross | None = None
    for one in _ranked(finalists):
        if best is not None and best.gain >= one.gain:
            break  # what was chosen since takes from the gain that the others had
        now = _judged(base, one, inputs[one.field.name].astype(np.float64))
        if now.cells > room or now.gain < GAIN_MIN * base.loss or now.z_score < z_min:
            continue
        if best is None or now.gain > best.gain:
            best = now
    return best


def _z_min(n: int, n_candidates: int) -> float:
    """Return the z-score that the n-th cross must have, in errors estimated from `CLUSTERS` pieces of time.

    Source: Bonferroni for the first, then Benjamini, Hochberg 1995 at a far looser level; Student's quantile by its
    first expansion (Abramowitz, Stegun 26.7.5).
    """
    expected = CHANCE if n == 1 else FALSE_SHARE * n  # false ones among the n
    z = NormalDist().inv_cdf(1.0 - min(expected / n_candidates, 0.5))
    return z + (z**3 + z) / (4.0 * (CLUSTERS - 1))


def _judged(base: _Base, cross: ChosenCross, z: Floats) -> ChosenCross:
    """Return a cross with what its inputs (N, Q) are worth beside a base."""
    x, q = base.x, z.shape[1]
    first, later = slice(0, base.bounds[0]), slice(base.bounds[0], None)
    weighted = z * base.weight[:, None]
    across, own = x[first].T @ weighted[first], z[first].T @ weighted[first] + RIDGE * np.eye(q)
    gradient = z[first].T @ base.residual[first]
    logits, learning = base.logits.copy(), 0.0
    for stretch, inverse, base_gradient in zip(_stretches(base.bounds), base.inverse[:-1], base.gradient, strict=True):
        explained = inverse @ across  # (P, Q): how the inputs that are there predict these
        unknown = np.linalg.inv(own - across.T @ explained)  # (Q, Q) covariance of the weights
        step = unknown @ (gradient - explained.T @ base_gradient)
        logits[stretch] += z[stretch] @ step - x[stretch] @ (explained @ step)
        learning += (q - RIDGE * np.trace(unknown)) / (2.0 * stretch.start) * (stretch.stop - stretch.start)
        across = across + x[stretch].T @ weighted[stretch]
        own = own + z[stretch].T @ weighted[stretch]
        gradient = gradient + z[stretch].T @ base.residual[stretch]
    gain = float((base.losses - _losses(logits[later], base.clicks[later])).sum() + learning) / len(base.losses)
    rate = q // 2 - 1  # of the longest memory
    sums = _by_cluster(z[:, rate] * base.residual) - base.scores @ (base.inverse[-1] @ across[:, rate])
    spread = max(float(sums.std(ddof=1)), np.finfo(np.float64).tiny)
    return dataclasses.replace(cross, gain=gain, z_score=float(sums.mean()) / (spread / math.sqrt(CLUSTERS)))


def _finalists(
    log: _Log, base: _Base, crosses: Sequence[ChosenCross], half_life_s: float, z_min: float
) -> list[ChosenCross]:
    """Return the candidates that are hardly chance, those that gain the most in one memory first."""
    found = []
    for some in _batches(crosses):
        inputs = _cross_inputs(log, [one.field for one in some], [half_life_s])
        found += [_judged(base, one, z.astype(np.float64)) for one, z in zip(some, inputs, strict=True)]
    return _ranked([one for one in found if one.z_score >= z_min])[:FINALISTS]


def _promising(log: _Log, crosses: Sequence[Field], cells_max: int) -> list[ChosenCross]:
    """Return the candidates whose counts can say what their parts' do not, their gains unknown."""
    slot_field, keys = slot_fields(log.fields), log.settled.keys
    sets = {field.name: _distinct_sets(keys[:, slot_field == i]) for i, field in enumerate(log.fields)}
    found = []
    for field in crosses:
        own = _cross_keys(log, field, keys)
        cells, entries = _distinct(own), int(np.count_nonzero(own))
        told_by_a_part = _distinct_sets(own) <= max(sets[part] for part in field.of)
        if not told_by_a_part and cells <= min(cells_max, (1.0 - REPEATS_MIN) * entries):
            found.append(ChosenCross(field, 0.0, 0.0, cells))
    return found


def _batches(crosses: Sequence[ChosenCross]) -> list[Sequence[ChosenCross]]:
    return [crosses[first : first + BATCH] for first in range(0, len(crosses), BATCH)]


def _ranked(crosses: Sequence[ChosenCross]) -> list[ChosenCross]:
    return sorted(crosses, key=lambda cross: -cross.gain)


def _distinct_sets(keys: Keys) -> int:
    """Return how many sets of values rows have, (N, S)."""
    return _distinct(keys.sum(axis=1, dtype=np.uint64))


def _distinct(keys: Keys) -> int:
    return len(codes(keys[keys != 0])[0])


def _by_cluster(values: Floats) -> Floats:
    """Return the sums of rows by piece of time, (N, ...) to (CLUSTERS, ...)."""
    first = np.arange(CLUSTERS) * len(values) // CLUSTERS
    sums: Floats = np.add.reduceat(values, first, axis=0)
    return sums


def _stretches(bounds: Sequence[int]) -> list[slice]:
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def _curvature(x: Floats, weight: Floats) -> Floats:
    product: Floats = (x * weight[:, None]).T @ x
    return product


def _rate(logits: Floats) -> Floats:
    rate: Floats = np.exp(-np.logaddexp(0.0, -logits))
    return rate


def _losses(logits: Floats, clicks: Floats) -> Floats:
    losses: Floats = np.logaddexp(0.0, logits) - clicks * logits
    return losses
