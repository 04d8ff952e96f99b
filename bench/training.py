"""Training speed on synthetic rows: `python -m bench.training --runs 7 --json FILE`.

Rows have 22 fields of one value each, 16 numbers a value, into hidden layers of 128, 64 and 32; 4,096 rows a batch. Six
fields have a million values, sixteen have few; ids follow Zipf's law or are uniform. All contestants take turns over
the same batches in one process, and so do the floors:

    ours             models.train.Pass as it ships, without inputs from counts: the same network as the others'
    ours, priors     the same with the dense inputs from counts (136): what `default` trains
    torch Adam       nn.Embedding with dense gradients
    torch SparseAdam, torch Adagrad    nn.Embedding(sparse=True)
    fbgemm           SplitTableBatchedEmbeddingBagsCodegen, one accumulator a row (EXACT_ROWWISE_ADAGRAD), as ours

*Sparse* is what a batch costs outside the network: look the values up, and with a gradient at hand sum it by row and
move the rows that were touched. *Step* is the whole batch. *Floor* is the time of the network's matrix products alone,
each of a batch at its shapes (forward, by weights, by inputs; of the first layer by embeddings alone), into memory that
is there already; *own products* are those that our step does: twice forward and once more by inputs, as network and
embeddings learn apart, and the product of the logistic regression under our networks.
*Scoring* is compared with the forward products. Shares are floor / time, so 1 would be nothing but products.
Figures are medians over batches and turns; `quiet` are the same of the fastest tenth, where nothing else was running.

Aims: sparse twice as fast as fbgemm's, step at 0.6 of its floor, scoring at 0.7, and of the stages of a slide (part
stages, on a log of the same shape) none of encode, vocabulary and priors slowest. Part memory takes the PSS of each
contestant in a process of its own. On a GPU the bytes that the sparse part must move are compared with what a copy
reaches; fbgemm is left out there (its package for processors has no such kernels).

fbgemm comes from .venv-bench (`make bench`); without it that contestant is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import psutil
import torch
from torch import Tensor, nn

from bench.report import machine, write_report
from features.encode import encode
from features.fields import Field, slot_counts
from features.point_in_time import point_in_time
from features.posteriors import LEVEL_INPUTS, dense_width
from features.priors import PriorTable
from features.vocabulary import Vocabulary
from infra.settings import Settings, read_settings
from models.batch import Inputs, Predictor, make_inputs
from models.click_task import ClickTask
from models.examples import read_examples
from models.losses import Objective, Targets
from models.networks.build import build_network, initial_tensors
from models.networks.logistic import CURVATURE_ROWS, base_width, run_base
from models.networks.network import Way
from models.train import Pass, Touched, adagrad_step, resolve_device, train, use_threads
from models.update import Learner
from stream.backtest import Backtest
from stream.blocks import decode_block, encode_block, row_schema
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.plan import new_plan
from stream.wiring import new_ledger, new_slides

BIG_FIELDS, VALUES = 6, 1_000_000
SMALL_FIELDS = (2, 3, 5, 7, 10, 10, 20, 24, 50, 100, 100, 200, 500, 1_000, 2_000, 10_000)  # values each; by hand
N_FIELDS = BIG_FIELDS + len(SMALL_FIELDS)
DIM, HIDDEN, BATCH, HALF_LIVES = 16, (128, 64, 32), 4096, 3
BATCHES = 8  # different ones, taken in turns
LEARNING_RATE, EMBEDDING_LEARNING_RATE = 0.001, 0.02
FIELDS = tuple(Field(name=f"f{i}", side="item" if i == 0 else "user") for i in range(N_FIELDS))
PARTS, LAWS = ("steps", "stages", "memory"), ("zipf", "uniform")
KNOWN = "vocabulary and counts"
SITE_PACKAGES = "lib/python*/site-packages"
REPOSITORY = Path(__file__).resolve().parent.parent
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of one batch: ids within each field, (B, F), labels, what is known by counts, and a gradient."""

    ids: Ints
    inputs: Inputs
    clicks: Tensor
    gradient: Tensor


class Contestant(Protocol):
    """What takes part: it keeps its own state."""

    def sparse(self, batch: int) -> None:
        """Look a batch up and move the touched rows by the batch's gradient."""

    def step(self, batch: int) -> None:
        """Learn a batch."""


def field_sizes(values: int) -> list[int]:
    return [values] * BIG_FIELDS + list(SMALL_FIELDS)


def draw_ids(law: str, sizes: Sequence[int], n_rows: int, rng: np.random.Generator) -> Ints:
    """Return ids (N, F); under Zipf's law (exponent 1.05) common ones lie anywhere in the table, as hashed keys do."""
    columns = []
    for size in sizes:
        if law == "uniform":
            columns.append(rng.integers(0, size, n_rows))
            continue
        up_to = np.cumsum(np.arange(1, size + 1) ** -1.05)
        rank = np.minimum(np.searchsorted(up_to, rng.random(n_rows) * up_to[-1]), size - 1)
        columns.append(rng.permutation(size)[rank])
    return np.stack(columns, axis=1)


def make_batches(law: str, values: int, device: str) -> list[Rows]:
    rng = np.random.default_rng(0)
    sizes = field_sizes(values)
    every = draw_ids(law, sizes, BATCH * BATCHES, rng)
    first = np.cumsum([1, *sizes[:-1]])  # row 0 is that of unknown values
    batches = []
    for ids in np.split(every, BATCHES):
        dense = rng.normal(0.0, 0.3, (BATCH, dense_width(FIELDS, HALF_LIVES))).astype(np.float32)
        dense[:, :LEVEL_INPUTS] = 1.0, -1.5
        clicks = (rng.random(BATCH) < 0.2).astype(np.float32)
        gradient = rng.normal(0.0, 1e-4, (BATCH, N_FIELDS, DIM)).astype(np.float32)
        rows, of_clicks, of_gradient = (torch.from_numpy(part).to(device) for part in (ids + first, clicks, gradient))
        share = torch.ones(BATCH, N_FIELDS, device=device)
        inputs = Inputs(rows, share, torch.from_numpy(dense).to(device))
        batches.append(Rows(ids, inputs, of_clicks, of_gradient))
    return batches


class Ours:
    """The product's own step."""

    def __init__(self, batches: list[Rows], n_rows: int, device: str, ways: tuple[Way, ...]) -> None:
        self._batches = batches
        self.network = build_network("mlp", FIELDS, dim=DIM, hidden=HIDDEN, ways=ways, n_half_lives=HALF_LIVES)
        tensors = initial_tensors(self.network, fields=FIELDS, n_half_lives=HALF_LIVES, seed=0)
        self.network.to(device)
        self._base = tensors["base.weight"].to(device)
        tensors["embedding.rows"] = torch.empty(n_rows, DIM).uniform_(-0.017, 0.017)
        tensors["embedding.squares"] = torch.zeros(n_rows, 1)
        tensors["adam.steps"] = torch.ones(1, dtype=torch.float64)  # not the first pass
        # The pass learns on a copy of its own; this is the original, which the sparse part alone may move.
        self._state = {name: tensors[name].to(device) for name in ("embedding.rows", "embedding.squares")}
        self._pass = Pass(
            tensors,
            self.network,
            objective=Objective(),
            learning_rate=LEARNING_RATE,
            embedding_learning_rate=EMBEDDING_LEARNING_RATE,
            precision="auto",
        )

    def sparse(self, batch: int) -> None:
        rows = self._batches[batch]
        touched = Touched(rows.inputs.rows)
        touched.look_up(self._state["embedding.rows"])
        adagrad_step(self._state, touched.rows, touched.sums(rows.gradient), EMBEDDING_LEARNING_RATE)

    def step(self, batch: int) -> None:
        rows = self._batches[batch]
        self._pass.learn(rows.inputs, Targets(rows.clicks))

    def score(self, batch: int) -> None:
        """As models.batch.Predictor does it."""
        inputs = self._batches[batch].inputs
        with torch.inference_mode():
            embedded = nn.functional.embedding(inputs.rows, self._state["embedding.rows"])
            _, _, start = run_base(self._base, inputs.dense, HALF_LIVES)
            self.network(embedded, inputs.share, inputs.dense, start)


def make_mlp(device: str) -> nn.Sequential:
    widths = (N_FIELDS * DIM, *HIDDEN)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1)).to(device)


class Torch:
    """nn.Embedding, all fields in one table, and an optimiser of torch's; the network by its own fused Adam."""

    def __init__(self, batches: list[Rows], n_rows: int, device: str, optimiser: str) -> None:
        self._batches = batches
        self._table = nn.Embedding(n_rows, DIM, sparse=optimiser != "Adam", device=device)
        make = {"Adam": torch.optim.Adam, "SparseAdam": torch.optim.SparseAdam, "Adagrad": torch.optim.Adagrad}
        self._of_rows = make[optimiser](self._table.parameters(), lr=EMBEDDING_LEARNING_RATE)
        self._mlp = make_mlp(device)
        self._of_mlp = torch.optim.Adam(self._mlp.parameters(), lr=LEARNING_RATE, fused=True)

    def sparse(self, batch: int) -> None:
        rows = self._batches[batch]
        self._table(rows.inputs.rows).backward(rows.gradient)
        self._of_rows.step()
        self._of_rows.zero_grad()

    def step(self, batch: int) -> None:
        rows = self._batches[batch]
        logits = self._mlp(self._table(rows.inputs.rows).flatten(1))[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, rows.clicks).backward()
        for optimiser in (self._of_rows, self._of_mlp):
            optimiser.step()
            optimiser.zero_grad()


class Fbgemm:
    """fbgemm's table-batched embeddings: one table a field, the update within the backward pass."""

    def __init__(self, batches: list[Rows], sizes: Sequence[int]) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        self._tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(size, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in sizes],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=EMBEDDING_LEARNING_RATE,
            pooling_mode=PoolingMode.SUM,
            device=torch.device("cpu"),
        )
        self._tables.init_embedding_weights_uniform(-0.017, 0.017)
        self._clicks = [rows.clicks for rows in batches]
        self._indices = [torch.from_numpy(np.ascontiguousarray(rows.ids.T).ravel()) for rows in batches]
        self._gradient = [rows.gradient.flatten(1) for rows in batches]
        self._offsets = torch.arange(BATCH * len(sizes) + 1)
        self._mlp = make_mlp("cpu")
        self._of_mlp = torch.optim.Adam(self._mlp.parameters(), lr=LEARNING_RATE, fused=True)

    def sparse(self, batch: int) -> None:
        self._tables(self._indices[batch], self._offsets).backward(self._gradient[batch])

    def step(self, batch: int) -> None:
        logits = self._mlp(self._tables(self._indices[batch], self._offsets))[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, self._clicks[batch]).backward()
        self._of_mlp.step()
        self._of_mlp.zero_grad()


class Floor:
    """The matrix products of a batch and nothing else, of a network that reads so many dense inputs."""

    def __init__(self, n_dense: int, device: str) -> None:
        widths = (N_FIELDS * DIM + n_dense, *HIDDEN, 1)
        self._layers = []
        for n, (i, o) in enumerate(itertools.pairwise(widths)):
            learnt = N_FIELDS * DIM if n == 0 else i  # nothing asks for the gradient by dense inputs
            shapes = ((BATCH, i), (o, i), (BATCH, o), (BATCH, o), (BATCH, learnt), (o, i))
            self._layers.append([torch.randn(shape, device=device) for shape in shapes])
        width = base_width(dense_width(FIELDS, HALF_LIVES), HALF_LIVES)
        self._curving = torch.randn(min(BATCH, CURVATURE_ROWS), width, device=device)
        self._curvature = self._curving.T @ self._curving

    def forward(self, _: int) -> None:
        for x, weight, _gradient, out, _of_x, _of_weight in self._layers:
            torch.mm(x, weight.T, out=out)

    def step(self, batch: int) -> None:
        self.forward(batch)
        for x, weight, gradient, _out, of_x, of_weight in self._layers:
            torch.mm(gradient.T, x, out=of_weight)
            torch.mm(gradient, weight[:, : of_x.shape[1]], out=of_x)

    def own(self, batch: int) -> None:
        """What models.train.Pass does beyond `step`, too."""
        self.step(batch)
        self.forward(batch)
        for _x, weight, gradient, _out, of_x, _of_weight in self._layers[1:]:
            torch.mm(gradient, weight, out=of_x)
        torch.mm(self._curving.T, self._curving, out=self._curvature)


def add_fbgemm() -> bool:
    """Let fbgemm be found in .venv-bench, behind everything else; return whether it loads here."""
    sys.path += [str(path) for path in sorted((REPOSITORY / ".venv-bench").glob(SITE_PACKAGES))]
    try:
        import fbgemm_gpu  # noqa: F401
    except (ImportError, OSError) as error:
        print(f"fbgemm is left out: {error}", file=sys.stderr)
        return False
    return True


def contestants(batches: list[Rows], values: int, device: str) -> dict[str, Callable[[], Contestant]]:
    """Return who takes part, by name, each to be made."""
    sizes = field_sizes(values)
    n_rows = 1 + sum(sizes)
    found: dict[str, Callable[[], Contestant]] = {
        "ours": lambda: Ours(batches, n_rows, device, ()),
        "ours, priors": lambda: Ours(batches, n_rows, device, ("dense", "wide")),
    }
    for optimiser in ("Adam", "SparseAdam", "Adagrad"):
        found[f"torch {optimiser}"] = partial(Torch, batches, n_rows, device, optimiser)
    if device == "cpu" and add_fbgemm():
        found["fbgemm"] = lambda: Fbgemm(batches, sizes)
    return found


def timed(work: Callable[[int], object], batch: int, device: str) -> float:
    begun_s = time.perf_counter()
    work(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun_s


def measure_steps(law: str, values: int, runs: int, device: str) -> dict[str, Any]:
    """Return the figures of every contestant over batches of one law, in rows/s and as shares of their floors."""
    batches = make_batches(law, values, device)
    n_dense = dense_width(FIELDS, HALF_LIVES) - LEVEL_INPUTS
    floors = {"ours, priors": Floor(n_dense, device), "": Floor(0, device)}
    entrants = {name: make() for name, make in contestants(batches, values, device).items()}
    works: dict[tuple[str, str], Callable[[int], None]] = {}
    for name, contestant in entrants.items():
        works |= {(name, "sparse"): contestant.sparse, (name, "step"): contestant.step}
        if isinstance(contestant, Ours):
            works[name, "score"] = contestant.score
    for name, floor in floors.items():
        works |= {(name, "floor"): floor.step, (name, "forward"): floor.forward, (name, "own"): floor.own}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for run in range(runs + 1):
        for key, work in works.items():
            each = [timed(work, batch, device) for batch in range(1 if key[0] == "torch Adam" else BATCHES)]
            if run:  # the first turn of all warms up
                seconds[key] += each
    median = {key: statistics.median(found) for key, found in seconds.items()}
    quiet = {key: float(np.quantile(found, 0.1)) for key, found in seconds.items()}
    figures = {}
    for name in entrants:
        floor = name if name in floors else ""
        figures[name] = _figures(name, floor, median) | {"quiet": _figures(name, floor, quiet)}
    touched = statistics.mean(len(torch.unique(rows.inputs.rows)) for rows in batches)
    report = {"rows_touched_by_a_batch": touched, "contestants": figures}
    if device == "cuda":
        report["sparse_share_of_bandwidth"] = bytes_moved(touched) / median["ours", "sparse"] / bandwidth()
    return report


def _figures(name: str, floor: str, took_s: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """Return what is reported of one contestant beside the floor of its network."""
    of_step = took_s[floor, "floor"]
    figures = {
        "sparse_ms": took_s[name, "sparse"] * 1e3,
        "step_ms": took_s[name, "step"] * 1e3,
        "rows_per_s": BATCH / took_s[name, "step"],
        "floor_ms": of_step * 1e3,
        "share_of_floor": of_step / took_s[name, "step"],
    }
    if (name, "score") in took_s:
        figures["share_of_own_products"] = took_s[floor, "own"] / took_s[name, "step"]
        figures["scored_rows_per_s"] = BATCH / took_s[name, "score"]
        figures["scoring_share_of_floor"] = took_s[floor, "forward"] / took_s[name, "score"]
    if ("fbgemm", "sparse") in took_s:
        figures["sparse_to_fbgemm"] = took_s["fbgemm", "sparse"] / took_s[name, "sparse"]
    return figures


def bytes_moved(touched: float) -> float:
    """Return what the sparse part of a batch must move: ids, rows out, gradients in, touched rows in and out again."""
    n_values = BATCH * N_FIELDS
    return n_values * (8 + 3 * 4 * DIM) + touched * 2 * (4 * DIM + 4)


def bandwidth() -> float:
    """Return the bytes a second that a large copy on the GPU moves, reads and writes together."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    seconds = min(timed(lambda _: target.copy_(source), 0, "cuda") for _ in range(5))
    return 2.0 * source.nbytes / seconds


CONFIG = """
name = "training"
[log]
files = ["rows.parquet"]
time = "time_s"
time_unit = "s"
label = "click"
click_delay_s = {{ mean = 5.0, seed = 7 }}
{fields}
[ledger]
wait_s = 60.0
grace_s = 60.0
disorder_s = 1.0
[window]
slide_s = {slide_s}
[model]
dim = {dim}
hidden = {hidden}
[update]
batch_rows = {batch}
threads = {threads}
"""


def write_log(directory: Path, law: str, values: int, n_rows: int, threads: int) -> Settings:
    """Write a log of the same shape and its configuration; four slides."""
    rng = np.random.default_rng(1)
    ids = draw_ids(law, field_sizes(values), n_rows, rng)
    frame = pl.DataFrame({field.name: pl.Series(ids[:, i]).cast(pl.String) for i, field in enumerate(FIELDS)})
    time_s = np.arange(n_rows) * 0.05
    frame = frame.with_columns(time_s=pl.Series(time_s), click=pl.Series((rng.random(n_rows) < 0.2).astype(np.int64)))
    frame.write_parquet(directory / "rows.parquet")
    fields = "\n".join(f'[[fields]]\nname = "{field.name}"\nside = "{field.side}"' for field in FIELDS)
    text = CONFIG.format(
        fields=fields, slide_s=time_s[-1] / 4, dim=DIM, hidden=list(HIDDEN), batch=BATCH, threads=threads
    )
    (directory / "training.toml").write_text(text)
    return read_settings(directory / "training.toml")


def measure_stages(law: str, values: int, n_rows: int, runs: int, threads: int) -> dict[str, Any]:
    """Return rows/s of each stage that a row passes from its block until it is learnt, over one slide, warm."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = write_log(Path(scratch), law, values, n_rows, threads)
        arrivals = list(read_arrivals(settings, [Path(scratch)], RowCounts()))
    schema, ledger = row_schema(settings.fields), new_ledger(0, settings, new_slides(settings))
    closed = [block for offset, (_, event) in enumerate(arrivals) for block in ledger.step(offset, 0.0, event)]
    blocks = [encode_block(block.header, block.rows, schema) for block in closed if block.rows["click"]]
    in_blocks = sum(len(block.rows["click"]) for block in closed)
    slides = [slide for slide in Backtest(settings, arrivals).slides() if len(slide.frame)]
    plan = new_plan(settings)
    learner, slide = Learner(ClickTask(plan)), max(slides[1:], key=lambda slide: len(slide.frame))
    for earlier in slides[: slides.index(slide)]:
        learner.learn(earlier)
    before, device = learner.latest, resolve_device(plan.device)
    examples = read_examples(slide, before, plan.buckets)
    inputs = make_inputs(examples.keys, examples.counts, before, device)
    targets = Targets(torch.from_numpy(examples.clicks).to(device))
    predictor = Predictor(before, device)

    def learn() -> None:
        train(
            before.tensors,
            before.build(device),
            inputs,
            targets,
            objective=plan.objective,
            learning_rate=plan.learning_rate,
            embedding_learning_rate=plan.embedding_learning_rate,
            batch_rows=plan.batch_rows,
            precision=plan.precision,
            seed=0,
            slide=0,
        )

    widths = slot_counts(plan.fields)
    stages: dict[str, tuple[int, Callable[[], object]]] = {
        "decode blocks": (in_blocks, lambda: [decode_block(block) for block in blocks]),
        "encode (hash)": (len(slide.frame), lambda: encode(slide.frame, plan.fields)),
        "vocabulary": (len(inputs), lambda: before.vocabulary.rows(examples.keys)),
        "priors, point in time": (
            len(inputs),
            lambda: point_in_time(before.base, examples.settled, examples.keys, examples.shown_s, widths),
        ),
        "inputs from counts and vocabulary": (
            len(inputs),
            lambda: make_inputs(examples.keys, examples.counts, before, device),
        ),
        "score": (len(inputs), lambda: predictor.score(inputs)),
        "train": (len(inputs), learn),
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for run in range(runs + 1):
        for name, (_, work) in stages.items():
            begun_s = time.perf_counter()
            work()
            if run:
                seconds[name].append(time.perf_counter() - begun_s)
    rates = {name: stages[name][0] / statistics.median(found) for name, found in seconds.items()}
    return {"rows": len(inputs), "values_known": len(before.vocabulary) - 1, "rows_per_s": rates}


def measure_memory(name: str, values: int) -> float:
    """Return the bytes (PSS) that this process gains by a contestant that learns, or by vocabulary and counts, per row.

    Ours holds its table twice while it learns: the snapshot that serves is never changed.
    """
    n_rows, process = 1 + sum(field_sizes(values)), psutil.Process()
    if name == KNOWN:
        before = process.memory_full_info().pss
        keys = np.arange(1, n_rows, dtype=np.uint64)
        known = Vocabulary(keys.copy())
        shape = (len(keys), HALF_LIVES)
        table = dataclasses.replace(
            PriorTable.empty([1.0] * HALF_LIVES, 1),
            keys=keys,
            field=np.ones(len(keys), np.int16),
            n=np.ones(shape),
            c=np.ones(shape),
        )
        return (process.memory_full_info().pss - before) / min(len(known), len(table.keys))
    for batch in range(2):
        contestants(make_batches("uniform", 10, "cpu"), 10, "cpu")[name]().step(batch)  # what learning itself takes
    batches = make_batches("uniform", values, "cpu")
    gc.collect()
    before = process.memory_full_info().pss
    contestant = contestants(batches, values, "cpu")[name]()
    for batch in range(BATCHES):
        contestant.step(batch)
    gc.collect()
    return (process.memory_full_info().pss - before) / n_rows


def measure_memories(values: int, threads: int) -> dict[str, float]:
    """Return bytes a row of each contestant, each measured in a process of its own."""
    names = [KNOWN, *contestants(make_batches("uniform", 10, "cpu"), 10, "cpu")]
    found = {}
    for name in names:
        command = [sys.executable, "-m", "bench.training", "--memory-of", name, "--values", str(values)]
        command += ["--threads", str(threads)]
        found[name] = float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--laws", nargs="*", choices=LAWS, default=LAWS)
    parser.add_argument("--values", type=int, default=1_000_000, help="of each of the six big fields")
    parser.add_argument("--rows", type=int, default=200_000, help="of the log of part stages")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    device = resolve_device(arguments.device)
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, arguments.values))
        return
    report: dict[str, Any] = {
        "name": "training",
        "machine": machine(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "device": device,
        "threads": arguments.threads,
        "runs": arguments.runs,
        "fields": field_sizes(arguments.values),
        "batch_rows": BATCH,
    }
    for law in arguments.laws:
        part = report[law] = {}
        if "steps" in arguments.parts:
            part |= measure_steps(law, arguments.values, arguments.runs, device)
            for name, figure in part["contestants"].items():
                for kind, shown in (("median", figure), ("quiet", figure["quiet"])):
                    rounded = {key: round(value, 2) for key, value in shown.items() if key != "quiet"}
                    print(f"{law}: {name}: {kind}: {rounded}", file=sys.stderr)
        if "stages" in arguments.parts:
            part["stages"] = measure_stages(law, arguments.values, arguments.rows, arguments.runs, arguments.threads)
            print(f"{law}: stages: {part['stages']}", file=sys.stderr)
        gc.collect()
    if "memory" in arguments.parts:
        report["bytes_a_row"] = measure_memories(arguments.values // 2, arguments.threads)
        print(f"bytes a row: {report['bytes_a_row']}", file=sys.stderr)
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
