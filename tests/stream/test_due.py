"""The queue of what falls due equals a sorted list, whatever the order of puts and pops."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stream.due import DueQueue


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 100.0)), max_size=60), st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
def test_items_come_in_the_order_of_moments_and_then_of_offsets(steps: list[float | None], width_s: float) -> None:
    queue: DueQueue[int] = DueQueue(width_s)
    waiting: list[tuple[float, int]] = []
    for offset, due_s in enumerate(steps):
        if due_s is not None:
            queue.put(due_s, offset, offset)
            waiting.append((due_s, offset))
        elif waiting:
            first = min(waiting)
            waiting.remove(first)
            assert queue.pop() == first[1]
        assert len(queue) == len(waiting)
        assert queue.first_s == min(waiting, default=(math.inf, 0))[0]
        assert [item for _, item in queue.in_order()] == [offset for _, offset in sorted(waiting)]
