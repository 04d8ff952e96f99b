import math

import numpy as np
import polars as pl

from features.encode import encode, field_key
from features.fields import Field
from models.strategies.controls.vw import LETTERS, example_lines
from models.strategies.strategy import Rows

FIELDS = (
    Field("user_id", "user"),
    Field("tags", "item", "categories", values_max=2),
    Field("price", "item", "number"),
    Field("ad_id", "item"),
    Field("user_x_ad", "cross", of=("user_id", "ad_id")),
)


def rows(frame: pl.DataFrame, fields: tuple[Field, ...]) -> Rows:
    keys = encode(frame, fields)
    dense, none = np.zeros((len(frame), 0), np.float32), np.zeros(len(frame))
    return Rows(0, frame, keys, dense, shown_s=none, is_warmup=False, corrects=none > 0.0)


def test_a_field_is_a_namespace_with_the_keys_of_its_values() -> None:
    columns = {
        "field.user_id": ["u", None],
        "field.tags": [["x", "y"], []],
        "field.price": [math.e - 1.0, None],
        "field.ad_id": ["a|:b c", "d"],  # what VW's text would trip over
    }
    frame = pl.DataFrame(columns)
    first, second = example_lines(rows(frame, FIELDS), FIELDS).to_list()
    user, tags, price, ad = (part.split() for part in first.split("|")[1:])
    assert user == ["a0", str(field_key(FIELDS[0], "u"))]
    assert sorted(tags[1:]) == sorted(str(field_key(FIELDS[1], tag)) for tag in "xy")
    assert price[2] == "size:1.0"
    assert ad == ["d3", str(field_key(FIELDS[3], "a|:b c"))]
    assert second == f"|a0 |b1 |c2 |d3 {field_key(FIELDS[3], 'd')}"  # no cross: VW makes pairs itself


def test_more_fields_than_letters_still_have_names_of_their_own() -> None:
    fields = tuple(Field(f"f{at}", "item") for at in range(len(LETTERS) + 2))
    frame = pl.DataFrame({field.column: ["v"] for field in fields})
    names = [part.split()[0] for part in example_lines(rows(frame, fields), fields).to_list()[0].split("|")[1:]]
    assert len(set(names)) == len(fields)
