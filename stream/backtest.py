"""The same code over a file: ledger, window, learner and gate in one process, without Kafka.

Owns the in-memory way of an event. Must not compute anything that the workers compute otherwise: it calls the same
core with the same settings, so its snapshots have the same digests as those of a replay through Kafka.

The ledger runs over `partitions` in-memory partitions with the partitioner of Kafka's clients. There is no append time
in memory, so blocks are cut elsewhere than Kafka's; what is learnt does not depend on where.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.settings import Settings
from models.registry import Registry
from models.train import use_threads
from models.update import Learner, UpdateReport
from models.window import Slide, Window
from stream.blocks import Counts, add_counts, chain_schema, encode_block, encode_chains, row_schema, to_frame
from stream.events import Event
from stream.families import Family, families_of
from stream.ledger import Closed
from stream.partitioner import request_partition
from stream.wiring import new_ledger, new_slides

TimedEvent = tuple[str | None, Event]  # the request_id that keys an event; None: a tick, for every partition


@dataclass(frozen=True)
class Step:
    """One slide of a backtest: what was learnt, what it took in wall time, and the digest of the newest model."""

    report: UpdateReport
    learn_s: float
    digest: str


@dataclass
class Backtest:
    """A run over a stream of events; iterate `steps`, then read `counts` and `learner`."""

    settings: Settings
    events: Iterable[TimedEvent]

    def __post_init__(self) -> None:
        """Make the learner; nothing is read yet."""
        use_threads(self.settings.update.threads)
        click, *self._families = families_of(self.settings)
        self.learner = Learner(click.task)
        self.counts = Counts()
        self.others: dict[str, Learner[Any, Any]] = {one.kind: Learner(one.task) for one in self._families}
        self.other_steps: dict[str, list[Step]] = {one.kind: [] for one in self._families}

    def steps(self) -> Iterator[Step]:
        """Run; yield after each slide of the click model."""
        for slide in self.slides(self._families, self._learn_other):
            yield _learn(self.learner, slide)

    def _learn_other(self, kind: str, slide: Slide) -> None:
        self.other_steps[kind].append(_learn(self.others[kind], slide))

    def slides(
        self, others: Sequence[Family] = (), on_slide: Callable[[str, Slide], None] = lambda _kind, _slide: None
    ) -> Iterator[Slide]:
        """Run the ledger alone; yield each slide of impressions as it completes.

        Args:
            others: Families beside the click model's.
            on_slide: Called with the kind of such a family and each of its slides as it completes.
        """
        settings = self.settings
        slides, schema = new_slides(settings), row_schema(settings.fields)
        n_partitions = settings.kafka.partitions
        ledgers = [new_ledger(partition, settings, slides) for partition in range(n_partitions)]
        offsets = [0] * n_partitions
        window = Window(n_partitions, slides)
        chains = chain_schema(settings.fields)
        windows = [(family, Window(n_partitions, slides, identity=family.identity)) for family in others]

        def step(partition: int, event: Event) -> list[Closed]:
            offset = offsets[partition]
            offsets[partition] = offset + 1
            return ledgers[partition].step(offset, 0.0, event)

        for request_id, event in self.events:
            partitions = range(n_partitions) if request_id is None else (request_partition(request_id, n_partitions),)
            closed = [block for partition in partitions for block in step(partition, event)]
            for block in closed:
                header = block.header
                window.add(header.partition, header.number, header.watermark_s, to_frame(block.rows, schema))
                for family, own in windows:
                    if family.topic == "examples":
                        _, frame = family.decode(encode_block(header, block.rows, schema))
                    else:
                        _, frame = family.decode(encode_chains(header, block.chains, chains))
                    own.add(header.partition, header.number, family.complete_s(header), frame)
            if closed:
                yield from window.closed()
                for family, own in windows:
                    for slide in own.closed():
                        on_slide(family.kind, slide)
                self.counts = add_counts([ledger.counts for ledger in ledgers])
        self.counts = add_counts([ledger.counts for ledger in ledgers])


def _learn(learner: Learner[Any, Any], slide: Slide) -> Step:
    started_s = time.perf_counter()
    report = learner.learn(slide)
    return Step(report, time.perf_counter() - started_s, learner.latest.digest)


def run_backtest(
    settings: Settings,
    events: Iterable[TimedEvent],
    *,
    registry_dir: Path | None = None,
    on_step: Callable[[Step, Counts], None] | None = None,
) -> dict[str, Any]:
    """Return the JSON object of `freshrank backtest`: see docs/cli.md.

    Args:
        settings: Of the deployment.
        events: In arrival order, from `stream.logs`.
        registry_dir: Where to keep every snapshot; None keeps none.
        on_step: Called after each slide, for progress.
    """
    backtest = Backtest(settings, events)
    registry = Registry(str(registry_dir)) if registry_dir is not None else None
    windows: list[dict[str, Any]] = []
    for step in backtest.steps():
        if registry is not None:
            registry.save(backtest.learner.champion, {})
            registry.save(backtest.learner.latest, {})
        windows.append(_window(step))
        if on_step is not None:
            on_step(step, backtest.counts)
    counts = backtest.counts
    return {
        "name": settings.name,
        "windows": windows,
        **{kind: [_window(step) for step in backtest.other_steps.get(kind, [])] for kind in ("prerank", "creatives")},
        "ledger": {name: getattr(counts, name) for name in counts.__struct_fields__},
        "violations": counts.violations(),
        "champion": backtest.learner.champion.version,
        "latest": backtest.learner.latest.version,
    }


def _window(step: Step) -> dict[str, Any]:
    return asdict(step.report) | {"learn_s": step.learn_s, "digest": step.digest}
