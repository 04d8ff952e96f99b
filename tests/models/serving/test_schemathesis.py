"""Requests made from the OpenAPI document, good and bad ones: every answer is one that the document promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.openapi import from_asgi

from models.serving.keys import hash_of, to_key
from tests.models.serving.service import ready_service

KEY = to_key(bytes(32))
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = ready_service(tmp_path_factory.mktemp("registry"), key_hashes=[hash_of(KEY)])
    return from_asgi("/openapi.json", service.app, headers=HEADERS)


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_one_that_the_document_promises(case: schemathesis.Case) -> None:
    case.call_and_validate(headers=HEADERS)
