"""Do the intervals of off-policy estimates hold? `python -m bench.ope --logs 1000 --json FILE`.

Logs are drawn from a simulated world (stream/simulate.py) whose click probabilities are known. A context is a user at a
moment with ten ads to choose from; contexts come in clusters, a user's day, whose mood moves all click rates together
(`MOOD_SD`, logits). One population of clusters is drawn, a log is clusters of it drawn with replacement, so what a
policy is worth is a mean over the population, exactly. Click rates of the world are multiplied by `thin`: ads are
clicked less often than its 5 %. The reward model of DR is wrong on purpose: a fifth too high, and noisy.

Reported per world, policy and estimator: bias, and for each way to make an interval how often it holds (with the 95 %
interval of that share, Wilson), on which side the truth was missed, and the median width. Ways: `kept`, that of
models/ope/estimates.py; `wilson`, the same by the spread alone; `normal`; and the bootstrap over clusters by
percentiles, studentised, and BCa (Efron, Better bootstrap confidence intervals, 1987).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gate import share
from bench.report import machine, write_report
from models.ope.estimates import Estimate, Logged, dr, ips, snips, weigh
from models.ope.policies import epsilon_greedy, uniform
from stream.simulate import ADS_AT_START, HOUR_S, N_PLACEMENTS, N_USERS, START_S, Ads, World

ALPHA = 0.05
Z = NormalDist().inv_cdf(1.0 - ALPHA / 2.0)
N_ADS = 10  # of a context
N_CLUSTERS = 20_000  # of the population
MOOD_SD = 0.8
RESAMPLES = 500
Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A kind of log.

    Attributes:
        thin: What click rates are multiplied by.
        clusters: Of a log.
        rows: Of a cluster, mean of a geometric distribution.
        heat: Of the logging policy, a softmax of what an older model believes; 0: it is greedy.
        blind: Share of its choices that are blind.
    """

    thin: float
    clusters: int
    rows: float
    heat: float
    blind: float


CASES = {
    "softmax, mild": Case(thin=0.05, clusters=4000, rows=1.5, heat=2.0, blind=0.1),
    "softmax, sharp": Case(thin=0.1, clusters=2000, rows=2.5, heat=0.7, blind=0.1),
    "epsilon-greedy": Case(thin=0.1, clusters=2000, rows=2.5, heat=0.0, blind=0.2),
    "softmax, frequent clicks": Case(thin=1.0, clusters=1000, rows=2.0, heat=0.7, blind=0.1),
}


@dataclass(frozen=True)
class Population:
    """Contexts, cluster by cluster, and what every policy does in them; (N, N_ADS) each."""

    starts: npt.NDArray[np.int64]
    rates: Floats
    believed: Floats
    logging: Floats
    policies: dict[str, Floats]

    def worth(self, policy: str) -> float:
        return float((self.policies[policy] * self.rates).sum() / len(self.rates))


def population(case: Case, seed: int) -> Population:
    rng = np.random.default_rng([seed, 0])
    world = World(seed, "none", 24 * HOUR_S)
    ads = Ads(np.arange(ADS_AT_START), world, rng, np.full(ADS_AT_START, np.inf))
    sizes = rng.geometric(1.0 / case.rows, N_CLUSTERS)
    cluster = np.repeat(np.arange(N_CLUSTERS), sizes)
    n_rows = len(cluster)

    def each(values: Any) -> Any:
        return np.repeat(values, N_ADS)

    rates = world.click_probability(
        each(rng.choice(N_USERS, N_CLUSTERS, p=world.activity)[cluster]),
        ads,
        rng.integers(ADS_AT_START, size=n_rows * N_ADS),
        each(START_S + 24 * HOUR_S * rng.random(n_rows)),
        placement=each(rng.integers(N_PLACEMENTS, size=n_rows)),
        position=np.zeros(n_rows * N_ADS, np.int64),
    ).reshape(n_rows, N_ADS)
    logits = np.log(rates / (1.0 - rates)) + rng.normal(-(MOOD_SD**2) / 2.0, MOOD_SD, N_CLUSTERS)[cluster][:, None]
    rates = case.thin / (1.0 + np.exp(-logits))

    def belief(error_sd: float) -> Floats:
        return logits + rng.normal(0.0, error_sd, logits.shape)

    chosen = softmax(belief(0.7), case.heat) if case.heat else epsilon_greedy(belief(0.7), 0.0)
    newer = belief(0.5)
    return Population(
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        rates=rates,
        believed=np.clip(1.2 * rates * np.exp(rng.normal(0.0, 0.4, rates.shape)), 0.0, 1.0),
        logging=(1.0 - case.blind) * chosen + case.blind / N_ADS,
        policies={
            "uniform": uniform((n_rows, N_ADS)),
            "greedy": epsilon_greedy(newer, 0.0),
            "epsilon-greedy": epsilon_greedy(newer, 0.2),
        },
    )


def softmax(logits: Floats, heat: float) -> Floats:
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / heat)
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Sums:
    """An estimate as a ratio of sums over clusters, (J,) each, for the ways that models/ope does not know."""

    top: Floats
    bottom: Floats

    @property
    def rate(self) -> float:
        return float(self.top.sum() / self.bottom.sum())

    @property
    def error(self) -> float:
        residuals = self.top - self.rate * self.bottom
        n = len(residuals)
        return math.sqrt(float(residuals @ residuals) * n / (n - 1)) / float(self.bottom.sum())


def estimates(
    one: Population, clusters: npt.NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[str, str, Estimate, Sums, float]]:
    """Draw a log of some clusters; yield policy, estimator, what was estimated, its sums, effective rows."""
    sizes = np.diff(one.starts)[clusters]
    cluster = np.repeat(np.arange(len(clusters)), sizes)
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = one.starts[clusters][cluster] + np.arange(len(cluster)) - first
    logging = one.logging[rows]
    shown = (np.arange(len(rows)), (logging.cumsum(axis=1) < rng.random((len(rows), 1))).sum(axis=1).clip(0, N_ADS - 1))
    clicks = (rng.random(len(rows)) < one.rates[rows][shown]).astype(np.float64)
    log = Logged(clicks, logging[shown], cluster)
    believed = one.believed[rows]
    for name, policy in one.policies.items():
        chosen = policy[rows]
        expected, weights = (chosen * believed).sum(axis=1), chosen[shown] / log.propensities
        ones = np.ones(len(rows))
        found = {
            "ips": (ips(log, chosen[shown], ALPHA), weights * clicks, ones),
            "snips": (snips(log, chosen[shown], ALPHA), weights * clicks, weights),
            "dr": (
                dr(log, chosen[shown], believed[shown], expected, ALPHA),
                expected + weights * (clicks - believed[shown]),
                ones,
            ),
        }
        effective = weigh(log, chosen[shown]).effective_rows
        for kind, (estimate, top, bottom) in found.items():
            yield name, kind, estimate, Sums(np.bincount(cluster, top), np.bincount(cluster, bottom)), effective


def normal(sums: Sums) -> Interval:
    return sums.rate - Z * sums.error, sums.rate + Z * sums.error


def wilson(sums: Sums) -> Interval:
    rate = min(max(sums.rate, 0.0), 1.0)
    if not sums.error:
        return rate, rate  # without a click the spread says that nothing is open
    n = rate * (1.0 - rate) / sums.error**2
    middle, reach = (
        (n * rate + Z**2 / 2.0) / (n + Z**2),
        Z * math.sqrt(n * rate * (1.0 - rate) + Z**2 / 4.0) / (n + Z**2),
    )
    return middle - reach, middle + reach


def bootstrap(sums: Sums, times: Floats) -> dict[str, Interval]:
    """Return the bootstraps' intervals; `times`: how often each resample holds each cluster, (RESAMPLES, J)."""
    top, bottom, rate, error = sums.top, sums.bottom, sums.rate, sums.error
    tops, bottoms, tt, tb, bb = (times @ np.stack([top, bottom, top**2, top * bottom, bottom**2], axis=1)).T
    rates = tops / bottoms
    errors = np.sqrt(np.maximum(tt - 2.0 * rates * tb + rates**2 * bb, 0.0)) / bottoms
    probabilities = (ALPHA / 2.0, 1.0 - ALPHA / 2.0)
    found = {"percentile": np.quantile(rates, probabilities)}
    open_ = errors > 0.0
    low, high = np.quantile((rates[open_] - rate) / errors[open_], probabilities) if open_.any() else (0.0, 0.0)
    found["studentised"] = np.array([rate - high * error, rate - low * error])
    gauss, residuals = NormalDist(), top - rate * bottom
    below = float(np.mean(rates < rate) + np.mean(rates == rate) / 2.0)
    shift = gauss.inv_cdf(min(max(below, 1.0 / RESAMPLES), 1.0 - 1.0 / RESAMPLES))
    squares = float(residuals @ residuals)
    bend = float((residuals**3).sum()) / (6.0 * squares**1.5) if squares else 0.0
    levels = [gauss.cdf(shift + (shift + z) / (1.0 - bend * (shift + z))) for z in (-Z, Z)]
    found["bca"] = np.quantile(rates, levels)
    return {name: (float(ends[0]), float(ends[1])) for name, ends in found.items()}


@dataclass
class Tally:
    """What many logs said of one policy by one estimator."""

    rates: list[float] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)
    ends: dict[str, list[Interval]] = field(default_factory=dict)

    def summary(self, truth: float) -> dict[str, Any]:
        n, error = len(self.rates), float(np.std(self.rates)) / math.sqrt(len(self.rates))
        found: dict[str, Any] = {"truth": truth, "bias": float(np.mean(self.rates)) - truth, "bias_error": error}
        found["effective_rows"] = float(np.median(self.effective))
        for name, ends in self.ends.items():
            lower, upper = np.array(ends).T
            held = int(np.sum((lower <= truth) & (truth <= upper)))
            found[name] = {"coverage": share(held, n), "width": float(np.median(upper - lower))}
            found[name] |= {"above_truth": float(np.mean(lower > truth)), "below_truth": float(np.mean(upper < truth))}
        return found


def measure(case: Case, n_logs: int, seed: int) -> dict[str, Any]:
    one = population(case, seed)
    tallies: dict[tuple[str, str], Tally] = {}
    for number in range(n_logs):
        rng = np.random.default_rng([seed, 1, number])
        clusters = rng.integers(N_CLUSTERS, size=case.clusters)
        times = rng.multinomial(case.clusters, np.full(case.clusters, 1.0 / case.clusters), RESAMPLES).astype(float)
        for policy, kind, estimate, sums, effective in estimates(one, clusters, rng):
            assert estimate.rate is not None
            tally = tallies.setdefault((policy, kind), Tally())
            tally.rates.append(estimate.rate)
            tally.effective.append(effective)
            ways = {"kept": (estimate.lower, estimate.upper), "wilson": wilson(sums), "normal": normal(sums)}
            for name, ends in (ways | bootstrap(sums, times)).items():
                tally.ends.setdefault(name, []).append(ends)
    result: dict[str, Any] = {"logged_rate": float((one.logging * one.rates).sum() / len(one.rates))}
    for (policy, kind), tally in tallies.items():
        result.setdefault(policy, {})[kind] = tally.summary(one.worth(policy))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=1000)
    parser.add_argument("--cases", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--seed", type=int, default=0, help="which worlds")
    parser.add_argument("--runs", type=int, default=1, help="not used: each log has a seed of its own")
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    cases = {}
    for name in arguments.cases:
        found = measure(CASES[name], arguments.logs, arguments.seed)
        cases[name] = {"case": asdict(CASES[name]), "found": found}
        for policy in ("uniform", "greedy", "epsilon-greedy"):
            for kind, one in found[policy].items():
                ways = {
                    way: f"{value['coverage']['share']:.3f}" for way, value in one.items() if isinstance(value, dict)
                }
                print(f"{name}: {policy}, {kind}: {ways}", file=sys.stderr)
    write_report(
        {"name": "ope", "machine": machine(), "alpha": ALPHA, "logs": arguments.logs, "cases": cases}, arguments.json
    )


if __name__ == "__main__":
    main()
