import numpy as np
import pytest

from models.drift import MEAN_ROWS, DriftWatch


def stream(seed: int, change: float, n_slides: int = 40, n_rows: int = 2000) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and clicks by slide, with an hour of the day; half-way the predictions start to be wrong."""
    rng = np.random.default_rng(seed)
    slides = []
    for number in range(n_slides):
        hour = 0.2 * np.sin(number / 24 * 2 * np.pi) + rng.normal(0.0, 0.05)
        logit = -1.5 + hour + rng.normal(0.0, 0.7, n_rows)
        clicks = (rng.random(n_rows) < 1.0 / (1.0 + np.exp(-logit))).astype(float)
        wrong = change * rng.normal(0.5, 1.0, n_rows) if number >= n_slides // 2 else 0.0
        slides.append((1.0 / (1.0 + np.exp(-(logit + wrong))), clicks))
    return slides


def alarms(slides: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, ...]]:
    watch = DriftWatch()
    return [watch.look(*slide) for slide in slides]


@pytest.mark.parametrize("seed", range(5))
def test_hours_of_the_day_are_no_drift(seed: int) -> None:
    assert not any(alarms(stream(seed, 0.0)))


@pytest.mark.parametrize("seed", range(5))
def test_predictions_that_become_wrong_are_found_within_some_slides(seed: int) -> None:
    found = alarms(stream(seed, 0.6))
    assert not any(found[:20])
    assert any(found[20:26])


def test_how_rows_come_in_parts_changes_nothing() -> None:
    slides = stream(0, 0.6)
    probabilities, clicks = (np.concatenate(parts) for parts in zip(*slides, strict=True))
    watch = DriftWatch()
    found = []
    for first in range(0, len(clicks), MEAN_ROWS // 3):
        part = slice(first, first + MEAN_ROWS // 3)
        found.append(watch.look(probabilities[part], clicks[part]))
    at = next(i for i, one in enumerate(found) if one) * (MEAN_ROWS // 3)
    first = next(i for i, one in enumerate(alarms(slides)) if one)
    assert first == at // 2000


def test_a_slide_without_rows_says_nothing() -> None:
    assert DriftWatch().look(np.zeros(0), np.zeros(0)) == ()
