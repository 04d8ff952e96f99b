"""Requests made from the OpenAPI document, good and bad ones: every answer is one that the document promises."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import assume, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import ignored_auth
from schemathesis.openapi import from_asgi
from schemathesis.specs.openapi.checks import negative_data_rejection

from models.serving.keys import hash_of, to_key
from models.serving.routes import ROUTES, Route
from tests.models.serving.service import LIMITS, NOW_S, ready_service

KEY = to_key(bytes(32))
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = ready_service(tmp_path_factory.mktemp("registry"), key_hashes=[hash_of(KEY)])
    return from_asgi("/openapi.json", service.app, headers=HEADERS)


def keeps_the_other_rules(body: Any) -> bool:
    """Return whether a body keeps the rules that JSON Schema cannot say (models/serving/openapi.py)."""
    if isinstance(body, list):
        ids = [one["ad_id"] for one in body if isinstance(one, dict) and "type" not in one and "ad_id" in one]
        ids += [one for one in body if isinstance(one, str)]
        return len(ids) == len(set(ids)) and all(map(keeps_the_other_rules, body))
    if isinstance(body, dict):
        is_ahead = isinstance(body.get("time_s"), int | float) and body["time_s"] > NOW_S + LIMITS.ahead_max_s
        is_timed = "candidates" in body and body.get("time_s") is not None  # the clock is the wall clock
        return not (is_ahead or is_timed) and all(map(keeps_the_other_rules, body.values()))
    return not (isinstance(body, float) and body.is_integer())


def ask(document: Any, route: Route, mode: GenerationMode, n_cases: int) -> list[int]:
    """Make requests to a route, hold each answer against the document, and return the statuses."""
    statuses = []

    @settings(max_examples=n_cases, derandomize=True)
    @given(case=document[route.path][route.method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        assume(mode is GenerationMode.NEGATIVE or keeps_the_other_rules(case.body))
        # To it a 413 is no refusal; test_hostile.py checks bodies that are too large.
        assume(len(json.dumps(case.body, default=str)) <= LIMITS.body_bytes_max)
        # Its own check of keys sends the header along that it means to leave out; test_keys.py checks that.
        excluded: list[Any] = [ignored_auth]
        if isinstance(case.body, list):
            excluded.append(negative_data_rejection)  # of a list of events the good ones are taken
        answer = case.call_and_validate(headers=HEADERS, excluded_checks=excluded)
        statuses.append(answer.status_code)

    check()
    return statuses


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_what_the_document_allows_is_accepted(document: Any, route: Route) -> None:
    statuses = ask(document, route, GenerationMode.POSITIVE, 100 if route.body else 2)
    assert set(statuses) == {200}


@pytest.mark.parametrize("route", [route for route in ROUTES if route.body], ids=lambda route: route.name)
def test_what_the_document_forbids_is_refused(document: Any, route: Route) -> None:
    assert 400 in ask(document, route, GenerationMode.NEGATIVE, 100)
