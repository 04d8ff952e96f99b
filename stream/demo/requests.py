"""A few real requests to the ranking service, about people whose next click is known.

Owns which people are asked about, the candidates, and the call over HTTP. Must not know processes or screens.

The people come from rows of the log that were held back: the system has not seen them. The candidates are ads of the
catalog, drawn at random, and among them the ad that the person clicked next.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec
import polars as pl

from features.fields import Field, Side, id_field, raw_fields
from stream.kafka_log import read_newest
from stream.roles import Cluster

CANDIDATES = 100
READY_S_MAX = 30.0
Values = dict[str, Any]


class Visit(msgspec.Struct, frozen=True):
    """Somebody who is about to click: what the request says, and what was clicked then."""

    user: str
    user_values: Values
    context_values: Values
    clicked: str


class RankedRow(msgspec.Struct, frozen=True):
    """One place of an answer; `values` are the catalog's."""

    place: int
    ad_id: str
    pctr: float
    values: Values
    is_clicked: bool


class Answer(msgspec.Struct, frozen=True):
    """What the service answered: all candidates, best first, and the place of the ad that was clicked next."""

    user: str
    user_values: Values
    snapshot: str
    latency_s: float
    clicked: str
    clicked_place: int
    ranked: list[RankedRow]


def choose_visits(
    held_back: pl.DataFrame, fields: Sequence[Field], known: Mapping[str, Values], count: int
) -> list[Visit]:
    """Return the first clicks on known ads in rows that the system has not seen, of different users.

    Args:
        held_back: Rows as the log's reader gives them.
        known: The catalog: an ad that nobody has ever shown cannot be asked for by its id.
    """
    visits: dict[str, Visit] = {}
    user = id_field(fields, "user")
    for row in held_back.filter(pl.col("click") == 1).iter_rows(named=True):
        name = str(row[user.column] if user is not None else row["request_id"])
        if len(visits) < count and name not in visits and row["ad_id"] in known:
            sides = [_values(row, fields, side) for side in ("user", "context")]
            visits[name] = Visit(name, sides[0], sides[1], row["ad_id"])
    return list(visits.values())


async def read_catalog(cluster: Cluster) -> dict[str, Values]:
    """Return the values of every ad in the catalog, by id."""
    ads = await read_newest(cluster.topic("catalog"), msgspec.json.decode, options=cluster.options)
    return {ad_id: ad.get("values", {}) for ad_id, ad in ads.items()}


async def ask(url: str, visits: Sequence[Visit], catalog: Mapping[str, Values], *, champion: str) -> list[Answer]:
    """Return the service's answers.

    Args:
        url: Of the service.
        champion: The snapshot that is to answer; it is waited for.

    Raises:
        RuntimeError: If the service is not ready in time or refuses.
    """
    rng = random.Random(0)
    async with httpx.AsyncClient(base_url=url, timeout=10.0, trust_env=False) as client:
        await _wait_ready(client, champion)
        return [await _ask(client, visit, catalog, rng) for visit in visits]


async def _wait_ready(client: httpx.AsyncClient, champion: str) -> None:
    """Wait until the service answers with the champion; a request to find out costs it nothing."""
    deadline_s = time.monotonic() + READY_S_MAX
    said = "nothing"
    while time.monotonic() < deadline_s:
        try:
            answer = await client.get("/readyz")
            said = answer.text[:200]
            if answer.status_code == 200:
                probe = await client.post("/v1/rank", json={"candidates": ["probe"], "top": 1})
                said = probe.text[:200]
                if probe.status_code == 200 and probe.json()["snapshot"] == champion:
                    return
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
        await asyncio.sleep(0.2)
    raise RuntimeError(f"the service must answer with {champion} within {READY_S_MAX:g} s, got: {said}")


async def _ask(client: httpx.AsyncClient, visit: Visit, catalog: Mapping[str, Values], rng: random.Random) -> Answer:
    others = sorted(ad_id for ad_id in catalog if ad_id != visit.clicked)
    candidates = [visit.clicked, *rng.sample(others, min(CANDIDATES - 1, len(others)))]
    rng.shuffle(candidates)
    body = {
        "user": visit.user_values,
        "context": visit.context_values,
        "candidates": candidates,
        "top": len(candidates),
    }
    begun_s = time.perf_counter()
    answer = await client.post("/v1/rank", json=body)
    latency_s = time.perf_counter() - begun_s
    if answer.status_code != 200:
        raise RuntimeError(f"the service must rank, got {answer.status_code}: {answer.text[:300]}")
    said = answer.json()
    ranked = [
        RankedRow(
            ad["position"] + 1, ad["ad_id"], ad["pctr"], catalog.get(ad["ad_id"], {}), ad["ad_id"] == visit.clicked
        )
        for ad in said["ads"]
    ]
    place = next(row.place for row in ranked if row.is_clicked)
    return Answer(visit.user, visit.user_values, said["snapshot"], latency_s, visit.clicked, place, ranked)


def _values(row: Mapping[str, Any], fields: Sequence[Field], side: Side) -> Values:
    own = {field.name: row[field.column] for field in raw_fields(fields) if field.side == side}
    return {name: value for name, value in own.items() if value is not None}
