"""The ads of a log's joined files, those never shown included, as records of the catalog.

Owns which joined file describes ads (joined on the ad's id) and which their creatives (joined on the creative's id,
with a column that holds the ad's). Must not know topics or what a ranking service makes of an ad.

Invariants: an ad's values are read as its rows' are, so that what is served is what was learnt; an ad without an id, or
with one that no event may carry, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from features.fields import Field, id_field, raw_fields
from infra.settings import Join, LogSettings
from models.serving.ad_table import BID_MICROS
from models.serving.catalog import BID_MICROS_MAX, CREATIVES_MAX, CatalogAd, CatalogCreative
from stream.events import ID_CHARS_MAX
from stream.logs.columns import categories, field_values, numbers
from stream.logs.files import columns_of, find_files, read_whole


class JoinedAds(NamedTuple):
    """The ads of the joined files.

    Attributes:
        ads: By id.
        is_complete: The files hold every field of an ad, and its creatives where there is a field of theirs: rows of
            the log have nothing to add.
    """

    ads: dict[str, CatalogAd]
    is_complete: bool


def read_ads(log: LogSettings, fields: Sequence[Field], bases: Sequence[Path]) -> JoinedAds:
    """Return the ads of the files that the log is joined with; none where no file is joined on the ad's id.

    Raises:
        LogError: If a file cannot be read.
    """
    item, creative = id_field(fields, "item"), id_field(fields, "creative")
    assert item is not None, "check_fields asks for an item id"
    joins = {join.on: join for join in log.joins}
    if item.name not in joins:
        return JoinedAds({}, is_complete=False)
    of_ads, has_all = _read(joins[item.name], item, log, fields, bases)
    creatives: dict[str, list[CatalogCreative]] = {}
    if creative is not None and creative.name in joins:
        of_creatives, has_all_of_creatives = _read(joins[creative.name], creative, log, fields, bases)
        has_all &= has_all_of_creatives
        for row in of_creatives:
            creatives.setdefault(row.ad_id or "", []).append(CatalogCreative(row.own_id, row.values))
    ads = {
        row.own_id: CatalogAd(
            row.own_id, row.values, row.bid_micros, creatives=creatives.get(row.own_id, [])[:CREATIVES_MAX]
        )
        for row in of_ads
    }
    return JoinedAds(ads, is_complete=has_all and (creative is None or creative.name in joins))


class _Row(NamedTuple):
    own_id: str
    ad_id: str | None
    bid_micros: int
    values: dict[str, Any]


def _read(
    join: Join, named: Field, log: LogSettings, fields: Sequence[Field], bases: Sequence[Path]
) -> tuple[list[_Row], bool]:
    """Return the usable rows of a joined file, and whether it holds all fields of the side that `named` identifies."""
    path = find_files(join.file, bases)[0]
    columns = columns_of(path, log.separator)
    item = id_field(fields, "item")
    ad_column = item.name if item and item.name in columns else None
    bid_column = log.bid_micros if log.bid_micros in columns else None
    wanted = [field for field in raw_fields(fields) if field.side == named.side]
    present = [field for field in wanted if field.name in columns]
    names = {field.name for field in present} | {join.on, ad_column, bid_column}
    table = read_whole(path, sorted(filter(None, names)), log.separator)
    nothing = [None] * table.height
    own_ids = categories(table[join.on]).to_list()
    ad_ids = categories(table[ad_column]).to_list() if ad_column else nothing
    bids = [_bid(bid) for bid in numbers(table[bid_column])] if bid_column else [BID_MICROS] * table.height
    values = pl.DataFrame([field_values(table[field.name], field).alias(field.name) for field in present]).to_dicts()
    rows = [
        _Row(*row) for row in zip(own_ids, ad_ids, bids, values, strict=True) if row[0] and len(row[0]) <= ID_CHARS_MAX
    ]
    return rows, present == wanted


def _bid(micros: float | None) -> int:
    return int(min(max(micros or 0.0, 0.0), BID_MICROS_MAX))
