"""The comparison of strategies, through the command line: what it reports, keeps and refuses."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner, Result

import features
from infra.settings import SEED_MAX, PriorSettings, read_settings
from models.strategies.tuning import with_choices
from stream import cli
from stream.backtest import Backtest
from stream.cli import app
from stream.compare.choose import choose, to_toml
from stream.compare.report import to_markdown
from stream.compare.store import SlideStore, fingerprint
from stream.logs.reader import RowCounts
from stream.logs.source import offered_histories, read_arrivals, with_histories
from stream.plan import new_plan

CONFIG = """
name = "tiny"
[log]
files = ["log.csv"]
time = "time"
label = "click"
[[fields]]
name = "user"
side = "user"
[[fields]]
name = "ad"
side = "item"
[window]
slide_s = 1000.0
warmup_s = 4000.0
[ledger]
wait_s = 10.0
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    ad = rng.integers(0, 8, 2000)
    click = rng.random(2000) < 0.1 + 0.1 * ad
    rows = zip(range(0, 10_000, 5), click, rng.integers(0, 20, 2000), ad, strict=True)
    lines = [f"{time},{int(one)},u{user},a{which}" for time, one, user, which in rows]
    (tmp_path / "log.csv").write_text("\n".join(["time,click,user,ad", *lines, ""]))
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG)
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def compare(config: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    out = config.parent / "out"
    result = call("backtest", config, "--json", config.parent / "report.json", "--out", out, *arguments)
    assert result.exit_code == 0, result.stderr
    return json.loads((config.parent / "report.json").read_text()), result.stderr


def test_one_strategy_is_measured_on_the_rows_after_the_warm_up(config: Path) -> None:
    report, _ = compare(config, "--strategies", "prior-only")
    found = report["strategies"]["prior-only"]
    assert report["windows"] == len(found["per_window"]) == 7
    assert sum(window["rows"] for window in found["per_window"]) == report["rows"]
    assert found["auc"] > 0.6  # ads differ
    assert 0.8 < found["calibration"] < 1.2
    assert sum(one["rows"] for one in found["slices"].values()) == report["rows"]
    assert {"auc", "gauc", "logloss", "ne", "train_s", "predict_s", "peak_mb"} <= set(found)
    assert (config.parent / "out" / "report.md").read_text().count("| prior-only |") == 1
    assert (config.parent / "out" / "auc.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_second_call_goes_on_from_what_is_there(config: Path) -> None:
    first, _ = compare(config, "--strategies", "default,finetune", "--seeds", "0,1", "--jobs", "2")
    assert set(first["paired"]) == {"default vs finetune", "finetune vs default"}
    again, said = compare(config, "--strategies", "default,finetune,default+gate", "--seeds", "0,1")
    assert "4 of 6 runs were done before" in said
    for name, found in first["strategies"].items():
        assert again["strategies"][name] == found
    config.write_text(CONFIG + "[update]\nlearning_rate = 0.01\n")
    other, said = compare(config, "--strategies", "finetune")
    assert "done before" not in said
    assert other["strategies"]["finetune"]["logloss"] != first["strategies"]["finetune"]["logloss"]


def test_slides_are_cut_anew_by_another_release(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(config)
    before = fingerprint(settings, [], None)
    assert fingerprint(settings, [], None) == before
    monkeypatch.setattr(features, "__path__", [str(config.parent)])
    (config.parent / "own.py").write_text("x = 1\n")
    changed = fingerprint(settings, [], None)
    (config.parent / "own.py").write_text("x = 2\n")
    assert len({before, changed, fingerprint(settings, [], None)}) == 3


@pytest.mark.slow
def test_the_memory_of_a_run_is_its_own_and_not_that_of_the_process_that_began_it(config: Path) -> None:
    here = np.ones(250_000_000)  # 2 GB
    report, _ = compare(config, "--strategies", "prior-only")
    assert 100.0 < report["strategies"]["prior-only"]["peak_mb"] < here.nbytes / 1e6


@pytest.mark.slow
def test_a_strategy_of_ones_own_is_run_by_its_path_and_its_failure_is_said(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "class Half:\n"
        "    def __init__(self, plan): self.value = 0.5\n"
        "    def predict(self, rows): return np.full(len(rows), self.value)\n"
        "    def learn(self, rows, clicks): pass\n"
        "class Broken(Half):\n"
        "    def __init__(self, plan): self.value = np.nan\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    report, _ = compare(config, "--strategies", "own:Half")
    assert report["strategies"]["own:Half"]["logloss"] == pytest.approx(np.log(2.0))
    own = tmp_path / "own.py"
    own.write_text(own.read_text().replace("0.5", "0.25"))
    report, said = compare(config, "--strategies", "own:Half")
    assert "done before" not in said  # by other code
    assert report["strategies"]["own:Half"]["per_window"][0]["logloss"] != pytest.approx(np.log(2.0))
    result = call("backtest", config, "--strategies", "own:Broken")
    assert result.exit_code == 2
    assert "strategy own:Broken failed" in result.stderr
    assert "must predict a finite probability" in result.stderr


def test_one_comparison_at_a_time_works_in_a_directory(config: Path) -> None:
    out = config.parent / "out"
    out.mkdir()
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = call("backtest", config, "--strategies", "prior-only", "--out", out)
    assert result.exit_code == 1
    assert f"one comparison at a time in a directory, another one runs in {out}" in result.stderr
    assert [path.name for path in out.iterdir()] == ["lock"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_runs_end_with_the_comparison_and_say_nothing_of_it(config: Path, tmp_path: Path, kill: signal.Signals) -> None:
    (tmp_path / "own.py").write_text(
        "import os, pathlib, time\n"
        "class Slow:\n"
        "    def __init__(self, plan): pathlib.Path('run.pid').write_text(f'{os.getpid()} ')\n"
        "    def predict(self, rows): time.sleep(100.0)\n"
    )
    command = [sys.executable, "-m", "stream.cli", "backtest", config, "--strategies", "own:Slow", "--out", "out"]
    paths = os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parents[1])])
    env = os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        pid_path = tmp_path / "run.pid"
        deadline_s = time.monotonic() + 60.0
        while not (pid_path.exists() and pid_path.read_text().endswith(" ")):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        run = psutil.Process(int(pid_path.read_text()))
        if kill == signal.SIGINT:
            os.killpg(parent.pid, kill)  # Ctrl-C reaches both
        else:
            parent.send_signal(kill)
        _, alive = psutil.wait_procs([run], 10.0)
        assert not alive
        assert parent.stderr is not None
        assert "Traceback" not in parent.stderr.read()


def test_tuning_chooses_by_the_warm_up_without_opening_a_later_slide(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG.replace("warmup_s = 4000.0", "warmup_s = 7000.0"))
    settings, store = read_settings(config), SlideStore(tmp_path / "out")
    arrivals = read_arrivals(settings, [tmp_path], RowCounts())
    store.write(Backtest(settings, arrivals).slides(), settings, "", lambda _: None)
    for cut in store.log.slides:
        if not cut.is_warmup:
            (tmp_path / "out" / "slides" / f"{cut.index:06d}.arrow").unlink()
    short = with_choices(new_plan(settings), {"half_lives_s": (5.0, 10.0, 20.0)})  # a row comes every five seconds
    choices = choose("default", short, store, tunes=True, budget=settings.priors, offered=(), say=lambda _: None)
    assert choices["half_lives_s"] == (20.0, 40.0, 80.0)  # four times as long for certain; more, not on each slide


def test_tuning_leaves_all_as_it_is_where_the_warm_up_is_short(config: Path, tmp_path: Path) -> None:
    settings, store = read_settings(config), SlideStore(tmp_path / "out")
    arrivals = read_arrivals(settings, [tmp_path], RowCounts())
    store.write(Backtest(settings, arrivals).slides(), settings, "", lambda _: None)
    said: list[str] = []
    assert (
        choose("default", new_plan(settings), store, tunes=True, budget=settings.priors, offered=(), say=said.append)
        == {}
    )
    assert "tuning needs 6 slides in the warm-up, got fewer: nothing is tuned" in said


def test_default_chooses_its_crosses_where_none_is_named(config: Path, tmp_path: Path) -> None:
    """Clicks depend on whether user and ad are of a kind: neither says anything alone."""
    rng = np.random.default_rng(1)
    user, ad = rng.integers(0, 6, 8000), rng.integers(0, 6, 8000)
    click = rng.random(8000) < np.where(user % 2 == ad % 2, 0.7, 0.3)
    rows = zip(range(0, 16_000, 2), click, user, ad, strict=True)
    lines = [f"{time},{int(one)},u{who},a{which}" for time, one, who, which in rows]
    (tmp_path / "log.csv").write_text("\n".join(["time,click,user,ad", *lines, ""]))
    config.write_text(CONFIG.replace("warmup_s = 4000.0", "warmup_s = 12000.0"))
    settings, store = read_settings(config), SlideStore(tmp_path / "out")
    store.write(
        Backtest(settings, read_arrivals(settings, [tmp_path], RowCounts())).slides(), settings, "", lambda _: None
    )
    plan = new_plan(settings)
    chosen = choose("default+gate", plan, store, tunes=False, budget=settings.priors, offered=(), say=lambda _: None)
    assert chosen == {"crosses": [{"name": "user_x_ad", "of": ["user", "ad"]}]}
    crossed = with_choices(plan, chosen)
    assert [field.name for field in crossed.fields] == ["user", "ad", "user_x_ad"]
    for name, there in (("default", crossed), ("finetune", plan), ("prior-only", plan)):
        assert choose(name, there, store, tunes=False, budget=settings.priors, offered=(), say=lambda _: None) == {}


@pytest.mark.parametrize("forget", [False, True])
def test_default_chooses_the_histories_that_a_log_offers_unless_they_mislead(
    config: Path, tmp_path: Path, *, forget: bool
) -> None:
    """A user clicks one of two ads; what each did before tells which, unless tastes are forgotten in the end."""
    rng = np.random.default_rng(2)
    user, ad = np.repeat(np.arange(1000), 12), rng.integers(0, 2, 12_000)
    taste = rng.integers(0, 2, 1000)[user]
    if forget:
        taste[8000:] = rng.integers(0, 2, 4000)
    click = rng.random(12_000) < np.where(taste == ad, 0.95, 0.05)
    rows = zip(range(0, 240_000, 20), click, user, ad, strict=True)
    lines = [f"{time},{int(one)},u{who},a{which}" for time, one, who, which in rows]
    (tmp_path / "log.csv").write_text("\n".join(["time,click,user,ad", *lines, ""]))
    window = CONFIG.replace("warmup_s = 4000.0", "warmup_s = 200000.0").replace("slide_s = 1000.0", "slide_s = 40000.0")
    config.write_text(window)
    settings, store = read_settings(config), SlideStore(tmp_path / "out")
    offering = with_histories(settings)
    arrivals = read_arrivals(offering, [tmp_path], RowCounts())
    store.write(Backtest(offering, arrivals).slides(), settings, "", lambda _: None)
    plan, offered = new_plan(settings), offered_histories(settings)
    chosen = choose(
        "default", plan, store, tunes=False, budget=PriorSettings(crosses_max=0), offered=offered, say=lambda _: None
    )
    names = [] if forget else ["clicked_ad", "skipped_ad"]
    assert [one["name"] for one in chosen.get("histories", [])] == names
    assert [field.name for field in with_choices(plan, chosen).fields] == ["user", "ad", *names]


def test_tune_prints_lines_that_the_configuration_takes(config: Path) -> None:
    result = call("tune", config, "--rates")
    assert result.exit_code == 0, result.stderr
    config.write_text(CONFIG + result.stdout)
    assert call("check", config).exit_code == 0, result.stdout
    result = call("tune", config.parent / "none.toml")
    assert result.exit_code == 2


def test_choices_become_the_lines_of_their_sections() -> None:
    crosses = [{"name": "user_x_ad", "of": ["user", "ad"]}]
    histories = [{"name": "skipped_ad", "of": "ad", "clicked": False, "values_max": 20}]
    text = to_toml({"histories": histories})
    assert tomllib.loads(text) == {
        "log": {"histories": [{"name": "skipped_ad", "of": "ad", "clicked": False}]},
        "fields": [{"name": "skipped_ad", "side": "user", "kind": "categories", "values_max": 20}],
    }
    text = to_toml({"crosses": crosses, "half_lives_s": (60.0, 3600.0), "learning_rate": 0.003, "objective.n0": 300.0})
    assert tomllib.loads(text) == {
        "fields": [{"name": "user_x_ad", "side": "cross", "of": ["user", "ad"]}],
        "priors": {"half_lives_s": [60.0, 3600.0]},
        "update": {"learning_rate": 0.003, "n0": 300.0},
    }
    assert to_toml({}) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "dpp"], "strategy must be one of default, static"),
        (["--strategies", "prior-only+gate"], "must be a learner to have a gate"),
        (["--strategies", "none.such:Model"], 'strategy "none.such:Model" must be importable'),
        (["--strategies", " , "], '--strategies must name at least one, got " , "'),
        (["--strategies", "a:b:c"], 'must be package.module:function, got "a:b:c"'),
        (["--strategies", "default", "--seeds", "a"], f"--seeds must be whole numbers from 0 to {SEED_MAX}, with"),
        (["--strategies", "default", "--seeds", "0,-1"], 'with commas between, got "0,-1"'),
        (["--strategies", "default", "--seeds", str(SEED_MAX + 1)], f'with commas between, got "{SEED_MAX + 1}"'),
        (["--tune"], "--seeds, --jobs and --tune must go with --strategies"),
    ],
)
def test_what_is_wrong_is_one_line(config: Path, arguments: list[str], message: str) -> None:
    result = call("backtest", config, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_log_that_ends_in_the_warm_up_cannot_be_compared_on(config: Path) -> None:
    config.write_text(CONFIG.replace("warmup_s = 4000.0", "warmup_s = 40000.0"))
    result = call("backtest", config, "--strategies", "prior-only")
    assert result.exit_code == 2
    assert "make [window] warmup_s shorter" in result.stderr


def test_strategies_are_listed() -> None:
    result = call("strategies")
    assert {"default", "ddp+cr", "prior-only"} <= {line.split()[0] for line in result.stdout.splitlines()}


def test_check_refuses_an_unknown_strategy_and_network(config: Path) -> None:
    for section, key in (("update", "strategy"), ("model", "network")):
        config.write_text(CONFIG + f'[{section}]\n{key} = "x"\n')
        result = call("check", config)
        assert result.exit_code == 2
        assert f"[{section}] {key} must be one of" in result.stderr


def test_a_report_says_where_drift_alarms_fell() -> None:
    window = {"rows": 9, "clicks": 1, "auc": 0.6, "logloss": 0.3, "calibration": 1.0}
    found = {"logloss": 0.3, "auc": 0.6, "gauc": None, "ne": 0.9, "calibration": 1.0, "slices": {}}
    found |= {"train_s": 1.0, "predict_s": 1.0, "peak_mb": 9.0, "choices": [{}]}
    quiet = found | {"per_window": [window | {"drift": []}] * 3}
    alarmed = found | {"per_window": [window | {"drift": by} for by in ([], ["adwin", "page_hinkley"], ["adwin"])]}
    report = {"name": "world", "rows": 27, "windows": 3, "paired": {}, "strategies": {"one": quiet, "two": alarmed}}
    text = to_markdown(report)
    assert "- two: window 2 (adwin, page_hinkley), window 3 (adwin)\n" in text
    assert "- one" not in text
    assert "No drift alarm for any strategy." in to_markdown(report | {"strategies": {"one": quiet}})
    assert "Chosen on the warm-up" not in text


def test_a_report_says_what_the_warm_up_chose_for_one_strategy_alone() -> None:
    found = {"logloss": 0.3, "auc": 0.6, "gauc": None, "ne": 0.9, "calibration": 1.0, "slices": {}, "per_window": []}
    found |= {"train_s": 1.0, "predict_s": 1.0, "peak_mb": 9.0, "choices": [{}]}
    crosses = [{"name": "user_x_ad", "of": ["user", "ad"]}]
    histories = [{"name": name, "of": "ad", "clicked": True, "values_max": 20} for name in ("clicked_ad", "skipped_ad")]
    choices = {"crosses": crosses, "histories": histories, "learning_rate": 0.003}
    strategies = {"default": found | {"choices": [choices]}, "vw": found}
    text = to_markdown({"name": "world", "rows": 27, "windows": 3, "paired": {}, "strategies": strategies})
    told = "- default: crosses user_x_ad; histories clicked_ad, skipped_ad; learning_rate 0.003\n"
    assert f"Chosen on the warm-up, and not given to the others:\n\n{told}\n" in text
    assert "- vw" not in text
