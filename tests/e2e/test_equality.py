"""Offline is the same code: a backtest over a file and a replay through Kafka give the same snapshots, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra import broker as embedded
from infra.broker import BrokerInfo
from infra.settings import read_settings, state_dir
from stream.announcement import decode_announcement
from stream.backtest import run_backtest
from stream.logs.fetch import FetchError, fetch
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from tests.broker.deployment import CONFIGS, Deployment, deploy, until

ROWS = 100_000


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerInfo]:
    data_dir: Path = tmp_path_factory.mktemp("broker")
    yield embedded.start(data_dir, owned=True, timeout_s=60.0)
    embedded.stop(data_dir)


@pytest.fixture(scope="module")
def movielens() -> Path:
    """The directory that holds MovieLens-1M; fetched once into the state directory."""
    data_dir = state_dir() / "data"
    try:
        fetch("movielens-1m", data_dir, print)
    except FetchError as error:
        pytest.skip(f"MovieLens-1M cannot be had here: {error}")
    return data_dir


@pytest.fixture(scope="module")
def offline(movielens: Path) -> list[tuple[int, str, str]]:
    """(slide, champion, latest) after each slide of the backtest; a version holds the digest."""
    settings = read_settings(CONFIGS / "movielens-1m.toml")
    arrivals = read_arrivals(settings, [movielens], RowCounts(), limit=ROWS)
    windows = run_backtest(settings, arrivals)["windows"]
    return [(one["slide"], one["champion_version"], one["latest_version"]) for one in windows]


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 3])
async def test_replay_through_kafka_gives_the_digests_of_the_backtest(
    n_workers: int, offline: list[tuple[int, str, str]], movielens: Path, broker: BrokerInfo, tmp_path: Path
) -> None:
    config = CONFIGS / "movielens-1m.toml"
    deployment = deploy(tmp_path, broker.bootstrap_servers, f"equal-{n_workers}", config=config, data_dir=movielens)
    assert len(offline) >= 3
    with ExitStack() as stack:
        for _ in range(n_workers):
            stack.enter_context(deployment.role("worker", "ledger"))
        stack.enter_context(deployment.role("worker", "train"))
        await deployment.replay(limit=ROWS)
        await deployment.wait_settled(120.0)
        await until(deployment.announced(len(offline)), 180.0)
    assert await announced(deployment) == offline


async def announced(deployment: Deployment) -> list[tuple[int, str, str]]:
    records = [decode_announcement(record.value or b"") for record in await deployment.read("snapshots", 0)]
    return [(one.slide, one.champion, one.latest) for one in records]
