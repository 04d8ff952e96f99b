"""Whether the world has changed for the model that serves: drift detectors over the stream of its log losses.

Owns which detectors watch, and what they are fed. Must not know models. What follows from an alarm is for people: the
model learns on in any case, and the gate decides what serves.

A log loss alone follows the click rate: it rises every evening without any drift. So it is split in two that are 0 on
average for a calibrated model at any hour: how far it lies from what the model expects of itself, and click minus
prediction. They are fed as means of so many rows in a row, as single rows of a rare click are far from what the
detectors' bounds are good for.

The detectors' state is no part of a snapshot: after a restart they begin anew.

Shape legend: `N` rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from river import drift

from models.evaluate import PROBABILITY_MIN, Floats, log_losses

MEAN_ROWS = 200  # rows of one mean; chosen by hand, as what follows: no false alarm in 160 streams of 60 slides
SCALE_MEANS = 30  # means whose deviation is the unit of those that follow
ADWIN_DELTA = 0.002  # river's own
DRIFT_SIGMAS = 14.0  # deviations that a sum has to drift away for Page-Hinkley
SLACK_SIGMAS = 0.5  # and what is let pass of each mean

DETECTORS = ("adwin", "page_hinkley")


class DriftWatch:
    """ADWIN and Page-Hinkley, which raise an alarm when a mean changes, up or down.

    Source: Bifet and Gavalda 2007; Page 1954, in river's implementation. What they are fed is ours.
    """

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._rest = np.zeros((2, 0))
        self._streams = (_Stream(), _Stream())

    def look(self, probabilities: npt.NDArray[np.floating], clicks: Floats) -> tuple[str, ...]:
        """Take predictions and clicks, (N,) each, in the order of their time; return the detectors that alarm."""
        p = np.clip(probabilities.astype(np.float64), PROBABILITY_MIN, 1.0 - PROBABILITY_MIN)
        entropy = -p * np.log(p) - (1.0 - p) * np.log1p(-p)
        rows = np.concatenate([self._rest, [log_losses(p, clicks) - entropy, clicks - p]], axis=1)  # (2, N)
        n_means = rows.shape[1] // MEAN_ROWS
        self._rest = rows[:, n_means * MEAN_ROWS :]
        means = rows[:, : n_means * MEAN_ROWS].reshape(2, n_means, MEAN_ROWS).mean(axis=2)
        alarms = {
            name for stream, values in zip(self._streams, means, strict=True) for name in stream.look(values.tolist())
        }
        return tuple(name for name in DETECTORS if name in alarms)


class _Stream:
    """The detectors of one stream of means."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """Forget what was normal."""
        self._first: list[float] = []
        self._adwin = drift.ADWIN(delta=ADWIN_DELTA, clock=1, min_window_length=SCALE_MEANS // 3)
        self._page_hinkley = drift.PageHinkley(
            min_instances=SCALE_MEANS // 3, delta=SLACK_SIGMAS, threshold=DRIFT_SIGMAS, mode="both"
        )

    def look(self, means: list[float]) -> set[str]:
        """Return the detectors that alarm at one of these."""
        return {name for mean in means for name in self._update(mean)}

    def _update(self, mean: float) -> list[str]:
        if len(self._first) < SCALE_MEANS:
            self._first.append(mean)
            return []
        unit = (mean - float(np.mean(self._first))) / max(float(np.std(self._first)), 1e-9)
        self._adwin.update(unit)
        self._page_hinkley.update(unit)
        found = (self._adwin.drift_detected, self._page_hinkley.drift_detected)
        alarms = [name for name, is_alarm in zip(DETECTORS, found, strict=True) if is_alarm]
        if alarms:
            self._begin()  # what is normal now has to be seen first
        return alarms
