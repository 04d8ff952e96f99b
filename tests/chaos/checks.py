"""What must be so after a fault, each worked out again from the log."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from itertools import zip_longest

import numpy as np
import polars as pl

from features.encode import encode
from stream.announcement import decode_announcement
from stream.backtest import run_backtest
from stream.blocks import (
    chain_schema,
    decode_block,
    decode_prior_update,
    encode_block,
    encode_chains,
    row_schema,
)
from stream.events import Event, EventError, decode_event
from stream.kafka import Record
from stream.ledger import Closed
from stream.wiring import new_guarded_ledger, new_slides
from tests.broker.deployment import Deployment
from tests.chaos.traffic import Traffic

AUDIT_S_MAX = 120.0
TOLERANCE = 1e-9


async def audit(deployment: Deployment) -> str:
    """Return what `freshrank audit` found wrong, or nothing."""
    env = os.environ | {"FRESHRANK_HOME": str(deployment.home / "state")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream.cli", "audit", str(deployment.config)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    try:
        async with asyncio.timeout(AUDIT_S_MAX):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        return f"freshrank audit took longer than {AUDIT_S_MAX:g} s"
    lines = said.decode(errors="replace").splitlines()
    wrong = [line for line in lines if " are what " not in line and " are proven" not in line]
    return "" if process.returncode == 0 else " ".join(wrong) or f"freshrank audit exited with {process.returncode}"


async def events_are_complete(deployment: Deployment, traffic: Traffic) -> str:
    """Return how `events` differs from what was sent."""
    for partition in range(deployment.cluster.partitions):
        found = [record.value for record in await deployment.read("events", partition)]
        if found != traffic.values(partition):
            n_sent = len(traffic.values(partition))
            return f"partition {partition} of events must hold the {n_sent} records sent, got {len(found)}"
    return ""


async def quiet_run_is_identical(deployment: Deployment) -> str:
    """Return how `examples` and `chains` differ, byte for byte, from one undisturbed pass over the same `events`."""
    for partition in range(deployment.cluster.partitions):
        events, examples, chains = [
            await deployment.read(topic, partition) for topic in ("events", "examples", "chains")
        ]
        quiet = await asyncio.to_thread(_pass_over, deployment, partition, events)
        found = [(row.value, chain.value) for row, chain in zip_longest(examples, chains, fillvalue=_NOTHING)]
        for number, (must, there) in enumerate(zip_longest(quiet, found)):
            if must != there:
                return (
                    f"block {number} of partition {partition} is not that of a quiet run ({len(found)}, {len(quiet)})"
                )
    return ""


_NOTHING = Record(0, 0, None, None)


def _pass_over(deployment: Deployment, partition: int, events: list[Record]) -> list[tuple[bytes, bytes]]:
    settings = deployment.settings
    schema, chains = row_schema(settings.fields), chain_schema(settings.fields)
    ledger = new_guarded_ledger(partition, settings, new_slides(settings))
    blocks: list[Closed] = []
    for record in events:
        try:
            event: Event | EventError = decode_event(record.value)
        except EventError as error:
            event = error
        blocks += ledger.step(record.offset, record.timestamp_ms / 1000.0, event, len(record.value or b""))
    return [
        (encode_block(one.header, one.rows, schema), encode_chains(one.header, one.chains, chains)) for one in blocks
    ]


async def n_blocks(deployment: Deployment) -> int:
    """Return how many blocks were written."""
    return sum(header.number + 1 for header in await deployment.headers() if header)


# The priors -------------------------------------------------------------------------------------------------------


async def _examples(deployment: Deployment) -> pl.DataFrame:
    partitions = range(deployment.cluster.partitions)
    records = [record for partition in partitions for record in await deployment.read("examples", partition)]
    return pl.concat([decode_block(record.value or b"")[1] for record in records])


async def wait_priors(deployment: Deployment, timeout_s: float) -> None:
    """Return once the priors have published what settled last."""
    newest_s = float((await _examples(deployment))["settled_s"].to_numpy().max())
    deadline_s = time.monotonic() + timeout_s
    while True:
        updates = [decode_prior_update(record.value or b"") for record in await deployment.read("prior-updates", 0)]
        if any(update.at_s >= newest_s for update in updates):
            return
        assert time.monotonic() < deadline_s, f"the priors must publish {newest_s} within {timeout_s:g} s"
        await asyncio.sleep(0.5)


async def priors_equal_a_recount(deployment: Deployment) -> str:
    """Return how the newest published counts of each value differ from a count of all rows."""
    newest: dict[int, tuple[float, list[float], list[float]]] = {}
    for record in await deployment.read("prior-updates", 0):
        update = decode_prior_update(record.value or b"")
        for key, n, c in zip(update.keys.tolist(), update.n.tolist(), update.c.tolist(), strict=True):
            newest[key] = (update.at_s, n, c)
    frame = await _examples(deployment)
    encoded = encode(frame, deployment.settings.fields)
    present = np.unique(encoded[encoded > 0])
    keys = np.array(sorted(newest), np.uint64)
    if not np.array_equal(keys, present):
        return f"{len(present)} values must be published, got {len(keys)}"
    at_s = np.array([newest[key][0] for key in keys.tolist()])
    row, slot = np.nonzero(encoded)
    place = np.searchsorted(keys, encoded[row, slot])
    age_s = at_s[place] - frame["settled_s"].to_numpy()[row]
    if age_s.min() < 0.0:
        return "a value was published as of a moment before its last row"
    is_impression = (frame["kind"] != "late_corrected").to_numpy()[row]
    click = frame["click"].to_numpy()[row]
    for index, half_life_s in enumerate(deployment.settings.priors.half_lives_s):
        weight = 0.5 ** (age_s / half_life_s)
        for counted, column in ((is_impression, 1), (click, 2)):
            must = np.bincount(place, weight * counted, len(keys))
            there = np.array([newest[key][column][index] for key in keys.tolist()])
            if not np.allclose(there, must, rtol=TOLERANCE, atol=TOLERANCE):
                worst = float(np.abs(there - must).max())
                return f"counts with half-life {half_life_s:g} s must be those of a recount, got {worst:g} off"
    return ""


# The trainer ------------------------------------------------------------------------------------------------------

Digests = list[tuple[int, str, str]]  # slide, champion, latest


async def digests_of_a_backtest(deployment: Deployment, traffic: Traffic) -> Digests:
    """Return what a backtest over the events that were sent gives."""
    windows = (await asyncio.to_thread(run_backtest, deployment.settings, traffic.events()))["windows"]
    return [(one["slide"], one["champion_version"], one["latest_version"]) for one in windows]


async def wait_announced(deployment: Deployment, n_slides: int, timeout_s: float) -> None:
    """Return once so many slides are announced, or none has been for a while."""
    deadline_s = time.monotonic() + timeout_s
    while len(await deployment.read("snapshots", 0)) < n_slides:
        assert time.monotonic() < deadline_s, f"{n_slides} slides must be announced within {timeout_s:g} s"
        await asyncio.sleep(0.5)


async def digests_are_equal(deployment: Deployment, expected: Digests) -> str:
    """Return how the snapshots announced differ from a backtest's."""
    records = [decode_announcement(record.value or b"") for record in await deployment.read("snapshots", 0)]
    found = [(one.slide, one.champion, one.latest) for one in records]
    for must, there in zip_longest(expected, found):
        if must != there:
            return f"a slide must be announced as {must}, got {there}"
    return ""
