"""Every pre-ranker: halves that meet in one place, the same bits for the same seed, gates that gate."""

from __future__ import annotations

import pytest
import torch

from features.fields import Field
from models.prerank.build import PRERANKERS, new_trunk
from models.prerank.cold import Cold
from models.prerank.ecmm import Ecmm, HardConcrete
from models.prerank.heads import HEADS, head_loss, head_losses, head_probability, head_scores
from models.prerank.inputs import DENSE, prerank_fields
from models.prerank.trunk import Trunk

FIELDS = (
    Field("user", "user"),
    Field("hour", "context"),
    Field("ad", "item"),
    Field("tags", "item", "categories"),
    Field("image", "creative"),
    Field("user_ad", "cross", of=("user", "ad")),
)
READ = prerank_fields(FIELDS)
DIM = 4


def a_trunk(name: str, seed: int = 0) -> Trunk:
    return new_trunk(name, READ, dim=DIM, hidden=(16, 8), seed=seed)


def inputs(n: int, n_fields: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, n_fields, DIM + DENSE, generator=torch.Generator().manual_seed(seed))


def test_a_pre_ranker_reads_request_and_ad_and_no_cross_or_creative() -> None:
    assert [field.name for field in READ] == ["user", "hour", "ad", "tags"]


@pytest.mark.parametrize("name", PRERANKERS)
def test_one_request_half_serves_all_candidates_and_the_seed_decides(name: str) -> None:
    trunk, requests, ads = a_trunk(name), inputs(1, 2), inputs(7, 2, seed=2)
    together = trunk.join(trunk.request_half(requests), trunk.ad_half(ads))
    assert together.shape == (7, HEADS[PRERANKERS[name].head])
    alone = torch.cat([trunk(requests, ads[one : one + 1]) for one in range(7)])
    torch.testing.assert_close(together, alone)
    again = a_trunk(name)(requests.expand(7, -1, -1), ads)
    torch.testing.assert_close(again, together)
    assert not torch.allclose(a_trunk(name, seed=1)(requests.expand(7, -1, -1), ads), together)
    assert trunk.join_products() > 0


def test_an_unknown_pre_ranker_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r'\[prerank\] network must be one of ecm, ecmm, .*, got "best"'):
        a_trunk("best")


def test_a_gate_is_zero_or_one_most_of_the_time_and_is_open_as_often_as_it_says() -> None:
    gate = HardConcrete((20_000,))
    with torch.no_grad():
        gate.train()._slow.fill_(0.05)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = gate()
    assert 0.0 <= drawn.min() <= drawn.max() <= 1.0
    assert ((drawn == 0.0) | (drawn == 1.0)).float().mean() > 0.3
    assert (drawn > 0.0).float().mean() == pytest.approx(gate.open_probability().mean().item(), abs=0.02)
    with torch.no_grad():
        gate._slow.fill_(-1.0)
    assert gate.eval()().eq(0.0).all(), "what is surely closed is exactly 0"
    with torch.no_grad():
        gate._slow.fill_(1.0)
    assert gate()[0] == 1.0


def test_a_closed_gate_takes_its_block_out_and_costs_nothing() -> None:
    trunk = a_trunk("ecmm")
    assert isinstance(trunk, Ecmm)
    n_open, n_gates = trunk.open_gates()
    assert n_open == n_gates == 2 * 8 * 8
    whole = trunk.join_products()
    before = trunk(inputs(3, 2), inputs(3, 2, seed=2))
    with torch.no_grad():
        trunk.routings[1].gate._slow[:, 0] = -1.0  # nothing reaches the first block
    assert trunk.open_gates() == (n_gates - 8, n_gates)
    assert whole - trunk.join_products() == 8 * 2 * 2
    closed = trunk(inputs(3, 2), inputs(3, 2, seed=2))
    assert not torch.allclose(closed, before)
    with torch.no_grad():
        trunk.routings[1].transform[:, 0] += 100.0
    torch.testing.assert_close(trunk(inputs(3, 2), inputs(3, 2, seed=2)), closed)


def test_a_dropped_field_of_cold_says_nothing() -> None:
    trunk = a_trunk("cold")
    assert isinstance(trunk, Cold)
    trunk.gates.copy_(torch.tensor([0.9, 0.1, 0.8, 0.2]))  # of user, hour, ad, tags
    with torch.no_grad():
        trunk._gate.weight.zero_()
    requests, ads = inputs(3, 2), inputs(3, 2, seed=2)
    before = trunk(requests, ads)
    requests[:, 1] += 5.0
    torch.testing.assert_close(trunk(requests, ads), before)
    requests[:, 0] += 5.0
    assert not torch.allclose(trunk(requests, ads), before)


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("head", HEADS)
def test_a_head_rewards_the_truth_and_ranks_what_it_believes_in(head: str) -> None:
    kind = next(one.head for one in PRERANKERS.values() if one.head == head)
    outputs = torch.zeros(3, HEADS[kind], requires_grad=True)
    for _ in range(300):
        loss = head_loss(kind, outputs, LABELS, torch.ones(3))
        (gradient,) = torch.autograd.grad(loss, outputs)
        outputs = (outputs - 1.0 * gradient).detach().requires_grad_()
    scores = head_scores(kind, outputs.detach())
    assert scores[0] > scores[1]
    if kind != "exposed":
        assert scores[0] > scores[2]
        exposed = head_probability(kind, outputs.detach())
        assert exposed[0] > 0.9
        assert exposed[1] > 0.9
        assert exposed[2] < 0.1


def test_probabilities_of_the_nested_labels_agree_between_heads() -> None:
    etr, ctr = 0.3, 0.2
    logit = lambda p: torch.tensor(p).logit()  # noqa: E731
    chain = torch.tensor([[etr * ctr, etr * (1 - ctr), 1 - etr]]).log()
    nested = torch.stack([logit(etr), logit(ctr)])[None]
    for label in range(3):
        wanted = -chain[0, label].item()
        assert head_losses("chain", chain, torch.tensor([label])).item() == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(head_scores("chain", chain), head_scores("nested", nested))
    torch.testing.assert_close(head_probability("chain", chain), head_probability("nested", nested))
    clicked = head_losses("nested", nested, torch.tensor([0])).item()
    assert clicked == pytest.approx(-torch.tensor(etr).log().item() - torch.tensor(etr * ctr).log().item(), rel=1e-5)


def test_a_candidate_weighs_as_many_as_it_stands_for_and_exposed_only_sees_no_other() -> None:
    outputs = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    repeated = head_loss("chain", outputs[[0, 1, 2, 2, 2]], LABELS[[0, 1, 2, 2, 2]], torch.ones(5))
    assert head_loss("chain", outputs, LABELS, torch.tensor([1.0, 1.0, 3.0])).item() == pytest.approx(repeated.item())
    few = head_loss("exposed", outputs[:2, :1], LABELS[:2], torch.ones(2))
    assert head_loss("exposed", outputs[:, :1], LABELS, torch.ones(3)).item() == pytest.approx(few.item())
    assert head_loss("exposed", outputs[2:, :1], LABELS[2:], torch.ones(1)).item() == 0.0
