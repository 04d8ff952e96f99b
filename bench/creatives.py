"""Which creative to show? `python -m bench.creatives --data DIR --json FILE`; parts by `--parts upworthy cascade`.

upworthy: policies (models/creatives/policies.py) on real rates. DIR holds `impressions.csv` and `clicks.csv` of the
Upworthy Research Archive, one row per test and one column per arm. A test is an ad, its arms are the creatives. The
data has totals alone: no visitors, no single events, no texts. So a stream is made: every impression is a Bernoulli
click at the arm's own measured rate, taken as the truth (measured differences are larger than true ones: the noise of
the measurement is in them). The file lists most tests' arms from best to worst, so arms are shuffled, and their place
is no feature: LinUCB has an indicator per creative and nothing else. Decisions come in batches, and clicks are known
`delay` batches later than they could be. What has to be tuned is tuned on other tests than those reported. What a
policy would choose in the end is also judged by sCTR and NSCTR, on a log of even choices. Standard errors are over
seeds, in which the tests are the same.

cascade: the creative ranker (models/creatives/ranker.py) in the simulated cascade, whose log chose creatives evenly. Of
each hour's impressions every way first chooses creatives, then the hour is learnt. Standard errors are over worlds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from bench.report import machine, write_report
from features.priors import Counts, Floats, Ints
from features.strength import ROWS_MAX
from models.creatives.learn import Adagrad, Rows, learn_ad, learn_creative, learn_jointly
from models.creatives.metrics import regret, selected_ctr
from models.creatives.policies import EpsilonGreedy, LinUcb, Policy, Thompson, Uniform, blindly, choose
from models.creatives.ranker import CreativeRanker, ValuePerceptron
from models.creatives.tally import Flags, Tally, ad_rates, fit_strength, posteriors
from models.evaluate import evaluate
from stream.cascade import (
    CREATIVES_MAX,
    STYLES,
    Cascade,
    Funnel,
    at_position,
    log_hours,
)
from stream.simulate import N_ADVERTISERS, N_AGES, N_CATEGORIES, N_GENDERS, N_PLACEMENTS, N_USERS

# The grids of what is tuned.
EPSILONS = (0.03, 0.1, 0.2, 0.4)
ALPHAS = (0.003, 0.01, 0.03, 0.1, 0.3)
STRENGTHS = (10.0, 30.0, 100.0, 300.0)  # weaker than what predicts best, which Thompson takes otherwise
LOGGED = 1000  # impressions of each test in the even log
MATCHED, EXPOSED = 100, 10  # of a request; 300 ads are alive
STARTED = "from the creative's prior"
LEARNT_WITH = {"nothing": "nothing", "pctr": "pctr", "prior": "prior", STARTED: "prior"}
# Which ranker chooses, named by what it learnt with in the place of the ad's pCTR, and what it is given to choose.
WAYS = {
    "cr without pctr": ("nothing", "nothing"),
    "post-cr": ("pctr", "pctr"),
    "peri-cr, learnt on pctr": ("pctr", "prior"),
    "peri-cr, learnt on prior": ("prior", "prior"),
    "jac, serial": ("joint", "joint"),
    "jac, parallel": ("joint", "prior"),
    "cr from the creative's prior": (STARTED, "prior"),
}
PRIOR = "prior of the creative"
CONTROLS = {"regret_to_prior": PRIOR, "regret_to_cr": "cr without pctr"}  # differences within a world
NAMES = ("ad", "creative", "rates")

Figures = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["upworthy", "cascade"], default=["upworthy", "cascade"])
    parser.add_argument("--data", type=Path, help="directory of the Upworthy files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tests", type=int, default=1000, help="so many are reported, as many others tune")
    parser.add_argument("--impressions", type=int, default=3000, help="of each test")
    parser.add_argument("--batch", type=int, default=100, help="decisions between two updates")
    parser.add_argument("--delay", type=int, default=1, help="batches until clicks are known")
    parser.add_argument("--hours", type=int, default=48)
    parser.add_argument("--warmup", type=int, default=12, help="hours that are learnt and not reported")
    parser.add_argument("--requests", type=float, default=600.0, help="an hour")
    parser.add_argument("--json", default="-")
    arguments = parser.parse_args()
    if "upworthy" in arguments.parts and arguments.data is None:
        parser.error("--parts upworthy needs --data DIR")
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine(), "arguments": {**vars(arguments), "data": str(arguments.data)}}
    if "upworthy" in arguments.parts:
        report["upworthy"] = upworthy(arguments)
    if "cascade" in arguments.parts:
        report["cascade"] = summary([cascade_of(seed, arguments) for seed in arguments.seeds])
    write_report(report, arguments.json)


@dataclass(frozen=True)
class Stream:
    """Tests and how clicks are made of them: rates, (A, C), of the arms that are present, (A, C)."""

    rates: Floats
    present: Flags
    batch: int
    batches: int
    delay: int

    def run(self, policy: Policy, seed: int) -> Iterator[tuple[Tally, Floats, Floats]]:
        """Yield of each batch what was known, what was shown and what was clicked."""
        rng = np.random.default_rng(seed)
        tally, waiting = Tally.empty(self.present), deque[tuple[Floats, Floats]]()
        for _ in range(self.batches):
            shown = rng.multinomial(self.batch, policy.probabilities(tally, rng))
            clicked = rng.binomial(shown, self.rates)
            batch = shown.astype(np.float64), clicked.astype(np.float64)
            yield tally, *batch
            waiting.append(batch)
            if len(waiting) > self.delay:
                tally = tally.plus(*waiting.popleft())


def upworthy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of each policy, and what was tuned."""
    tuned, reported = streams_of(arguments)
    strength = strength_of(tuned)

    def linucb(alpha: float) -> Policy:
        n_ads, n_arms = tuned.present.shape
        return LinUcb(np.broadcast_to(np.eye(n_arms), (n_ads, n_arms, n_arms)), alpha)

    def thompson(of_creative: float) -> Policy:
        return Thompson(np.array([strength[0], [of_creative]]))

    epsilon = best_of(EPSILONS, lambda value: EpsilonGreedy(value, strength), tuned)
    alpha = best_of(ALPHAS, linucb, tuned)
    weaker = best_of(STRENGTHS, thompson, tuned)
    policies: dict[str, Policy] = {
        "uniform": Uniform(),
        "greedy": EpsilonGreedy(0.0, strength),
        "epsilon-greedy": EpsilonGreedy(epsilon, strength),
        "thompson": Thompson(strength),
        "thompson, strength for regret": thompson(weaker),
        "linucb": linucb(alpha),
    }
    runs = []
    for seed in arguments.seeds:
        runs.append({name: figures_of(policy, reported, seed) for name, policy in policies.items()})
        print(f"upworthy, seed {seed}", file=sys.stderr)
    told = {"epsilon": epsilon, "alpha": alpha, "strength": strength[:, 0].tolist(), "strength_for_regret": weaker}
    best = float(reported.rates.max(axis=1).mean())
    return {"tuned": told, "best_ctr": best, "policies": summary(runs)}


def streams_of(arguments: argparse.Namespace) -> list[Stream]:
    """Return the tests to tune on and those to report; arms are shuffled within a test."""
    rng = np.random.default_rng(0)
    files = [pl.read_csv(arguments.data / f"{name}.csv").drop("") for name in ("impressions", "clicks")]
    columns = rng.permuted(np.indices(files[0].shape)[1], axis=1)
    impressions, clicks = (np.take_along_axis(file.fill_null(0.0).to_numpy(), columns, axis=1) for file in files)
    order, n, n_batches = rng.permutation(len(clicks)), arguments.tests, arguments.impressions // arguments.batch
    if 2 * n > len(order):
        raise ValueError(f"--tests must be <= {len(order) // 2}, half of what the files hold, got {n}")
    rates, present = clicks / np.maximum(impressions, 1.0), impressions > 0.0
    return [
        Stream(rates[rows], present[rows], arguments.batch, n_batches, arguments.delay)
        for rows in (order[:n], order[n : 2 * n])
    ]


def strength_of(stream: Stream) -> Floats:
    """Return the strengths that would have predicted the clicks of an even stream best, (2, 1)."""
    rng = np.random.default_rng(1)

    def seen() -> Iterator[tuple[Counts, Floats]]:
        for tally, shown, clicked in stream.run(Uniform(), seed=1):
            ad, creative = np.nonzero(shown)
            rows = rng.choice(len(ad), size=ROWS_MAX, p=shown[ad, creative] / shown.sum())
            ad, creative = ad[rows], creative[rows]
            clicks = rng.random(len(ad)) < clicked[ad, creative] / shown[ad, creative]
            yield tally.rows(ad, creative), clicks.astype(np.float64)

    return fit_strength(seen())


def best_of(values: tuple[float, ...], policy_of: Callable[[float], Policy], stream: Stream) -> float:
    """Return the value whose policy has the least regret."""
    return min(values, key=lambda value: run_of(policy_of(value), stream, seed=0)[0])


def run_of(policy: Policy, stream: Stream, seed: int) -> tuple[float, Ints]:
    """Return the mean regret of an impression, and what each ad is given most in the last batch, (A,)."""
    lost, tally = [], Tally.empty(stream.present)
    for known, shown, _ in stream.run(policy, seed):
        tally = known
        lost.append(float(regret(stream.rates, shown / stream.batch).mean()))
    return statistics.mean(lost), policy.probabilities(tally, np.random.default_rng(seed)).argmax(axis=1)


def figures_of(policy: Policy, stream: Stream, seed: int) -> dict[str, float]:
    """Return how good a policy was while it learnt, and its last choice: in truth, and as an even log shows it."""
    lost, chosen = run_of(policy, stream, seed)
    rng, ads = np.random.default_rng([seed, 1]), np.repeat(np.arange(len(chosen)), LOGGED)
    logged, _ = choose(blindly(stream.present)[ads], rng)
    clicks = (rng.random(len(ads)) < stream.rates[ads, logged]).astype(np.float64)
    last_ctr = stream.rates[np.arange(len(chosen)), chosen].mean()
    return {"regret": lost, "last_ctr": float(last_ctr), **selected(ads, logged == chosen[ads], clicks)}


def selected(ads: Ints, is_same: Flags, clicks: Floats) -> dict[str, float]:
    """Return sCTR, NSCTR and coverage as figures."""
    found = selected_ctr(ads, is_same, clicks)
    return {"sctr": found.sctr or 0.0, "nsctr": found.nsctr or 0.0, "coverage": found.coverage}


@dataclass(frozen=True)
class Shown:
    """An hour's impressions with the truth: rates of all creatives where they were shown, (N, C), 0 for none."""

    rows: Rows
    ad: Ints
    creative: Ints
    rates: Floats


@dataclass(frozen=True)
class AllAds:
    """All ads that a cascade ever has, by their number: (A,), of creatives (A, C)."""

    advertiser: Ints
    category: Ints
    style: Ints
    present: Flags

    @classmethod
    def of(cls, cascade: Cascade) -> AllAds:
        """Return those of a cascade."""
        markets = list(cascade.markets())
        number = np.concatenate([market.number for market in markets])
        _, first = np.unique(number, return_index=True)
        columns = [
            np.concatenate([getattr(market, name) for market in markets])[first]
            for name in ("advertiser", "category", "style", "n_creatives")
        ]
        return cls(*columns[:3], np.arange(CREATIVES_MAX) < columns[3][:, None])

    def fields_of(self, ad: Ints, creative: Ints) -> Tensor:
        """Return the numbers of creatives' values: which one, and its style, (N, 2)."""
        return torch.from_numpy(np.stack([ad * CREATIVES_MAX + creative, self.style[ad, creative]], axis=1))


def shown_in(cascade: Cascade, ads: AllAds) -> Iterator[Shown]:
    """Yield the impressions of each hour."""
    for hour, frame in zip(cascade.hours(), log_hours(cascade), strict=True):
        log = frame.filter(pl.col("realshow") == 1)
        request = log["request_id"].to_numpy() & ((1 << 24) - 1)
        position, ad = log["position"].to_numpy().astype(np.int64), log["ad_id"].to_numpy(writable=True)
        creative = log["creative_id"].str.split("-").list.last().cast(pl.Int64).to_numpy(writable=True)
        user, world = hour.user[request], cascade.world
        columns = [user, world.age[user], world.gender[user], np.full(len(ad), hour.index % 24)]
        columns += [hour.placement[request], position, ad, ads.advertiser[ad], ads.category[ad]]
        logit = cascade.click_logit(hour, request, np.searchsorted(hour.market.number, ad))
        rows = Rows(
            torch.from_numpy(np.stack(columns, axis=1)),
            ads.fields_of(ad, creative),
            torch.from_numpy(log["click"].to_numpy().astype(np.float32)),
        )
        yield Shown(rows, ad, creative, at_position(logit, position[:, None]))


class Given(NamedTuple):
    """What is known of impressions before they are learnt."""

    pctr: dict[str, Tensor]  # what may stand in the place of the ad's pCTR, (N,) each
    own: Tensor  # logits of the creatives' priors, (N, C)


class Contest:
    """All ways to choose a creative, learning side by side."""

    def __init__(self, ads: AllAds, seed: int) -> None:
        """Start without knowledge."""
        n_ads = len(ads.present)
        of_ad = [N_USERS, N_AGES, N_GENDERS, 24, N_PLACEMENTS, EXPOSED, n_ads, N_ADVERTISERS, N_CATEGORIES]
        sizes = [*of_ad, n_ads * CREATIVES_MAX, len(STYLES)]
        generator = torch.Generator().manual_seed(seed)
        self.ads, self.tally = ads, Tally.empty(ads.present)
        self.seen: list[tuple[Counts, Floats]] = []
        self.strength = fit_strength([])
        self.ad_model, self.joint_ad_model = (ValuePerceptron(of_ad, 0, generator) for _ in range(2))
        self.rankers = {name: CreativeRanker(sizes, generator) for name in ("joint", *LEARNT_WITH)}
        self.ad_steps = Adagrad(self.ad_model)
        self.joint_steps = Adagrad(self.joint_ad_model, self.rankers["joint"])
        self.steps = {name: (pctr, Adagrad(self.rankers[name])) for name, pctr in LEARNT_WITH.items()}

    def given(self, shown: Shown) -> Given:
        """Return what is known before an hour is learnt."""
        clicks, others = posteriors(self.tally, self.strength)
        with torch.no_grad():
            pctr = {
                "pctr": self.ad_model(shown.rows.of_ad).sigmoid(),
                "joint": self.joint_ad_model(shown.rows.of_ad).sigmoid(),
                "prior": torch.from_numpy(ad_rates(self.tally, self.strength)[shown.ad]).float(),
                "nothing": torch.zeros(len(shown.ad)),
            }
        return Given(pctr, torch.from_numpy(np.log(clicks / others)[shown.ad]).float())

    def scores(self, shown: Shown, given: Given) -> dict[str, Floats]:
        """Return what each way says of each creative, (N, C), 0 where there is none."""
        present = self.ads.present[shown.ad]
        row, creative = np.nonzero(present)
        fields = torch.cat([shown.rows.of_ad[row], self.ads.fields_of(shown.ad[row], creative)], dim=1)
        of_prior = given.own[row, creative]
        logits = {PRIOR: of_prior}
        with torch.no_grad():
            for way, (ranker, pctr) in WAYS.items():
                start = of_prior if ranker == STARTED else torch.zeros(len(row))
                logits[way] = self.rankers[ranker](fields, given.pctr[pctr][row], start)
        found = {way: np.zeros(present.shape) for way in logits}
        for way, of_way in logits.items():
            found[way][row, creative] = of_way.sigmoid().numpy()
        return found

    def learn(self, shown: Shown, given: Given, *, keep: bool) -> None:
        """Learn an hour; of those kept, the strengths are fitted too."""
        clicks = shown.rows.clicks.numpy().astype(np.float64)
        if keep:
            self.seen.append((self.tally.rows(shown.ad, shown.creative), clicks))
            self.strength = fit_strength(self.seen)
        added = np.zeros((2, *self.ads.present.shape))
        np.add.at(added, (slice(None), shown.ad, shown.creative), np.stack([np.ones(len(clicks)), clicks]))
        self.tally = self.tally.plus(*added)
        of_prior = given.own[torch.arange(len(clicks)), torch.from_numpy(shown.creative)]
        for name, (pctr, steps) in self.steps.items():
            start = of_prior if name == STARTED else torch.zeros(len(clicks))
            learn_creative(self.rankers[name], steps, shown.rows, given.pctr[pctr], start)
        learn_ad(self.ad_model, self.ad_steps, shown.rows)
        learn_jointly(self.joint_ad_model, self.rankers["joint"], self.joint_steps, shown.rows)


def cascade_of(seed: int, arguments: argparse.Namespace) -> Figures:
    """Return the figures of each way in one world."""
    funnel = Funnel(MATCHED, MATCHED // 2, EXPOSED, sample_rate=1.0)
    requests = arguments.requests
    cascade = Cascade(seed, hours=arguments.hours, funnel=funnel, n_ads=3 * MATCHED, requests_per_hour=requests)
    ads = AllAds.of(cascade)
    contest, hours = Contest(ads, seed), []
    for index, shown in enumerate(shown_in(cascade, ads)):
        given = contest.given(shown)
        if index >= arguments.warmup:
            hours.append((shown, given, contest.scores(shown, given)))
        contest.learn(shown, given, keep=index < arguments.warmup)
    print(f"cascade, world {seed}", file=sys.stderr)
    ad, logged, rates = (np.concatenate([getattr(shown, name) for shown, _, _ in hours]) for name in NAMES)
    clicks = np.concatenate([shown.rows.clicks.numpy() for shown, _, _ in hours]).astype(np.float64)

    def figures(chosen: Ints) -> dict[str, float]:
        of_chosen = np.eye(CREATIVES_MAX)[chosen]
        told = {"regret": float(regret(rates, of_chosen).mean()), "ctr": float((rates * of_chosen).sum(axis=1).mean())}
        return told | selected(ad, chosen == logged, clicks)

    found = {"the log": figures(logged), "the best": figures(rates.argmax(axis=1))}
    for way in hours[0][2]:
        scores = np.concatenate([scores[way] for _, _, scores in hours])
        found[way] = figures(scores.argmax(axis=1)) | quality(scores[np.arange(len(ad)), logged], clicks)
    for name in ("pctr", "joint"):
        pctr = np.concatenate([given.pctr[name].numpy() for _, given, _ in hours])
        found[f"ad model, {name}"] = quality(pctr, clicks)
    for figure in found.values():
        if "regret" in figure:
            figure |= {key: figure["regret"] - found[control]["regret"] for key, control in CONTROLS.items()}
    return found


def quality(predicted: Floats, clicks: Floats) -> dict[str, float]:
    """Return AUC and log loss."""
    found = evaluate(predicted, clicks)
    return {"auc": found.auc or 0.0, "logloss": found.logloss or 0.0}


def summary(runs: list[Figures]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean of each figure and its standard error over runs."""
    values = {name: {key: [run[name][key] for run in runs] for key in runs[0][name]} for name in runs[0]}
    return {
        name: {key: {"mean": round(statistics.mean(of), 6), "se": error_of(of)} for key, of in figures.items()}
        for name, figures in values.items()
    }


def error_of(values: list[float]) -> float:
    """Return the standard error of a mean, 0 of a single value."""
    return round(statistics.stdev(values) / len(values) ** 0.5, 6) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
