"""What the demo shows, from plain values: the panel, plain lines, and the tables at the end.

Owns the words, tables and colours. Must not know topics, processes, terminals or where a value came from.

Invariants: a panel is never higher than the terminal (the oldest slides make room); colour never says anything that a
word does not say too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stream.blocks import Counts
from stream.tables import values_text

FIXED_LINES = 16  # of the panel, when it shows no slide; the table of slides gets the rest of the terminal
SLIDES_MIN, NOTES_MAX = 4, 3
WIDE_COLUMNS = 120  # from here on there is room for dates
CLICKED_NEXT = "★ clicked next"
SHOWN_MAX = 5  # places of an answer
STATE_STYLES = {"runs": "green", "ended": "dim"}
DECISION_STYLES = {"promote": "green", "warmup": "cyan", "hold": "yellow", "reject": "red", "rollback": "red"}


@dataclass(frozen=True)
class Role:
    """A process of the demo: `state` is one of starts, runs, restarts, ended."""

    name: str
    state: str
    deaths: int = 0


@dataclass(frozen=True)
class SlideRow:
    """One learnt slide, as it was announced; `champion` and `latest` hold logloss, auc and calibration or None."""

    slide: int
    rows: int
    end_s: float
    champion: Mapping[str, Any]
    latest: Mapping[str, Any]
    decision: str
    reason: str


@dataclass(frozen=True)
class View:
    """Everything that the panel shows.

    Attributes:
        phase: What is going on, in a few words.
        events_per_s: Taken by the ledger lately.
        events_per_s_mean: Since its first event.
        watermark_s: Event time up to which all partitions are complete; None: not yet known.
        prior_values: Values whose counts are known.
        prior_as_of_s: Event time of the counts; None: none yet.
        serving: Version of the snapshot that serves; empty: none yet.
        age_event_s: How much event time has passed since the last row that it learnt.
        age_wall_s: How long ago it was announced.
        world: What those who are served do; empty: nobody asks.
    """

    title: str
    phase: str
    elapsed_s: float = 0.0
    events_per_s: float = 0.0
    events_per_s_mean: float = 0.0
    counts: Counts = field(default_factory=Counts)
    watermark_s: float | None = None
    prior_values: int = 0
    prior_as_of_s: float | None = None
    slides: Sequence[SlideRow] = ()
    serving: str = ""
    age_event_s: float | None = None
    age_wall_s: float | None = None
    world: str = ""
    roles: Sequence[Role] = ()
    memory_bytes: int = 0
    notes: Sequence[str] = ()


def render(view: View, *, width: int, height: int) -> RenderableType:
    """Return the panel for a terminal of this size; at least `SLIDES_MIN` slides are shown all the same.

    Made of plain lines: laying out tables, twice a second, would take a fifth of a core.
    """
    notes = [Text(f"! {note}", style="yellow") for note in view.notes[-NOTES_MAX:]]
    n_slides = max(SLIDES_MIN, height - FIXED_LINES - len(notes) - bool(view.world))
    has_dates = width >= WIDE_COLUMNS
    lines = [*_head(view, width), *_ledger(view.counts), *_state(view), *_slide_heads(has_dates=has_dates)]
    lines += [_slide(slide, has_dates=has_dates) for slide in view.slides[-n_slides:]]
    lines += [Text()] * (n_slides - len(view.slides))  # so that the panel keeps its height
    for line in [*lines, *notes]:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Panel(Group(*lines, *notes), title=f"[bold]freshrank[/] · {escape(view.title)}", padding=(0, 1))


def status_line(view: View) -> str:
    """Return how things stand in one line."""
    broken = sum(map(abs, view.counts.violations().values()))
    laws = "laws hold" if not broken else f"LAWS BROKEN by {broken}"
    return (
        f"{view.elapsed_s:6.1f} s  {view.phase}: {view.counts.records:,} events, {view.events_per_s:,.0f}/s now,"
        f" {view.events_per_s_mean:,.0f}/s in all, {laws}; {view.prior_values:,} values counted; slides"
        f" {len(view.slides)}; serving model {_age(view.age_event_s)} old in event time, {_age(view.age_wall_s)} on the"
        f" clock; {view.memory_bytes / 1e9:.1f} GB{f'; {view.world}' if view.world else ''}"
    )


def slide_line(slide: SlideRow) -> str:
    """Return what was decided about a slide in one line."""
    pairs = [
        f"{name} {_figure(slide.champion[key])} → {_figure(slide.latest[key])}"
        for name, key in (("AUC", "auc"), ("log loss", "logloss"), ("calibration", "calibration"))
    ]
    judged = ", ".join(pairs)
    return f"slide {slide.slide}: {slide.rows:,} rows, {judged} (champion → latest); {slide.decision}: {slide.reason}"


def law_lines(counts: Counts) -> list[str]:
    """Return the three conservation laws in numbers, each after by how much it is broken."""
    c, broken = counts, counts.violations()
    sides = {
        "impressions": f"{c.impressions:,} = {c.clicked:,} clicked + {c.expired_negative:,} expired_negative"
        f" + {c.pending:,} pending",
        "clicks": f"{c.clicks:,} = {c.matched:,} matched + {c.repeated:,} repeated + {c.late:,} late"
        f" + {c.orphan:,} orphan + {c.held:,} held",
        "records": f"{c.records:,} = {c.requests:,} requests + {c.impressions:,} impressions + {c.clicks:,} clicks"
        f" + {c.ticks:,} ticks + {c.duplicates:,} duplicates + {c.dead_letters:,} dead letters",
    }
    return [f"{'✗' if broken[name] else '✓'} {broken[name]}  {name:<11}  {law}" for name, law in sides.items()]


def answer_table(answer: Any) -> RenderableType:
    """Return an answer of the ranking service: its first places, and that of the ad that was clicked next."""
    user = values_text(answer.user_values)
    how = f"{len(answer.ranked)} candidates ranked in {answer.latency_s * 1000:.0f} ms by {answer.snapshot}"
    table = Table(box=box.SIMPLE_HEAD)
    for name, width_min in (("place", 5), ("ad", None), ("pCTR", 5), ("known values", None), ("", len(CLICKED_NEXT))):
        justify: Literal["left", "right"] = "right" if name in ("place", "pCTR") else "left"
        table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=True, min_width=width_min)
    for row in answer.ranked:
        if row.place <= SHOWN_MAX or row.is_clicked:
            if row.place > SHOWN_MAX + 1:
                table.add_row("…")
            mark = CLICKED_NEXT if row.is_clicked else ""
            style = "bold green" if row.is_clicked else ""
            cells = (str(row.place), row.ad_id, f"{row.pctr:.3f}", values_text(row.values, row.ad_id), mark)
            table.add_row(*cells, style=style)
    return Group(Text(f"{user}  ·  {how}", style="bold"), table)


def summary_table(scores: Mapping[str, Any], *, n_slides: int) -> RenderableType:
    """Return the models side by side.

    Args:
        scores: By what a model is called: rows, clicks, logloss, auc, calibration; the first is compared against.
        n_slides: How many slides they were judged on.
    """
    first = next(iter(scores.values()))
    title = f"What learning on was worth: {first.rows:,} impressions of the {n_slides} slides after the warm-up"
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for name in ("log loss", "", "AUC", "", "calibration"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, score in scores.items():
        loss = _change(score.logloss, first.logloss) if score is not first else ""
        auc = _difference(score.auc, first.auc) if score is not first else ""
        table.add_row(name, _figure(score.logloss), loss, _figure(score.auc), auc, _figure(score.calibration))
    return Group(Text(title, style="bold"), table)


def _head(view: View, width: int) -> list[Text]:
    rate = f"{view.events_per_s:,.0f} events/s now · {view.events_per_s_mean:,.0f}/s in all"
    right = f"{rate} · {view.elapsed_s:.0f} s · {view.memory_bytes / 1e9:.1f} GB"
    gap = max(2, width - 4 - len(view.phase) - len(right))
    roles = Text()
    for role in view.roles:
        roles.append("  " if roles else "").append(f"{role.name} ")
        roles.append(role.state, style=STATE_STYLES.get(role.state, "yellow"))
        if role.deaths:
            roles.append(f" (died {role.deaths}×)", style="yellow")
    return [Text(view.phase, style="bold cyan").append(" " * gap + right, style="not bold default"), roles, Text()]


def _ledger(counts: Counts) -> list[Text]:
    laws = [Text("  " + line, style="bold red" if "✗" in line else "") for line in law_lines(counts)]
    return [Text("ledger: every event is accounted for", style="bold"), *laws, Text()]


def _state(view: View) -> list[Text]:
    ages = f"{_age(view.age_event_s)} old in event time, {_age(view.age_wall_s)} on the clock"
    rows = {
        "event time": f"{_date(view.watermark_s)} (watermark of all partitions)",
        "priors": f"{view.prior_values:,} values known, as of {_date(view.prior_as_of_s)}",
        "serving": f"{view.serving} · {ages}" if view.serving else "no model yet",
    }
    if view.world:
        rows["world"] = view.world
    return [*(Text(f"{name:<12}", style="bold").append(text, style="not bold") for name, text in rows.items()), Text()]


def _slide_heads(*, has_dates: bool) -> list[Text]:
    dates, space = (f"{'until (UTC)':<18}", " " * 18) if has_dates else ("", "")
    pairs = f"{'champion':>9}{'latest':>8}" * 3
    above = f"{'':<9}{space}{'':>9}{'AUC':^17}{'log loss':^17}{'calibration':^17}"
    below = f"{'slide':>7}  {dates}{'rows':>9}{pairs}  {'gate':<9}because"
    return [Text(above, style="bold"), Text(below, style="bold underline")]


def _slide(slide: SlideRow, *, has_dates: bool) -> Text:
    date = f"{_date(slide.end_s):<18}" if has_dates else ""
    judged = "".join(
        f"{_figure(slide.champion[key]):>9}{_figure(slide.latest[key]):>8}" for key in ("auc", "logloss", "calibration")
    )
    line = Text(f"{slide.slide:>7}  {date}{slide.rows:>9,}{judged}  ")
    line.append(f"{slide.decision:<9}", style=DECISION_STYLES.get(slide.decision, ""))
    return line.append(slide.reason, style="dim")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _change(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{100.0 * (value / base - 1.0):+.2f} %"


def _difference(value: float | None, base: float | None) -> str:
    return "" if value is None or base is None else f"{value - base:+.4f}"


def _date(time_s: float | None) -> str:
    if time_s is None or not 0.0 <= time_s < 2.5e11:
        return "–"
    return dt.datetime.fromtimestamp(time_s, dt.UTC).strftime("%Y-%m-%d %H:%M")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for name, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{max(seconds, 0.0):.1f} s"
