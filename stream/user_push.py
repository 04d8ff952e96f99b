"""Users that have changed, on their way from the live priors into the store.

Owns which users wait, when they are pushed, and the process that pushes: importing Feast takes ten seconds and a push
holds the interpreter, so both would keep examples waiting here. Must not know what the store is.

Invariants: of a user the newest values wait, once; at most `users_max` users wait, the ones that changed first are
dropped, and counted; a push that fails is tried again with what has changed since. A user whose change was not pushed
before a kill comes with the blocks that are read again, or else with the next example.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

import polars as pl

from features.encode import encode
from features.fields import Field, id_field
from features.live_priors import LivePriors
from features.priors import lookup
from features.store import AS_OF, CLICKS, ID, IMPRESSIONS, UserStore, open_store, user_fields, value_column
from infra.metrics import PriorMetrics
from infra.settings import Settings, state_dir
from stream.child import end_with_parent

BATCH_USERS = 5_000  # half a second of a push: short enough to be stopped after

log = logging.getLogger("freshrank.store")


class Shelf(Protocol):
    """Where users are put."""

    async def push(self, users: pl.DataFrame) -> int:
        """Write users; return how many were left out because something as new is there."""

    def close(self) -> None:
        """Let go of it; nothing is pushed any more."""


def open_user_push(settings: Settings, priors: LivePriors, metrics: PriorMetrics) -> UserPush | None:
    """Return what pushes the users of a worker; None if there is no store, or another shard counts users."""
    user = id_field(settings.fields, "user")
    if settings.store.kind == "none" or user is None or not priors.counts(user):
        return None
    return UserPush(settings, user, priors, metrics, StoreProcess(settings))


class UserPush:
    """The users that wait, and where they go."""

    def __init__(
        self, settings: Settings, user: Field, priors: LivePriors, metrics: PriorMetrics, shelf: Shelf
    ) -> None:
        """Prepare; nobody waits yet."""
        self._user = user
        self._fields = user_fields(settings.fields)
        self._push_s = settings.store.push_s
        self._users_max = settings.store.users_max
        self._priors = priors
        self._metrics = metrics
        self._shelf = shelf
        self._waiting: list[pl.DataFrame] = []
        self._pushed_as_of_s = float("-inf")

    def add(self, frame: pl.DataFrame) -> None:
        """Let the users of some examples wait."""
        columns = [pl.col(self._user.column).cast(pl.String).alias(ID)]
        for field in self._fields:
            value = pl.col(field.column) if field.column in frame.columns else pl.lit(None)
            columns.append(value.alias(value_column(field)))
        self._waiting.append(frame.select(columns).drop_nulls(ID).unique(ID, keep="last"))
        if sum(map(len, self._waiting)) > 2 * self._users_max:
            self._waiting = [self._newest()]

    async def run(self, sleep: Callable[[float], Awaitable[None]], should_stop: Callable[[], bool]) -> None:
        """Push again and again until told to stop."""
        while not should_stop():
            await sleep(self._push_s)
            await self.push()

    async def push(self) -> None:
        """Push all users that wait, unless no time has passed since the last push: then the stores would not agree."""
        as_of_s = self._priors.table.as_of_s
        if not self._waiting or not as_of_s > self._pushed_as_of_s:
            return
        waiting = self._newest()
        self._waiting = []
        users = self._with_counts(waiting, as_of_s)
        for first in range(0, len(users), BATCH_USERS):
            batch = users[first : first + BATCH_USERS]
            started_s = time.perf_counter()
            try:
                older = await self._shelf.push(batch)
            except Exception as error:  # noqa: BLE001  # whatever a store's client raises: counting must go on
                self._metrics.pushed.labels("failed").inc(len(batch))
                log.warning("[store] %d users could not be pushed, trying again: %r", len(users) - first, error)
                self._waiting.insert(0, waiting[first:])
                return
            self._metrics.push_s.observe(time.perf_counter() - started_s)
            self._metrics.pushed.labels("older").inc(older)
            self._metrics.pushed.labels("pushed").inc(len(batch) - older)
        self._pushed_as_of_s = as_of_s

    async def stop(self) -> None:
        """Push what waits if anything was pushed before: opening a store only to leave would take too long."""
        if self._pushed_as_of_s > float("-inf"):
            await self.push()
        self._shelf.close()

    def _newest(self) -> pl.DataFrame:
        """Return the newest values of each user that waits, those that changed last if there are too many."""
        users = pl.concat(self._waiting).unique(ID, keep="last", maintain_order=True)
        if (too_many := len(users) - self._users_max) > 0:
            self._metrics.pushed.labels("dropped").inc(too_many)
            users = users[too_many:]
        return users

    def _with_counts(self, users: pl.DataFrame, as_of_s: float) -> pl.DataFrame:
        """Return the rows that the store takes."""
        keys = encode(users.select(pl.col(ID).alias(self._user.column)), (self._user,))
        counts = lookup(self._priors.table, keys, as_of_s)
        return users.with_columns(
            pl.lit(as_of_s).alias(AS_OF),
            pl.Series(IMPRESSIONS, counts.n[:, 0].tolist(), dtype=pl.List(pl.Float64)),
            pl.Series(CLICKS, counts.c[:, 0].tolist(), dtype=pl.List(pl.Float64)),
        )


class StoreProcess:
    """The store of a deployment in a process of its own, started at the first push; it ends with its parent."""

    def __init__(self, settings: Settings) -> None:
        """Prepare."""
        self._settings = settings
        self._directory = users_directory(settings)
        self._pool: ProcessPoolExecutor | None = None

    async def push(self, users: pl.DataFrame) -> int:
        """Write users; return how many were left out because the store holds something as new."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, _push, self._settings, self._directory, users)
        except BrokenProcessPool:
            self.close()  # the next push starts another
            raise

    def close(self) -> None:
        """End the process once it has done what it is doing."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


_stores: list[UserStore] = []  # of the store's process: the one that it has opened


def _push(settings: Settings, directory: Path, users: pl.DataFrame) -> int:
    if not _stores:
        _stores.append(open_users(settings, directory))
    return _stores[0].push(users)


def open_users(settings: Settings, directory: Path) -> UserStore:
    """Return the store of a deployment, as those who push and those who read open it; imports Feast."""
    return open_store(
        settings.fields,
        prefix=settings.prefix,
        redis_url=settings.store.redis_url,
        directory=directory,
        max_age_s=settings.store.max_age_s,
    )


def users_directory(settings: Settings) -> Path:
    """Return where the users of a deployment lie, if not in Redis."""
    return state_dir() / "store" / settings.prefix
