"""What the demo runs on: a log that is there, and a configuration of the demo's own.

Owns the choice of the log (MovieLens-1M; the simulated world where that cannot be had), the configuration derived from
the one in `configs/`, and the rows that are held back. Must not know processes or screens.

Invariants: the derived configuration names its files and its registry by absolute paths and always means the embedded
broker; the given one is never changed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from infra.settings import Settings, SettingsError, parse_settings, read_settings
from stream.cascade import Cascade
from stream.logs.fetch import PUBLIC_LOGS, FetchError, fetch
from stream.logs.files import LogError
from stream.logs.reader import RowCounts, check_log
from stream.logs.simulated import write_cascade, write_simulated
from stream.logs.source import read_frames
from stream.simulate import HOUR_S

CONFIGS_DIR = Path(__file__).resolve().parents[2] / "configs"
DEFAULT_LOG, FALLBACK_LOG, CASCADE_LOG = "movielens-1m", "simulated", "cascade"
SIMULATED_ROWS = 1_000_000
HELD_BACK_ROWS = 500  # at the end of the log: people whose next click is known and has never been seen

Say = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """The settings that the roles run on, the file that holds them, and where they came from."""

    settings: Settings
    path: Path
    source: Path


def set_up(config: Path | None, data_dir: Path, demo_dir: Path, rows: int | None, say: Say) -> Setup:
    """Return what the demo runs on; brings or makes the log if it is one that we can.

    Args:
        config: None: MovieLens-1M, or the simulated world where it cannot be had.
        data_dir: Where logs are kept.
        demo_dir: The demo's own.
        rows: How many rows are to be replayed; None: all.
        say: Is told a line for each step that takes its time.

    Raises:
        SettingsError: If the configuration cannot be used.
        LogError: If there is no such log, or it cannot be read.
        FetchError: If the log of a given configuration cannot be had.
    """
    if config is not None:
        settings = read_settings(config)
        _bring(settings, data_dir, say)
    else:
        config = CONFIGS_DIR / f"{DEFAULT_LOG}.toml"
        settings = read_settings(config)
        try:
            _bring(settings, data_dir, say)
        except FetchError as error:
            say(f"{DEFAULT_LOG} cannot be had, so this runs on the simulated world instead: {error}")
            config = CONFIGS_DIR / f"{FALLBACK_LOG}.toml"
            settings = read_settings(config)
    bases = [data_dir, demo_dir / "data", config.resolve().parent]
    if _log_name(settings) == FALLBACK_LOG and not _is_there(settings, bases):
        n_rows = (rows or SIMULATED_ROWS) + HELD_BACK_ROWS
        say(f"simulating {n_rows:,} impressions of an ad world")
        write_simulated(demo_dir / "data" / "simulated" / "impressions.parquet", seed=0, rows=n_rows)
    path = demo_dir / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        to_toml(_derive(config, tomllib.loads(config.read_text(encoding="utf-8")), settings, bases, demo_dir)),
        encoding="utf-8",
    )
    return Setup(read_settings(path), path, config)


def set_up_closed_loop(demo_dir: Path, cascade: Cascade, hours: int, ungated_hours: int, say: Say) -> Setup:
    """Return what a closed loop runs on: the first hours of a cascade as a log, and the ads of all of them.

    Args:
        demo_dir: The demo's own.
        cascade: The world.
        hours: How many are logged, with what the cascade's own policy showed.
        ungated_hours: How many are warm-up, in which every model is promoted.
        say: Is told a line for each step that takes its time.
    """
    config, data_dir = CONFIGS_DIR / f"{CASCADE_LOG}.toml", demo_dir / "data"
    raw = tomllib.loads(config.read_text(encoding="utf-8"))
    del raw["log"]["bid_micros"]  # bids of their own would make the service rank by more than what a loop is judged on
    raw["window"] |= {"warmup_s": ungated_hours * HOUR_S}
    raw["prerank"] |= {"keep": cascade.funnel.preranked}
    settings = parse_settings(raw)
    say(f"simulating {cascade.n_hours} hours of an ad world; the first {hours} are a log")
    write_cascade(data_dir / CASCADE_LOG, cascade, hours=hours)
    path = demo_dir / "config.toml"
    path.write_text(to_toml(_derive(config, raw, settings, [data_dir], demo_dir)), encoding="utf-8")
    return Setup(read_settings(path), path, config)


def hold_back(settings: Settings, rows: int | None) -> Iterator[tuple[int, pl.DataFrame]]:
    """Read the log up to `rows` and a little further; yield, as it goes on, how many rows to replay and those after.

    What is yielded last counts. Reading is cut into steps so that the caller can do something else in between.
    """
    wanted = None if rows is None else rows + HELD_BACK_ROWS
    tail, n_read = pl.DataFrame(), 0
    for frame in read_frames(settings, [], RowCounts()):
        tail = pl.concat([tail, frame], how="diagonal").tail(HELD_BACK_ROWS + frame.height)
        n_read += frame.height
        if wanted is not None and n_read >= wanted:
            break
        yield n_read, tail
    n_replayed = n_read - min(HELD_BACK_ROWS, n_read // 10) if rows is None else min(rows, n_read)
    yield n_replayed, tail.tail(n_read - n_replayed).head(HELD_BACK_ROWS)


def to_toml(table: Mapping[str, Any]) -> str:
    """Return a table of plain values as TOML, its inner tables inline."""
    return "".join(f"{_key(name)} = {_toml(value)}\n" for name, value in table.items())


def _derive(
    config: Path, raw: Mapping[str, Any], settings: Settings, bases: Sequence[Path], demo_dir: Path
) -> dict[str, Any]:
    if settings.log is None:
        raise SettingsError(f"{config}: the file must hold a section [log] to replay, got none; add it")
    sources = check_log(settings.log, settings.fields, bases)
    log = raw["log"] | {"files": [str(source.path.resolve()) for source in sources if source.join is None]}
    joins = [source for source in sources if source.join is not None]
    log["joins"] = [{"file": str(s.path.resolve()), "on": s.join.on} for s in joins if s.join is not None]
    kafka = raw.get("kafka", {}) | {"bootstrap_servers": "", "clock": "replay", "security": {}}
    registry = raw.get("registry", {}) | {"url": str(demo_dir / "registry")}
    return {**raw, "log": log, "kafka": kafka, "registry": registry}


def _log_name(settings: Settings) -> str:
    """Return the first part of the log's first file: what a log that we can bring or make is called."""
    return Path(settings.log.files[0]).parts[0] if settings.log is not None and settings.log.files else ""


def _bring(settings: Settings, data_dir: Path, say: Say) -> None:
    name = _log_name(settings)
    if name in PUBLIC_LOGS:
        fetch(name, data_dir, say)


def _is_there(settings: Settings, bases: Sequence[Path]) -> bool:
    assert settings.log is not None
    try:
        check_log(settings.log, settings.fields, bases)
    except LogError:
        return False
    return True


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_toml(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    assert isinstance(value, int | float), f"settings hold no {type(value).__name__}"
    return repr(value)


def _key(name: str) -> str:
    return _toml(name)
