"""What is known of a user beyond what the caller says: one batched read of the feature store per request.

Owns how long a request waits for the store and what happens when it is away. Must not know what a store is made of
(features/store.py) or how values are scored.

Invariants: the caller's values win; a request never waits longer than `wait_s` and never fails for the store's sake: it
goes on without, and says so; a store that cannot be opened is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from features.fields import Field, id_field
from features.store import UserStore, user_fields
from infra.metrics import ServeMetrics
from models.serving.schema import Clean

log = logging.getLogger("freshrank.users")

REOPEN_S = 10.0  # chosen by hand: a store that is down is asked again within this time


class Users:
    """Reads users; `open` first, in the background: importing the store's library takes ten seconds."""

    def __init__(
        self, open_store: Callable[[], UserStore], fields: Sequence[Field], metrics: ServeMetrics, *, wait_s: float
    ) -> None:
        """Begin without a store.

        Args:
            open_store: Blocks until there is one, or raises what is wrong.
            fields: Of the deployment; one of them identifies users.
            metrics: What is exported.
            wait_s: How long a request waits.
        """
        user = id_field(fields, "user")
        assert user is not None, "settings ask for a user id where there is a store"
        self._id_name = user.name
        self._names = frozenset(field.name for field in user_fields(fields))
        self._open_store = open_store
        self._metrics = metrics
        self._wait_s = wait_s
        self._store: UserStore | None = None
        self._thread = ThreadPoolExecutor(1, "users")  # the store bears one thread at a time

    async def open(self) -> None:
        """Open the store, however often that has to be tried."""
        loop = asyncio.get_running_loop()
        while self._store is None:
            try:
                self._store = await loop.run_in_executor(self._thread, self._open_store)
            except Exception as error:  # noqa: BLE001  # whatever a store's client raises, requests go on without it
                log.warning("[users] the store cannot be opened, trying again in %g s: %s", REOPEN_S, error)
                await asyncio.sleep(REOPEN_S)

    async def complete(self, values: dict[str, Clean], now_s: float) -> tuple[dict[str, Clean], bool]:
        """Return a request's values with what the store knows beside them, and whether it had to go without.

        Args:
            values: What the caller says.
            now_s: Event time now.
        """
        user_id = values.get(self._id_name)
        if not isinstance(user_id, str) or self._names <= values.keys():
            return values, False
        outcome, known = await self._read(user_id, now_s)
        self._metrics.user_reads.labels(outcome).inc()
        return {**known, **values}, outcome not in ("found", "missing")

    async def _read(self, user_id: str, now_s: float) -> tuple[str, Mapping[str, Clean]]:
        """Return what became of a read, and the values."""
        if self._store is None:
            return "away", {}
        loop = asyncio.get_running_loop()
        try:
            reading = loop.run_in_executor(self._thread, self._store.read_users, [user_id], now_s)
            found = await asyncio.wait_for(reading, self._wait_s)
        except TimeoutError:
            return "slow", {}
        except Exception as error:  # noqa: BLE001  # as above
            log.warning("[users] the store cannot be read: %s", error)
            return "away", {}
        if user_id in found.users:
            return "found", found.users[user_id].values
        return ("too_old" if found.too_old else "missing"), {}

    def close(self) -> None:
        """Let go of the store."""
        self._thread.shutdown(wait=False, cancel_futures=True)
