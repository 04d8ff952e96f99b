"""Slides of event time: which slide a settled row belongs to, and when a slide is complete.

Owns the cutting of time (`Slides`, shared with the ledger, which closes its blocks at the same boundaries), the rows of
slides that are still open (`Window`), their names (`impression_ids`) and what rows of an earlier configuration become
(`fit_columns`). Must not know where blocks come from or what is learnt from a slide.

Invariants: a slide is handed out once, when every partition's watermark has passed its end, so no row is late for it;
its rows and their order depend on the rows alone, never on partitions, on arrival or on how often a block came.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.fields import COLUMN_PREFIX, Field, Kind, raw_fields

ROW_ORDER = ("settled_s", "request_id", "position", "kind")
IMPRESSION = ("source_partition", "source_offset")  # what names an impression
SOURCE = (*IMPRESSION, "kind")  # one impression may also have a correcting row of its own kind
OFFSET_BITS = 48  # of the number that names an impression; the rest is its partition's


def fit_columns(frame: pl.DataFrame, fields: Sequence[Field]) -> pl.DataFrame:
    """Return a frame of examples with the columns of these fields, whatever fields its block was written with.

    A field that the block does not have is null; so are values of another kind, though whole numbers are categories
    and one category is a list of one; a column of no field goes.
    """
    wanted = {field.column: field.kind for field in raw_fields(fields)}
    found = {name: dtype for name, dtype in frame.schema.items() if name.startswith(COLUMN_PREFIX)}
    if found == {name: _DTYPES[kind] for name, kind in wanted.items()}:
        return frame
    fitted = [
        _fit(frame[name], kind) if name in found else pl.lit(None, _DTYPES[kind]) for name, kind in wanted.items()
    ]
    columns = [one.alias(name) for one, name in zip(fitted, wanted, strict=True)]
    return frame.drop(list(found)).with_columns(columns)


_DTYPES: dict[Kind, pl.DataType] = {
    "category": pl.String(),
    "categories": pl.List(pl.String),
    "number": pl.Float64(),
}


def impression_ids(frame: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Return a number that names each row's impression, (N,): a correction has that of what it corrects."""
    partition, offset = (frame[name].to_numpy().astype(np.int64) for name in IMPRESSION)
    return (partition << OFFSET_BITS) | offset


def _fit(values: pl.Series, kind: Kind) -> pl.Series:
    dtype = values.dtype
    is_list = isinstance(dtype, pl.List)
    is_category = dtype == pl.String or dtype.is_integer()
    if kind == "number" and dtype.is_numeric():
        return values.cast(pl.Float64)
    if kind == "category" and is_category:
        return values.cast(pl.String)
    if kind == "categories" and is_list:
        return values.cast(pl.List(pl.String))
    if kind == "categories" and is_category:
        lists = pl.Series([None if one is None else [str(one)] for one in values], dtype=pl.List(pl.String))
        return lists.alias(values.name)
    return pl.Series(values.name, [None] * len(values), dtype=_DTYPES[kind])


@dataclass(frozen=True)
class Slide:
    """The settled rows of one slide, sorted by `ROW_ORDER` and without repeats.

    Attributes:
        index: Its number in `Slides`.
        start_s: Where it begins; the first row's settling time when nothing bounds it.
        end_s: Where it ends; the last row's settling time when nothing bounds it. Both are finite.
        frame: The frame of examples; never empty when it comes from a `Window`.
    """

    index: int
    start_s: float
    end_s: float
    frame: pl.DataFrame

    @property
    def first_s(self) -> float:
        """When its first row settled; where it begins when it has none."""
        return float(self.frame["settled_s"][0]) if len(self.frame) else self.start_s

    def is_warmup(self, origin_s: float, warmup_s: float) -> bool:
        """Tell whether it ends within the warm-up, which counts from when the first row of all settled."""
        return self.end_s <= origin_s + warmup_s


@dataclass(frozen=True)
class Slides:
    """How event time is cut: slides of `slide_s` seconds, or slides that end at the given edges.

    Slide i of length `slide_s` is [i * slide_s, (i + 1) * slide_s). With edges, slide i is [edges[i-1], edges[i]): the
    first has no start and the last no end.
    """

    slide_s: float = 0.0
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is exactly one way to cut."""
        if bool(self.edges) == (self.slide_s > 0.0):
            raise ValueError(f"slides must have slide_s > 0 or edges, got {self.slide_s} and {len(self.edges)} edges")

    def index(self, time_s: float) -> int:
        """Return the slide that a moment of settling belongs to."""
        return int(self.indices(np.array([time_s]))[0])

    def indices(self, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return the slide of each moment, (N,)."""
        if self.edges:
            return np.searchsorted(np.array(self.edges), times_s, side="right").astype(np.int64)
        index = np.floor_divide(times_s, self.slide_s)
        index += times_s >= (index + 1.0) * self.slide_s  # rounding of the boundary: end_s has the last word
        index -= times_s < index * self.slide_s
        return index.astype(np.int64)

    def start_s(self, index: int) -> float:
        """Return where a slide begins, -inf when nothing bounds it."""
        return self.end_s(index - 1)

    def end_s(self, index: int) -> float:
        """Return where a slide ends, inf when nothing bounds it."""
        if not self.edges:
            return (index + 1) * self.slide_s
        if index < 0:
            return -math.inf
        return self.edges[index] if index < len(self.edges) else math.inf

    def last_boundary(self, after_s: float, up_to_s: float) -> float | None:
        """Return the latest boundary b with after_s < b <= up_to_s, or None."""
        if self.edges:
            at = bisect.bisect_right(self.edges, up_to_s) - 1
            boundary = self.edges[at] if at >= 0 else -math.inf
        else:
            boundary = self.index(up_to_s) * self.slide_s if math.isfinite(up_to_s) else up_to_s
        return boundary if after_s < boundary else None


class Window:
    """The rows of open slides, from the blocks of all partitions; a number of a block never comes back in value.

    A slide without rows is never handed out: there is nothing to learn, and counts decay over gaps by themselves.
    """

    def __init__(
        self,
        partitions: int,
        slides: Slides,
        *,
        first_open: int | None = None,
        identity: Sequence[str] = SOURCE,
    ) -> None:
        """Start empty.

        Args:
            partitions: How many partitions must have passed a slide before it is complete.
            slides: How event time is cut.
            first_open: When resuming, the first slide that is not learnt yet: rows of earlier ones are dropped.
            identity: The columns that name a row: what has the same ones came twice.
        """
        self._slides = slides
        self._identity = list(identity)
        self._first_open = first_open
        self._numbers: list[int | None] = [None] * partitions
        self._watermarks_s = [-math.inf] * partitions
        self._open: dict[int, list[tuple[int, int, pl.DataFrame]]] = {}

    @property
    def rows(self) -> int:
        """How many rows wait in open slides."""
        return sum(len(part) for parts in self._open.values() for _, _, part in parts)

    @property
    def watermark_s(self) -> float:
        """Up to where every partition is complete."""
        return min(self._watermarks_s)

    def add(self, partition: int, number: int, watermark_s: float, frame: pl.DataFrame) -> bool:
        """Take one block; return False when it was seen before.

        Args:
            partition: Its partition.
            number: Grows from block to block of a partition, gaps allowed.
            watermark_s: Later blocks of this partition hold no row that settled before this moment.
            frame: Its rows, perhaps none.

        Raises:
            ValueError: If a row settled before the partition's last watermark: the blocks are corrupt.
        """
        seen = self._numbers[partition]
        if seen is not None and number <= seen:
            return False
        if len(frame):
            self._check_not_late(partition, number, frame)
            self._put(partition, number, frame)
        self._numbers[partition] = number
        self._watermarks_s[partition] = max(self._watermarks_s[partition], watermark_s)
        return True

    def closed(self) -> Iterator[Slide]:
        """Yield the slides that every partition has passed, in order; each counts as learnt once it is yielded."""
        for index in sorted(self._open):
            if self._slides.end_s(index) > self.watermark_s:
                return
            parts = [part for _, _, part in self._open.pop(index)]
            self._first_open = index + 1
            yield self._slide(index, pl.concat(parts, how="diagonal"))  # blocks may have optional columns

    def positions(self) -> dict[int, int]:
        """Return per partition the number of the block from which reading must begin to have all open slides.

        The last block is always read again: it brings the partition's watermark back.
        """
        first = {partition: number for partition, number in enumerate(self._numbers) if number is not None}
        for parts in self._open.values():
            for partition, number, _ in parts:
                first[partition] = min(first[partition], number)
        return first

    def _check_not_late(self, partition: int, number: int, frame: pl.DataFrame) -> None:
        settled_s = frame["settled_s"].to_numpy()
        watermark_s = self._watermarks_s[partition]
        if not (settled_s.min() >= watermark_s and settled_s.max() < math.inf):
            raise ValueError(
                f"block {number} of partition {partition} must hold rows settled at or after its watermark"
                f" {watermark_s}, got {settled_s.min()} to {settled_s.max()}; replay the examples from the events"
            )

    def _put(self, partition: int, number: int, frame: pl.DataFrame) -> None:
        indices = self._slides.indices(frame["settled_s"].to_numpy())
        present = np.unique(indices).tolist()
        for index in present:
            if self._first_open is None or index >= self._first_open:
                part = frame if len(present) == 1 else frame.filter(pl.Series(indices == index))
                self._open.setdefault(index, []).append((partition, number, part))

    def _slide(self, index: int, frame: pl.DataFrame) -> Slide:
        rows = frame.unique(subset=self._identity, keep="any").sort(list(dict.fromkeys([*ROW_ORDER, *self._identity])))
        start_s, end_s = self._slides.start_s(index), self._slides.end_s(index)
        return Slide(
            index=index,
            start_s=start_s if math.isfinite(start_s) else float(rows["settled_s"][0]),
            end_s=end_s if math.isfinite(end_s) else float(rows["settled_s"][-1]),
            frame=rows,
        )
