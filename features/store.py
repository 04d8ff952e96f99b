"""Users in Feast: what the live priors know of each, written in batches and read in batches.

Owns the online store (SQLite embedded, or Redis) and the rules about event time that the stores leave open or disagree
about. Must not know when something is pushed or what a reader makes of it.

Invariants: what is older than `max_age_s` is not handed out (Feast applies no `ttl` on reads); what is not newer than
what the store holds is not written (Redis would ignore it, SQLite would overwrite). Only the processes that open a
store import Feast: it takes about ten seconds.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import polars as pl

from features.fields import Field, id_field

if TYPE_CHECKING:
    from feast import FeatureStore


# Names in Feast: of the entity, the view and the push source alike; and of the columns.
VIEW, ID, EVENT_TIME = "user", "user_id", "event_time"
AS_OF, IMPRESSIONS, CLICKS = "as_of_s", "impressions", "clicks"


@dataclass(frozen=True)
class User:
    """What is known of a user.

    Attributes:
        values: The newest raw values of the user's side by the name of their field, those that are known.
        impressions: Decayed to `as_of_s`, one per half-life.
        clicks: The same.
        as_of_s: Event time of the counts.
    """

    values: Mapping[str, str | float | list[str]]
    impressions: tuple[float, ...]
    clicks: tuple[float, ...]
    as_of_s: float


@dataclass(frozen=True)
class UserRead:
    """The answer to one batched read.

    Attributes:
        users: Those that the store holds and that are new enough, by id.
        missing: How many of those asked for the store does not hold.
        too_old: How many it holds that are older than allowed.
        seconds: How long it took.
    """

    users: dict[str, User]
    missing: int
    too_old: int
    seconds: float


class UserStore:
    """The users of one deployment; see `open_store`. One thread at a time."""

    def __init__(self, store: FeatureStore, fields: Sequence[Field], *, max_age_s: float) -> None:
        """Take a Feast store that knows the definitions."""
        self._store = store
        self._fields = user_fields(fields)
        self._max_age_s = max_age_s

    def push(self, users: pl.DataFrame) -> int:
        """Write users; return how many were left out because the store holds something as new.

        Args:
            users: One row a user: `user_id`, `as_of_s`, `impressions` and `clicks` (lists), and the `value_column` of
                each of the `user_fields`.
        """
        from feast.data_source import PushMode

        held = self._read(users[ID].to_list(), [AS_OF])[AS_OF]
        held_s = pl.Series(held, dtype=pl.Float64).fill_null(float("-inf"))
        newer = users.filter(users[AS_OF] > held_s)
        if len(newer):
            time_us = (newer[AS_OF] * 1e6).round().cast(pl.Int64)
            rows = newer.with_columns(time_us.cast(pl.Datetime("us", "UTC")).alias(EVENT_TIME))
            self._store.push(VIEW, rows.to_pandas(), to=PushMode.ONLINE)
        return len(users) - len(newer)

    def read_users(self, ids: Sequence[str], now_s: float) -> UserRead:
        """Return what is known of users, in one round trip to the store.

        Args:
            ids: Of the users; each once.
            now_s: Event time now.
        """
        started_s = time.perf_counter()
        values = {field.name: value_column(field) for field in self._fields}
        found = self._read(ids, [AS_OF, IMPRESSIONS, CLICKS, *values.values()])
        users, missing, too_old = {}, 0, 0
        for index, user_id in enumerate(ids):
            as_of_s = found[AS_OF][index]
            if as_of_s is None:
                missing += 1
            elif now_s - as_of_s > self._max_age_s:
                too_old += 1
            else:
                users[user_id] = User(
                    values={
                        name: found[column][index] for name, column in values.items() if _is_there(found[column][index])
                    },
                    impressions=tuple(found[IMPRESSIONS][index]),
                    clicks=tuple(found[CLICKS][index]),
                    as_of_s=as_of_s,
                )
        return UserRead(users, missing, too_old, time.perf_counter() - started_s)

    def _read(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, list[Any]]:
        if not ids:
            return {column: [] for column in columns}
        features = [f"{VIEW}:{column}" for column in columns]
        rows = [{ID: user_id} for user_id in ids]
        answer: dict[str, list[Any]] = self._store.get_online_features(features=features, entity_rows=rows).to_dict()
        return answer


def open_store(fields: Sequence[Field], *, prefix: str, redis_url: str, directory: Path, max_age_s: float) -> UserStore:
    """Return the store of a deployment; the first call in a process imports Feast.

    Args:
        fields: Of the deployment.
        prefix: Of the deployment; keeps it apart from others in the same Redis.
        redis_url: redis://[:PASSWORD@]HOST:PORT[/DB]; empty: a SQLite file.
        directory: Where that file lies.
        max_age_s: What is older is not handed out.
    """
    import feast

    from features.feature_repo.definitions import definitions

    if redis_url:
        online = {"type": "redis", "connection_string": connection_string(redis_url)}
    else:
        directory.mkdir(parents=True, exist_ok=True)
        online = {"type": "sqlite", "path": str(directory / "users.db")}
    with tempfile.TemporaryDirectory(prefix="freshrank-feast-") as scratch:
        store = feast.FeatureStore(
            config=feast.RepoConfig(
                project=re.sub(r"\W", "_", prefix),
                provider="local",
                # A registry of this process, held in memory: the definitions follow from the fields.
                registry={"registry_type": "file", "path": f"{scratch}/registry.db", "cache_ttl_seconds": 0},
                online_store=online,
                offline_store={"type": "file"},
                entity_key_serialization_version=3,
            )
        )
        store.apply(definitions(user_fields(fields)))
    return UserStore(store, fields, max_age_s=max_age_s)


def user_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields whose values are stored with a user: the user's side but for the id."""
    user = id_field(fields, "user")
    return tuple(field for field in fields if field.side == "user" and field != user)


def value_column(field: Field) -> str:
    """Return the column of a field's raw value, apart from those of the counts."""
    return f"value.{field.name}"


def connection_string(redis_url: str) -> str:
    """Return how Feast writes the address of a Redis."""
    parts = urlsplit(redis_url)
    options = [f"{parts.hostname}:{parts.port or 6379}"]
    if parts.path.strip("/"):
        options.append(f"db={parts.path.strip('/')}")
    if parts.username:
        options.append(f"username={unquote(parts.username)}")
    if parts.password:
        options.append(f"password={unquote(parts.password)}")
    if parts.scheme == "rediss":
        options.append("ssl=true")
    return ",".join(options)


def _is_there(value: Any) -> bool:
    return value is not None and value == value  # noqa: PLR0124  # NaN: a number that was not known
