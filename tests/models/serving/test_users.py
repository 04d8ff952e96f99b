"""Users from a real store beside what a caller says, and requests that go on without it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.store import UserRead, UserStore, open_store
from models.serving.pipeline import Pipeline
from models.serving.schema import RankAnswer, Served
from models.serving.users import Users
from tests.models.serving.service import BODY, NOW_S, Service, ready_service
from tests.models.serving.test_prerank import narrow
from tests.models.serving.trained import FIELDS

MAX_AGE_S = 1000.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> UserStore:
    directory = tmp_path_factory.mktemp("users")
    store = open_store(FIELDS, prefix="users", redis_url="", directory=directory, max_age_s=MAX_AGE_S)
    for user_id, as_of_s in (("u1", NOW_S - 10.0), ("old", NOW_S - 2 * MAX_AGE_S)):
        row = {"user_id": [user_id], "as_of_s": [as_of_s], "impressions": [[1.0, 2.0]], "clicks": [[0.0, 1.0]]}
        store.push(pl.DataFrame(row | {"value.age": [55.0]}))
    return store


class NoStore:
    """A store that never answers, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.released = threading.Event()

    def read_users(self, ids: Sequence[str], now_s: float) -> UserRead:  # noqa: ARG002  # as the store's
        if self.error is not None:
            raise self.error
        self.released.wait(10.0)
        return UserRead({}, 1, 0, 0.0)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return ready_service(tmp_path)


async def asked(service: Service, opens: Callable[[], Any], **user: Any) -> tuple[RankAnswer, Served, Users]:
    users = Users(opens, FIELDS, service.metrics, wait_s=0.5)
    await asyncio.wait_for(users.open(), 30.0)
    pipeline: Pipeline = narrow(service, users=users)
    answer = await pipeline.rank(json.dumps({**BODY, "candidates": ["ad1", "ad2"], "user": user}).encode())
    served = service.log.events[-1]
    assert isinstance(served, Served)
    return answer, served, users


def outcomes(service: Service) -> dict[str, float]:
    names = ("found", "missing", "too_old", "slow", "away")
    found = {name: service.metric("freshrank_user_reads_total", outcome=name) for name in names}
    return {name: count for name, count in found.items() if count}


async def test_what_the_store_knows_is_scored_and_logged_beside_what_the_caller_says(
    service: Service, store: UserStore
) -> None:
    answer, served, _ = await asked(service, lambda: store, user_id="u1")
    assert served.values == {"user_id": "u1", "age": 55.0, "hour": 12.0}
    assert answer.degraded == []
    told = (await asked(service, lambda: store, user_id="u1", age=55))[0]
    assert [ad.pctr for ad in told.ads] == [ad.pctr for ad in answer.ads]
    assert outcomes(service) == {"found": 1.0}, "who says all of a user needs no store"


async def test_the_callers_values_win(service: Service, store: UserStore) -> None:
    assert (await asked(service, lambda: store, user_id="u1", age=20))[1].values["age"] == 20.0


async def test_a_user_that_the_store_does_not_hold_is_no_fault(service: Service, store: UserStore) -> None:
    answer, served, _ = await asked(service, lambda: store, user_id="nobody")
    assert ("age" in served.values, answer.degraded) == (False, [])
    assert outcomes(service) == {"missing": 1.0}
    assert (await asked(service, lambda: store))[0].degraded == []
    assert outcomes(service) == {"missing": 1.0}, "nobody is asked for"


async def test_what_is_too_old_is_not_used_and_said(service: Service, store: UserStore) -> None:
    answer, served, _ = await asked(service, lambda: store, user_id="old")
    assert ("age" in served.values, answer.degraded) == (False, ["users"])
    assert outcomes(service) == {"too_old": 1.0}
    assert service.metric("freshrank_rank_degraded_total", part="users") == 1.0


async def test_a_store_that_hangs_costs_a_bounded_wait(service: Service) -> None:
    hanging = NoStore()
    answer, _, users = await asked(service, lambda: hanging, user_id="u1")
    assert answer.degraded == ["users"]
    assert len(answer.ads) == 2
    assert outcomes(service) == {"slow": 1.0}
    hanging.released.set()
    users.close()


async def test_a_store_that_fails_is_said_and_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    answer = (await asked(service, lambda: NoStore(OSError("connection refused")), user_id="u1"))[0]
    assert answer.degraded == ["users"]
    assert outcomes(service) == {"away": 1.0}
    assert "the store cannot be read: connection refused" in caplog.text


async def test_a_store_that_is_not_open_yet_is_gone_without_and_tried_again(
    service: Service, store: UserStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.serving.users.REOPEN_S", 0.01)
    tries = iter([OSError("not yet"), OSError("not yet"), store])

    def opens() -> UserStore:
        found = next(tries)
        if isinstance(found, OSError):
            raise found
        return found

    closed = Users(opens, FIELDS, service.metrics, wait_s=0.5)
    assert await closed.complete({"user_id": "u1"}, NOW_S) == ({"user_id": "u1"}, True)
    await closed.open()
    assert await closed.complete({"user_id": "u1"}, NOW_S) == ({"user_id": "u1", "age": 55.0}, False)
