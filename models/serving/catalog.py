"""The ads that can be named by id: what each is described by, in memory.

Owns the record of the topic `catalog` and the rule for which value wins. Must not know where records come from or how
ads are scored.

Invariants: an ad is whole or absent; values that a caller gives win over the catalog's, field by field; the field that
identifies an ad holds its ad_id, whatever the values say; the number of ads has a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from features.fields import Field, id_field
from models.serving.bodies import ValueReader
from models.serving.schema import Ad, Clean, Id

VERSION = 1
ADS_MAX = 2_000_000  # chosen by hand: about 2 GB of values, the most that one process should hold


class CatalogAd(msgspec.Struct, frozen=True):
    """A record of the topic `catalog`: one ad, whole."""

    ad_id: Id
    values: dict[str, Any] = {}
    bid_micros: int = 0
    active: bool = True
    v: int = VERSION


class Resolved(msgspec.Struct, frozen=True):
    """Candidates with all their values; `known` and `ads` go together, `inactive` ones are in neither."""

    ads: list[Ad]
    known: list[bool]
    inactive: list[str]


_decoder = msgspec.json.Decoder(CatalogAd)


class Catalog:
    """The current ads by id."""

    def __init__(self, fields: Sequence[Field], *, ads_max: int = ADS_MAX) -> None:
        """Begin with no ad."""
        named = id_field(fields, "item")
        assert named is not None, "settings without an item id field cannot be read"
        self._id_name = named.name
        self._values = ValueReader(fields, ("item", "creative"))
        self._ads_max = ads_max
        self._ads: dict[str, dict[str, Clean]] = {}
        self._inactive: set[str] = set()

    def __len__(self) -> int:
        """Return how many ads are active."""
        return len(self._ads)

    def put(self, ad_id: str, value: bytes | None) -> None:
        """Take the newest record of an ad; None removes it.

        Raises:
            ValueError: If the record is no ad, is another's, or is one too many.
        """
        if value is None:
            self._ads.pop(ad_id, None)
            self._inactive.discard(ad_id)
            return
        ad = _read(ad_id, value)
        values = self._values.read(ad.values, "values", set())
        if not ad.active:
            self._ads.pop(ad_id, None)
            self._inactive.add(ad_id)
            return
        if len(self._ads) >= self._ads_max and ad_id not in self._ads:
            raise ValueError(f'[catalog] must hold at most {self._ads_max} ads, got one more: "{ad_id}"')
        self._inactive.discard(ad_id)
        self._ads[ad_id] = values | {self._id_name: ad_id}

    def resolve(self, asked: Iterable[Ad]) -> Resolved:
        """Return the candidates with the catalog's values under their own."""
        ads: list[Ad] = []
        known: list[bool] = []
        inactive: list[str] = []
        for ad in asked:
            if ad.ad_id in self._inactive:
                inactive.append(ad.ad_id)
                continue
            held = self._ads.get(ad.ad_id)
            ads.append(Ad(ad.ad_id, self._merged(ad, held)))
            known.append(held is not None)
        return Resolved(ads, known, inactive)

    def _merged(self, ad: Ad, held: dict[str, Clean] | None) -> dict[str, Clean]:
        if held is not None and not ad.values:
            return held
        return {**(held or {}), **ad.values, self._id_name: ad.ad_id}


def _read(ad_id: str, value: bytes) -> CatalogAd:
    try:
        ad = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f'[catalog] the record of "{ad_id}" must be an ad in JSON, got: {error}') from None
    if ad.v != VERSION:
        raise ValueError(f'[catalog] the record of "{ad_id}" must have version {VERSION}, got {ad.v}')
    if ad.ad_id != ad_id:
        raise ValueError(f'[catalog] the record of "{ad_id}" must name its key, got "{ad.ad_id}"')
    return ad
