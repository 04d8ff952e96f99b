"""The catalog on a real broker: a file is loaded whole or not at all, and the ranking service's rules hold for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from infra.broker import BrokerInfo
from models.serving.catalog import Catalog
from stream.cli import app
from tests.broker.deployment import Deployment, deploy

CONFIG = """
name = "shop"
[[fields]]
name = "user"
side = "user"
[[fields]]
name = "ad"
side = "item"
[[fields]]
name = "year"
side = "item"
kind = "number"
[window]
slide_s = 1000.0
"""


@pytest.fixture
def deployment(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> Deployment:
    config = tmp_path / "shop.toml"
    config.write_text(CONFIG)
    return deploy(tmp_path, broker.bootstrap_servers, topic_prefix, config=config, ledger="")


async def call(*arguments: str | Path) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, [str(argument) for argument in arguments])


async def load(deployment: Deployment, *ads: dict[str, Any] | str, more: tuple[str, ...] = ()) -> Result:
    file = deployment.config.parent / "ads.ndjson"
    file.write_text("".join(f"{ad if isinstance(ad, str) else json.dumps(ad)}\n" for ad in ads))
    return await call("catalog", "load", deployment.config, file, "--json", "-", *more)


async def show(deployment: Deployment, *arguments: str) -> Any:
    result = await call("catalog", "show", deployment.config, *arguments, "--json", "-")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


async def test_what_is_loaded_is_shown_and_taken_by_the_ranking_service(deployment: Deployment) -> None:
    ads = [{"ad_id": f"a{n}", "values": {"year": 1990 + n, "colour": "red"}, "bid_micros": 7} for n in range(3)]
    first = await load(deployment, *ads, "")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout) == {"ads": 3, "sent": 3, "unchanged": 0, "removed": 0, "ignored": ["values.colour"]}
    assert "no field takes values.colour" in first.stderr
    found = await show(deployment)
    assert (found["ads"], found["active"], found["refused"], found["missing"]) == (3, 3, {}, [])
    assert [ad["ad_id"] for ad in found["shown"]] == ["a2", "a1", "a0"]  # what changed last first
    catalog = Catalog(deployment.settings.fields)
    for record in await deployment.read("catalog", 0):
        catalog.put((record.key or b"").decode(), record.value)
    assert len(catalog) == 3


async def test_only_what_changed_is_sent_again_and_what_is_gone_only_goes_when_asked(deployment: Deployment) -> None:
    await load(deployment, {"ad_id": "a"}, {"ad_id": "b"}, {"ad_id": "c"})
    changed = [{"ad_id": "a", "active": False}, {"ad_id": "b"}]
    again = json.loads((await load(deployment, *changed)).stdout)
    assert (again["sent"], again["unchanged"], again["removed"]) == (1, 1, 0)
    assert (await show(deployment))["ads"] == 3
    replaced = json.loads((await load(deployment, *changed, more=("--replace",))).stdout)
    assert (replaced["sent"], replaced["unchanged"], replaced["removed"]) == (0, 2, 1)
    found = await show(deployment, "a")
    assert (found["ads"], found["active"]) == (2, 1)
    assert found["shown"] == [
        msgspec.json.decode(b'{"ad_id":"a","values":{},"bid_micros":1000000,"active":false,"creatives":[],"v":1}')
    ]
    missing = await call("catalog", "show", deployment.config, "a", "c")
    assert missing.exit_code == 2
    assert "got none of c" in missing.stderr


async def test_a_file_with_a_fault_is_refused_whole_with_its_lines(deployment: Deployment) -> None:
    wrong = [
        "{",
        {"ad_id": "b", "values": {"year": "soon"}},
        {"ad_id": "a"},
        {"ad_id": "c", "bid_micros": -1},
    ]
    result = await load(deployment, {"ad_id": "a"}, *wrong)
    assert result.exit_code == 2
    for part in (
        "ads.ndjson:2 must be an ad in JSON",
        'ads.ndjson:3 must hold values of their fields\' kinds: values.year must be a finite number, got "soon"',
        'ads.ndjson:4 must be the only one of its ad, got "a" again',
        "ads.ndjson:5 must be an ad in JSON, got: Expected `int` >= 0",
        "nothing was sent",
    ):
        assert part in result.stderr
    assert await deployment.read("catalog", 0) == []
    many = await load(deployment, *["{"] * 9)
    assert many.stderr.count("must be an ad in JSON") == 5
    gone = await call("catalog", "load", deployment.config, deployment.config.parent / "none.ndjson")
    assert (gone.exit_code, "must be a readable file" in gone.stderr) == (2, True)
