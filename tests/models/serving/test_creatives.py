"""Which creative an ad is shown with: the best that is known, others now and then, and how likely each was."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from features.encode import field_key
from features.fields import Field
from features.priors import PriorTable
from models.serving.catalog import Catalog
from models.serving.creatives import choose_by_prior

AD, IMAGE, SIZE = Field("ad", "item"), Field("image", "creative"), Field("size", "creative", "number")
FIELDS = (Field("user", "user"), AD, IMAGE, SIZE)
NOW_S = 100.0


def counted(**clicks: tuple[float, float]) -> PriorTable:
    """Return a table with impressions and clicks of some images."""
    keys = np.array([field_key(IMAGE, image) for image in clicks], np.uint64)
    order = np.argsort(keys)
    n, c = (np.array([one[k] for one in clicks.values()])[order][:, None] for k in (0, 1))
    return PriorTable(
        half_lives_s=np.array([1e9]),
        as_of_s=NOW_S,
        keys=keys[order],
        field=np.full(len(keys), 2, np.int16),
        n=n,
        c=c,
        root_n=n.sum(axis=0) + 1000.0,
        root_c=c.sum(axis=0) + 50.0,
        strength=np.full((len(FIELDS), 1), 20.0),
    )


def ids(*images: str) -> np.ndarray:
    return np.array([field_key(IMAGE, image) for image in images], np.uint64)


TABLE = counted(good=(500.0, 100.0), bad=(500.0, 5.0))


def choose(keys: list[np.ndarray], *, explore: float = 0.0, seed: int = 0, table: PriorTable = TABLE) -> Any:
    return choose_by_prior(table, FIELDS, keys, time_s=NOW_S, explore=explore, seed=seed)


def test_the_best_by_what_is_known_is_taken_and_a_new_one_stands_between_good_and_bad() -> None:
    chosen, propensities = choose([ids("bad", "good", "new"), ids("bad", "new"), ids("bad")])
    assert chosen.tolist() == [1, 1, 0]
    assert propensities.tolist() == [1.0, 1.0, 1.0]


def test_others_are_tried_as_often_as_their_propensity_says() -> None:
    keys = [ids("bad", "good", "new", "newer")] * 4000
    chosen, propensities = choose(keys, explore=0.4)
    share = np.bincount(chosen, minlength=4) / len(chosen)
    assert share == pytest.approx([0.1, 0.7, 0.1, 0.1], abs=0.03)
    assert propensities == pytest.approx(np.where(chosen == 1, 0.7, 0.1))


def test_the_seed_decides() -> None:
    keys = [ids("bad", "good")] * 50
    one, same, other = (choose(keys, explore=1.0, seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_without_a_field_of_creatives_they_are_drawn_evenly() -> None:
    fields, keys = FIELDS[:2], [np.zeros(2, np.uint64)] * 4000
    chosen, propensities = choose_by_prior(TABLE, fields, keys, time_s=NOW_S, explore=0.0, seed=0)
    assert chosen.mean() == pytest.approx(0.5, abs=0.05)
    assert set(propensities.tolist()) == {0.5}


def catalog() -> Catalog:
    found = Catalog(FIELDS)
    creatives = [{"creative_id": "bad", "values": {"size": 1}}, {"creative_id": "good", "values": {"size": 2}}]
    found.put("a", json.dumps({"ad_id": "a", "values": {}, "creatives": creatives}).encode())
    found.put("b", b'{"ad_id": "b"}')
    return found


def test_a_candidate_has_the_values_and_keys_of_the_creative_it_is_shown_with() -> None:
    held = catalog()
    found, _ = held.resolve(["a", "b", "c"], {})
    assert [index for index, _ in found.with_choice(range(3))] == [0]
    before = found.values(0)
    assert before == {"ad": "a", "image": "bad", "size": 1.0}
    found.chosen = {0: found.held(0).creatives[1]}  # type: ignore[union-attr]
    assert found.values(0) == {"ad": "a", "image": "good", "size": 2.0}
    assert json.loads(found.ads_json([0])[0] + b"}")["values"] == found.values(0)
    np.testing.assert_array_equal(found.keys([0])[0], held.table.encoder.keys(found.values(0)))
    assert held.resolve(["a"], {})[0].values(0) == before, "a choice is one request's"


def test_a_creative_has_nothing_of_the_first_one() -> None:
    held = Catalog(FIELDS)
    creatives = [{"creative_id": "bad", "values": {"size": 1}}, {"creative_id": "good"}]
    held.put("a", json.dumps({"ad_id": "a", "creatives": creatives}).encode())
    found, _ = held.resolve(["a"], {})
    found.chosen = {0: found.held(0).creatives[1]}  # type: ignore[union-attr]
    assert found.values(0) == json.loads(found.ads_json([0])[0] + b"}")["values"]
    assert found.values(0) == {"ad": "a", "image": "good"}
    np.testing.assert_array_equal(found.keys([0])[0], held.table.encoder.keys(found.values(0)))


def test_a_creative_that_the_caller_names_is_not_chosen_again() -> None:
    found, _ = catalog().resolve(["a"], {"a": {"image": "mine"}})
    assert found.with_choice([0]) == []
    assert found.values(0)["image"] == "mine"
    other, _ = catalog().resolve(["a"], {"a": {"size": 9.0}})
    assert [index for index, _ in other.with_choice([0])] == [0]
    other.chosen = {0: other.held(0).creatives[1]}  # type: ignore[union-attr]
    assert other.values(0) == {"ad": "a", "image": "good", "size": 9.0}
