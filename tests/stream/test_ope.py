"""`freshrank ope` over a small log in which one ad of three is good, shown by a policy that favours another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from infra.settings import Settings, SettingsError, read_settings
from models.window import Slide
from stream.backtest import Backtest
from stream.cli import app
from stream.logs.reader import RowCounts
from stream.logs.source import read_arrivals
from stream.ope import POLICIES, Question, joined_ads, judge_policies, policies_of, run_ope

CONFIG = """
name = "shop"
[log]
files = ["log.csv"]
joins = [{ file = "ads.csv", on = "ad" }]
time = "time"
label = "click"
propensity = "p"
[[fields]]
name = "user"
side = "user"
[[fields]]
name = "ad"
side = "item"
[[fields]]
name = "colour"
side = "item"
[window]
slide_s = 500.0
warmup_s = 100000.0
[ledger]
wait_s = 60.0
[model]
hidden = [8]
"""
RATES, SHOWN = {"good": 0.5, "poor": 0.1, "bad": 0.02}, {"good": 0.2, "poor": 0.6, "bad": 0.2}
N_ROWS = 2000


def write_log(directory: Path, *, shown: dict[str, float] = SHOWN, rates: dict[str, float] = RATES) -> None:
    rng = np.random.default_rng(0)
    ads = rng.choice(list(shown), N_ROWS, p=list(shown.values()))
    columns = {
        "time": 2.0 * np.arange(N_ROWS),
        "click": (rng.random(N_ROWS) < np.array([rates[ad] for ad in ads])).astype(int),
        "p": [shown[ad] for ad in ads],
        "user": [f"u{i % 7}" for i in range(N_ROWS)],
        "ad": ads,
    }
    pl.DataFrame(columns).write_csv(directory / "log.csv")
    (directory / "ads.csv").write_text("ad,colour\ngood,red\npoor,red\nbad,blue\n")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path / "home"))
    write_log(tmp_path)
    path = tmp_path / "shop.toml"
    path.write_text(CONFIG)
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["ope", *(str(argument) for argument in arguments)])


def run(config: Path, **question: Any) -> dict[str, Any]:
    return run_ope(read_settings(config), [config.parent], Question(**question), RowCounts())


def slides_of(settings: Settings, config: Path) -> Iterator[Slide]:
    return Backtest(settings, read_arrivals(settings, [config.parent], RowCounts())).slides()


def test_the_command_tells_the_click_rate_of_each_policy(config: Path) -> None:
    result = call(config, "--json", "-")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found["policies"]) == list(POLICIES)
    assert (found["rows"] + found["learnt_rows"], found["candidates"], found["outside"]) == (N_ROWS, 3, 0)
    assert found["clusters"] == found["rows"]
    truth = {"uniform": np.mean(list(RATES.values())), "greedy": RATES["good"]}
    for name, rate in truth.items():
        for kind in ("ips", "snips", "dr"):
            one = found["policies"][name][kind]
            assert one["lower"] < rate < one["upper"], (name, kind)
    assert found["logged"]["upper"] < found["policies"]["greedy"]["snips"]["lower"]
    assert found["policies"]["thompson"]["snips"]["rate"] > found["policies"]["uniform"]["snips"]["rate"]


def test_all_rows_can_be_judged(config: Path) -> None:
    found = run(config, share=0.0, policies=("uniform",))
    assert (found["rows"], found["learnt_rows"]) == (N_ROWS, 0)
    log = pl.read_csv(config.parent / "log.csv")
    rate = log.select((pl.col("click") / 3.0 / pl.col("p")).mean()).item()
    assert found["policies"]["uniform"]["ips"]["rate"] == pytest.approx(rate)


def test_the_table_holds_what_was_asked_for(config: Path) -> None:
    result = call(config, "--policy", "greedy", "--policy", "uniform")
    assert result.exit_code == 0
    assert "greedy" in result.stdout
    assert "uniform" in result.stdout
    assert "thompson" not in result.stdout


def test_epsilon_lies_between_greedy_and_uniform(config: Path) -> None:
    found = run(config, epsilon=0.5)["policies"]
    snips = {name: one["snips"]["rate"] for name, one in found.items()}
    assert snips["uniform"] < snips["epsilon-greedy"] < snips["greedy"]
    assert run(config, epsilon=0.0)["policies"]["epsilon-greedy"] == found["greedy"]


def test_the_uniform_policy_of_a_uniform_log_has_the_logged_rate(config: Path) -> None:
    write_log(config.parent, shown=dict.fromkeys(SHOWN, 1 / 3))
    found = run(config)
    assert found["policies"]["uniform"]["ips"] == pytest.approx(found["logged"])
    assert found["policies"]["uniform"]["effective_rows"] == pytest.approx(found["rows"])


def test_the_same_seed_gives_the_same_figures(config: Path) -> None:
    write_log(config.parent, rates=dict.fromkeys(RATES, 0.3))
    one, again, other = (run(config, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one["policies"]["thompson"] != other["policies"]["thompson"]


def test_no_row_is_judged_by_a_model_that_knows_its_label(config: Path) -> None:
    write_log(config.parent, rates=dict.fromkeys(RATES, 0.3))  # so that a few labels more decide which ad is the best
    settings = read_settings(config)
    assert settings.log is not None
    table = joined_ads(settings, settings.log, [config.parent])
    *slides, last, _ = slides_of(settings, config)  # the very last one holds the few rows behind a boundary
    flipped = Slide(last.index, last.start_s, last.end_s, last.frame.with_columns(click=1 - pl.col("click")))
    kept = ("effective_rows", "largest", "mean", "mean_error")
    weights = []
    for end in (last, flipped):
        found = judge_policies(settings, table, [*slides, end], Question(), n_rows=N_ROWS)
        weights.append({name: [one[key] for key in kept] for name, one in found["policies"].items()})
    assert weights[0] == weights[1]


def test_an_ad_that_could_not_have_been_chosen_weighs_nothing_and_is_counted(config: Path) -> None:
    (config.parent / "ads.csv").write_text("ad,colour\ngood,red\npoor,red\n")
    found = run(config, policies=("uniform",))
    log = pl.read_csv(config.parent / "log.csv").tail(found["rows"])
    assert (found["candidates"], found["outside"]) == (2, log.filter(pl.col("ad") == "bad").height)
    chosen = log.with_columns(w=pl.when(pl.col("ad") == "bad").then(0.0).otherwise(0.5 / pl.col("p")))
    rate, mean = chosen.select((pl.col("w") * pl.col("click")).mean(), mean=pl.col("w").mean()).row(0)
    assert found["policies"]["uniform"]["ips"]["rate"] == pytest.approx(rate, rel=0.02)
    assert found["policies"]["uniform"]["mean"] == pytest.approx(mean, rel=0.02)


def test_without_a_table_of_ads_those_that_were_shown_are_candidates(config: Path) -> None:
    with_table = run(config)
    config.write_text(CONFIG.replace('joins = [{ file = "ads.csv", on = "ad" }]', "").replace("colour", "user_x"))
    text = config.read_text().replace(
        'name = "user_x"\nside = "item"', 'name = "both"\nside = "cross"\nof = ["user", "ad"]'
    )
    config.write_text(text)
    found = run(config)
    assert (found["candidates"], found["outside"]) == (3, 0)
    assert found["policies"]["uniform"]["snips"] == pytest.approx(with_table["policies"]["uniform"]["snips"])


def test_candidates_that_were_not_shown_are_no_rows(config: Path) -> None:
    config.write_text(
        CONFIG.replace('label = "click"', 'label = "click"\nrequest = ["time"]\nstages = ["shown", "ranked"]')
    )
    log = pl.read_csv(config.parent / "log.csv").with_columns(shown=pl.lit(1), ranked=pl.lit(1))
    log.write_csv(config.parent / "log.csv")
    shown_alone = run(config, policies=("uniform", "greedy"))
    unseen = log.with_columns(shown=pl.lit(0), click=pl.lit(0), p=pl.lit(None), ad=pl.lit("bad"))
    pl.concat([log, unseen], how="vertical_relaxed").sort("time", maintain_order=True).write_csv(
        config.parent / "log.csv"
    )
    found = run(config, policies=("uniform", "greedy"))
    assert (found["rows"], found["policies"]) == (shown_alone["rows"], shown_alone["policies"])
    assert found["log"]["unexposed"] == N_ROWS


def test_rows_of_a_user_and_day_are_one_cluster(config: Path) -> None:
    assert run(config, cluster="user-day")["clusters"] == 7
    log = pl.read_csv(config.parent / "log.csv").with_columns(time=pl.col("time") * 40.0)  # a day has 1080 rows
    log.with_columns(user=pl.when(pl.col("user") != "u0").then("user")).write_csv(config.parent / "log.csv")
    config.write_text(CONFIG.replace("slide_s = 500.0", "slide_s = 20000.0").replace("100000.0", "4e6"))
    found = run(config, cluster="user-day", share=0.01)
    n_nobodys = pl.read_csv(config.parent / "log.csv").tail(found["rows"])["user"].null_count()
    assert found["clusters"] == pytest.approx(2 * 6 + n_nobodys, abs=2)  # a row of nobody is its own request's


def test_a_log_that_says_next_to_nothing_is_said_to(config: Path) -> None:
    log = pl.read_csv(config.parent / "log.csv")
    log.with_columns(p=pl.when(pl.col("time") == 3000.0).then(1e-6).otherwise("p")).write_csv(config.parent / "log.csv")
    result = call(config, "--policy", "uniform")
    assert "uniform: 1 effective rows: the log says next to nothing about it" in result.stderr
    log.with_columns(p=pl.col("p") / 2).write_csv(config.parent / "log.csv")
    result = call(config, "--policy", "uniform")
    assert "weights must be 1 in the mean, got 2.0" in result.stderr
    assert "effective rows" not in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ('propensity = "p"', "", (), "[log] propensity must name the column with the probability"),
        (
            "",
            "",
            ("--policy", "clever"),
            '--policy must be one of uniform, greedy, epsilon-greedy, thompson, got "clever"',
        ),
        ("", "", ("--share", "1"), "--share must be at least 0 and below 1, got 1.0"),
        ("", "", ("--share", "0.999"), "--share must leave slides to judge, got 0.999"),
        ("", "", ("--alpha", "0"), "--alpha must be above 0 and below 1, got 0.0"),
        ("", "", ("--epsilon", "1.5"), "--epsilon must be 0 to 1, got 1.5"),
        ('side = "user"', 'side = "context"', ("--cluster", "user-day"), "--cluster user-day needs one of [[fields]]"),
        ("hidden = [8]", "[serve]\ncandidates_max = 2", (), "[serve] candidates_max = 2 candidates, got 3"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exits_with_2(
    config: Path, old: str, new: str, options: tuple[str, ...], message: str
) -> None:
    config.write_text(CONFIG.replace(old, new))
    result = call(config, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_without_a_log_is_refused(config: Path) -> None:
    start, end = CONFIG.index("[log]"), CONFIG.index("[[fields]]")
    config.write_text(CONFIG[:start] + CONFIG[end:])
    with pytest.raises(SettingsError, match=r"must hold a section \[log\] to judge policies on, got none; add it"):
        run(config)


def test_policies_are_those_named_once_and_all_where_none_is() -> None:
    assert policies_of(["greedy", "uniform", "greedy"]) == ("uniform", "greedy")
    assert policies_of([]) == POLICIES
