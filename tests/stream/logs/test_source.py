"""A deployment's settings decide its events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra.settings import Settings, SettingsError, parse_settings
from stream.events import Click, Impression, Tick
from stream.logs.reader import RowCounts
from stream.logs.source import offered_histories, read_arrivals, with_histories

LOG = {"files": ["log.csv"], "time": "t", "label": "y", "click_delay_s": {"mean": 0.5}}
FIELDS = [{"name": "ad", "side": "item"}]


def settings_with(**sections: Any) -> Settings:
    window = {"slide_s": 100.0}
    return parse_settings({"name": "shop", "fields": FIELDS, "log": LOG, "window": window} | sections)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pl.DataFrame({"t": [50.0, 60.0, 70.0], "y": [1, 0, 1], "ad": ["a", "b", "c"]}).write_csv(tmp_path / "log.csv")
    return tmp_path


def test_waits_slides_disorder_and_delays_come_from_the_settings(directory: Path) -> None:
    def ticks_and_delays(settings: Settings) -> tuple[list[float], list[float]]:
        events = [event for _, event in read_arrivals(settings, [directory], RowCounts())]
        shown = {event.request_id: event.time_s for event in events if isinstance(event, Impression)}
        delays = [event.time_s - shown[event.request_id] for event in events if isinstance(event, Click)]
        return [event.time_s for event in events if isinstance(event, Tick)], delays

    ledger = {"wait_s": 20.0, "disorder_s": 3.0}
    ticks, delays = ticks_and_delays(settings_with(ledger=ledger))
    assert ticks == [103.0]
    assert ticks_and_delays(settings_with(ledger=ledger | {"wait_s": 40.0}))[0] == [203.0]
    assert ticks_and_delays(settings_with(ledger=ledger, window={"edges": [80.0, 95.0]}))[0] == [98.0]
    slow = LOG | {"click_delay_s": {"mean": 5.0}}
    assert ticks_and_delays(settings_with(ledger=ledger, log=slow))[1] == pytest.approx([10.0 * one for one in delays])
    other = LOG | {"click_delay_s": {"mean": 0.5, "seed": 8}}
    assert ticks_and_delays(settings_with(ledger=ledger, log=other))[1] != delays


def test_a_limit_lets_the_clicks_of_its_rows_and_the_last_tick_follow(directory: Path) -> None:
    counts = RowCounts()
    kinds = [type(event).__name__ for _, event in read_arrivals(settings_with(), [directory], counts, limit=1)]
    assert kinds == ["Request", "Impression", "Click", "Tick"]
    assert (counts.used, counts.clicks) == (1, 1)


def test_without_a_log_there_is_nothing_to_read() -> None:
    settings = parse_settings({"name": "shop", "fields": FIELDS})
    with pytest.raises(SettingsError, match=r"the file must hold a section \[log\] to read raw rows, got none; add it"):
        read_arrivals(settings, [], RowCounts())


def test_a_log_of_users_offers_the_items_that_were_clicked_and_those_that_were_not() -> None:
    settings = settings_with(fields=[{"name": "user", "side": "user"}, *FIELDS])
    assert [(one.name, one.of, one.clicked) for one, _ in offered_histories(settings)] == [
        ("clicked_ad", "ad", True),
        ("skipped_ad", "ad", False),
    ]
    offering = with_histories(settings)
    assert offering.log is not None
    assert [field.name for field in offering.fields] == ["user", "ad", "clicked_ad", "skipped_ad"]
    assert offered_histories(offering) == ()  # it names them now
    assert with_histories(offering) == offering


def test_what_a_file_names_is_all_it_gets() -> None:
    before = {"name": "before", "side": "user", "kind": "categories"}
    fields = [{"name": "user", "side": "user"}, before, *FIELDS]
    settings = settings_with(fields=fields, log=LOG | {"histories": [{"name": "before", "of": "ad"}]})
    assert offered_histories(settings) == ()
    assert with_histories(settings) == settings


def test_a_log_without_users_offers_nothing() -> None:
    settings = settings_with()
    assert with_histories(settings) == settings
