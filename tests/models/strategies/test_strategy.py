import pytest

from models.strategies.build import CONTROLS
from models.strategies.ours import LEARNERS
from models.strategies.restart import RESTARTS
from tests.models.strategies import checks

QUICK = ("default", "last-window", "prior-only")  # one of each kind; the others share their code, or are slow to load
every_strategy = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*LEARNERS, *RESTARTS, *CONTROLS)],
)


@every_strategy
def test_it_learns_what_users_like_and_does_so_again(name: str) -> None:
    checks.check_it_learns(name)


@every_strategy
def test_it_predicts_before_it_sees_labels(name: str) -> None:
    checks.check_it_predicts_before_it_sees_labels(name)


@every_strategy
def test_it_bears_odd_slides(name: str) -> None:
    checks.check_it_bears_odd_slides(name)


@pytest.mark.parametrize("name", ["default+gate", pytest.param("ddp+cr+gate", marks=pytest.mark.slow)])
def test_a_gate_bears_odd_slides(name: str) -> None:
    checks.check_it_bears_odd_slides(name)


@every_strategy
def test_it_learns_late_clicks(name: str) -> None:
    checks.check_it_learns_late_clicks(name)
