import sys

import numpy as np
import pytest

from features.priors import Floats
from models.click_task import ClickTask
from models.plan import Plan
from models.strategies.build import CONTROLS, build_strategy
from models.strategies.ours import ddp_fp_frozen, finetune
from models.strategies.strategy import Probabilities, Rows
from models.update import Learner
from tests.frames import plan
from tests.models.learnt import slide


class Rate:
    """A control of one's own: the click rate so far."""

    def __init__(self) -> None:
        self.clicks, self.rows = 1.0, 2.0
        self.was_warmup: list[bool] = []

    def predict(self, rows: Rows) -> Probabilities:
        return np.full(len(rows), self.clicks / self.rows)

    def learn(self, rows: Rows, clicks: Floats) -> None:
        self.clicks, self.rows = self.clicks + clicks.sum(), self.rows + len(rows)
        self.was_warmup.append(rows.is_warmup)


MADE: list[Rate] = []
NO_FUNCTION = 3


def rate(_: Plan) -> Rate:
    MADE.append(Rate())
    return MADE[-1]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "somewhere.own", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "somewhere", sys.modules[__name__])


@pytest.mark.usefixtures("importable")
def test_a_control_of_ones_own_predicts_then_learns() -> None:
    strategy = build_strategy("somewhere.own:rate", plan())
    for index in (1, 2):
        first, _ = strategy.predict(slide(index, 50))
        strategy.learn(slide(index, 50))
    clicks = slide(1, 50).frame["click"].to_numpy()
    assert first == pytest.approx((1.0 + clicks.sum()) / 52.0)


@pytest.mark.usefixtures("importable")
def test_controls_are_told_of_the_warm_up_as_the_gate_counts_it() -> None:
    """From the first settled row on, which lies a little after the first slide's start."""
    slides = [slide(index, 50) for index in (1, 2, 3, 4)]
    warmup_s = slides[1].end_s - float(slides[0].frame["settled_s"][0])
    strategy = build_strategy("somewhere.own:rate", plan(warmup_s=warmup_s))
    learner = Learner(ClickTask(plan(warmup_s=warmup_s)))
    decisions = []
    for one in slides:
        strategy.predict(one)
        strategy.learn(one)
        decisions.append(learner.learn(one).decision)
    assert MADE[-1].was_warmup == [True, True, False, False]
    assert [decision == "warmup" for decision in decisions] == MADE[-1].was_warmup


def test_controls_read_live_priors_whatever_the_deployment_learns_from() -> None:
    found = []
    for settings in (plan(), ddp_fp_frozen(plan()), finetune(plan())):
        strategy = build_strategy("prior-only", settings)
        for index in (1, 2):
            predicted, _ = strategy.predict(slide(index, 200))
            strategy.learn(slide(index, 200))
        found.append(predicted.tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("fintune", 'strategy must be one of default, static, .*vw, river, or package.module:function.*got "fintune"'),
        ("vw+gate", 'strategy must be a learner to have a gate, got "vw\\+gate"; leave \\+gate out'),
        ("retrain+gate", 'strategy must be a learner to have a gate, got "retrain\\+gate"'),
        ("nowhere.own:rate", "\"nowhere.own:rate\" must be importable, got: No module named 'nowhere'; put its dir"),
        ("somewhere.own:typo", 'strategy "somewhere.own:typo" must name a function from a plan to a control, got None'),
        ("somewhere.own:NO_FUNCTION", "must name a function from a plan to a control, got 3"),
        (":rate", 'strategy of your own must be package.module:function, got ":rate"'),
        ("somewhere.own:", 'strategy of your own must be package.module:function, got "somewhere.own:"'),
    ],
)
@pytest.mark.usefixtures("importable")
def test_a_bad_name_is_explained(name: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        build_strategy(name, plan())


@pytest.mark.parametrize(("name", "library"), [("vw", "vowpalwabbit"), ("lightgbm", "lightgbm"), ("river", "river")])
def test_a_missing_library_is_named_with_what_to_install(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, CONTROLS[name].partition(":")[0], raising=False)
    for module in [one for one in sys.modules if one.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"\"{name}\" must be importable, got: .*{library}.*'freshrank\\[controls\\]'"):
        build_strategy(name, plan())
