"""The picture of what learning on was worth."""

from pathlib import Path

import pytest

from stream.demo.arms import Estimate
from stream.demo.plot import Band, Line, draw, draw_rates


@pytest.mark.parametrize("frozen_slide", [None, 1])
def test_the_picture_is_a_png_also_where_values_are_not_defined(tmp_path: Path, frozen_slide: int | None) -> None:
    slides = [0, 1, 2, 3]
    lines = [
        Line("left as it was", slides[2:], [0.7, None], [0.6, 0.61]),
        Line("champion (serves)", slides, [None, 0.7, 0.75, 0.76], [0.7, 0.6, 0.55, 0.54]),
        Line("latest (learns)", slides, [0.5, 0.71, None, 0.77], [0.7, 0.59, 0.54, 0.53]),
    ]
    path = tmp_path / "images" / "learning.png"
    draw(path, title="a log", lines=lines, frozen_slide=frozen_slide)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_one_slide_alone_can_be_drawn(tmp_path: Path) -> None:
    path = tmp_path / "learning.png"
    draw(path, title="a log", lines=[Line("latest", [0], [None], [0.7])], frozen_slide=None)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_a_loop_is_a_png_also_where_an_interval_is_endless(tmp_path: Path) -> None:
    rates = [Estimate(0.05, 0.04, 0.06), Estimate(0.06, float("-inf"), float("inf")), Estimate(0.07, 0.06, 0.08)]
    path = tmp_path / "images" / "loop.png"
    bands = [Band(name, rates) for name in ("learning", "static", "random")]
    draw_rates(path, title="a loop", hours=[4, 5, 6], bands=bands, best=[0.1, 0.1, 0.1], drift_hour=5.5)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
