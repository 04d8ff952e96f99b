"""Feast's side of a deployment: the entity `user`, the view `user`, and the push source that fills it.

Owns the types of the columns. Must not know where values come from or which store holds them. A function of
the deployment's fields alone, so every process makes the same definitions and no registry has to be shared.

Importing this imports Feast, which takes seconds: only features/store.py does, when a store is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import feast
from feast.feast_object import FeastObject
from feast.types import Array, FeastType, Float64, String

from features.fields import Field, Kind
from features.store import AS_OF, CLICKS, EVENT_TIME, ID, IMPRESSIONS, VIEW, value_column

_TYPES: dict[Kind, FeastType] = {"category": String, "categories": Array(String), "number": Float64}


def definitions(fields: Sequence[Field]) -> list[FeastObject]:
    """Return everything that Feast has to know of a deployment.

    Args:
        fields: The user's side but for the id.
    """
    user = feast.Entity(name=VIEW, join_keys=[ID], value_type=feast.ValueType.STRING)
    # Feast wants a batch source beside each push source; nothing is ever read from it.
    never_read = feast.FileSource(name="never_read", path="never_read.parquet", timestamp_field=EVENT_TIME)
    source = feast.PushSource(name=VIEW, batch_source=never_read)
    schema = [
        feast.Field(name=AS_OF, dtype=Float64),
        feast.Field(name=IMPRESSIONS, dtype=Array(Float64)),
        feast.Field(name=CLICKS, dtype=Array(Float64)),
        *(feast.Field(name=value_column(field), dtype=_TYPES[field.kind]) for field in fields),
    ]
    view = feast.FeatureView(name=VIEW, entities=[user], ttl=timedelta(0), schema=schema, source=source, online=True)
    return [user, source, view]
