"""A simulated cascade: of each request thousands of ads are matched, hundreds pre-ranked, tens shown, a few clicked.

Owns bids, creatives, requests and the three stages on top of the world of stream/simulate.py, and the truth about every
candidate and creative, so that recall, regret and calibration are exact. Must not know files, events or models. It is
ours; what is learnt from it says nothing about any real market.

How it goes: an ad has 2 to 10 creatives, each of a style and with a quality of its own; a user likes some styles more
than others. Matching takes ads that people of the user's age and gender like. What then chooses stands in for a
production system: the true eCPM, seen with noise, with more of it to pre-rank and with less to rank. The creative is
drawn evenly, so its propensity is known. The log holds every candidate that was ranked, and a sample of the rest.

Invariants: hour h is drawn from (seed, h) alone; the truth of a candidate does not depend on what was chosen.

Shape legend: `A` ads alive, `R` requests of an hour, `M` matched candidates of a request, `C` creatives of an ad at
most, `N` candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from stream.simulate import (
    HOUR_S,
    LIFE_H_MEAN,
    N_PLACEMENTS,
    N_USERS,
    PLACEMENT_LOGITS,
    START_S,
    WIDTH,
    Ads,
    Drift,
    Floats,
    Ints,
    World,
    click_delays,
    names_of,
    probability,
)

STAGES = ("realshow", "rank_neg", "prerank_neg")  # columns as RecFlow's: shown, ranked alone, matched alone

# All sizes and weights below were chosen by hand: creatives of an ad differ about as much as ads do.
CREATIVES_MIN, CREATIVES_MAX = 2, 10
STYLES = ("photo", "text", "video", "story")
STYLE_SD, CREATIVE_SD = 0.5, 0.3
POSITION_LOGIT = -0.08  # per place
BID_MICROS_MEAN, BID_SD = 1_000_000.0, 0.5
LEVEL_LOGIT = -1.0  # the best of thousands are clicked more than any one: so this lowers all
MATCH_NOISE, PRERANK_NOISE, RANK_NOISE = 1.0, 1.0, 0.5


@dataclass(frozen=True)
class Funnel:
    """How many candidates of a request reach each stage.

    Attributes:
        matched: Candidates of a request.
        preranked: How many of them are ranked.
        exposed: How many of those are shown.
        sample_rate: Which share of those that are not ranked the log keeps.
    """

    matched: int = 2000
    preranked: int = 200
    exposed: int = 10
    sample_rate: float = 0.1

    def __post_init__(self) -> None:
        """Check that each stage takes from the one before."""
        if not self.matched >= self.preranked >= self.exposed >= 1:
            raise ValueError(f"a cascade must narrow: matched >= preranked >= exposed >= 1, got {self}")
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(f"sample_rate must be in (0, 1], got {self.sample_rate}")


class Market(Ads):
    """Ads with bids and creatives, columns of length A; those of creatives (A, C), where a row's first are in use."""

    def __init__(self, number: Ints, world: World, rng: np.random.Generator, ends_h: Floats) -> None:
        """Draw new ads; arguments as for `Ads`."""
        super().__init__(number, world, rng, ends_h)
        shape = (len(number), CREATIVES_MAX)
        self.bid_micros = np.round(BID_MICROS_MEAN * np.exp(rng.normal(0.0, BID_SD, len(number)))).astype(np.int64)
        self.n_creatives = rng.integers(CREATIVES_MIN, CREATIVES_MAX + 1, size=len(number))
        self.style = rng.integers(len(STYLES), size=shape)
        self.creative_quality = rng.normal(0.0, CREATIVE_SD, shape)


@dataclass(frozen=True)
class Hour:
    """The requests of an hour and who could be shown.

    Attributes:
        index: Hours since the world began.
        market: The ads alive.
        time_s: Of each request, ascending, (R,).
        user: (R,).
        placement: (R,).
        matched: Rows of the market, (R, M).
    """

    index: int
    market: Market
    time_s: Floats
    user: Ints
    placement: Ints
    matched: Ints


class Cascade:
    """A world with a market; `hours` are its requests, `click_logit` its truth."""

    def __init__(
        self,
        seed: int,
        drift: Drift = "none",
        *,
        hours: int,
        funnel: Funnel | None = None,
        n_ads: int = 5000,
        requests_per_hour: float = 360.0,
    ) -> None:
        """Draw the world.

        Args:
            seed: Which world.
            drift: How tastes and demand change.
            hours: How long it lasts; sets how long the drift takes.
            funnel: How many candidates reach each stage.
            n_ads: How many ads are alive on average.
            requests_per_hour: On average.

        Raises:
            ValueError: If there are fewer ads than a request has candidates.
        """
        self.funnel = funnel or Funnel()
        if n_ads < 2 * self.funnel.matched:
            raise ValueError(f"n_ads must be >= 2 x matched ({2 * self.funnel.matched}), got {n_ads}")
        self.world = World(seed, drift, hours * HOUR_S)
        self.n_hours = hours
        self._n_ads = n_ads
        self._rate = requests_per_hour
        rng = np.random.default_rng([seed, 3])
        groups = rng.normal(0.0, STYLE_SD, (6, 2, len(STYLES)))
        own = rng.normal(0.0, STYLE_SD / 2.0, (N_USERS, len(STYLES)))
        self.style_taste = groups[self.world.age, self.world.gender] + own  # (U, styles)

    def hours(self) -> Iterator[Hour]:
        """Yield the hours in order."""
        for index, market in enumerate(self.markets()):
            rng = np.random.default_rng([self.world.seed, 5, index])
            n_requests = int(rng.poisson(self._rate))
            user = rng.choice(N_USERS, size=n_requests, p=self.world.activity)
            yield Hour(
                index=index,
                market=market,
                time_s=np.sort(START_S + HOUR_S * (index + rng.random(n_requests))).round(3),
                user=user,
                placement=rng.integers(N_PLACEMENTS, size=n_requests),
                matched=self._match(user, market, rng),
            )

    def markets(self) -> Iterator[Market]:
        """Yield the ads alive in each hour, new ones last."""
        world = self.world
        rng = np.random.default_rng([world.seed, 4])
        market = Market(np.arange(self._n_ads), world, rng, rng.exponential(LIFE_H_MEAN, self._n_ads))
        n_drawn = self._n_ads
        for index in range(self.n_hours):
            rng = np.random.default_rng([world.seed, 7, index])
            n_new = int(rng.poisson(self._n_ads / LIFE_H_MEAN)) if index else 0
            new = Market(n_drawn + np.arange(n_new), world, rng, index + rng.exponential(LIFE_H_MEAN, n_new))
            market, n_drawn = market.alive_with(index, new), n_drawn + n_new
            yield market

    def click_logit(self, hour: Hour, request: Ints, ad: Ints) -> Floats:
        """Return the logit of the true click probability at the top, for each creative, (N, C).

        Those of creatives that an ad does not have are -inf.

        Args:
            hour: Of the requests.
            request: Which request each candidate belongs to, (N,).
            ad: Its row in the market, (N,).
        """
        market, user = hour.market, hour.user[request]
        logit = self.world.click_logit(user, market, ad, hour.time_s[request])
        logit += LEVEL_LOGIT + PLACEMENT_LOGITS[hour.placement[request]]
        of_creatives = np.take_along_axis(self.style_taste[user], market.style[ad], axis=1)
        of_creatives = of_creatives + market.creative_quality[ad] + logit[:, None]
        absent = np.arange(CREATIVES_MAX) >= market.n_creatives[ad][:, None]
        return np.where(absent, -np.inf, of_creatives)

    def _match(self, user: Ints, market: Market, rng: np.random.Generator) -> Ints:
        """Return the candidates of each request, (R, M), in no order."""
        world = self.world
        segments = world.age * 2 + world.gender
        taste = np.stack([world.tastes[0, segments == one].mean(axis=0) for one in range(12)])  # (12, D)
        liking = taste @ world.category_content.T / np.sqrt(WIDTH)  # (12, categories)
        score = liking[segments[user]][:, market.category] + rng.gumbel(
            0.0, MATCH_NOISE, (len(user), len(market.number))
        )
        n_matched = min(self.funnel.matched, len(market.number))
        return np.argpartition(-score, n_matched - 1, axis=1)[:, :n_matched]


def at_position(logit: Floats, position: npt.NDArray[np.int64] | int) -> Floats:
    """Return the click probability of a logit at the top when it is shown at a position."""
    return probability(logit + POSITION_LOGIT * position)


def log_hours(cascade: Cascade) -> Iterator[pl.DataFrame]:
    """Yield the log of each hour: a row per candidate that it keeps, those shown first and in order of position.

    Beside the columns of configs/cascade.toml, `true_ctr`: of what was shown as it was shown, of others at the top and
    on average over their creatives.
    """
    for hour in cascade.hours():
        yield _log_hour(cascade, hour)


def _log_hour(cascade: Cascade, hour: Hour) -> pl.DataFrame:
    rng = np.random.default_rng([cascade.world.seed, 6, hour.index])
    funnel, market, matched = cascade.funnel, hour.market, hour.matched
    n_requests, n_matched = matched.shape
    request = np.repeat(np.arange(n_requests), n_matched)
    logit = cascade.click_logit(hour, request, matched.ravel())  # (R * M, C)
    mean_ctr = probability(logit).sum(axis=1) / market.n_creatives[matched.ravel()]
    value = (np.log(mean_ctr) + np.log(market.bid_micros[matched.ravel()])).reshape(matched.shape)
    by_prerank = np.argsort(-(value + rng.normal(0.0, PRERANK_NOISE, value.shape)), axis=1)  # (R, M)
    ranked = by_prerank[:, : funnel.preranked]
    of_ranked = np.take_along_axis(value, ranked, axis=1) + rng.normal(0.0, RANK_NOISE, ranked.shape)
    ranked = np.take_along_axis(ranked, np.argsort(-of_ranked, axis=1), axis=1)
    in_order = np.concatenate([ranked, by_prerank[:, funnel.preranked :]], axis=1)
    place = np.broadcast_to(np.arange(n_matched), matched.shape)
    kept = (place < funnel.preranked) | (rng.random(matched.shape) < funnel.sample_rate)
    row = (in_order + n_matched * np.arange(n_requests)[:, None])[kept]  # (N,), rows of `logit`
    return _rows(cascade, hour, _Kept(request[row], matched.ravel()[row], place[kept], logit[row], mean_ctr[row]), rng)


class _Kept(NamedTuple):
    request: Ints
    ad: Ints
    place: Ints  # 0 is the best
    logit: Floats  # (N, C)
    mean_ctr: Floats


def _rows(cascade: Cascade, hour: Hour, kept: _Kept, rng: np.random.Generator) -> pl.DataFrame:
    """Return the kept candidates as columns; what is shown gets its creative and perhaps its click."""
    funnel, market, world = cascade.funnel, hour.market, cascade.world
    request, ad, place, logit, mean_ctr = kept
    shown = place < funnel.exposed
    creative = (rng.random(len(ad)) * market.n_creatives[ad]).astype(np.int64)
    of_creative = np.take_along_axis(logit, creative[:, None], axis=1)[:, 0]
    true_ctr = np.where(shown, at_position(of_creative, place), mean_ctr)
    click = shown & (rng.random(len(ad)) < true_ctr)
    time_s, user = hour.time_s[request], hour.user[request]
    click_time_s = np.where(click, (time_s + click_delays(rng, len(ad))).round(3), np.nan)
    frame = pl.DataFrame(
        {
            "time_s": time_s,
            "request_id": (hour.index << 24) + request,
            "position": np.where(shown, place, -1),
            "realshow": shown,
            "rank_neg": ~shown & (place < funnel.preranked),
            "prerank_neg": place >= funnel.preranked,
            "sample_rate": np.where(place < funnel.preranked, 1.0, funnel.sample_rate),
            "user_id": user,
            "age": world.age[user],
            "gender": world.gender[user],
            "hour": np.full(len(ad), hour.index % 24),
            "placement": hour.placement[request],
            "ad_id": market.number[ad],
            "creative_id": creative_ids(market.number[ad], creative),
            "propensity": np.where(shown, 1.0 / market.n_creatives[ad], 1.0),
            "click": click.astype(np.int8),
            "click_time_s": click_time_s,
            "true_ctr": true_ctr,
        }
    )
    return frame.with_columns(
        pl.col("click_time_s").fill_nan(None),
        pl.col("position").replace(-1, None),
        pl.when("realshow").then("creative_id").alias("creative_id"),
        pl.col(*STAGES).cast(pl.Int8),
        *names_of("gender", "placement"),
    )


def market_frames(market: Market) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the ads with their bids, and their creatives, as the files that a log is joined with."""
    ads = pl.DataFrame(
        {
            "ad_id": market.number,
            "advertiser_id": market.advertiser,
            "category": market.category,
            "bid_micros": market.bid_micros,
        }
    )
    ad, index = np.nonzero(np.arange(CREATIVES_MAX) < market.n_creatives[:, None])
    creatives = pl.DataFrame(
        {
            "creative_id": creative_ids(market.number[ad], index),
            "ad_id": market.number[ad],
            "style": np.array(STYLES)[market.style[ad, index]],
        }
    )
    return ads, creatives


def creative_ids(number: Ints, index: Ints) -> pl.Series:
    """Return the ids of creatives, of ads by their number."""
    return pl.select(pl.format("{}-{}", pl.Series(number), pl.Series(index))).to_series()
