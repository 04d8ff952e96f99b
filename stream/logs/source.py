"""A deployment's log as events: the one call that the backtest and the replay share.

Owns which settings decide the events. Must not know where the events go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.settings import Settings, SettingsError
from stream.logs.arrivals import Arrival, log_events
from stream.logs.reader import RowCounts, read_rows
from stream.wiring import new_slides


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
    if settings.log is None:
        raise SettingsError("the file must hold a section [log] to read raw rows, got none; add it")
    frames = read_rows(
        settings.log,
        settings.fields,
        bases,
        counts,
        wait_s=settings.ledger.wait_s,
        disorder_s=settings.ledger.disorder_s,
        limit=limit,
    )
    return log_events(
        frames,
        settings.fields,
        new_slides(settings),
        wait_s=settings.ledger.wait_s,
        disorder_s=settings.ledger.disorder_s,
        delay_mean_s=settings.log.click_delay_s.mean,
        delay_seed=settings.log.click_delay_s.seed,
    )
