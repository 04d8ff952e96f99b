"""`freshrank catalog`: ads from a file to the topic `catalog`, and what stands there.

Owns the results of these commands. Must not know what an ad is described by (models/serving/catalog.py does) or how
the ranking service follows the topic.

Invariants: a file is checked whole before anything of it is sent; what the topic holds already is not sent again, so a
load that was cut off is repeated without harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import xxhash
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from infra.settings import Settings
from models.serving.catalog import ADS_MAX, AdReader, CatalogAd
from stream.kafka_log import read_newest
from stream.outbox import BATCH_BYTES, Outbox
from stream.roles import Cluster

FAULTS_SHOWN = 5  # lines of a file that are named before it is refused
LINE_BYTES_MAX = 500_000  # well below what a record may hold, however its characters are written; chosen by hand
SAY_ROWS = 10_000  # ads between two words about how far it is


@dataclass(frozen=True)
class Loaded:
    """What a load did.

    Attributes:
        ads: In the file.
        sent: New, or other than the topic held them.
        unchanged: As the topic held them.
        removed: In the topic and not in the file, taken away.
        ignored: Names of values that no field has.
    """

    ads: int
    sent: int
    unchanged: int
    removed: int
    ignored: tuple[str, ...]


async def load_catalog(
    settings: Settings, cluster: Cluster, path: Path, *, replace: bool, say: Callable[[str], None]
) -> Loaded:
    """Send the ads of a file to the topic `catalog`.

    Args:
        settings: Of the deployment.
        cluster: Where its topics are.
        path: NDJSON, one ad a line: `ad_id`, and `values`, `bid_micros`, `active` as docs/events.md has them.
        replace: Take ads away that the file does not hold.
        say: Called with how far it is.

    Raises:
        ValueError: If the file cannot be read or a line is no ad; nothing was sent then.
        RuntimeError: If the broker does not take the ads.
    """
    ignored: set[str] = set()
    names = _check(settings, path, ignored, say)
    say("reading the catalog")
    held = await read_newest(cluster.topic("catalog"), xxhash.xxh3_64_intdigest, options=cluster.options)
    gone = sorted(held.keys() - names) if replace else []
    producer = AIOKafkaProducer(**cluster.options, enable_idempotence=True, max_batch_size=BATCH_BYTES)
    n_sent = 0
    try:
        async with producer:
            outbox = Outbox(producer, cluster.topic("catalog"), 1)
            for number, ad in _read(settings, path, set()):
                if isinstance(ad, str):
                    raise ValueError(f"{path}:{number} {ad}; the file changed while it was loaded: load it again")
                value = msgspec.json.encode(ad)
                if held.get(ad.ad_id) != xxhash.xxh3_64_intdigest(value):
                    await outbox.put(0, ad.ad_id.encode(), value)
                    n_sent += 1
                    if n_sent % SAY_ROWS == 0:
                        say(f"{n_sent:,} ads sent")
            for ad_id in gone:
                await outbox.put(0, ad_id.encode(), None)
            await outbox.finish()
    except KafkaError as error:
        raise RuntimeError(f"the catalog must take ads, got from the broker: {error}; load the file again") from error
    return Loaded(len(names), n_sent, len(names) - n_sent, len(gone), tuple(sorted(ignored)))


async def show_catalog(settings: Settings, cluster: Cluster, ad_ids: Sequence[str], *, limit: int) -> dict[str, Any]:
    """Return the JSON object of `freshrank catalog show`: see docs/cli.md.

    Args:
        settings: Of the deployment.
        cluster: Where its topics are.
        ad_ids: Which ads; none: those that changed last.
        limit: How many of those.
    """
    reader = AdReader(settings.fields)
    newest = await read_newest(cluster.topic("catalog"), bytes, options=cluster.options)
    found: dict[str, CatalogAd] = {}
    refused: dict[str, str] = {}
    for ad_id, value in newest.items():
        try:
            found[ad_id] = reader.read(value, set())
        except ValueError as error:
            refused[ad_id] = str(error)
    wanted = list(ad_ids) or list(found)[-limit:][::-1]
    return {
        "name": settings.name,
        "ads": len(found),
        "active": sum(ad.active for ad in found.values()),
        "refused": refused,
        "shown": [msgspec.to_builtins(found[ad_id]) for ad_id in wanted if ad_id in found],
        "missing": [ad_id for ad_id in ad_ids if ad_id not in newest],
    }


def _check(settings: Settings, path: Path, ignored: set[str], say: Callable[[str], None]) -> set[str]:
    """Return the ids of the ads in a file, every line of which was looked at.

    Raises:
        ValueError: If a line is no ad, an ad stands there twice, or there are too many.
    """
    names: set[str] = set()
    faults: list[str] = []
    for number, ad in _read(settings, path, ignored):
        if isinstance(ad, str):
            faults.append(f"{path}:{number} {ad}")
        elif ad.ad_id in names:
            faults.append(f'{path}:{number} must be the only one of its ad, got "{ad.ad_id}" again')
        elif len(names) >= ADS_MAX:
            faults.append(f"{path}:{number} must be within {ADS_MAX:,} ads, the most that a ranking service holds")
        else:
            names.add(ad.ad_id)
        if len(faults) >= FAULTS_SHOWN:
            faults.append("perhaps more")
            break
        if number % SAY_ROWS == 0:
            say(f"{number:,} lines checked")
    if faults:
        raise ValueError(f"{'; '.join(faults)}; nothing was sent: mend the file and load it again")
    return names


def _read(settings: Settings, path: Path, ignored: set[str]) -> Iterator[tuple[int, CatalogAd | str]]:
    """Yield the number of each line that is not empty, and its ad or what is wrong with it."""
    reader = AdReader(settings.fields)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                if len(line) > LINE_BYTES_MAX:
                    yield number, f"must be at most {LINE_BYTES_MAX:,} bytes, got {len(line):,}"
                    continue
                try:
                    yield number, reader.read(line, ignored)
                except ValueError as error:
                    yield number, str(error)
    except OSError as error:
        raise ValueError(f"{path} must be a readable file, got: {error.strerror}; check the path") from None
