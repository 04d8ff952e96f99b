"""What a run of the demo amounts to: in tables, in a picture, and as one object.

Owns the order of what is printed at the end and the keys of the object. Must not know how the run came about.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from stream.demo.comparison import Compared, Score, score_frozen, to_score, total
from stream.demo.panel import answer_table, summary_table
from stream.demo.plot import Line, draw
from stream.demo.processes import Children
from stream.demo.run import Outcome, frozen_dir
from stream.demo.setup import Setup
from stream.roles import Cluster


class Report:
    """The end of a run: the roles have ended, the broker still answers."""

    def __init__(self, setup: Setup, cluster: Cluster, outcome: Outcome, children: Children) -> None:
        """Keep what there is to tell."""
        self._setup = setup
        self._cluster = cluster
        self._outcome = outcome
        self._seen = outcome.seen
        self._children = children

    async def make(self, console: Console, plot_path: Path, *, begun_s: float) -> dict[str, Any]:
        """Print the answers and what learning on was worth, draw the picture, and return the object.

        Args:
            begun_s: When the demo began, monotonic clock.
        """
        compare_s = time.monotonic()
        for answer in self._outcome.answers:
            console.print(answer_table(answer))
        with console.status("scoring the later slides with the model that was left as it was"):
            compared = await self._compare()
        summary = _summary(compared)
        self._print_summary(console, summary, len(compared))
        title = f"{self._setup.settings.name}: a model that keeps learning, and the same model left as it was"
        draw(plot_path, title=title, lines=self._lines(compared), frozen_slide=self._frozen_slide)
        self._children.measure({})
        now_s = time.monotonic()
        self._outcome.stages["compare"] = now_s - compare_s
        result = self._object(compared, summary, plot_path, seconds=now_s - begun_s)
        console.print(_closing_lines(result), soft_wrap=True, highlight=False, markup=False)
        return result

    @property
    def _frozen_slide(self) -> int | None:
        return None if self._outcome.frozen is None else self._outcome.frozen.slide

    async def _compare(self) -> list[Compared]:
        """Judge the later slides with the frozen model; nothing if the log ended in the warm-up."""
        if self._outcome.frozen is None:
            return []
        from models.registry import Registry

        settings = self._setup.settings
        registry = Registry(str(frozen_dir(self._setup)))
        snapshot, _ = registry.load(self._outcome.frozen.latest, fields=settings.fields)
        announced = {one.slide: one.evaluation for one in self._seen.announcements}
        compared = []
        async for slide, score in score_frozen(settings, self._cluster, snapshot):
            if slide in announced:
                learning = {name: to_score(announced[slide][name]) for name in ("champion", "latest")}
                compared.append(Compared(slide, score, learning["champion"], learning["latest"]))
        return compared

    def _print_summary(self, console: Console, summary: dict[str, Score] | None, n_slides: int) -> None:
        if summary is None:
            console.print("The log ended within the warm-up, so there is no later slide to compare the models on.")
            return
        names = {
            "frozen": f"as it was after slide {self._frozen_slide}",
            "champion": "champion (what served)",
            "latest": "latest (learns on)",
        }
        scores = {words: summary[name] for name, words in names.items()}
        console.print(summary_table(scores, n_slides=n_slides))

    def _lines(self, compared: Sequence[Compared]) -> list[Line]:
        rows = [(one.slide, one.evaluation) for one in self._seen.announcements]
        lines = [_line("left as it was", [(one.slide, one.frozen) for one in compared])] if compared else []
        for name, label in (("champion", "champion (serves)"), ("latest", "latest (learns)")):
            lines.append(_line(label, [(slide, to_score(evaluation[name])) for slide, evaluation in rows]))
        return lines

    def _object(
        self, compared: Sequence[Compared], summary: dict[str, Score] | None, plot: Path, *, seconds: float
    ) -> dict[str, Any]:
        outcome, seen = self._outcome, self._seen
        frozen = outcome.frozen
        frozen_scores = {one.slide: one.frozen for one in compared}
        last = seen.announcements[-1]
        result = {
            "name": self._setup.settings.name,
            "config": str(self._setup.source),
            "rows": seen.replayed["rows"],
            "seconds": seconds,
            "stages": outcome.stages,
            "events": seen.counts.records,
            "events_per_s": seen.counts.records / outcome.stages["loop"],
            "ledger": seen.counts,
            "violations": seen.counts.violations(),
            "priors": {"values": seen.prior_values, "as_of_s": seen.prior_as_of_s},
            "slides": [
                msgspec.to_builtins(one) | {"frozen": frozen_scores.get(one.slide)} for one in seen.announcements
            ],
            "champion": last.champion,
            "latest": last.latest,
            "frozen": None if frozen is None else {"version": frozen.latest, "slide": frozen.slide},
            "summary": summary,
            "requests": outcome.answers,
            **self._children.report(),
            "plot": str(plot),
            "notes": seen.notes,
        }
        plain: dict[str, Any] = msgspec.to_builtins(result)
        return plain


def _summary(compared: Sequence[Compared]) -> dict[str, Score] | None:
    if not compared:
        return None
    return {name: total([getattr(one, name) for one in compared]) for name in ("frozen", "champion", "latest")}


def _line(label: str, scores: Sequence[tuple[int, Score]]) -> Line:
    return Line(
        label,
        [slide for slide, _ in scores],
        auc=[score.auc for _, score in scores],
        logloss=[score.logloss for _, score in scores],
    )


def _closing_lines(result: dict[str, Any]) -> str:
    cpu = ", ".join(f"{name} {one['cpu_s']:.0f} s" for name, one in result["processes"].items())
    laws = "are BROKEN" if any(result["violations"].values()) else "hold"
    how = "once" if result["memory_measure"] == "pss" else "for each process"
    loop_s, memory = result["stages"]["loop"], result["memory_bytes_max"] / 1e9
    return (
        f"{result['events']:,} events in {loop_s:.0f} s, {result['events_per_s']:,.0f} a second from the first event"
        f" sent to the last slide learnt; {result['seconds']:.0f} s in all\n"
        f"the ledger's laws {laws}; at most {memory:.1f} GB in all processes together (shared pages counted {how})\n"
        f"processor time: {cpu}\n"
        f"picture: {result['plot']}"
    )
