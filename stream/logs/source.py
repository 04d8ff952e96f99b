"""A deployment's log as events: the one call that the backtest and the replay share.

Owns which settings decide the events, and which histories a log offers whose file names none. Must not know where the
events go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import polars as pl

from features.fields import Field, History, id_field
from infra.settings import Settings, SettingsError
from stream.logs.arrivals import Arrival, log_events
from stream.logs.reader import RowCounts, read_rows
from stream.wiring import new_slides

OFFERED_LENGTH = 20  # chosen by hand: on MovieLens-1M 30 are better than 10, on KuaiRand they are not


def read_arrivals(
    settings: Settings, bases: Sequence[Path], counts: RowCounts, *, limit: int | None = None
) -> Iterator[Arrival]:
    """Yield the events of the deployment's log in order of arrival, ticks included.

    Args:
        settings: With a [log] section.
        bases: Where the log's files are looked for, in this order.
        counts: Counts up as rows are read.
        limit: Stop after this many rows; their clicks and the last tick follow.

    Raises:
        SettingsError: If there is no [log] section.
        LogError: If the log cannot be read or used.
    """
    return log_events(
        read_frames(settings, bases, counts, limit=limit),
        settings.fields,
        new_slides(settings),
        wait_s=settings.ledger.wait_s,
        disorder_s=settings.ledger.disorder_s,
    )


def read_frames(
    settings: Settings, bases: Sequence[Path], counts: RowCounts, *, limit: int | None = None
) -> Iterator[pl.DataFrame]:
    """Return the rows of the deployment's log as `reader.read_rows` yields them; arguments and errors as above."""
    if settings.log is None:
        raise SettingsError("the file must hold a section [log] to read raw rows, got none; add it")
    return read_rows(
        settings.log,
        settings.fields,
        bases,
        counts,
        wait_s=settings.ledger.wait_s,
        disorder_s=settings.ledger.disorder_s,
        limit=limit,
    )


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
