"""What a user clicked, or was shown and left, before each row: a field that a log does not hold but implies.

Owns which impressions a history holds as of a row and how many users are remembered. Must not know files, settings or
what a model makes of the values. A live system sends a history with each request, like any value of the user's side;
this makes the same of a log, for backtest and replay.

Invariants: a history holds what somebody could know who waits `wait_s` for each click: an impression enters as left or
as clicked once it has settled, and one that is clicked later enters as clicked then; newest first, each value once; it
does not depend on how the rows were cut into frames.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from operator import itemgetter

import polars as pl
import pyarrow as pa

from features.fields import Field, History, id_field, raw_fields

USERS_MAX = 500_000  # chosen by hand: 3.4 kB each with 40 short values; who was shown nothing for longest is forgotten
_LIST = pa.list_(pa.large_string())  # polars alone takes five times as long for a list of lists
_SOONEST = itemgetter(0)


def logged_fields(fields: Sequence[Field], histories: Sequence[History]) -> tuple[Field, ...]:
    """Return the fields whose values are in the log's files: those of events but for the histories."""
    implied = {history.name for history in histories}
    return tuple(field for field in raw_fields(fields) if field.name not in implied)


class _User:
    """What is still to enter one user's histories, soonest first, and what they hold."""

    __slots__ = ("settled", "waiting")

    def __init__(self, n_histories: int) -> None:
        self.waiting: list[tuple[float, bool, tuple[str | None, ...]]] = []
        self.settled: list[list[str] | None] = [None] * n_histories


class Histories:
    """The histories of all users, moved on row by row; see `[log] histories`.

    Attributes:
        forgotten: Users that were forgotten because more than `users_max` were known; their histories begin anew.
    """

    def __init__(
        self, histories: Sequence[History], fields: Sequence[Field], *, wait_s: float, users_max: int = USERS_MAX
    ) -> None:
        """Start with no history; infra/settings.py has checked that the fields fit."""
        by_name = {field.name: field for field in fields}
        user = id_field(fields, "user")
        assert user is not None or not histories, "settings ask for a user id"
        self._user = user
        self._columns = [by_name[history.name].column for history in histories]
        self._of = [by_name[history.of].column for history in histories]
        self._rules = [(history.clicked, by_name[history.name].values_max) for history in histories]
        self._wait_s = wait_s
        self._users_max = users_max
        self._users: dict[str, _User] = {}  # who was shown something last stands last
        self.forgotten = 0

    def added_to(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield the rows with a column per history, a list of text, null where nothing is known.

        Args:
            frames: Rows in time order: time_s, click_time_s (null: no click), position (null: not shown) and a column
                per field.
        """
        if self._user is None or not self._columns:
            yield from frames
            return
        for frame in frames:
            columns: list[list[list[str] | None]] = [[] for _ in self._columns]
            values = zip(*(frame[name].to_list() for name in self._of), strict=True)
            rows = (frame[name].to_list() for name in (self._user.column, "time_s", "click_time_s", "position"))
            for user_id, time_s, click_s, position, shown in zip(*rows, values, strict=True):
                user = self._known(user_id, time_s)
                for column, settled in zip(columns, user.settled, strict=True):
                    column.append(settled)
                if position is None:  # a candidate that was not shown
                    continue
                settles_s = time_s + self._wait_s
                is_late = click_s is not None and click_s > settles_s
                insort(user.waiting, (settles_s, click_s is not None and not is_late, shown), key=_SOONEST)
                if is_late:
                    insort(user.waiting, (click_s, True, shown), key=_SOONEST)
            yield frame.with_columns(
                pl.Series(name, pa.array(column, _LIST)) for name, column in zip(self._columns, columns, strict=True)
            )

    def _known(self, user_id: str | None, time_s: float) -> _User:
        """Return what is known of a user as of a moment; of nobody, if the row names none."""
        user = self._users.pop(user_id, None) if user_id is not None else None
        if user is None:
            user = _User(len(self._columns))
        n_settled = 0
        for known_s, clicked, shown in user.waiting:
            if not known_s < time_s:
                break
            n_settled += 1
            for number, (of_clicked, length) in enumerate(self._rules):
                value = shown[number]
                if of_clicked == clicked and value is not None:
                    held = user.settled[number] or ()
                    user.settled[number] = [value, *(one for one in held if one != value)][:length]
        del user.waiting[:n_settled]
        if user_id is not None:
            self._users[user_id] = user
            if len(self._users) > self._users_max:
                del self._users[next(iter(self._users))]
                self.forgotten += 1
        return user
