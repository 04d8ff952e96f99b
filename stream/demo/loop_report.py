"""What a closed loop amounts to: in a table, in a picture, and as one object.

Owns what is printed at the end and the keys of the object. Must not know how the loop came about.

The object that `--json` writes:

| key | value |
|---|---|
| name, seed | of the deployment; of the world |
| world | sizes: warmup_hours, hours, drift_hour, requests_per_hour, ads, candidates, places |
| seconds, stages | wall time of all; of `warm-up` (up to the first visitor) and `loop` |
| phases | by name: hours, requests, best_ctr and the `arms`, see stream/demo/arms.py |
| hours | the same of each hour |
| static | version of the model that stayed as it was |
| snapshots | versions that have answered, in order |
| swaps | how often the service went over to another one while it was asked |
| ledger, violations | counts over all partitions; by how much each conservation law is broken |
| sent, missing | what the visitors have sent; by how much the ledger's counts differ from all that was sent |
| skew | training/serving skew of what the service showed: rows compared, mean and largest difference |
| slides | every announcement of the trainer |
| memory_bytes_max, memory_measure, processes, plot, notes | as in the demo |
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream.cascade import Cascade
from stream.demo.arms import ARMS, Estimate, Score, phases, score
from stream.demo.closed_loop import FUNNEL, N_ADS, REQUESTS_PER_HOUR, WARMUP_H, Outcome, drift_hour
from stream.demo.panel import law_lines
from stream.demo.plot import Band, draw_rates
from stream.demo.processes import Children
from stream.demo.setup import Setup

WORDS = {
    "learning": "learning: what the service showed",
    "static": "static: as the service was at first",
    "random": "random",
}


class LoopReport:
    """The end of a closed loop: the roles have ended."""

    def __init__(self, setup: Setup, cascade: Cascade, outcome: Outcome, children: Children) -> None:
        """Keep what there is to tell."""
        self._setup = setup
        self._cascade = cascade
        self._outcome = outcome
        self._children = children

    def make(self, console: Console, plot_path: Path, *, begun_s: float) -> dict[str, Any]:
        """Print the table, draw the picture, and return the object.

        Args:
            begun_s: When the demo began, monotonic clock.
        """
        hours = [score([tally], n_places=FUNNEL.exposed) for tally in self._outcome.tallies if len(tally.best)]
        spans = phases(WARMUP_H + 1, drift_hour(self._cascade), self._cascade.n_hours)
        found = {
            name: score([one for one in self._outcome.tallies if first <= one.index < end], n_places=FUNNEL.exposed)
            for name, (first, end) in spans.items()
        }
        console.print(loop_table(found))
        bands = [Band(WORDS[arm], [hour.arms[arm].ctr for hour in hours]) for arm in ARMS]
        draw_rates(
            plot_path,
            title="A closed loop: who clicks on what is shown decides what is shown next",
            hours=[hour.first_hour for hour in hours],
            bands=bands,
            best=[hour.best_ctr for hour in hours],
            drift_hour=self._cascade.n_hours / 2.0,
        )
        result = self._object(found, hours, plot_path, seconds=time.monotonic() - begun_s)
        console.print(self._closing_lines(result), soft_wrap=True, highlight=False, markup=False)
        return result

    def _object(self, found: dict[str, Score], hours: list[Score], plot: Path, *, seconds: float) -> dict[str, Any]:
        outcome = self._outcome
        result = {
            "name": self._setup.settings.name,
            "seed": self._cascade.world.seed,
            "world": {
                "warmup_hours": WARMUP_H,
                "hours": len(outcome.tallies),
                "drift_hour": self._cascade.n_hours / 2.0,
                "requests_per_hour": REQUESTS_PER_HOUR,
                "ads": N_ADS,
                "candidates": FUNNEL.matched,
                "places": FUNNEL.exposed,
            },
            "seconds": seconds,
            "stages": outcome.stages,
            "phases": found,
            "hours": hours,
            "static": outcome.static,
            "snapshots": outcome.served,
            "swaps": len(outcome.served) - 1,
            "ledger": outcome.seen.counts,
            "violations": outcome.seen.counts.violations(),
            "sent": {kind: getattr(outcome.sent, kind) for kind in outcome.missing},
            "missing": outcome.missing,
            "skew": outcome.skew._asdict(),
            "slides": outcome.seen.announcements,
            **self._children.report(),
            "plot": str(plot),
            "notes": outcome.seen.notes,
        }
        plain: dict[str, Any] = msgspec.to_builtins(result)
        return plain

    def _closing_lines(self, result: dict[str, Any]) -> str:
        sent, stages = result["sent"], result["stages"]
        lost = {kind: count for kind, count in result["missing"].items() if count}
        cpu = ", ".join(f"{name} {one['cpu_s']:.0f} s" for name, one in result["processes"].items())
        accounted = f"NOT as sent, ledger minus sent: {lost}" if lost else "the ledger has counted every event sent"
        skew = "nothing of what was shown was recomputed"
        if (rows := result["skew"]["rows"]) > 0:
            mean, largest = result["skew"]["mean"], result["skew"]["largest"]
            figures = f"mean {mean:.1e}, largest {largest:.1e}"
            skew = f"training/serving skew of {rows:,} rows: {figures} (counts still coming in)"
        laws = "\n".join(law_lines(self._outcome.seen.counts))
        return (
            f"{sent['requests']:,} requests, {sent['impressions']:,} impressions and {sent['clicks']:,} clicks of"
            f" visitors; {result['swaps']} swaps of snapshots\n{laws}\n{accounted}\n{skew}\n"
            f"{stages['loop']:.0f} s for the loop, {result['seconds']:.0f} s in all; processor time: {cpu}\n"
            f"picture: {result['plot']}"
        )


def loop_table(found: dict[str, Score]) -> RenderableType:
    """Return the arms of each phase side by side."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("CTR", "95 %", "learning is ahead by", "regret"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in found.items():
        table.add_row(Text(f"{name}, hours {one.first_hour + 1} to {one.last_hour + 1}", style="bold"))
        for arm, got in one.arms.items():
            ahead = "" if arm == "learning" else _with_interval(got.behind)
            interval = f"{got.ctr.low:.2%} to {got.ctr.high:.2%}"
            table.add_row(f"  {WORDS[arm]}", f"{got.ctr.mean:.2%}", interval, ahead, _with_interval(got.regret))
        table.add_row("  best possible list", f"{one.best_ctr:.2%}", style="dim")
    title = "Clicks per impression; regret: what the best possible list would have got more, in true chances"
    return Group(Text(title, style="bold"), table)


def _with_interval(found: Estimate) -> str:
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
