from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from prometheus_client import CollectorRegistry

from features.encode import field_key
from features.fields import Field
from features.live_priors import LivePriors
from features.priors import find
from infra.metrics import PriorMetrics
from infra.settings import Settings, parse_settings
from stream.user_push import UserPush, open_user_push
from tests.fakes import UserShelf
from tests.frames import FIELDS, frame


class Setup:
    """Priors whose users are pushed to a shelf."""

    def __init__(self, fields: tuple[Field, ...] = FIELDS, **store: Any) -> None:
        self.settings = deployment(fields, **store)
        self.metrics = PriorMetrics(CollectorRegistry())
        self.priors = LivePriors(fields, self.settings.priors.half_lives_s, evidence_min=0.0, counts_max=1000)
        self.shelf = UserShelf()
        self.users = UserPush(self.settings, FIELDS[0], self.priors, self.metrics, self.shelf)

    def count(self, **columns: Any) -> None:
        rows = frame(**columns)
        self.priors.count(rows)
        self.users.add(rows)

    def pushed(self, outcome: str) -> float:
        value = self.metrics.registry.get_sample_value("freshrank_store_users_total", {"outcome": outcome})
        assert value is not None
        return value


def deployment(fields: tuple[Field, ...] = FIELDS, **store: Any) -> Settings:
    return parse_settings(
        {
            "name": "small",
            "fields": [msgspec.to_builtins(field) for field in fields],
            "store": {"kind": "feast"} | store,
        }
    )


async def test_users_are_pushed_once_with_the_counts_of_their_id() -> None:
    setup = Setup()
    setup.count(time_s=[0.0, 1.0, 2.0], user_id=["u", "v", "u"], click=[1, 0, 0])
    await setup.users.push()
    (batch,) = setup.shelf.batches
    assert sorted(batch["user_id"]) == ["u", "v"]
    u = batch.row(by_predicate=pl.col("user_id") == "u", named=True)
    table = setup.priors.table
    at, _ = find(table.keys, np.array([field_key(FIELDS[0], "u")], np.uint64))
    assert u["as_of_s"] == table.as_of_s == 62.0
    assert u["impressions"] == table.n[at[0]].tolist()
    assert u["clicks"] == table.c[at[0]].tolist()
    assert setup.pushed("pushed") == 2.0


async def test_the_newest_values_of_a_user_are_pushed() -> None:
    setup = Setup(fields=(*FIELDS, Field("city", "user")))
    for city in ("Ulm", "Bonn"):
        setup.users.add(frame(time_s=[0.0]).with_columns(pl.lit(city).alias("field.city")))
    setup.count(time_s=[1.0], user_id=["other"])
    await setup.users.push()
    assert setup.shelf.batches[0].sort("user_id")["value.city"].to_list() == [None, "Bonn"]


async def test_a_push_that_fails_is_tried_again_with_what_changed_since(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup()
    setup.shelf.is_away = True
    setup.count(time_s=[0.0], user_id=["u"])
    await setup.users.push()
    assert "1 users could not be pushed, trying again: ConnectionError('no route to the store')" in caplog.text
    setup.shelf.is_away = False
    setup.count(time_s=[5.0], user_id=["v"])
    await setup.users.push()
    assert [sorted(batch["user_id"]) for batch in setup.shelf.batches] == [["u", "v"]]
    assert (setup.pushed("failed"), setup.pushed("pushed")) == (1.0, 2.0)


async def test_nothing_is_pushed_twice_or_before_time_has_passed() -> None:
    setup = Setup()
    await setup.users.push()
    setup.count(time_s=[5.0], user_id=["u"])
    await setup.users.push()
    await setup.users.push()
    setup.count(time_s=[5.0], user_id=["v"])  # as of the same moment: a store could not tell which is newer
    await setup.users.push()
    assert [batch["user_id"].to_list() for batch in setup.shelf.batches] == [["u"]]
    setup.count(time_s=[6.0], user_id=["w"])
    await setup.users.push()
    assert sorted(setup.shelf.batches[1]["user_id"]) == ["v", "w"]


async def test_beyond_the_limit_the_users_that_changed_first_are_dropped_and_counted() -> None:
    setup = Setup(users_max=3)
    for index in range(10):
        setup.count(time_s=[float(index)], user_id=[f"u{index}"])
    await setup.users.push()
    assert sorted(setup.shelf.batches[0]["user_id"]) == ["u7", "u8", "u9"]
    assert setup.pushed("dropped") == 7.0


async def test_rows_without_a_user_are_left_out() -> None:
    setup = Setup()
    setup.count(time_s=[0.0, 1.0], user_id=[None, "u"])
    await setup.users.push()
    assert setup.shelf.batches[0]["user_id"].to_list() == ["u"]


async def test_a_store_that_was_never_opened_is_not_opened_to_leave() -> None:
    never = Setup()
    never.count(time_s=[0.0], user_id=["u"])
    await never.users.stop()
    assert not never.shelf.batches
    assert never.shelf.is_closed


async def test_what_waits_at_the_end_is_pushed() -> None:
    setup = Setup()
    setup.count(time_s=[0.0], user_id=["u"])
    await setup.users.push()
    setup.count(time_s=[1.0], user_id=["v"])
    await setup.users.stop()
    assert [batch["user_id"].to_list() for batch in setup.shelf.batches] == [["u"], ["v"]]


def test_only_the_shard_that_counts_users_pushes_them() -> None:
    settings, metrics = deployment(), PriorMetrics(CollectorRegistry())
    pushers = [
        open_user_push(
            settings, LivePriors(FIELDS, (60.0,), evidence_min=0.0, counts_max=1000, shard=shard, n_shards=2), metrics
        )
        for shard in range(2)
    ]
    assert [isinstance(pusher, UserPush) for pusher in pushers].count(True) == 1
    priors = LivePriors(FIELDS, (60.0,), evidence_min=0.0, counts_max=1000)
    assert open_user_push(deployment(kind="none"), priors, metrics) is None
