"""The first tier of the results: a tenth of a real log, four strategies, one seed. `make results` is the second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stream.cli import app

KUAIRAND = Path(__file__).parents[3] / "shared" / "data" / "kuairand"
CONFIG = Path(__file__).parents[2] / "configs" / "kuairand.toml"


@pytest.mark.slow
@pytest.mark.skipif(not KUAIRAND.exists(), reason=f"KuaiRand is not at {KUAIRAND}")
def test_the_default_is_ahead_of_its_parts_on_a_tenth_of_kuairand(tmp_path: Path) -> None:
    config = tmp_path / "kuairand.toml"
    config.write_text(
        CONFIG.read_text()
        .replace("slide_s = 86_400.0", "slide_s = 10_800.0")
        .replace("warmup_s = 259_200.0", "warmup_s = 43_200.0")
    )
    arguments = ["backtest", config, "--data", KUAIRAND, "--limit", 23_000, "--out", tmp_path / "out"]
    arguments += ["--strategies", "default,finetune,prior-only,static", "--json", tmp_path / "report.json"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["strategies"]
    assert report["rows"] > 10_000
    assert found["default"]["logloss"] < found["finetune"]["logloss"] - 0.01
    assert found["default"]["logloss"] < found["static"]["logloss"] - 0.01
    assert found["default"]["logloss"] < found["prior-only"]["logloss"] + 0.003  # one pass: the network is no burden
    assert 0.9 < found["default"]["calibration"] < 1.1
    low, high = report["paired"]["default vs finetune"]["ci95"]
    assert low < high < 0.0
