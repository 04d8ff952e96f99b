"""The pictures of what learning on was worth: AUC and log loss, slide by slide; click rates, hour by hour.

Owns the drawing. Must not know where the numbers come from.

Invariants: lines differ by dash and marker as well as by colour, and the colours (Okabe and Ito's) can be told apart
with any kind of colour vision; a slide on which a value is not defined is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.demo.arms import Estimate

WIDTH_IN, HEIGHT_IN, DPI = 9.0, 6.0, 150
MARKED_MAX = 60  # slides; more of them, and markers only hide the line


@dataclass(frozen=True)
class Line:
    """One model: its values by slide, None where not defined."""

    label: str
    slides: Sequence[int]
    auc: Sequence[float | None]
    logloss: Sequence[float | None]


STYLES = (
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},  # vermilion
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},  # blue
    {"color": "#009E73", "linestyle": ":", "marker": "^"},  # bluish green
)
LOOP_STYLES: tuple[Mapping[str, Any], ...] = (
    STYLES[1],
    STYLES[0],
    STYLES[2],
)  # as above: blue learns, vermilion stays as it was


def draw(path: Path, *, title: str, lines: Sequence[Line], frozen_slide: int | None) -> None:
    """Write the picture as a PNG.

    Args:
        path: Directories on the way to it are made.
        lines: At most three.
        frozen_slide: The last slide that the first line's model has learnt; None: no line stands for a frozen model.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name, better in ((upper, "AUC", "higher is better"), (lower, "log loss", "lower is better")):
        for line, style in zip(lines, STYLES, strict=False):
            values = [math.nan if v is None else v for v in (line.auc if axes is upper else line.logloss)]
            marker = style["marker"] if len(values) <= MARKED_MAX else ""
            axes.plot(line.slides, values, **{**style, "marker": marker}, label=line.label, linewidth=1.8, markersize=4)
        if frozen_slide is not None:
            axes.axvline(frozen_slide + 0.5, color="#555555", linewidth=1.0, linestyle=(0, (1, 2)))
        axes.set_ylabel(f"{name}\n({better})")
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if frozen_slide is not None:
        upper.annotate(
            "from here on one model learns nothing more →",
            xy=(frozen_slide + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
            color="#333333",
        )
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.set_xlabel("slide (each judged before it was learnt)")
    upper.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=len(lines), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


@dataclass(frozen=True)
class Band:
    """One arm of a closed loop: its click rate by hour."""

    label: str
    rates: Sequence[Estimate]


def draw_rates(
    path: Path, *, title: str, hours: Sequence[int], bands: Sequence[Band], best: Sequence[float], drift_hour: float
) -> None:
    """Write the click rates of a closed loop, with their 95 % intervals, as a PNG.

    Args:
        path: Directories on the way to it are made.
        hours: Of the world, of each rate.
        bands: At most three.
        best: Expected click rate of the best lists.
        drift_hour: When the world changes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN * 0.75), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    middle = [hour + 0.5 for hour in hours]
    axes.plot(middle, [100.0 * one for one in best], color="#555555", linewidth=1.0, label="best possible list")
    for band, style in zip(bands, LOOP_STYLES, strict=False):
        marker = style["marker"] if len(hours) <= MARKED_MAX else ""
        mean = [100.0 * one.mean for one in band.rates]
        axes.plot(middle, mean, **{**style, "marker": marker}, label=band.label, linewidth=1.8, markersize=4)
        low, high = [100.0 * one.low for one in band.rates], [100.0 * one.high for one in band.rates]
        axes.fill_between(middle, low, high, color=style["color"], alpha=0.15, linewidth=0.0)
    axes.axvline(drift_hour, color="#555555", linewidth=1.0, linestyle=(0, (1, 2)))
    mark = "everybody's taste changes →"
    at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(mark, xy=(drift_hour, 1.0), xytext=(0, 3), ha="right", fontsize=9, color="#333333", **at)
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("clicks per 100 impressions")
    axes.set_xlabel("hours of the world")
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
