from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.encode import encode
from features.priors import lookup
from models.batch import Inputs, make_inputs
from models.click_task import STRENGTH_LOSSES
from models.losses import Objective, Targets
from models.snapshot import Snapshot
from models.train import Tensors, Touched, fresh_rows, move_rows, resolve_device, resolve_precision, train, use_threads
from tests.frames import FIELDS, world
from tests.models.learnt import learnt

SNAPSHOT = learnt()[0].latest
ROWS = world(600, seed=5)


def inputs_of(snapshot: Snapshot, rows: slice = slice(None)) -> Inputs:
    keys = encode(ROWS[rows], FIELDS)
    return make_inputs(keys, lookup(snapshot.priors, keys, snapshot.end_s), snapshot, "cpu")


def trained(
    inputs: Inputs,
    tensors: Mapping[str, torch.Tensor] = SNAPSHOT.tensors,
    learning_rate: float = 0.003,
    precision: str = "auto",
    embedding_learning_rate: float = 0.05,
) -> Tensors:
    network = replace(SNAPSHOT, tensors=tensors).build()
    clicks = torch.from_numpy(ROWS["click"].to_numpy()[: len(inputs)].astype(np.float64))
    return train(
        tensors,
        network,
        inputs,
        Targets(clicks),
        objective=Objective(),
        learning_rate=learning_rate,
        embedding_learning_rate=embedding_learning_rate,
        batch_rows=100,
        precision=precision,
        seed=0,
        slide=9,
    )


def test_training_changes_new_tensors_and_none_that_came_in() -> None:
    digest = {name: tensor.clone() for name, tensor in SNAPSHOT.tensors.items()}
    after = trained(inputs_of(SNAPSHOT))
    assert after.keys() == digest.keys()
    for name, tensor in digest.items():
        assert torch.equal(SNAPSHOT.tensors[name], tensor), name
    unchanged = [name for name in after if torch.equal(after[name], digest[name])]
    assert unchanged == [STRENGTH_LOSSES]  # they are learnt beside


def test_training_twice_gives_the_same_bits() -> None:
    one, other = trained(inputs_of(SNAPSHOT)), trained(inputs_of(SNAPSHOT))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_of_values_that_did_not_occur_stay_as_they_are() -> None:
    inputs = inputs_of(SNAPSHOT, slice(0, 20))
    after = trained(inputs)
    absent = torch.ones(len(after["embedding.rows"]), dtype=torch.bool)
    absent[inputs.rows.flatten()] = False
    assert 0 < absent.sum() < len(absent)
    for name in ("embedding.rows", "embedding.squares"):
        assert torch.equal(after[name][absent], SNAPSHOT.tensors[name][absent])


def test_the_network_and_the_embedding_obey_their_own_learning_rate() -> None:
    still = trained(inputs_of(SNAPSHOT), learning_rate=0.0)
    assert torch.equal(still["adam.weights"], SNAPSHOT.tensors["adam.weights"])
    assert not torch.equal(still["embedding.rows"], SNAPSHOT.tensors["embedding.rows"])


def test_the_network_learns_on_embeddings_from_before_the_pass() -> None:
    still, moved = (trained(inputs_of(SNAPSHOT), embedding_learning_rate=rate) for rate in (0.0, 0.5))
    assert not torch.equal(still["embedding.rows"], moved["embedding.rows"])
    for name in ("adam.weights", "calibration.weight"):
        assert torch.equal(still[name], moved[name]), name


def test_in_its_first_pass_it_learns_on_embeddings_as_they_move() -> None:
    first = {name: tensor for name, tensor in SNAPSHOT.tensors.items() if not name.startswith("adam.")}
    still, moved = (trained(inputs_of(SNAPSHOT), first, embedding_learning_rate=rate) for rate in (0.0, 0.5))
    assert not torch.equal(still["adam.weights"], moved["adam.weights"])


def test_what_is_unknown_is_never_learnt() -> None:
    inputs = inputs_of(SNAPSHOT)
    after = trained(replace(inputs, rows=torch.where(inputs.rows % 2 == 0, 0, inputs.rows)))
    assert (after["embedding.rows"][0] == 0.0).all()
    assert (after["embedding.squares"][0] == 0.0).all()


def test_a_batchs_rows_are_looked_up_and_summed_as_if_one_by_one() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(9, (40, 3), generator=generator)
    table, gradient = torch.randn(12, 2, generator=generator), torch.randn(40, 3, 2, generator=generator)
    touched = Touched(rows)
    assert touched.rows.tolist() == sorted(set(rows.flatten().tolist()))
    assert torch.equal(touched.look_up(table), table[rows])
    sums = torch.zeros_like(table).index_add(0, rows.flatten(), gradient.flatten(0, 1))
    torch.testing.assert_close(touched.sums(gradient), sums[touched.rows])


def test_what_predicts_is_an_average_of_the_weights_along_the_way() -> None:
    def gap(tensors: Tensors) -> float:
        network = SNAPSHOT.build()
        network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
        served = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        return float((served - tensors["adam.weights"]).norm())

    after = trained(inputs_of(SNAPSHOT), learning_rate=0.01)
    assert gap(after) > 0.0
    calm = after
    for _ in range(40):  # the average catches up with weights that stand still
        calm = trained(inputs_of(SNAPSHOT), tensors=calm, learning_rate=0.0)
    assert gap(calm) < 0.25 * gap(after)


def test_the_first_step_of_a_weight_has_the_size_of_the_learning_rate_whatever_its_gradient() -> None:
    inputs = inputs_of(SNAPSHOT, slice(0, 50))
    clicks = torch.from_numpy(ROWS["click"].to_numpy()[:50].astype(np.float64))
    tensors = {name: tensor for name, tensor in SNAPSHOT.tensors.items() if not name.startswith("adam.")}
    network = SNAPSHOT.build()
    after = train(
        tensors,
        network,
        inputs,
        Targets(clicks),
        objective=Objective(),
        learning_rate=0.01,
        embedding_learning_rate=0.0,
        batch_rows=50,
        precision="auto",
        seed=0,
        slide=0,
    )
    moved = torch.cat([p.detach().flatten() for p in network.parameters()])
    before = torch.cat([p.detach().flatten() for p in SNAPSHOT.build().parameters()])
    gradient = after["adam.mean"] / 0.1
    np.testing.assert_allclose(moved - before, -0.01 * gradient / (gradient.abs() + 1e-8), atol=1e-5)


@given(st.lists(st.integers(1, 2**64 - 1), min_size=1, max_size=20, unique=True), st.integers(0, 100))
def test_a_fresh_row_depends_on_its_key_and_the_seed_alone(keys: list[int], seed: int) -> None:
    together = fresh_rows(np.array(keys, np.uint64), 4, seed)
    alone = torch.cat([fresh_rows(np.array([key], np.uint64), 4, seed) for key in keys])
    assert torch.equal(together, alone)
    assert len({tuple(row) for row in together.tolist()}) == len(keys)
    assert not torch.equal(together, fresh_rows(np.array(keys, np.uint64), 4, seed + 1))


def test_fresh_rows_are_small_and_centred() -> None:
    rows = fresh_rows(np.arange(1, 20_001, dtype=np.uint64), 8, 0)
    np.testing.assert_allclose(rows.mean(0), 0.0, atol=5e-4)
    np.testing.assert_allclose(rows.std(0), 0.01, rtol=0.05)


def test_rows_move_to_their_new_place_and_new_ones_are_fresh() -> None:
    tensors = {
        "embedding.rows": torch.arange(6.0).reshape(3, 2),
        "embedding.squares": torch.tensor([[1.0], [2.0], [3.0]]),
    }
    moved = move_rows(tensors, np.array([0, 2, -1]), np.array([20, 30], np.uint64), seed=0)
    assert moved["embedding.rows"][:2].tolist() == [[0.0, 1.0], [4.0, 5.0]]
    assert torch.equal(moved["embedding.rows"][2:], fresh_rows(np.array([30], np.uint64), 2, 0))
    assert moved["embedding.squares"].tolist() == [[1.0], [3.0], [0.0]]
    assert tensors["embedding.rows"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_a_device_that_is_named_stays_and_auto_takes_what_there_is() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be had")
def test_a_gpu_that_is_asked_for_and_missing_is_an_error_that_says_so() -> None:
    message = r'\[update\] device must be "auto" or "cpu" where torch finds no GPU, got "cuda"; install a driver'
    with pytest.raises(ValueError, match=message):
        resolve_device("cuda")


def test_a_gpu_learns_in_bfloat16_and_a_cpu_in_float32_unless_told_otherwise() -> None:
    assert resolve_precision("auto", "cuda") == resolve_precision("auto", "cuda:1") == torch.bfloat16
    assert resolve_precision("auto", "cpu") == resolve_precision("float32", "cuda") == torch.float32
    assert resolve_precision("bfloat16", "cpu") == torch.bfloat16


def test_in_bfloat16_products_are_coarser_and_what_is_kept_is_not() -> None:
    inputs = inputs_of(SNAPSHOT)
    fine, coarse = trained(inputs), trained(inputs, precision="bfloat16")
    assert [tensor.dtype for tensor in coarse.values()] == [tensor.dtype for tensor in fine.values()]
    moved = fine["adam.weights"] - SNAPSHOT.tensors["adam.weights"]
    apart = (coarse["adam.weights"] - fine["adam.weights"]).norm() / moved.norm()
    assert 0.0 < float(apart) < 0.1
    assert trained(inputs, precision="float32")["adam.weights"].equal(fine["adam.weights"])


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(before)
