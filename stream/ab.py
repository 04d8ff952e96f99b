"""What the arms of an experiment came to: settled impressions in `examples`, summed up per user and compared.

Owns which rows count and what makes a comparison doubtful. Must not hold the maths (models/arms.py) or draw users
(models/serving/split.py).

Invariants: each block counts once; a row is of the arm that really answered, so what the champion answered in place of
the newest model is of neither; memory grows with users and requests, not with impressions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from features.encode import hash_strings
from features.fields import Field, id_field
from features.priors import CORRECTION
from infra.settings import Settings, SettingsError
from models.arms import Users, check_draw, click_rate, compare
from models.serving.split import CHAMPION, FALLBACK, LATEST
from stream.blocks import Header, decode_block, decode_header
from stream.feed import BlockFeed
from stream.roles import Cluster

ARMS = (CHAMPION, LATEST, FALLBACK)
ROWS_MIN = 200_000  # chosen by hand: so many sums of single blocks may wait to be put together
USERS_MIN, CLICKS_MIN = 100, 10  # chosen by hand: with fewer, sums are far from normal and intervals rough
FALLBACK_MAX = 0.01  # chosen by hand: share of an arm's impressions that may be missing without a word


class ArmSums:
    """The sums of one experiment, block by block."""

    def __init__(self, fields: tuple[Field, ...], name: str, since_s: float) -> None:
        """Begin with nothing.

        Args:
            fields: Of the deployment; one identifies users.
            name: Of the experiment.
            since_s: Event time; what was shown before does not count.
        """
        user = id_field(fields, "user")
        assert user is not None, "check_split asks for a user id"
        self._user = user.column
        self._name = name
        self._since_s = since_s
        self._users = _Totals(["arm", "user"])
        self._requests = _Totals(["arm", "request"])
        self.snapshots: dict[str, set[str]] = {arm: set() for arm in ARMS}
        self.left_out = Counter({"outside": 0, "anonymous": 0})
        self.from_s, self.to_s = np.inf, -np.inf

    def add(self, frame: pl.DataFrame) -> None:
        """Count the rows of a block."""
        frame = frame.filter(pl.col("time_s") >= self._since_s)
        is_shown = pl.col("kind") != CORRECTION  # a late click's row names an impression that has a row already
        is_inside = pl.lit(value=False)
        if "arm" in frame.columns:
            is_inside = (pl.col("split") == self._name) & pl.col("arm").is_in(ARMS)
        is_known = pl.col(self._user).is_not_null()
        self.left_out["outside"] += frame.filter(~is_inside & is_shown).height
        self.left_out["anonymous"] += frame.filter(is_inside & ~is_known & is_shown).height
        rows = frame.filter(is_inside & is_known)
        if not len(rows):
            return
        self.from_s = min(self.from_s, float(rows["time_s"].to_numpy().min()))
        self.to_s = max(self.to_s, float(rows["time_s"].to_numpy().max()))
        rows = rows.with_columns(
            pl.Series("user", hash_strings(rows[self._user])),
            pl.Series("request", hash_strings(rows["request_id"])),
            impressions=is_shown.cast(pl.Int64),
            clicks=pl.col("click").cast(pl.Int64),
        )
        self._users.add(rows)
        self._requests.add(rows)
        for arm, snapshot in rows.select("arm", "snapshot").unique().rows():
            self.snapshots[arm].add(snapshot)

    def users(self, arm: str) -> Users:
        """Return the sums per user of an arm."""
        found = self._users.of(arm)
        return Users(found["impressions"].to_numpy().astype(np.float64), found["clicks"].to_numpy().astype(np.float64))

    def ids(self, *arms: str) -> set[int]:
        """Return who was in one of these arms."""
        return {user for arm in arms for user in self._users.of(arm)["user"]}

    def counts(self, arm: str) -> dict[str, int]:
        """Return users, requests, impressions and clicks of an arm."""
        found = self._users.of(arm)
        sums = {name: int(found[name].sum()) for name in ("impressions", "clicks")}
        return {"users": found.height, "requests": self._requests.of(arm).height} | sums


class _Totals:
    """Impressions and clicks per key, put together now and then."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = keys
        schema = {"arm": pl.String(), keys[1]: pl.UInt64(), "impressions": pl.Int64(), "clicks": pl.Int64()}
        self._parts = [pl.DataFrame(schema=schema)]
        self._n_waiting = 0

    def add(self, rows: pl.DataFrame) -> None:
        self._parts.append(self._sums(rows))
        self._n_waiting += self._parts[-1].height
        if self._n_waiting > max(ROWS_MIN, self._parts[0].height):
            self._merge()

    def of(self, arm: str) -> pl.DataFrame:
        self._merge()
        return self._parts[0].filter(pl.col("arm") == arm)

    def _merge(self) -> None:
        if self._n_waiting:
            self._parts, self._n_waiting = [self._sums(pl.concat(self._parts))], 0

    def _sums(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.group_by(self._keys).agg(pl.col("impressions").sum(), pl.col("clicks").sum())


def check_split(settings: Settings) -> None:
    """Check that there is, or was, an experiment: SettingsError if not."""
    if not settings.split.name:
        raise SettingsError(
            "[split] name must be that of the experiment to compare, got none; set it and [split] share, and restart"
            " `freshrank serve` to begin one"
        )
    if id_field(settings.fields, "user") is None:
        raise SettingsError(
            '[[fields]] must hold one of side = "user", kind = "category" (the user\'s id) to compare arms, got none'
        )


async def compare_arms(
    settings: Settings,
    cluster: Cluster,
    *,
    since_s: float | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the JSON object of `freshrank ab`: see docs/cli.md.

    Args:
        settings: Of the deployment.
        cluster: Where its topics are.
        since_s: Event time; what was shown before does not count.
        on_progress: Called with what has been done.

    Raises:
        SettingsError: As `check_split`; or if there is nothing to compare yet.
    """
    check_split(settings)
    sums = ArmSums(settings.fields, settings.split.name, -np.inf if since_s is None else since_s)
    n_rows = 0

    def decode(value: bytes) -> tuple[Header, pl.DataFrame]:
        header = decode_header(value)
        is_before = since_s is not None and header.watermark_s < since_s  # so nothing in it was shown later
        return (header, pl.DataFrame()) if is_before else decode_block(value)

    async for block in BlockFeed(cluster, {}, "examples", decode).catch_up():
        if len(block.frame):
            sums.add(block.frame)
            n_rows += len(block.frame)
            on_progress(f"{n_rows:,} rows")
    return report(settings, sums, since_s)


def report(settings: Settings, sums: ArmSums, since_s: float | None) -> dict[str, Any]:
    """Return the comparison of what was summed up.

    Raises:
        SettingsError: If an arm has no impressions.
    """
    counts = {arm: sums.counts(arm) for arm in ARMS}
    _check_arms(settings, counts, sums)
    control, treatment = sums.users(CHAMPION), sums.users(LATEST)
    drawn, others = sums.ids(LATEST, FALLBACK), sums.ids(CHAMPION)
    share = settings.split.share
    draw = check_draw(len(others), len(drawn), share) if share else None
    found = {
        "name": settings.name,
        "split": {"name": settings.split.name, "share": share},
        "since_s": since_s,
        "from_s": sums.from_s,
        "to_s": sums.to_s,
        "arms": {
            arm: counts[arm] | {"ctr": asdict(click_rate(users)), "snapshots": len(sums.snapshots[arm])}
            for arm, users in ((CHAMPION, control), (LATEST, treatment))
        },
        "difference": asdict(compare(control, treatment)),
        "draw": asdict(draw) if draw else None,
        "fallback": counts[FALLBACK],
        "left_out": dict(sums.left_out),
        "crossed": len(drawn & others),
    }
    return found | {"warnings": _warnings(found)}


def _check_arms(settings: Settings, counts: dict[str, dict[str, int]], sums: ArmSums) -> None:
    n_champion, n_latest = counts[CHAMPION]["impressions"], counts[LATEST]["impressions"]
    if n_champion and n_latest:
        return
    name = settings.split.name
    where = f'topic {settings.prefix}.examples must hold settled impressions of both arms of the experiment "{name}"'
    got = (
        f"got {n_champion:,} of {CHAMPION}, {n_latest:,} of {LATEST}, {counts[FALLBACK]['impressions']:,} of {FALLBACK}"
    )
    got += f" and {sums.left_out['outside']:,} outside of it"
    if not settings.split.share:
        to_do = "set [split] share above 0 and restart `freshrank serve`"
    elif counts[FALLBACK]["impressions"]:
        to_do = "the newest model could not be loaded: `freshrank serve` has logged why"
    else:
        to_do = (
            "let `freshrank serve` run with this configuration and a ledger behind it; an impression settles [ledger]"
            f" wait_s ({settings.ledger.wait_s:g} s) after it was shown"
        )
    raise SettingsError(f"{where}, {got}; {to_do}")


def _warnings(found: dict[str, Any]) -> list[str]:
    """Return what makes a comparison doubtful, the worst first."""
    lines, draw, arms, fallback = [], found["draw"], found["arms"], found["fallback"]
    if draw is None:
        lines.append("[split] share is 0 now: whether users were drawn as they were to be is not checked")
    elif not draw["passes"]:
        lines.append(
            f"sample ratio mismatch: {draw['observed']:.4f} of the users are in the arm {LATEST}, {draw['expected']:g}"
            f" were to be (p = {draw['p_value']:.1g}); do not use the difference before it is known what keeps users of"
            " one arm away: a share that was changed under the same name, errors or time-outs of one model, lost events"
        )
    if found["crossed"]:
        lines.append(
            f"{found['crossed']:,} users were in both arms: the share was changed under the same name; give [split] a"
            " new name, or take --since"
        )
    n_drawn = arms[LATEST]["impressions"] + fallback["impressions"]
    if fallback["impressions"] > FALLBACK_MAX * n_drawn:
        lines.append(
            f"{fallback['impressions']:,} of {n_drawn:,} impressions of users drawn for {LATEST} were answered by the"
            f" champion, because the newest model was not there; they are left out, so {LATEST} lacks those times"
        )
    for arm, one in arms.items():
        if one["users"] < USERS_MIN or one["clicks"] < CLICKS_MIN:
            lines.append(
                f"{arm} has {one['users']:,} users and {one['clicks']:,} clicks: its interval is a rough guess"
            )
    return lines
