"""What a comparison found: the JSON object, the Markdown table and the plots.

Owns their form; docs/cli.md documents the keys. Must not compute a figure: models/comparison.py does.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.comparison import Scored, compare, measure
from models.drift import DETECTORS
from models.evaluate import Evaluation
from models.strategies.tuning import CROSSES, HISTORIES
from stream.compare.runs import Run

OVERALL = ("auc", "gauc", "logloss", "ne", "calibration")
LIBRARIES = ("freshrank", "numpy", "polars", "torch", "lightgbm", "vowpalwabbit", "river")
PLOTTED = {"auc": "AUC", "logloss": "log loss", "calibration": "mean prediction over click rate"}

Runs = Mapping[str, Sequence[Run]]
"""The runs of each strategy, by seed."""


def to_report(name: str, rows: Scored, runs: Runs) -> dict[str, Any]:
    """Return the JSON object of `freshrank backtest --strategies`."""
    predictions = {strategy: [run.probabilities for run in by_seed] for strategy, by_seed in runs.items()}
    return {
        "name": name,
        "windows": len(rows.start_s),
        "rows": len(rows.clicks),
        "clicks": int(rows.clicks.sum()),
        "strategies": {strategy: _strategy(rows, by_seed) for strategy, by_seed in runs.items()},
        "paired": {
            f"{one} vs {other}": asdict(compare(rows, predictions[one], predictions[other]))
            for one, other in itertools.permutations(runs, 2)
        },
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _strategy(rows: Scored, by_seed: Sequence[Run]) -> dict[str, Any]:
    figures = [measure(rows, run.probabilities) for run in by_seed]
    windows = [_mean([one.windows[k] for one in figures]) for k in range(len(rows.start_s))]
    drift = [[name for name in DETECTORS if any(name in one.drift[k] for one in figures)] for k in range(len(windows))]
    return {
        **{key: _mean_of([getattr(one.overall, key) for one in figures]) for key in OVERALL},
        "per_window": [
            {"start": float(rows.start_s[k]), "end": float(rows.end_s[k]), **window, "drift": drift[k]}
            for k, window in enumerate(windows)
        ],
        "slices": {name: _mean([one.slices[name] for one in figures], with_gauc=True) for name in rows.slices},
        "seeds": [{key: getattr(one.overall, key) for key in OVERALL} for one in figures],
        "train_s": statistics.median(run.train_s for run in by_seed),
        "predict_s": statistics.median(run.predict_s for run in by_seed),
        "peak_mb": statistics.median(run.peak_mb for run in by_seed),
        "choices": [run.choices for run in by_seed],
    }


def _mean(by_seed: Sequence[Evaluation], *, with_gauc: bool = False) -> dict[str, Any]:
    keys = ("auc", "gauc", "logloss", "calibration") if with_gauc else ("auc", "logloss", "calibration")
    counted = {"rows": by_seed[0].rows, "clicks": by_seed[0].clicks}
    return counted | {key: _mean_of([getattr(one, key) for one in by_seed]) for key in keys}


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_report(report: Mapping[str, Any], directory: Path) -> None:
    """Write `report.md` and a plot of each figure over time."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text(to_markdown(report))
    for key, title in PLOTTED.items():
        _plot(report, key, title, directory / f"{key}.png")


def to_markdown(report: Mapping[str, Any]) -> str:
    """Return a table of the strategies, best first, and their differences to the best."""
    strategies = sorted(report["strategies"].items(), key=lambda item: item[1]["logloss"])
    best = strategies[0][0]
    head = ["strategy", "log loss", f"− {best}", "95 %", "AUC", "GAUC", "NE", "calibration"]
    head += [f"log loss, {name}" for name in strategies[0][1]["slices"]] + ["train s", "predict s", "peak MB"]
    lines = [
        f"# {report['name']}",
        "",
        f"{report['rows']:,} rows in {report['windows']} windows after the warm-up.",
        "",
    ]
    lines += [_row(head), _row(["---"] * len(head))]
    for name, found in strategies:
        paired = report["paired"].get(f"{name} vs {best}")
        delta = ["", ""]
        if paired is not None:
            low, high = paired["ci95"]
            delta = [f"{paired['delta_logloss']:+.5f}", f"{low:+.5f} to {high:+.5f}"]
        cells = [name, _figure(found["logloss"], 5), *delta, *(_figure(found[key]) for key in ("auc", "gauc", "ne"))]
        cells += [_figure(found["calibration"], 3), *(_figure(one["logloss"]) for one in found["slices"].values())]
        cells += [f"{found['train_s']:.1f}", f"{found['predict_s']:.1f}", f"{found['peak_mb']:.0f}"]
        lines.append(_row(cells))
    return "\n".join([*lines, "", *_choice_lines(dict(strategies)), *_drift_lines(dict(strategies)), ""])


def _choice_lines(strategies: Mapping[str, Any]) -> list[str]:
    """Return what the warm-up chose for strategies, which the others do not have; by the first seed."""
    lines = []
    for name, found in strategies.items():
        chosen = dict(found["choices"][0])
        inputs = [(kind, chosen.pop(kind)) for kind in (CROSSES, HISTORIES) if kind in chosen]
        told = [f"{kind} {', '.join(one['name'] for one in ones)}" for kind, ones in inputs]
        told += [f"{setting} {value}" for setting, value in chosen.items()]
        if told:
            lines.append(f"- {name}: {'; '.join(told)}")
    return ["Chosen on the warm-up, and not given to the others:", "", *lines, ""] if lines else []


def _drift_lines(strategies: Mapping[str, Any]) -> list[str]:
    """Return where drift alarms fell, a line for each strategy that had any."""
    lines = []
    for name, found in strategies.items():
        alarms = [(number, one["drift"]) for number, one in enumerate(found["per_window"], start=1) if one["drift"]]
        if alarms:
            lines.append(f"- {name}: " + ", ".join(f"window {number} ({', '.join(by)})" for number, by in alarms))
    if not lines:
        return ["No drift alarm for any strategy."]
    return ["Drift alarms, by window after the warm-up (in the plots: crosses):", "", *lines]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _figure(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _plot(report: Mapping[str, Any], key: str, title: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for name, found in report["strategies"].items():
        values = [np.nan if window[key] is None else window[key] for window in found["per_window"]]
        (line,) = axes.plot(range(1, len(values) + 1), values, label=name, linewidth=1.2)
        alarms = [k for k, window in enumerate(found["per_window"]) if window["drift"]]
        axes.plot([k + 1 for k in alarms], [values[k] for k in alarms], "x", color=line.get_color(), markersize=9)
    axes.set_xlabel("window after the warm-up")
    axes.set_ylabel(title)
    axes.set_title(f"{report['name']}: {title}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
