"""Users in Feast, on a real SQLite file and on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from features.fields import Field
from features.store import User, UserStore, connection_string, open_store, user_fields
from tests.redis_server import redis_server

FIELDS = (
    Field("user_id", "user"),
    Field("age", "user", "number"),
    Field("tags", "user", "categories"),
    Field("city", "user"),
    Field("ad", "item"),
)
MAX_AGE_S = 100.0
Open = Callable[..., UserStore]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the store of a deployment; each test has its own users."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    def open_again(prefix: str = "") -> UserStore:
        name = prefix or f"test-{tmp_path.name}-{request.param}"
        return open_store(FIELDS, prefix=name, redis_url=url, directory=tmp_path / name, max_age_s=MAX_AGE_S)

    return open_again


def users(as_of_s: float, **n: float) -> pl.DataFrame:
    """Users with so many impressions in the short memory."""
    return pl.DataFrame(
        {
            "user_id": list(n),
            "as_of_s": [as_of_s] * len(n),
            "impressions": [[value, 2 * value] for value in n.values()],
            "clicks": [[0.5, 1.0]] * len(n),
            "value.age": [30.0] * len(n),
            "value.tags": [["a", "b"]] * len(n),
            "value.city": ["Łódź"] * len(n),
        }
    )


def impressions(store: UserStore, now_s: float, *ids: str) -> dict[str, float]:
    return {user: known.impressions[0] for user, known in store.read_users(ids, now_s).users.items()}


@pytest.mark.slow  # importing Feast takes ten seconds
def test_what_was_pushed_is_read_in_one_batch_by_whoever_opens_the_store(opened: Open) -> None:
    opened().push(users(1000.25, u1=3.0, u2=4.0))
    read = opened().read_users(["u1", "nobody", "u2"], 1000.5)
    assert read.users["u1"] == User(
        values={"age": 30.0, "tags": ["a", "b"], "city": "Łódź"},
        impressions=(3.0, 6.0),
        clicks=(0.5, 1.0),
        as_of_s=1000.25,
    )
    assert read.users["u2"].impressions == (4.0, 8.0)
    assert (sorted(read.users), read.missing, read.too_old) == (["u1", "u2"], 1, 0)
    assert 0.0 < read.seconds < 5.0


@pytest.mark.slow
def test_values_that_are_not_known_are_left_out(opened: Open) -> None:
    store = opened()
    nothing = [
        pl.lit(None, pl.Float64).alias("value.age"),
        pl.lit(None, pl.List(pl.String)).alias("value.tags"),
        pl.lit(None, pl.String).alias("value.city"),
    ]
    store.push(users(10.0, u1=1.0).with_columns(nothing))
    assert store.read_users(["u1"], 10.0).users["u1"].values == {}


@pytest.mark.slow
def test_what_is_older_than_allowed_is_not_used_and_counted(opened: Open) -> None:
    store = opened()
    store.push(users(1000.0, old=1.0))
    store.push(users(1050.0, new=1.0))
    read = store.read_users(["old", "new"], 1000.0 + MAX_AGE_S + 1.0)
    assert (list(read.users), read.missing, read.too_old) == (["new"], 0, 1)
    assert store.read_users(["old"], 1000.0 + MAX_AGE_S).too_old == 0


@pytest.mark.slow
def test_a_push_with_an_older_or_the_same_event_time_is_dropped_in_either_store(opened: Open) -> None:
    store = opened()
    assert store.push(users(20.0, u1=2.0)) == 0
    assert store.push(users(10.0, u1=1.0, u2=1.0)) == 1
    assert store.push(users(20.0, u1=9.0)) == 1
    assert impressions(store, 20.0, "u1", "u2") == {"u1": 2.0, "u2": 1.0}
    assert store.push(users(20.001, u1=3.0)) == 0
    assert impressions(store, 21.0, "u1") == {"u1": 3.0}


@pytest.mark.slow
def test_deployments_do_not_see_each_others_users(opened: Open, request: pytest.FixtureRequest) -> None:
    name = request.node.name.replace("[", "-").replace("]", "")
    opened(f"one.{name}").push(users(10.0, u1=1.0))
    assert opened(f"two.{name}").read_users(["u1"], 10.0).missing == 1


@pytest.mark.slow
def test_asking_for_nobody_asks_nothing(opened: Open) -> None:
    assert opened().read_users([], 0.0).users == {}


def test_the_users_side_but_for_the_id_is_stored() -> None:
    assert [field.name for field in user_fields(FIELDS)] == ["age", "tags", "city"]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("redis://host", "host:6379"),
        ("redis://host:7000/2", "host:7000,db=2"),
        ("rediss://:se%2Fcret@host:7000", "host:7000,password=se/cret,ssl=true"),
        ("redis://me:secret@host", "host:6379,username=me,password=secret"),
    ],
)
def test_the_address_of_a_redis_is_written_as_feast_wants_it(url: str, wanted: str) -> None:
    assert connection_string(url) == wanted
