"""What a user clicked, or was shown and left, before each request: a field that a log does not hold but implies.

Owns which impressions a history holds as of a row, how many users are remembered, and which histories a log offers
that names none. Must not know files or what a model makes of the values. A live system sends a history with each
request, like any value of the user's side; this makes the same of a log, for backtest and replay.

Invariants: a history holds nothing but impressions that had settled (`wait_s` after they were shown) before the row was
shown, so it tells nothing of labels that a live system would not know yet; newest first, each value once; it does not
depend on how the rows were cut into frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import polars as pl
import pyarrow as pa

from features.fields import Field, id_field, raw_fields
from infra.settings import History, LogSettings, Settings

OFFERED_LENGTH = 20  # chosen by hand: on MovieLens-1M 30 are better than 10, on KuaiRand they are not
USERS_MAX = 500_000  # about a kilobyte each: chosen by hand; who was shown nothing for longest is forgotten
_LIST = pa.list_(pa.large_string())  # polars alone takes five times as long for a list of lists


def logged_fields(log: LogSettings, fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields whose values are in the log's files: those of events but for the histories."""
    implied = {history.name for history in log.histories}
    return tuple(field for field in raw_fields(fields) if field.name not in implied)


def offered_histories(settings: Settings) -> tuple[tuple[History, Field], ...]:
    """Return histories that a strategy may choose: the items clicked, and not; none where the file names its own."""
    log, item = settings.log, id_field(settings.fields, "item")
    if log is None or log.histories or item is None or id_field(settings.fields, "user") is None:
        return ()
    histories = (
        History(name=f"clicked_{item.name}", of=item.name),
        History(name=f"skipped_{item.name}", of=item.name, clicked=False),
    )
    if {history.name for history in histories} & {field.name for field in settings.fields}:
        return ()
    return tuple((one, Field(one.name, "user", "categories", values_max=OFFERED_LENGTH)) for one in histories)


def with_histories(settings: Settings) -> Settings:
    """Return the settings of a log that holds the histories that it offers."""
    if not (offered := offered_histories(settings)):
        return settings
    assert settings.log is not None
    log = msgspec.structs.replace(settings.log, histories=tuple(history for history, _ in offered))
    fields = (*settings.fields, *(field for _, field in offered))
    return msgspec.structs.replace(settings, log=log, fields=fields)


class _User:
    """One user's impressions that have not settled, oldest first, and what those hold that have."""

    __slots__ = ("settled", "waiting")

    def __init__(self, n_histories: int) -> None:
        self.waiting: list[tuple[float, int, tuple[str | None, ...]]] = []
        self.settled: list[list[str] | None] = [None] * n_histories


class Histories:
    """The histories of all users, moved on row by row; see `[log] histories`.

    Attributes:
        forgotten: Users that were forgotten because more than `users_max` were known; their histories begin anew.
    """

    def __init__(self, log: LogSettings, fields: Sequence[Field], *, wait_s: float, users_max: int = USERS_MAX) -> None:
        """Start with no history; infra/settings.py has checked that the fields fit."""
        by_name = {field.name: field for field in fields}
        user = id_field(fields, "user")
        assert user is not None or not log.histories, "settings ask for a user id"
        self._user = user
        self._columns = [by_name[history.name].column for history in log.histories]
        self._of = [by_name[history.of].column for history in log.histories]
        self._rules = [(history.clicked, by_name[history.name].values_max) for history in log.histories]
        self._wait_s = wait_s
        self._users_max = users_max
        self._users: dict[str, _User] = {}  # who was shown something last stands last
        self.forgotten = 0

    def added_to(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield the rows with a column per history, a list of text, null where nothing is known.

        Args:
            frames: Rows in time order: time_s, click and a column per field.
        """
        if self._user is None or not self._columns:
            yield from frames
            return
        for frame in frames:
            columns: list[list[list[str] | None]] = [[] for _ in self._columns]
            values = zip(*(frame[name].to_list() for name in self._of), strict=True)
            rows = (frame[name].to_list() for name in (self._user.column, "time_s", "click"))
            for user_id, time_s, click, shown in zip(*rows, values, strict=True):
                user = self._known(user_id, time_s)
                for column, settled in zip(columns, user.settled, strict=True):
                    column.append(settled)
                user.waiting.append((time_s + self._wait_s, click, shown))
            yield frame.with_columns(
                pl.Series(name, pa.array(column, _LIST)) for name, column in zip(self._columns, columns, strict=True)
            )

    def _known(self, user_id: str | None, time_s: float) -> _User:
        """Return what is known of a user as of a moment; of nobody, if the row names none."""
        user = self._users.pop(user_id, None) if user_id is not None else None
        if user is None:
            user = _User(len(self._columns))
        n_settled = 0
        for settles_s, click, shown in user.waiting:
            if not settles_s < time_s:
                break
            n_settled += 1
            for number, (clicked, length) in enumerate(self._rules):
                value = shown[number]
                if clicked == click and value is not None:
                    held = user.settled[number] or ()
                    user.settled[number] = [value, *(one for one in held if one != value)][:length]
        del user.waiting[:n_settled]
        if user_id is not None:
            self._users[user_id] = user
            if len(self._users) > self._users_max:
                del self._users[next(iter(self._users))]
                self.forgotten += 1
        return user
