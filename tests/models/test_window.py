import math
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.window import Slide, Slides, Window
from tests.frames import frame, world

HOUR_S = 3600.0


@given(st.floats(0.0, 2e9), st.sampled_from([0.1, 7.0, 60.0, 3600.0, 86_400.0, 0.3]))
def test_a_moment_lies_in_its_slide(time_s: float, slide_s: float) -> None:
    slides = Slides(slide_s=slide_s)
    index = slides.index(time_s)
    assert slides.start_s(index) <= time_s < slides.end_s(index)


@pytest.mark.parametrize(
    ("time_s", "slide_s", "index"), [(0.5, 0.1, 5), (0.8999999999999999, 0.3, 3), (0.011, 0.001, 11)]
)
def test_a_boundary_that_is_rounded_is_the_same_for_index_and_end(time_s: float, slide_s: float, index: int) -> None:
    slides = Slides(slide_s=slide_s)
    assert slides.index(time_s) == index
    assert slides.start_s(index) == time_s


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8, unique=True), st.floats(-10.0, 110.0))
def test_a_moment_lies_in_its_slide_between_edges(edges: list[float], time_s: float) -> None:
    slides = Slides(edges=tuple(sorted(edges)))
    index = slides.index(time_s)
    assert slides.start_s(index) <= time_s < slides.end_s(index)


@given(st.floats(0.0, 1e4), st.floats(0.0, 1e4), st.booleans())
def test_the_last_boundary_is_the_largest_one_in_reach(after_s: float, up_to_s: float, uniform: bool) -> None:
    slides = Slides(slide_s=100.0) if uniform else Slides(edges=tuple(float(e) for e in range(0, 10_001, 100)))
    passed = [b * 100.0 for b in range(101) if after_s < b * 100.0 <= up_to_s]
    assert slides.last_boundary(after_s, up_to_s) == (passed[-1] if passed else None)


def test_there_is_no_boundary_before_the_first_edge() -> None:
    assert Slides(edges=(10.0,)).last_boundary(-math.inf, 9.0) is None
    assert Slides(slide_s=10.0).last_boundary(-math.inf, -math.inf) is None


@pytest.mark.parametrize("slides", [{}, {"slide_s": 1.0, "edges": (1.0,)}])
def test_slides_are_cut_in_one_way(slides: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="slides must have slide_s > 0 or edges"):
        Slides(**slides)  # type: ignore[arg-type]  # both keys together are what is tested


def blocks_of(rows: pl.DataFrame, partitions: int, seed: int) -> list[tuple[int, int, float, pl.DataFrame]]:
    """The rows dealt to partitions and cut into blocks, interleaved at random, some blocks sent twice."""
    rng = random.Random(seed)
    queues = []
    for partition in range(partitions):
        own = rows.filter(pl.col("source_offset") % partitions == partition).sort("settled_s")
        own = own.with_columns(source_partition=pl.lit(partition, pl.Int32))
        blocks, first = [], 0
        while first < len(own):
            part = own[first : first + rng.randint(1, 40)]
            first += len(part)
            blocks.append((partition, first, float(part["settled_s"][-1]), part))
        blocks.append((partition, 10**6, math.inf, rows[:0]))
        queues.append(blocks)
    arrived: list[tuple[int, int, float, pl.DataFrame]] = []
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        arrived.append(queue.pop(0))
        if rng.random() < 0.2:
            arrived.append(arrived[rng.randrange(len(arrived))])
    return arrived


def collect(window: Window, blocks: list[tuple[int, int, float, pl.DataFrame]]) -> list[Slide]:
    slides = []
    for block in blocks:
        window.add(*block)
        slides += list(window.closed())
    return slides


def content(slides: list[Slide]) -> list[tuple[int, float, float, list[tuple[object, ...]]]]:
    return [(s.index, s.start_s, s.end_s, s.frame.drop("source_partition").rows()) for s in slides]


@settings(max_examples=25)
@given(partitions=st.integers(1, 4), seed=st.integers(0, 10**6), uniform=st.booleans())
def test_slides_depend_neither_on_partitions_nor_on_arrival(partitions: int, seed: int, uniform: bool) -> None:
    slides = Slides(slide_s=HOUR_S) if uniform else Slides(edges=(1000.0, 1500.0, 8000.0))
    rows = world(300)
    wanted = collect(Window(1, slides), [(0, 0, math.inf, rows.sort("settled_s"))])
    got = collect(Window(partitions, slides), blocks_of(rows, partitions, seed))
    assert content(got) == content(wanted)
    assert sum(len(s.frame) for s in got) == 300


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), stop=st.integers(0, 2))
def test_reading_again_from_the_saved_positions_gives_the_remaining_slides(seed: int, stop: int) -> None:
    slides, blocks = Slides(slide_s=HOUR_S), blocks_of(world(300), 3, seed)
    wanted = collect(Window(3, slides), blocks)
    window, learnt, positions = Window(3, slides), None, {}
    for block in blocks:
        window.add(*block)
        for slide in window.closed():
            if learnt is None or slide.index <= wanted[stop].index:
                learnt, positions = slide.index, window.positions()
    assert learnt is not None
    resumed = Window(3, slides, first_open=learnt + 1)
    again = [block for block in blocks if block[1] >= positions.get(block[0], 0)]
    assert content(collect(resumed, again)) == content([s for s in wanted if s.index > learnt])


def test_blocks_of_a_slide_may_differ_in_their_optional_columns() -> None:
    window = Window(2, Slides(slide_s=100.0))
    window.add(0, 0, 500.0, frame(time_s=[1.0], source_partition=[0]))
    window.add(1, 0, 500.0, frame(time_s=[2.0], source_partition=[1]).with_columns(pctr=pl.lit(0.5)))
    (found,) = window.closed()
    assert found.frame["pctr"].to_list() == [None, 0.5]


def test_a_slide_waits_for_the_slowest_partition() -> None:
    window = Window(2, Slides(slide_s=100.0))
    window.add(0, 0, 500.0, frame(time_s=[1.0], source_partition=[0]))
    assert list(window.closed()) == []
    window.add(1, 0, 99.0, frame(time_s=[]))
    assert list(window.closed()) == []
    assert (window.rows, window.watermark_s) == (1, 99.0)
    window.add(1, 1, 100.0, frame(time_s=[]))
    assert [s.index for s in window.closed()] == [0]
    assert window.rows == 0


def test_a_row_on_the_boundary_belongs_to_the_later_slide() -> None:
    window = Window(1, Slides(slide_s=100.0))
    window.add(0, 0, 1000.0, frame(time_s=[39.0, 40.0]))
    assert [(s.index, len(s.frame)) for s in window.closed()] == [(0, 1), (1, 1)]


def test_open_slides_get_finite_ends() -> None:
    window = Window(1, Slides(edges=(100.0,)))
    window.add(0, 0, math.inf, frame(time_s=[10.0, 20.0, 70.0, 90.0]))
    assert [(s.start_s, s.end_s) for s in window.closed()] == [(70.0, 100.0), (100.0, 150.0)]


def test_a_block_that_was_seen_is_dropped_and_its_number_may_have_gaps() -> None:
    window = Window(1, Slides(slide_s=100.0))
    assert window.add(0, 5, 70.0, frame(time_s=[1.0]))
    assert not window.add(0, 5, 70.0, frame(time_s=[1.0]))
    assert not window.add(0, 2, 70.0, frame(time_s=[2.0]))
    assert window.add(0, 9, 80.0, frame(time_s=[12.0]))
    assert window.rows == 2


@pytest.mark.parametrize("settled_s", [69.9, np.nan, np.inf])
def test_a_row_that_settled_before_the_watermark_or_never_is_corrupt(settled_s: float) -> None:
    window = Window(1, Slides(slide_s=100.0))
    window.add(0, 0, 70.0, frame(time_s=[]))
    with pytest.raises(
        ValueError, match=r"block 1 of partition 0 must hold rows settled at or after its watermark 70.0"
    ):
        window.add(0, 1, 80.0, frame(time_s=[5.0], settled_s=[settled_s]))
