"""The OpenAPI document says what the service does: its codes, its types, its limits, its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from infra.metrics import ROUTES as METRIC_ROUTES
from models.serving.openapi import to_openapi
from models.serving.routes import ROUTES
from tests.models.serving.service import LIMITS, Service, ready_service
from tests.models.serving.trained import FIELDS
from tests.test_repo import ROOT

KEYED = to_openapi(FIELDS, LIMITS, has_keys=True)
SCHEMAS = KEYED["components"]["schemas"]


def media(document: Any) -> Iterator[dict[str, Any]]:
    """Yield everything that stands under an `application/json`."""
    for key, value in document.items() if isinstance(document, dict) else []:
        if key == "application/json":
            yield value
        else:
            yield from media(value)


def samples(found: dict[str, Any]) -> list[Any]:
    return [found["example"]] if "example" in found else [one["value"] for one in found["examples"].values()]


def test_every_example_is_what_its_schema_allows() -> None:
    count = 0
    for found in media(KEYED["paths"]):
        valid = jsonschema_rs.validator_for({**found["schema"], "components": KEYED["components"]})
        for sample in samples(found):
            valid.validate(sample)
            count += 1
    assert count > len(ROUTES)


async def test_the_service_answers_its_own_examples(tmp_path: Path) -> None:
    async with ready_service(tmp_path).client() as client:
        for route in ROUTES:
            operation = KEYED["paths"][route.path][route.method.lower()]
            for found in media(operation.get("requestBody", {})):
                for sample in samples(found):
                    answer = await client.request(route.method, route.path, json=sample)
                    assert answer.status_code == 200, answer.text


async def test_it_is_served_as_it_is_made(tmp_path: Path) -> None:
    async with Service(tmp_path).client() as client:
        answer = await client.get("/openapi.json")
    assert answer.json() == json.loads(json.dumps(to_openapi(FIELDS, LIMITS, has_keys=False)))


def test_values_are_described_by_the_fields_of_their_side() -> None:
    body = SCHEMAS["RankBody"]["properties"]
    assert body["user"]["properties"].keys() == {"user_id", "age"}
    assert body["context"]["properties"].keys() == {"hour"}
    assert SCHEMAS["NamedAd"]["properties"]["values"]["properties"].keys() == {"ad", "tags"}
    assert body["user"]["properties"]["user_id"] == {"type": ["string", "integer", "null"]}
    assert body["user"]["properties"]["age"]["type"] == ["number", "null"]


def test_limits_are_the_deployments() -> None:
    candidates = SCHEMAS["RankBody"]["properties"]["candidates"]
    assert (candidates["minItems"], candidates["maxItems"]) == (1, LIMITS.candidates_max)
    events = KEYED["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"minItems": 1, "maxItems": LIMITS.events_max}.items() <= events["anyOf"][0].items()
    assert str(LIMITS.body_bytes_max) in KEYED["info"]["description"]
    assert f"{LIMITS.ahead_max_s:g} s ahead" in SCHEMAS["Click"]["properties"]["time_s"]["description"]


def test_a_docstring_describes_the_type_and_its_attributes_the_properties() -> None:
    answer = SCHEMAS["RankAnswer"]
    assert answer["description"] == "The body of an answer to `POST /v1/rank`."
    assert answer["properties"]["snapshot"]["description"] == "Version of the snapshot that scored all of it."
    # one that goes on in a second line
    token = SCHEMAS["RankedAd"]["properties"]["token"]["description"]
    assert token.endswith("empty where none is demanded.")


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_key_is_asked_for_where_the_deployment_does(*, has_keys: bool) -> None:
    document = to_openapi(FIELDS, LIMITS, has_keys=has_keys)
    asking = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "security" in operation
    }
    refusing = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "401" in operation["responses"]
    }
    assert asking == refusing == ({"/v1/rank", "/v1/explain", "/v1/events", "/openapi.json"} if has_keys else set())
    assert ("securitySchemes" in document["components"]) is has_keys


def test_the_documentation_lists_every_route_with_its_answers() -> None:
    lines = (ROOT / "docs/api.md").read_text("utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(("| `GET", "| `POST"))]
    said = {row[0].strip("`"): {int(status) for status in row[-1].split(", ")} for row in rows}
    assert said == {f"{route.method} {route.path}": {*route.replies} for route in ROUTES}


def test_metrics_know_every_route_and_no_other() -> None:
    assert {*METRIC_ROUTES} == {route.name for route in ROUTES} | {"other"}


async def test_head_of_a_route_is_answered_like_its_get(tmp_path: Path) -> None:
    async with Service(tmp_path).client() as client:
        head: httpx.Response = await client.head("/openapi.json")
    assert (head.status_code, head.content) == (200, b"")
