"""The picture of what learning on was worth: AUC and log loss, slide by slide.

Owns the drawing. Must not know where the numbers come from.

Invariants: lines differ by dash and marker as well as by colour, and the colours (Okabe and Ito's) can be told apart
with any kind of colour vision; a slide on which a value is not defined is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
