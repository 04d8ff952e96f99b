"""Which people the ranking service is asked about."""

import polars as pl

from features.fields import Field
from stream.demo.requests import Visit, choose_visits

FIELDS = (
    Field("user_id", "user"),
    Field("age", "user"),
    Field("hour", "context"),
    Field("ad_id", "item"),
    Field("genres", "item", kind="categories"),
    Field("user_ad", "cross", of=("user_id", "ad_id")),
)


def rows(*visits: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "request_id": [f"r{index}" for index in range(len(visits))],
            "click": [click for _, _, click in visits],
            "ad_id": [ad for _, ad, _ in visits],
            "field.user_id": [user for user, _, _ in visits],
            "field.age": [None] * len(visits),
            "field.hour": ["7"] * len(visits),
            "field.ad_id": [ad for _, ad, _ in visits],
            "field.genres": [["Drama"]] * len(visits),
        },
        schema_overrides={"field.age": pl.String},
    )


def test_each_visit_is_another_users_next_click_on_an_ad_that_is_known() -> None:
    held_back = rows(("u1", "a", 0), ("u1", "new", 1), ("u1", "b", 1), ("u1", "c", 1), ("u2", "a", 1), ("u3", "a", 1))
    visits = choose_visits(held_back, FIELDS, {"a": {}, "b": {}, "c": {}}, 2)
    assert visits == [
        Visit("u1", {"user_id": "u1"}, {"hour": "7"}, "b"),
        Visit("u2", {"user_id": "u2"}, {"hour": "7"}, "a"),
    ]


def test_nobody_clicked_is_nobody_to_ask_about() -> None:
    assert choose_visits(rows(("u1", "a", 0)), FIELDS, {"a": {}}, 3) == []


def test_a_log_without_users_is_asked_about_by_request() -> None:
    fields = tuple(field for field in FIELDS if field.side in ("context", "item"))
    visits = choose_visits(rows(("u1", "a", 1), ("u1", "b", 1)), fields, {"a": {}, "b": {}}, 3)
    assert [visit.clicked for visit in visits] == ["a", "b"]
