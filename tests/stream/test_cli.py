"""The command line: its exit codes, and one clear line for each thing that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from models.serving.keys import is_allowed
from stream.cli import app

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
slide_s = 100.0
[ledger]
wait_s = 10.0
"""
LOG = "time,click,user,ad\n" + "".join(f"{20 * i},{i % 2},u{i % 3},a{i % 2}\n" for i in range(40))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path / "home"))
    (tmp_path / "log.csv").write_text(LOG)
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG)
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_prints_the_plan(config: Path) -> None:
    result = call("check", config, "--json", "-")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert (plan["name"], plan["ledger"]["wait_s"], len(plan["files"])) == ("tiny", 10.0, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("wait_s = 10.0", "wait_s = 0.0", "[ledger] wait_s must be > 0, got 0.0"),
        ("wait_s = 10.0", 'wait_s = "x"', "[ledger] wait_s"),
        ("wait_s = 10.0", "wiat_s = 1.0", 'did you mean "wait_s"?'),
        ("log.csv", "other.csv", "other.csv"),
        ('label = "click"', 'label = "clack"', '"clack"'),
        ('name = "tiny"', "", '"name"'),
        (
            "slide_s = 100.0",
            "slide_s = 100.0\nwindow_s = 50.0",
            "[window] window_s must be >= slide_s (100.0), got 50.0",
        ),
    ],
)
def test_check_says_what_is_wrong_and_exits_with_2(config: Path, old: str, new: str, message: str) -> None:
    config.write_text(CONFIG.replace(old, new))
    result = call("check", config)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_check_of_a_file_that_is_not_there_exits_with_2(tmp_path: Path) -> None:
    result = call("check", tmp_path / "none.toml")
    assert (result.exit_code, "none.toml must be a readable file" in result.stderr) == (2, True)


def test_worker_without_a_broker_says_how_to_start_one(config: Path) -> None:
    result = call("worker", "ledger", config)
    assert result.exit_code == 2
    assert "freshrank broker start" in result.stderr


def test_worker_with_a_broker_that_is_not_there_fails_within_seconds(config: Path) -> None:
    config.write_text(CONFIG + '[kafka]\nbootstrap_servers = "127.0.0.1:9"\n')
    result = call("worker", "ledger", config)
    assert result.exit_code == 2
    assert "127.0.0.1:9" in result.stderr


def test_backtest_reports_every_slide_and_the_conservation_laws(config: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = call("backtest", config, "--json", report, "--out", tmp_path / "snapshots")
    assert result.exit_code == 0, result.stderr
    found = json.loads(report.read_text())
    assert found["violations"] == {"impressions": 0, "clicks": 0, "records": 0}
    assert sum(window["rows"] for window in found["windows"]) == 40
    assert (tmp_path / "snapshots" / found["latest"] / "manifest.json").exists()


LEAKY = [
    (20.0 * i, i * 7 % 10 < 3, f"u{i * i % 13}", f"a{i * 11 % 7}", i * 7 % 10 < 3 or i % 20 == 1) for i in range(600)
]


def leak_log(config: Path, *, outcome: bool) -> None:
    rows = "".join(f"{time},{click:d},{user},{ad},{other:d}\n" for time, click, user, ad, other in LEAKY)
    (config.parent / "log.csv").write_text("time,click,user,ad,outcome\n" + rows)
    field = '[[fields]]\nname = "outcome"\nside = "context"\n' if outcome else ""
    config.write_text(CONFIG.replace("[window]", field + "[window]"))


def test_leakcheck_says_that_a_clean_log_is_clean(config: Path) -> None:
    leak_log(config, outcome=False)
    result = call("leakcheck", config, "--json", "-")
    assert (result.exit_code, json.loads(result.stdout)["findings"]) == (0, [])
    assert result.stderr.startswith("no leak found; looked at 600 rows")


def test_leakcheck_names_the_field_the_figures_and_what_to_do_and_exits_with_1(config: Path) -> None:
    leak_log(config, outcome=True)
    result = call("leakcheck", config, "--json", "-")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["findings"]
    assert (found["kind"], found["field"], found["evidence"]["auc"] > 0.9) == ("label_proxy", "outcome", True)
    assert "label_proxy outcome: " in result.stderr
    assert found["next"] in result.stderr


def test_leakcheck_of_an_unknown_key_exits_with_2(config: Path) -> None:
    result = call("leakcheck", config, "--forbid", "usr")
    assert result.exit_code == 2
    assert '--forbid must name fields, user or item, got "usr"; fields: user, ad' in result.stderr


def test_leakcheck_finds_the_keys_that_are_forbidden(config: Path) -> None:
    leak_log(config, outcome=False)
    result = call("leakcheck", config, "--forbid", "user,item", "--json", "-")
    assert [found["field"] for found in json.loads(result.stdout)["findings"]] == ["user", "ad"]


@pytest.mark.usefixtures("config")
def test_broker_status_without_a_broker_exits_with_1() -> None:
    assert call("broker", "status").exit_code == 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", ""])
def test_a_shard_that_is_none_is_one_line(config: Path, shard: str) -> None:
    result = call("worker", "priors", config, "--shard", shard)
    assert result.exit_code == 2
    assert f'--shard must be i/n with 1 <= i <= n, e.g. 1/3, got "{shard}"' in result.stderr


def test_only_the_priors_are_sharded(config: Path) -> None:
    result = call("worker", "train", config, "--shard", "1/2")
    assert result.exit_code == 2
    assert '--shard must go with the role priors, got it with "train"; leave it out' in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--hours", "9"), ("--seed", "0"), ("--gated",), ("--closed-loop", "--rows", "9"), ("--closed-loop", "x")],
)
def test_a_closed_loop_has_options_of_its_own(arguments: tuple[str, ...]) -> None:
    result = call("demo", *arguments)
    assert result.exit_code == 2
    assert "--closed-loop must" in result.stderr
    assert "it makes a world of its own" in result.stderr


def test_a_key_is_printed_with_the_hash_that_lets_it_in() -> None:
    lines = [dict([line.split()]) for line in call("key").stdout.splitlines()]
    key, digest = lines[0]["key"], lines[1]["sha256"]
    assert is_allowed(f"Bearer {key}", [bytes.fromhex(digest)])
    assert json.loads(call("key", "--json", "-").stdout).keys() == {"key", "sha256"}
    assert key not in call("key").stdout


def test_arms_of_no_experiment_cannot_be_compared(config: Path) -> None:
    failed = CliRunner().invoke(app, ["ab", str(config)])
    assert failed.exit_code == 2
    assert "freshrank: [split] name must be that of the experiment to compare, got none; set it" in failed.stderr
    config.write_text(CONFIG.replace('side = "user"', 'side = "context"') + '[split]\nname = "fresh"\n')
    failed = CliRunner().invoke(app, ["ab", str(config)])
    assert (failed.exit_code, "(the user's id) to compare arms, got none" in failed.stderr) == (2, True)


def test_help_of_ab_says_what_the_interval_does_not_cover() -> None:
    said = " ".join(CliRunner().invoke(app, ["ab", "--help"]).stdout.split())
    assert "looks every day and stops at the first significant difference" in said
