"""`python -m tests.chaos`: faults on real processes and a real broker, and whether everything came out as if quiet.

Every fault has a deployment of its own on one broker of its own. While events come in, processes are killed, frozen or
stopped at moments from a seed; then the rest settles, and what is committed is held against work done again:

- `audit`: `freshrank audit` proves examples, chains and dead letters from `events`;
- `identical`: examples and chains are, byte for byte, those of one undisturbed pass of the ledger over the same
  `events`, with the same append times (blocks are cut by these, so another log would be cut elsewhere);
- for the priors: the counts published equal a recount of all rows within 1e-9; for the trainer: the snapshots have the
  digests of a backtest.

Ends by itself within `--limit-s`, leaves no process and no directory, and exits with 1 unless every fault was survived.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from infra import broker as embedded
from infra.broker import BrokerInfo
from stream.logs.reader import RowCounts
from stream.logs.simulated import write_simulated
from stream.logs.source import read_arrivals
from tests.broker.deployment import Deployment, deploy
from tests.chaos import checks
from tests.chaos.faults import FAULTS, Fault, Scene
from tests.chaos.roles import Roles
from tests.chaos.traffic import Traffic, disturbed

ROWS = 150_000  # more than is sent before the last fault is over
EVENTS_PER_S = {"ledger": 300.0, "priors": 300.0, "train": 800.0}
SLIDE_S = 1800.0
LEDGER = "wait_s = 300.0\ngrace_s = 300.0\ndisorder_s = 1.0\nblock_s = 0.2\nblock_rows = 200\nlate_clicks = "
END_S = 10_000.0  # event time that passes at the end: all waits and a slide
SETTLE_S_MAX = 120.0
LANES = (("kill",), ("sigterm", "rebalance", "freeze"), ("priors", "train"))  # what runs beside each other
LIMIT_S = 680.0

out = Console(soft_wrap=True)


class Outcome(msgspec.Struct):
    """What became of one fault; the keys are those of `--json`."""

    fault: str
    did: str
    times: int = 0
    seconds: float = 0.0
    events: int = 0
    blocks: int = 0
    audit: bool | None = None
    identical: bool | None = None
    counts: bool | None = None
    digests: bool | None = None
    survived: bool = False
    wrong: list[str] = []
    notes: list[str] = []
    deaths: list[str] = []


class Chaos:
    """All faults on one broker."""

    def __init__(self, home: Path, *, seed: int, kills: int | None) -> None:
        """Begin with nothing running."""
        self._home = home
        self._seed = seed
        self._kills = kills
        self._broker: BrokerInfo | None = None
        self.outcomes: list[Outcome] = []

    async def run(self, names: Sequence[str]) -> None:
        """Do these faults: first those that can run beside each other, then the others."""
        data = self._home / "log"
        await asyncio.to_thread(write_simulated, data / "simulated" / "impressions.parquet", seed=3, rows=ROWS)
        self._broker = await asyncio.to_thread(embedded.start, self._home / "kafka", owned=True, timeout_s=60.0)
        try:
            lanes = [[name for name in lane if name in names] for lane in LANES]
            await asyncio.gather(*(self._lane(lane) for lane in lanes))
            await self._lane([name for name in names if FAULTS[name].is_alone])
        finally:
            await asyncio.to_thread(embedded.stop, self._home / "kafka")

    async def _lane(self, names: Sequence[str]) -> None:
        for name in names:
            await self._do(name, FAULTS[name])

    async def _do(self, name: str, fault: Fault) -> None:
        outcome = Outcome(name, fault.did)
        self.outcomes.append(outcome)
        started_s = time.monotonic()
        directory = self._home / name
        directory.mkdir()
        assert self._broker is not None
        deployment = await asyncio.to_thread(self._deploy, directory, name, fault)
        roles = Roles(deployment)
        try:
            await self._disturb(outcome, fault, deployment, roles)
        except Exception as error:  # noqa: BLE001 - this fault was not survived, whatever it was; the others go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome.wrong.append(f"{type(error).__name__} in {where.name}: {error}")
        finally:
            roles.end()
            outcome.deaths = roles.deaths
            outcome.seconds = time.monotonic() - started_s
            outcome.survived = not outcome.wrong and outcome.identical is not None
            _say(name, "survived" if outcome.survived else f"NOT survived: {'; '.join(outcome.wrong)}")

    def _deploy(self, directory: Path, name: str, fault: Fault) -> Deployment:
        assert self._broker is not None
        return deploy(
            directory,
            self._broker.bootstrap_servers,
            f"chaos-{name}",
            data_dir=self._home / "log",
            slide_s=SLIDE_S,
            ledger=LEDGER + ('"wait"' if fault.role == "train" else '"correct"'),
        )

    async def _disturb(self, outcome: Outcome, fault: Fault, deployment: Deployment, roles: Roles) -> None:
        rng = random.Random(f"{self._seed} {outcome.fault}")
        traffic = self._traffic(fault, deployment, random.Random(f"{self._seed} {outcome.fault} traffic"))
        assert self._broker is not None
        scene = Scene(roles, rng, self._broker, lambda text: _say(outcome.fault, text))
        sending = asyncio.create_task(traffic.run())
        try:
            outcome.times = await fault.act(scene, self._kills or fault.times)
            self._broker = scene.broker
        finally:
            traffic.stop()
            outcome.notes = scene.notes
        await sending
        outcome.events = len(traffic.sent)
        _say(outcome.fault, f"{outcome.events:,} events sent; the rest settles")
        async with roles.supervised("ledger"):
            await deployment.wait_settled(SETTLE_S_MAX)
        await self._check(outcome, fault, deployment, roles, traffic)

    async def _check(
        self, outcome: Outcome, fault: Fault, deployment: Deployment, roles: Roles, traffic: Traffic
    ) -> None:
        def note(wrong: str) -> bool:
            outcome.wrong += [wrong] if wrong else []
            return not wrong

        outcome.blocks = await checks.n_blocks(deployment)
        note(await checks.events_are_complete(deployment, traffic))
        outcome.audit = note(await checks.audit(deployment))
        outcome.identical = note(await checks.quiet_run_is_identical(deployment))
        if fault.role == "priors":
            async with roles.supervised("priors"):
                await checks.wait_priors(deployment, SETTLE_S_MAX)
            outcome.counts = note(await checks.priors_equal_a_recount(deployment))
        if fault.role == "train":
            expected = await checks.digests_of_a_backtest(deployment, traffic)
            async with roles.supervised("train"):
                await checks.wait_announced(deployment, len(expected), SETTLE_S_MAX)
            outcome.digests = note(await checks.digests_are_equal(deployment, expected))

    def _traffic(self, fault: Fault, deployment: Deployment, rng: random.Random) -> Traffic:
        arrivals = read_arrivals(deployment.settings, [deployment.data_dir], RowCounts())
        is_raw = fault.role != "train"  # a backtest takes events, so there is nothing that is none
        stream = disturbed(arrivals, rng, deployment.cluster.partitions, has_rubbish=is_raw)
        return Traffic(deployment.cluster, stream, events_per_s=EVENTS_PER_S[fault.role], end_s=END_S)


def _say(name: str, text: str) -> None:
    out.print(f"{time.strftime('%H:%M:%S')} {name}: {text}", highlight=False, markup=False)


def _table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = [("fault", "times", "seconds", "events", "blocks", "audit", "identical", "counts", "digests", "survived")]
    for one in outcomes:
        figures = (one.did, str(one.times), f"{one.seconds:.0f}", f"{one.events:,}", f"{one.blocks:,}")
        rows.append((*figures, *map(_mark, (one.audit, one.identical, one.counts, one.digests, one.survived))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _mark(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "–"}[value]


async def _run(chaos: Chaos, names: Sequence[str], limit_s: float) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        async with asyncio.timeout(limit_s):
            await chaos.run(names)
    except TimeoutError:
        _say("chaos", f"stopped after {limit_s:g} s")


def main(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults on real processes.")
    parser.add_argument("--faults", default=",".join(FAULTS), help="names, with commas between")
    parser.add_argument("--kills", type=int, help="how often each fault is done, instead of its own number")
    parser.add_argument("--seed", type=int, default=0, help="of all moments and disturbances")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="stop after this long")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    options = parser.parse_args(arguments)
    names = options.faults.split(",")
    if unknown := [name for name in names if name not in FAULTS]:
        parser.error(f"--faults must be of {', '.join(FAULTS)}, got {', '.join(unknown)}")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it says at length what a broker that is away means
    started_s = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="freshrank-chaos-"))
    chaos = Chaos(home, seed=options.seed, kills=options.kills)
    try:
        asyncio.run(_run(chaos, names, options.limit_s))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("chaos", "stopped")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    seconds = time.monotonic() - started_s
    for line in ["", *_table(chaos.outcomes), ""]:
        out.print(line, highlight=False, markup=False)
    for one in chaos.outcomes:
        for line in [*one.wrong, *one.notes, *one.deaths]:
            out.print(f"{one.fault}: {line}", markup=False)
    is_survived = {one.fault for one in chaos.outcomes if one.survived} == set(names)
    out.print(
        f"{'all faults survived' if is_survived else 'NOT all faults survived'}, {seconds:.0f} s, seed {options.seed}"
    )
    if options.json is not None:
        result = {"seed": options.seed, "seconds": seconds, "survived": is_survived, "faults": chaos.outcomes}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return 0 if is_survived else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
