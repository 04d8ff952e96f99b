"""The ads that can be named by id: what each is described by, in memory.

Owns the record of the topic `catalog` and the rule for which value wins. Must not know where records come from or how
ads are scored.

Invariants: an ad is whole or absent; values that a caller gives win over the catalog's, field by field; the field that
identifies an ad holds its ad_id, whatever the values say; the number of ads has a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from features.fields import Field, id_field
from models.serving.bodies import ValueReader
from models.serving.schema import Ad, Clean, Id

VERSION = 1
ADS_MAX = 2_000_000  # chosen by hand: about 2 GB of values, the most that one process should hold
BID_MICROS_MAX = 10**12  # a million of a currency for one click: a larger one is a slip; by hand


class CatalogAd(msgspec.Struct, frozen=True):
    """A record of the topic `catalog`: one ad, whole."""

    ad_id: Id
    values: dict[str, Any] = {}
    bid_micros: Annotated[int, msgspec.Meta(ge=0, le=BID_MICROS_MAX)] = 0
    active: bool = True
    v: int = VERSION


class Resolved(msgspec.Struct, frozen=True):
    """Candidates with all their values; `known` and `ads` go together, `inactive` ones are in neither."""

    ads: list[Ad]
    known: list[bool]
    inactive: list[str]


_decoder = msgspec.json.Decoder(CatalogAd)


class AdReader:
    """Checks records of the catalog against the fields of a deployment."""

    def __init__(self, fields: Sequence[Field]) -> None:
        """Keep the kinds of the fields that an ad has."""
        self._values = ValueReader(fields, ("item", "creative"))

    def read(self, value: bytes, ignored: set[str]) -> CatalogAd:
        """Return the ad, its values those that have a field; the names of the others go into `ignored`.

        Raises:
            ValueError: If the record is no ad; says the rule and what was found, but not of which record.
        """
        try:
            ad = _decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"must be an ad in JSON, got: {error}") from None
        if ad.v != VERSION:
            raise ValueError(f"must have version {VERSION}, got {ad.v}")
        try:
            values = self._values.read(ad.values, "values", ignored)
        except ValueError as error:
            raise ValueError(f"must hold values of their fields' kinds: {error}") from None
        return msgspec.structs.replace(ad, values=values)


class Catalog:
    """The current ads by id."""

    def __init__(self, fields: Sequence[Field], *, ads_max: int = ADS_MAX) -> None:
        """Begin with no ad."""
        named = id_field(fields, "item")
        assert named is not None, "settings without an item id field cannot be read"
        self._id_name = named.name
        self._reader = AdReader(fields)
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
        try:
            ad = self._reader.read(value, set())
        except ValueError as error:
            raise ValueError(f'[catalog] the record of "{ad_id}" {error}') from None
        if ad.ad_id != ad_id:
            raise ValueError(f'[catalog] the record of "{ad_id}" must name its key, got "{ad.ad_id}"')
        if not ad.active:
            self._ads.pop(ad_id, None)
            self._inactive.add(ad_id)
            return
        if len(self._ads) >= self._ads_max and ad_id not in self._ads:
            raise ValueError(f'[catalog] must hold at most {self._ads_max} ads, got one more: "{ad_id}"')
        self._inactive.discard(ad_id)
        self._ads[ad_id] = ad.values | {self._id_name: ad_id}

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
