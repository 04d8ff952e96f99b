import math

import numpy as np
import polars as pl

from features.fields import Field
from models.strategies.controls.numbers import log_numbers

FIELDS = (Field("price", "item", "number"), Field("ad_id", "item"), Field("age", "user", "number"))


def test_numbers_keep_their_order_and_stay_small() -> None:
    values = [-math.inf, -1e300, -1.0, 0.0, 1e-3, 7.0, 1e300, math.inf]
    frame = pl.DataFrame({"field.price": values, "field.age": [None, math.nan, *[3.0] * 6]})
    numbers = log_numbers(frame, FIELDS)
    assert numbers.shape == (8, 2)
    assert (np.diff(numbers[:, 0]) > 0.0).all()
    assert np.abs(numbers[:, 0]).max() < 710.0
    assert np.isnan(numbers[:2, 1]).all()
    assert np.allclose(numbers[2:, 1], math.log(4.0))


def test_without_number_fields_there_are_none() -> None:
    assert log_numbers(pl.DataFrame({"field.ad_id": ["a", "b"]}), FIELDS[1:2]).shape == (2, 0)
