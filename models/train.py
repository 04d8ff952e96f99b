"""One pass over a slide: the optimisers and what they do to the tensors of a snapshot.

Owns the training loop, the optimiser state and the embedding rows' coming and going. Must not know slides, gates or
where inputs come from.

Invariants: tensors that come in are never changed, new ones go out; the bits depend on tensors, inputs, seed and slide
number (on one CPU type and thread count); what predicts is an average of the network's weights along the way, as single
steps shake the level of a log with few clicks; an embedding row is touched only by rows that hold its value, and the
one of unknown values never: what is new to the model adds nothing; a fresh row depends on its key and the seed alone,
not on when it came or beside whom.

The network learns on embeddings as they were before the pass, as those are what it meets in the slide to come: beside
embeddings that have seen the other rows of the same user in the same slide it would learn to trust them too much. The
embeddings themselves go on from row to row. Source: ours; measured in docs/adr/0009-*.md.

Shape legend: `N` rows, `B` batch, `S` slots, `D` width of an embedding, `R` embedding rows, `P` dense inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.encode import Keys, mix
from features.vocabulary import UNKNOWN_ROW
from models.batch import Inputs, minibatches
from models.losses import Objective, Targets, objective_loss
from models.networks.logistic import CALIBRATION_RIDGE, RIDGE, calibration_inputs, newton_step, run_base
from models.networks.network import Network

Tensors = dict[str, Tensor]

EMBEDDING_BOUND = 0.017  # fresh rows are uniform in +- this: deviation 0.01, small beside what is learnt
ADAM_BETAS = (0.9, 0.999)  # as published
AVERAGE_ROWS = 10_000.0  # half-life of the average that predicts; best of 0, 10,000, 30,000 and 100,000 on KuaiRand
ADAM_EPSILON = 1e-8  # as published
ADAGRAD_EPSILON = 1e-8


def use_threads(threads: int) -> None:
    """Fix how many threads torch computes with in this process; the bits of a model depend on it."""
    torch.set_num_threads(threads)


def resolve_device(device: str) -> str:
    """Return "cuda" or "cpu" for "auto", and any other device as it is.

    Raises:
        ValueError: If "cuda" is asked for and torch finds no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ValueError(
            '[update] device must be "auto" or "cpu" where torch finds no GPU, got "cuda"; install a driver that'
            f" torch {torch.__version__} can use, or take another device"
        )
    return ("cuda" if has_gpu else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: str) -> torch.dtype:
    """Return what the network multiplies in while it learns: for "auto" bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


def initial_embedding(dim: int) -> Tensors:
    """Return an embedding that holds row 0 alone, that of unknown values: zeros, which are never trained."""
    return {"embedding.rows": torch.zeros(1, dim), "embedding.squares": torch.zeros(1, 1)}


def move_rows(
    tensors: Mapping[str, Tensor],
    source: npt.NDArray[np.int64],
    keys: Keys,
    seed: int,
    prior: npt.NDArray[np.float32] | None = None,
    *,
    bound: float = EMBEDDING_BOUND,
) -> Tensors:
    """Return the tensors with their embedding rows put where a revised vocabulary wants them.

    Args:
        tensors: Those of a snapshot.
        source: Where each row was before, -1 for a fresh one, (R,).
        keys: The values that own rows 1 and up, (R - 1,).
        seed: Seed of fresh rows.
        prior: What the first number of a fresh row is, by value, (R - 1,); None: as small as the others.
        bound: Fresh numbers are uniform in +- this.
    """
    rows, squares = tensors["embedding.rows"], tensors["embedding.squares"]
    kept = torch.from_numpy(source)
    fresh = kept < 0
    moved_rows, moved_squares = rows[kept.clamp(min=0)], squares[kept.clamp(min=0)]
    is_new = fresh.numpy()[1:]
    moved_rows[fresh] = fresh_rows(keys[is_new], rows.shape[1], seed, bound)
    if prior is not None:
        moved_rows[fresh, 0] = torch.from_numpy(prior[is_new])
    moved_squares[fresh] = 0.0
    return {**tensors, "embedding.rows": moved_rows, "embedding.squares": moved_squares}


def fresh_rows(keys: Keys, dim: int, seed: int, bound: float = EMBEDDING_BOUND) -> Tensor:
    """Return the first embedding of values: small numbers that a hash of key, seed and column gives, (len(keys), D)."""
    columns = mix(np.arange(1, dim + 1, dtype=np.uint64) + mix(np.array([seed + 1], np.uint64)))
    bits = mix(keys[:, None] ^ columns) >> np.uint64(40)  # 24 bits: exact as float32
    unit = bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)  # in [-1, 1)
    return torch.from_numpy(unit * np.float32(bound))


def train(
    tensors: Mapping[str, Tensor],
    network: Network,
    inputs: Inputs,
    targets: Targets,
    *,
    objective: Objective,
    learning_rate: float,
    embedding_learning_rate: float,
    batch_rows: int,
    precision: str,
    seed: int,
    slide: int,
) -> Tensors:
    """Return the tensors after one pass over some rows.

    Args:
        tensors: Those of a snapshot, on the CPU.
        network: The network with the same weights, on the device of the inputs; it is trained in place.
        inputs: What the network reads of the rows.
        targets: What they are learnt from, (N,), on the same device.
        objective: What is minimised.
        learning_rate: Of the network (Adam).
        embedding_learning_rate: Of embedding rows (Adagrad, one step size per row).
        batch_rows: Rows per step.
        precision: Of the network's products; see `resolve_precision`. Weights, losses and what is solved stay exact.
        seed: Seed of the order of rows, together with the slide.
        slide: Number of the slide.
    """
    learning = Pass(
        tensors,
        network,
        objective=objective,
        learning_rate=learning_rate,
        embedding_learning_rate=embedding_learning_rate,
        precision=precision,
    )
    for batch in minibatches(len(inputs), batch_rows, seed=seed, slide=slide):
        which = torch.from_numpy(batch).to(targets.clicks.device)
        learning.learn(inputs.take(which), targets.take(which))
    return learning.finish()


class Pass:
    """A pass under way, batch by batch: weights and optimisers, on the device of the network."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        network: Network,
        *,
        objective: Objective,
        learning_rate: float,
        embedding_learning_rate: float,
        precision: str,
    ) -> None:
        """Begin with copies of the tensors; the arguments are those of `train`."""
        self._objective = objective
        self._learning_rate = learning_rate
        self._embedding_learning_rate = embedding_learning_rate
        self._network = network.train()
        self._weights = flatten_weights(network)
        self._average = self._weights.clone()
        self._state = {name: tensor.to(self._weights.device, copy=True) for name, tensor in tensors.items()}
        self._dtype = resolve_precision(precision, self._weights.device.type)
        resume_adam(self._state, self._weights)
        rows = self._state["embedding.rows"]
        self._rows_before = rows.clone() if float(self._state["adam.steps"]) else rows  # no pass was before the first

    def learn(self, inputs: Inputs, targets: Targets) -> None:
        """Move everything by one batch; every part sees what the others predicted before they moved."""
        state, network = self._state, self._network
        read_by_base, base, start = run_base(state["base.weight"], inputs.dense, network.n_half_lives)
        touched = Touched(inputs.rows)
        before = touched.look_up(self._rows_before)  # (B, S, D)
        logits, of_weights = self._gradient(before, inputs, targets, start, [*network.parameters()])
        now = touched.look_up(state["embedding.rows"]).requires_grad_()
        _, (of_now,) = self._gradient(now, inputs, targets, start, [now])
        weighed = calibration_inputs(torch.stack([base, logits], dim=1))
        for name, read, ridge in (("base", read_by_base, RIDGE), ("calibration", weighed, CALIBRATION_RIDGE)):
            weight, curvature = state[f"{name}.weight"], state[f"{name}.curvature"]
            newton_step(weight, curvature, read, targets.clicks, targets.corrects, ridge=ridge)
        owned = slice(int(touched.rows[0] == UNKNOWN_ROW), None)  # ascending, so that one would be the first
        adagrad_step(state, touched.rows[owned], touched.sums(of_now)[owned], self._embedding_learning_rate)
        gradient = torch.cat([gradient.flatten() for gradient in of_weights])
        adam_step(state, self._weights, gradient, self._learning_rate)
        share = max(1.0 - 0.5 ** (len(inputs) / AVERAGE_ROWS), 1.0 / float(state["adam.steps"]))
        self._average.lerp_(self._weights, share)

    def _gradient(
        self, embedded: Tensor, inputs: Inputs, targets: Targets, start: Tensor, of: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the network's logits on embeddings (B, S, D), (B,), and gradients of the objective."""
        with torch.autocast(start.device.type, torch.bfloat16, enabled=self._dtype is torch.bfloat16):
            logits = self._network(embedded, inputs.share, inputs.dense, start).to(torch.float32)
        return logits.detach(), torch.autograd.grad(objective_loss(self._objective, logits, targets), of)

    def finish(self) -> Tensors:
        """Return the tensors, on the CPU; the pass is over."""
        self._network.eval()
        moved = {**self._state, "adam.weights": self._weights.clone()}
        self._weights.copy_(self._average)
        moved |= {f"network.{name}": tensor.clone() for name, tensor in self._network.state_dict().items()}
        return {name: tensor.detach().to("cpu") for name, tensor in moved.items()}


class Touched:
    """The embedding rows that a batch touches: looked up and summed once each, though values come often.

    Attributes:
        rows: Ascending, (U,).
    """

    def __init__(self, rows: Tensor) -> None:
        """Find them among the rows of a batch's values, (B, S)."""
        ordered, self._source = torch.sort(rows.flatten(), stable=True)
        is_first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
        self._first = is_first.nonzero()[:, 0]
        self.rows = ordered[self._first]
        number = torch.empty_like(self._source)
        number[self._source] = is_first.cumsum(0) - 1
        self._number = number.view_as(rows)

    def look_up(self, table: Tensor) -> Tensor:
        """Return the rows of the batch's values, (B, S, D), of a table (R, D)."""
        return functional.embedding(self._number, functional.embedding(self.rows, table))

    def sums(self, gradient: Tensor) -> Tensor:
        """Return the sums of gradients (B, S, D) by row, (U, D).

        They run in the order of the batch, so their bits do not depend on how the work is spread.
        """
        return functional.embedding_bag(self._source, gradient.flatten(0, 1), self._first, mode="sum")


def flatten_weights(network: nn.Module) -> Tensor:
    """Return all weights of a network as one vector that they are from now on views of."""
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    parts = weights.split([parameter.numel() for parameter in network.parameters()])
    for parameter, part in zip(network.parameters(), parts, strict=True):
        parameter.data = part.view_as(parameter)
    return weights


def resume_adam(state: Tensors, weights: Tensor) -> None:
    """Put the weights back to where the last step left them, and begin what the first slide has not got yet."""
    state.setdefault("adam.mean", torch.zeros_like(weights))
    state.setdefault("adam.square", torch.zeros_like(weights))
    state.setdefault("adam.steps", torch.zeros(1, dtype=torch.float64, device=weights.device))
    weights.copy_(state.setdefault("adam.weights", weights.clone()))


def adam_step(state: Tensors, weights: Tensor, gradient: Tensor, learning_rate: float) -> None:
    """Move the network's weights in place.

    Source: Kingma and Ba, arXiv:1412.6980, Algorithm 1. Not torch.optim's: making one loads torch's compiler, seconds
    of start-up and hundreds of megabytes in every process that learns.
    """
    fast, slow = ADAM_BETAS
    mean, square, steps = state["adam.mean"], state["adam.square"], state["adam.steps"]
    steps += 1.0
    mean.lerp_(gradient, 1.0 - fast)
    square.mul_(slow).addcmul_(gradient, gradient, value=1.0 - slow)
    deviation = (square / (1.0 - slow ** float(steps))).sqrt_().add_(ADAM_EPSILON)
    weights.addcdiv_(mean, deviation, value=-learning_rate / (1.0 - fast ** float(steps)))


def adagrad_step(state: Tensors, touched: Tensor, gradient: Tensor, learning_rate: float) -> None:
    """Move the touched embedding rows.

    Source: Duchi, Hazan, Singer 2011, with one accumulator per row as is usual for embedding tables.
    """
    rows, squares = state["embedding.rows"], state["embedding.squares"]
    seen = squares[touched] + gradient.square().mean(dim=1, keepdim=True)  # (U, 1)
    squares.index_copy_(0, touched, seen)
    step = learning_rate / (seen.sqrt() + ADAGRAD_EPSILON)
    rows.index_copy_(0, touched, functional.embedding(touched, rows) - step * gradient)
