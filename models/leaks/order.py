"""Time: rows, clicks and labels that come too early, and a split that leaves nothing to be tested on.

Owns the laws of time. Must not know fields.

Invariants: what is found does not depend on how the rows were cut into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import polars as pl

from models.leaks.findings import Finding
from models.window import Slides

# A click that comes after `wait_s` was learnt as no click. A few are the price of learning soon; beyond a quarter of
# all clicks the labels say how long one waited rather than what was clicked. Chosen by hand.
LATE_SHARE_MAX = 0.25
# Times are rounded: of exponential delays of 8 s, written in milliseconds, one in 16,000 becomes zero.
ROUNDED_SHARE_MAX = 1e-3


class Clock:
    """What the times of a log show, chunk by chunk in the order of the file."""

    def __init__(self, *, disorder_s: float, wait_s: float) -> None:
        """Start before the first row.

        Args:
            disorder_s: How far behind the newest row another may come.
            wait_s: How long an impression waits for its click.
        """
        self._disorder_s = disorder_s
        self._wait_s = wait_s
        self.newest_s = -math.inf
        self.oldest_s = math.inf
        self.n_rows = self.n_disordered = 0
        self.behind_s = 0.0
        self.n_timed = self.n_early = self.n_at_once = self.n_late = 0

    def add(self, chunk: pl.DataFrame) -> None:
        """Take the next rows of the file: `time_s` and `click_time_s`, unusable rows included."""
        chunk = chunk.drop_nulls("time_s")
        if not chunk.height:
            return
        time_s = chunk["time_s"].to_numpy()
        newest_s = np.maximum(np.maximum.accumulate(time_s), self.newest_s)
        behind_s = newest_s - time_s
        self.n_rows += len(time_s)
        self.n_disordered += int((behind_s > self._disorder_s).sum())
        self.behind_s = max(self.behind_s, float(behind_s.max()))
        self.newest_s = float(newest_s[-1])
        self.oldest_s = min(self.oldest_s, float(time_s.min()))
        delay_s = (chunk["click_time_s"] - chunk["time_s"]).drop_nulls().to_numpy()
        self.n_timed += len(delay_s)
        self.n_early += int((delay_s < 0.0).sum())
        self.n_at_once += int((delay_s == 0.0).sum())
        self.n_late += int((delay_s > self._wait_s).sum())


def check_clock(clock: Clock, *, disorder_s: float) -> Iterator[Finding]:
    """Yield what the log's own times show."""
    if clock.n_disordered:
        evidence = {"rows": clock.n_disordered, "of": clock.n_rows, "behind_s_max": clock.behind_s}
        yield Finding(
            "time_order",
            "",
            evidence,
            f"{clock.n_disordered:,} of {clock.n_rows:,} rows stand behind a row that is more than disorder_s ="
            f" {disorder_s:g} s younger, up to {clock.behind_s:,.3f} s",
        )
    if clock.n_early:
        message = f"{clock.n_early:,} of {clock.n_timed:,} clicks come before their impression"
        yield Finding("early_click", "", {"clicks": clock.n_early, "of": clock.n_timed}, message)
    if clock.n_at_once > ROUNDED_SHARE_MAX * clock.n_timed:
        message = f"{clock.n_at_once:,} of {clock.n_timed:,} clicks come in the instant of their impression"
        yield Finding("zero_delay", "", {"clicks": clock.n_at_once, "of": clock.n_timed}, message)


def check_delays(
    clock: Clock, *, has_click_times: bool, delay_mean_s: float, wait_s: float, is_corrected: bool
) -> Iterator[Finding]:
    """Yield what the wait makes of the click delays, those of the log or those that are drawn.

    Args:
        clock: Of the whole log.
        has_click_times: Whether the log holds the times of clicks; else they are drawn.
        delay_mean_s: Mean of the exponential delay that is drawn.
        wait_s: How long an impression waits for its click.
        is_corrected: Whether clicks that come later correct their label.
    """
    if not has_click_times and delay_mean_s == 0.0:
        message = "clicks are given a delay of zero: their labels settle when the row is shown"
        yield Finding("zero_delay", "[log] click_delay_s.mean", {"mean": 0.0}, message)
        return
    late = clock.n_late / max(clock.n_timed, 1) if has_click_times else math.exp(-wait_s / delay_mean_s)
    if late > LATE_SHARE_MAX and not is_corrected:
        message = f"{late:.0%} of the clicks come later than wait_s = {wait_s:g} s: they are learnt as no clicks"
        yield Finding("short_wait", "[ledger] wait_s", {"late_share": late, "wait_s": wait_s}, message)


def check_slides(first_s: float, last_s: float, slides: Slides, *, warmup_s: float) -> Iterator[Finding]:
    """Yield what is wrong with a split that has no test side.

    Args:
        first_s: When the first row settles.
        last_s: When the last one does.
        slides: How event time is cut.
        warmup_s: Slides that end within this time of the first settled row are learnt, never judged.
    """
    span_s = last_s - first_s
    if slides.index(first_s) == slides.index(last_s):
        message = f"all {span_s:,.0f} s of the log fall into one slide: no slide is tested after another was learnt"
        yield Finding("no_test", "[window]", {"span_s": span_s, "slides": 1}, message)
    elif warmup_s >= span_s:
        message = f"the warm-up of {warmup_s:,.0f} s is longer than the log ({span_s:,.0f} s): nothing is ever tested"
        yield Finding("no_test", "[window] warmup_s", {"span_s": span_s, "warmup_s": warmup_s}, message)


def train_end_s(first_s: float, slides: Slides, *, warmup_s: float) -> float:
    """Return where the training side of the split ends: with the warm-up, without one with the first slide."""
    return first_s + warmup_s if warmup_s else slides.end_s(slides.index(first_s))
