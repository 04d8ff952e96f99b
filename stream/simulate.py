"""A seeded ad world: who sees which ad when, whether they click, and how likely that was in truth.

Owns users with tastes, ads that come and go, contexts, click delays and drift. Must not know files, events or models.
It is ours, made for tests and demonstrations where no real log may be had: its click probabilities are known, so a
model can be held against the truth; what is learnt from it says nothing about any real market.

How a click comes about: a user's taste is a vector (their age group's and gender's, plus their own), an ad's content is
one too (its category's, plus its own). logit p = base + taste · content + quality of the ad and its advertiser +
demand for the category + placement + position + hour of the day. `true_ctr` is that p, the label is drawn from it.

Drift replaces tastes and demand by a second, independent draw, by the weight w(t): `none` 0; `abrupt` 0, then 1 from
half-way; `gradual` from 0 to 1 over the middle third; `recurring` up to 1 and back, four times.

Invariants: rows are in time order; hour h is drawn from (seed, h) alone, so rows do not depend on how they are cut, and
without drift a longer log begins with the shorter one.

Shape legend: `U` users, `A` ads alive, `N` rows, `D` width of a taste.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

Drift = Literal["none", "abrupt", "gradual", "recurring"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

START_S = 1_700_006_400.0  # 2023-11-15 00:00 UTC: any midnight would do
HOUR_S = 3600.0
ROWS_PER_HOUR = 3600  # one impression a second on average over a day

# All sizes and weights below were chosen by hand for a click rate near 5 % and an AUC of the truth near 0.75.
N_USERS, N_AGES, N_GENDERS, WIDTH = 4000, 6, 2, 8
N_CATEGORIES, N_ADVERTISERS, N_PLACEMENTS, N_POSITIONS = 20, 60, 3, 3
ADS_AT_START, ADS_PER_HOUR, LIFE_H_MEAN = 240, 10.0, 24.0  # births balance deaths
BASE_LOGIT = -3.3
TASTE_WEIGHT, DEMAND_SD, QUALITY_SD, ADVERTISER_SD = 0.75, 0.45, 0.35, 0.3
PLACEMENT_LOGITS = np.array([0.3, 0.0, -0.4])
POSITION_LOGITS = np.array([0.25, -0.1, -0.4])
FAST_S, SLOW_S, SLOW_SHARE = 8.0, 120.0, 0.2  # delays: most clicks come at once, some after a while
RECURRENCES = 4


class World:
    """Everything that is drawn once: tastes, contents and demand, before the drift and after it."""

    def __init__(self, seed: int, drift: Drift, duration_s: float) -> None:
        """Draw the world.

        Args:
            seed: Which world.
            drift: How it changes.
            duration_s: Over which time the drift takes place, from `START_S`.
        """
        rng = np.random.default_rng([seed, 0])
        self.seed = seed
        self._drift = drift
        self._duration_s = duration_s
        self.age = rng.integers(N_AGES, size=N_USERS)
        self.gender = rng.integers(N_GENDERS, size=N_USERS)
        self.activity = shares(rng.pareto(1.5, N_USERS) + 0.2)
        self.tastes = np.stack([self._draw_tastes(rng) for _ in range(2)])  # (2, U, D)
        self.demand = rng.normal(0.0, DEMAND_SD, (2, N_CATEGORIES))
        self.category_content = rng.normal(size=(N_CATEGORIES, WIDTH))
        self.advertiser_quality = rng.normal(0.0, ADVERTISER_SD, N_ADVERTISERS)
        self.advertiser_category = rng.integers(N_CATEGORIES, size=N_ADVERTISERS)
        self.peak_hour = rng.integers(24, size=N_CATEGORIES)

    def _draw_tastes(self, rng: np.random.Generator) -> Floats:
        age_taste = rng.normal(size=(N_AGES, WIDTH))
        gender_taste = rng.normal(size=(N_GENDERS, WIDTH))
        own = rng.normal(size=(N_USERS, WIDTH))
        taste: Floats = (age_taste[self.age] + gender_taste[self.gender] + own) / math.sqrt(3.0)
        return taste

    def drift_weight(self, time_s: Floats) -> Floats:
        """Return how far the world has moved from its first tastes (0) to its second ones (1), (N,)."""
        passed = (time_s - START_S) / self._duration_s
        if self._drift == "abrupt":
            return (passed >= 0.5).astype(np.float64)
        if self._drift == "gradual":
            return np.clip(3.0 * passed - 1.0, 0.0, 1.0)
        if self._drift == "recurring":
            return 0.5 - 0.5 * np.cos(2.0 * np.pi * RECURRENCES * passed)
        return np.zeros_like(passed)

    def click_probability(
        self, user: Ints, ads: Ads, ad: Ints, time_s: Floats, *, placement: Ints, position: Ints
    ) -> Floats:
        """Return the true click probability of each impression, (N,).

        Args:
            ad: Row of each impression's ad in `ads`.
        """
        logit = self.click_logit(user, ads, ad, time_s) + (PLACEMENT_LOGITS[placement] + POSITION_LOGITS[position])
        return probability(logit)

    def click_logit(self, user: Ints, ads: Ads, ad: Ints, time_s: Floats) -> Floats:
        """Return the logit of the true click probability apart from where the ad is shown, (N,)."""
        w = self.drift_weight(time_s)
        category = ads.category[ad]
        match = np.einsum("snd,nd->sn", self.tastes[:, user], ads.content[ad]) / math.sqrt(WIDTH)  # (2, N)
        moving = TASTE_WEIGHT * match + self.demand[:, category]  # (2, N)
        hour = (time_s - START_S) / HOUR_S % 24.0
        daily = 0.25 * np.cos(2.0 * np.pi * (hour - self.peak_hour[category]) / 24.0)
        logit: Floats = BASE_LOGIT + (1.0 - w) * moving[0] + w * moving[1] + ads.quality[ad] + daily
        return logit


class Ads:
    """The ads alive in one hour, columns of length A."""

    def __init__(self, number: Ints, world: World, rng: np.random.Generator, ends_h: Floats) -> None:
        """Draw new ads with the given numbers, alive until the given hours."""
        n_ads = len(number)
        self.number = number
        self.ends_h = ends_h
        self.advertiser = rng.integers(N_ADVERTISERS, size=n_ads)
        own = rng.integers(N_CATEGORIES, size=n_ads)
        # Two thirds of an advertiser's ads are of its main category.
        self.category = np.where(rng.random(n_ads) < 2 / 3, world.advertiser_category[self.advertiser], own)
        self.content = (2.0 * world.category_content[self.category] + rng.normal(size=(n_ads, WIDTH))) / math.sqrt(5.0)
        self.quality = world.advertiser_quality[self.advertiser] + rng.normal(0.0, QUALITY_SD, n_ads)
        self.budget = rng.pareto(1.5, n_ads) + 0.2  # how often it is shown

    def alive_with(self, hour: int, new: Self) -> Self:
        """Return those that live on into `hour`, and the new ones behind them."""
        alive = self.ends_h > hour
        joined = object.__new__(type(self))
        for name, values in vars(self).items():
            setattr(joined, name, np.concatenate([values[alive], getattr(new, name)]))
        return joined


def simulate(seed: int, rows: int, drift: Drift = "none", *, rows_max: int = 65_536) -> Iterator[pl.DataFrame]:
    """Yield `rows` impressions in time order: the columns of configs/simulated.toml and `true_ctr`.

    Args:
        seed: Which world and which draws.
        rows: How many impressions; at one a second on average they also set how long the drift takes.
        drift: How tastes and demand change.
        rows_max: Rows in a frame.
    """
    world = World(seed, drift, duration_s=rows * HOUR_S / ROWS_PER_HOUR)
    waiting: list[pl.DataFrame] = []
    n_waiting, n_left = 0, rows
    for frame in _hours(world):
        waiting.append(frame.head(n_left))
        n_waiting += waiting[-1].height
        n_left -= waiting[-1].height
        if n_waiting >= rows_max or not n_left:
            whole = pl.concat(waiting)
            n_ready = n_waiting - n_waiting % rows_max if n_left else n_waiting
            yield from whole[:n_ready].iter_slices(rows_max)
            waiting, n_waiting = [whole[n_ready:]], n_waiting - n_ready
        if not n_left:
            return


def _hours(world: World) -> Iterator[pl.DataFrame]:
    """Yield the impressions of one hour after the other, without end."""
    ads, n_ads = _ads_at_start(world)
    hour = 0
    while True:
        rng = np.random.default_rng([world.seed, 1, hour])
        n_new = int(rng.poisson(ADS_PER_HOUR)) if hour else 0
        new = Ads(n_ads + np.arange(n_new), world, rng, hour + rng.exponential(LIFE_H_MEAN, n_new))
        ads, n_ads = ads.alive_with(hour, new), n_ads + n_new
        yield _impressions(world, ads, hour, rng)
        hour += 1


def _ads_at_start(world: World) -> tuple[Ads, int]:
    rng = np.random.default_rng([world.seed, 2])
    # An exponential life has no age: those alive at the start have as long to live as new ones.
    ads = Ads(np.arange(ADS_AT_START), world, rng, rng.exponential(LIFE_H_MEAN, ADS_AT_START))
    return ads, ADS_AT_START


def _impressions(world: World, ads: Ads, hour: int, rng: np.random.Generator) -> pl.DataFrame:
    daily = 1.0 - 0.6 * math.cos(2.0 * math.pi * (hour % 24 - 4) / 24.0)  # quietest at four in the morning
    n_requests = int(rng.poisson(ROWS_PER_HOUR / 2.0 * daily))
    n_shown = rng.integers(1, N_POSITIONS + 1, size=n_requests)  # two impressions a request on average
    request = np.repeat(np.arange(n_requests), n_shown)
    position = np.arange(len(request)) - np.repeat(np.cumsum(n_shown) - n_shown, n_shown)
    request_s = np.sort(START_S + HOUR_S * (hour + rng.random(n_requests))).round(3)
    user = rng.choice(N_USERS, size=n_requests, p=world.activity)[request]
    placement = rng.integers(N_PLACEMENTS, size=n_requests)[request]
    ad = rng.choice(len(ads.number), size=len(request), p=shares(ads.budget))
    time_s = request_s[request]
    true_ctr = world.click_probability(user, ads, ad, time_s, placement=placement, position=position)
    click = rng.random(len(request)) < true_ctr
    delay_s = click_delays(rng, len(request))
    frame = pl.DataFrame(
        {
            "time_s": time_s,
            "request_id": (hour << 24) + request,
            "position": position,
            "user_id": user,
            "age": world.age[user],
            "gender": world.gender[user],
            "hour": np.full(len(request), hour % 24),
            "placement": placement,
            "ad_id": ads.number[ad],
            "advertiser_id": ads.advertiser[ad],
            "category": ads.category[ad],
            "click": click.astype(np.int8),
            "click_time_s": np.where(click, (time_s + delay_s).round(3), np.nan),
            "true_ctr": true_ctr,
        }
    )
    return frame.with_columns(pl.col("click_time_s").fill_nan(None), *names_of("gender", "placement"))


NAMES = {"gender": ("f", "m"), "placement": ("top", "side", "bottom")}


def names_of(*columns: str) -> list[pl.Expr]:
    """Return the columns with the names that their numbers stand for."""
    return [pl.col(name).replace_strict(range(len(NAMES[name])), NAMES[name]) for name in columns]


def click_delays(rng: np.random.Generator, size: int) -> Floats:
    """Return how long after its impression each click comes, seconds, (size,)."""
    slow = rng.random(size) < SLOW_SHARE
    return rng.exponential(np.where(slow, SLOW_S, FAST_S))


def probability(logit: Floats) -> Floats:
    """Return the probability that a logit stands for."""
    found: Floats = 1.0 / (1.0 + np.exp(-logit))
    return found


def shares(weights: Floats) -> Floats:
    """Return weights that sum to 1."""
    found: Floats = weights / weights.sum()
    return found
