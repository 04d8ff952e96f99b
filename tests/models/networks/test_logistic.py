import numpy as np
import pytest
import torch

from models.networks.logistic import (
    CALIBRATION_RIDGE,
    CURVATURE_ROWS,
    KNOTS,
    RIDGE,
    STEP_MAX,
    base_inputs,
    base_logits,
    base_width,
    calibration_inputs,
    initial_base,
    initial_calibration,
    network_start,
    newton_step,
)


def learn(dense: torch.Tensor, clicks: torch.Tensor, batch_rows: int) -> torch.Tensor:
    state = initial_base(dense.shape[1])
    state["weight"].zero_()
    for first in range(0, len(dense), batch_rows):
        part = slice(first, first + batch_rows)
        newton_step(state["weight"], state["curvature"], dense[part], clicks[part])
    return state["weight"]


@pytest.mark.parametrize("batch_rows", [64, 500])
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_the_planted_weights_are_found_whatever_the_batch_and_the_scale(batch_rows: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40_000, 3))
    p = 1.0 / (1.0 + np.exp(-(x @ [1.0, -0.5, 0.0] - 1.0)))
    dense = torch.tensor(np.column_stack([np.ones(len(x)), x * scale]), dtype=torch.float32)
    weight = learn(dense, torch.tensor(rng.random(len(x)) < p, dtype=torch.float64), batch_rows)
    np.testing.assert_allclose(weight * torch.tensor([1.0, scale, scale, scale]), [-1.0, 1.0, -0.5, 0.0], atol=0.12)


def test_it_starts_as_the_overall_rate() -> None:
    weight = initial_base(3)["weight"]
    assert base_logits(weight, torch.tensor([[1.0, -2.5, 7.0]])).tolist() == [-2.5]


@pytest.mark.parametrize("click", [0.0, 1.0])
def test_one_class_alone_moves_it_a_bounded_way(click: float) -> None:
    dense = torch.tensor(np.column_stack([np.ones(50_000), np.random.default_rng(0).normal(size=50_000)]))
    weight = learn(dense.to(torch.float32), torch.full((50_000,), click, dtype=torch.float64), 512)
    assert torch.isfinite(weight).all()
    assert 2.0 < abs(weight[0]) < 20.0


def test_a_sudden_change_after_a_long_calm_moves_it_without_a_leap() -> None:
    rng = np.random.default_rng(0)
    clicks = torch.tensor(np.concatenate([np.zeros(50_000), rng.random(20_000) < 0.5]))
    rates = []
    state = initial_base(2)
    for first in range(0, len(clicks), 500):
        newton_step(
            state["weight"], state["curvature"], torch.tensor([[1.0, 0.0]]).repeat(500, 1), clicks[first : first + 500]
        )
        rates.append(torch.sigmoid(state["weight"][0]).item())
    assert rates[99] < 0.02
    assert max(rates) < 0.6
    assert rates[-1] > 0.25


def test_the_ridge_of_an_input_that_is_never_there_stays_whole() -> None:
    state = initial_base(2)
    for _ in range(200):
        newton_step(state["weight"], state["curvature"], torch.tensor([[1.0, 0.0]]).repeat(5000, 1), torch.ones(5000))
    assert state["curvature"][1, 1].item() == pytest.approx(RIDGE)


def test_inputs_that_are_constant_or_equal_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=5000)
    dense = torch.tensor(
        np.column_stack([np.ones(5000), x, x, np.zeros(5000), np.full(5000, 12.0)]), dtype=torch.float32
    )
    clicks = torch.tensor(rng.random(5000) < 0.2, dtype=torch.float64)
    weight = learn(dense, clicks, 100)
    rates = torch.sigmoid(base_logits(weight, dense))
    assert rates.mean().item() == pytest.approx(0.2, abs=0.02)


def test_it_never_stops_following_a_rate_that_moves() -> None:
    rng = np.random.default_rng(0)
    dense = torch.tensor([[1.0, 0.0]]).repeat(1_500_000, 1)
    rate = np.where(np.arange(1_500_000) < 750_000, 0.1, 0.4)
    weight = learn(dense, torch.tensor(rng.random(1_500_000) < rate, dtype=torch.float64), 8192)
    assert torch.sigmoid(weight[0]).item() == pytest.approx(0.4, abs=0.05)


def test_a_non_click_and_its_correction_move_it_as_a_click_does() -> None:
    x = torch.tensor([[1.0, 0.3], [1.0, -2.0]])
    clicked, corrected = initial_base(2), initial_base(2)
    newton_step(clicked["weight"], clicked["curvature"], x, torch.ones(2))
    twice, corrects = torch.cat([x, x]), torch.tensor([False, False, True, True])
    newton_step(corrected["weight"], corrected["curvature"], twice, corrects.to(torch.float64), corrects)
    torch.testing.assert_close(corrected["weight"], clicked["weight"], rtol=1e-4, atol=1e-5)


def test_a_part_of_a_large_batch_says_how_curved_the_loss_is_for_all_of_it() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4 * CURVATURE_ROWS, 3, generator=generator)
    truth = torch.sigmoid(inputs @ torch.tensor([0.3, -0.2, 0.1]))
    clicks = (torch.rand(len(inputs), generator=generator) < truth).to(torch.float32)
    large, whole = initial_base(3), initial_base(3)
    for state in (large, whole):
        state["weight"].zero_()
    newton_step(large["weight"], large["curvature"], inputs, clicks)
    p = torch.sigmoid(base_logits(whole["weight"], inputs))
    wanted = whole["curvature"] + ((inputs * (p * (1.0 - p))[:, None]).T @ inputs)
    torch.testing.assert_close(large["curvature"].diagonal(), wanted.diagonal(), rtol=0.1, atol=0.0)
    step = torch.linalg.solve(wanted, (inputs.T @ (clicks - p)).to(torch.float64))
    torch.testing.assert_close(large["weight"], step, rtol=0.1, atol=0.02)


def test_one_batch_moves_no_row_of_its_own_further_than_the_quadratic_model_holds() -> None:
    state = initial_base(2)
    dense = torch.tensor([[1.0, -12.0], [1.0, -9.0]]).repeat(5, 1)  # sure that nobody clicks
    before = base_logits(state["weight"], dense)
    newton_step(state["weight"], state["curvature"], dense, torch.ones(10))
    moved = base_logits(state["weight"], dense) - before
    assert moved.abs().max().item() == pytest.approx(STEP_MAX, rel=1e-5)


def test_the_base_reads_rates_by_their_evidence() -> None:
    # Two half-lives, two fields.
    level, rates, evidence = [1.0, -2.0, 0.1], [0.5, -0.25, 0.0, 1.0], [0.2, 0.6, 1.5, 0.0]
    [read] = base_inputs(torch.tensor([level + rates + evidence]), 2).tolist()
    beyond = [max(e - knot, 0.0) for knot in KNOTS for e in evidence]
    products = [r * e for r, e in zip(rates, evidence, strict=True)]
    assert read == pytest.approx(level + rates + evidence + products + beyond)
    assert len(read) == base_width(11, 2)


def test_a_network_starts_from_the_whole_level_of_the_base_and_half_of_what_it_says_of_values() -> None:
    # Two half-lives, one field: 1, the overall rate, how far it moves, two rates, two evidences.
    weight = torch.zeros(base_width(7, 2), dtype=torch.float64)
    weight[:5] = torch.tensor([0.3, 0.9, 0.8, 0.5, 0.7])

    def start(*dense: float) -> float:
        inputs = base_inputs(torch.tensor([dense]), 2)
        return network_start(weight, inputs, base_logits(weight, inputs), 2).item()

    calm = start(1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert calm == pytest.approx(0.9 * -2.0 + 0.3 / 2)
    assert start(1.0, -2.0, 1.5, 0.0, 0.0, 0.0, 0.0) - calm == pytest.approx(0.8 * 1.5, abs=1e-6)  # not half of it
    assert start(1.0, -2.0, 0.0, 0.4, 0.6, 0.0, 0.0) - calm == pytest.approx((0.5 * 0.4 + 0.7 * 0.6) / 2, abs=1e-6)


def test_the_base_believes_a_rate_the_more_the_more_was_counted() -> None:
    torch.manual_seed(0)
    rates, evidence = torch.randn(20_000, 1), torch.rand(20_000, 1) * 1.5
    inputs = base_inputs(torch.cat([torch.ones(20_000, 1), torch.zeros(20_000, 1), rates, evidence], dim=1), 1)
    clicks = torch.bernoulli(torch.sigmoid(rates * evidence)[:, 0])
    state = initial_base(base_width(4, 1))
    for part in range(0, 20_000, 1000):
        rows = slice(part, part + 1000)
        newton_step(state["weight"], state["curvature"], inputs[rows], clicks[rows])
    weight = state["weight"]
    assert abs(float(weight[2])) < 0.2  # of the rate itself
    assert float(weight[4]) == pytest.approx(1.0, abs=0.2)  # of its product with the evidence


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        ("noise", [1.0, 0.0, 0.0]),  # what says nothing beyond the base is left out
        ("all", [1.0, 1.0, 0.0]),
        ("loud", [1.0, 0.4, 0.0]),  # beyond the base it says 2.5 times what is true
        ("high", [1.0, 1.0, -1.0]),  # the same too much of every row
    ],
)
def test_the_calibration_believes_the_network_as_far_as_clicks_do(network: str, wanted: list[float]) -> None:
    rng = np.random.default_rng(0)
    base, beyond = rng.normal(size=(2, 60_000)) - np.array([[1.0], [0.0]])
    true = base + (0.0 if network == "noise" else 1.0) * beyond
    said = base + {"loud": 2.5 * beyond, "high": 1.0 + beyond}.get(network, beyond)
    clicks = torch.from_numpy((rng.random(len(base)) < 1.0 / (1.0 + np.exp(-true))).astype(np.float64))
    read = calibration_inputs(torch.from_numpy(np.stack([base, said], axis=1)))
    state = initial_calibration()
    for first in range(0, len(clicks), 500):
        part = slice(first, first + 500)
        newton_step(state["weight"], state["curvature"], read[part], clicks[part], ridge=CALIBRATION_RIDGE)
    np.testing.assert_allclose(state["weight"], wanted, atol=0.12)
