"""The ads that can be named by id: what each is described by, what it bids and the creatives it has.

Owns the record of the topic `catalog`, and which ads may be shown. Must not know where records come from, how ads are
held (ad_table.py) or how they are scored.

Invariants: a creative's own values win over what its ad says of all of them; the number of ads, and of an ad's
creatives, has a limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from features.fields import Field
from models.serving.ad_table import BID_MICROS, AdTable, Held, Resolved
from models.serving.bodies import ValueReader
from models.serving.schema import Clean, Id

VERSION = 1
ADS_MAX = 2_000_000  # chosen by hand: about 2 GB of values, the most that one process should hold
BID_MICROS_MAX = 10**12  # a million of a currency for one click: a larger one is a slip; by hand
CREATIVES_MAX = 100  # of one ad: each is scored with every request that shows the ad; chosen by hand


class CatalogCreative(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way to show an ad.

    Attributes:
        creative_id: Which; unique within its ad.
        values: By field of the creative's side.
    """

    creative_id: Id
    values: dict[str, Any] = {}


class CatalogAd(msgspec.Struct, frozen=True):
    """A record of the topic `catalog`: one ad, whole.

    Attributes:
        ad_id: Which; the record's key.
        values: By field of the item's side; those of the creative's side hold for all its creatives.
        bid_micros: What a click is worth to the advertiser, in millionths; left out: the same as of all without.
        active: It may be shown.
        creatives: The ways to show it; none: it is shown as it is.
    """

    ad_id: Id
    values: dict[str, Any] = {}
    bid_micros: Annotated[int, msgspec.Meta(ge=0, le=BID_MICROS_MAX)] = BID_MICROS
    active: bool = True
    creatives: Annotated[list[CatalogCreative], msgspec.Meta(max_length=CREATIVES_MAX)] = []
    v: int = VERSION


_decoder = msgspec.json.Decoder(CatalogAd)


class AdReader:
    """Checks records of the catalog against the fields of a deployment."""

    def __init__(self, fields: Sequence[Field]) -> None:
        """Keep the kinds of the fields that an ad and its creatives have."""
        self._values = ValueReader(fields, ("item", "creative"))
        self._creative = ValueReader(fields, ("creative",))

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
            creatives = [
                CatalogCreative(one.creative_id, self._creative.read(one.values, "creatives.values", ignored))
                for one in ad.creatives
            ]
        except ValueError as error:
            raise ValueError(f"must hold values of their fields' kinds: {error}") from None
        if twice := _twice(one.creative_id for one in creatives):
            raise ValueError(f'must hold each creative once, got "{twice}" more often')
        return msgspec.structs.replace(ad, values=values, creatives=creatives)


def _twice(names: Iterable[str]) -> str | None:
    """Return a name that stands there more than once, None if there is none."""
    counts = Counter(names)
    return next((name for name, count in counts.items() if count > 1), None)


class Catalog:
    """The current ads by id.

    Attributes:
        table: Those that may be shown.
    """

    def __init__(self, fields: Sequence[Field], *, ads_max: int = ADS_MAX) -> None:
        """Begin with no ad."""
        self.table = AdTable(fields)
        self._reader = AdReader(fields)
        self._ads_max = ads_max
        self._inactive: set[str] = set()
        self._changed: set[str] = set()

    def __len__(self) -> int:
        """Return how many ads are active."""
        return len(self.table)

    def put(self, ad_id: str, value: bytes | None) -> None:
        """Take the newest record of an ad; None removes it.

        Raises:
            ValueError: If the record is no ad, is another's, or is one too many.
        """
        if value is None:
            self.table.remove(ad_id)
            self._inactive.discard(ad_id)
            self._changed.add(ad_id)
            return
        try:
            ad = self._reader.read(value, set())
        except ValueError as error:
            raise ValueError(f'[catalog] the record of "{ad_id}" {error}') from None
        if ad.ad_id != ad_id:
            raise ValueError(f'[catalog] the record of "{ad_id}" must name its key, got "{ad.ad_id}"')
        self._changed.add(ad_id)
        if not ad.active:
            self.table.remove(ad_id)
            self._inactive.add(ad_id)
            return
        if len(self.table) >= self._ads_max and ad_id not in self.table:
            raise ValueError(f'[catalog] must hold at most {self._ads_max} ads, got one more: "{ad_id}"')
        self._inactive.discard(ad_id)
        self.table.put(ad_id, ad.values, ad.bid_micros, {one.creative_id: one.values for one in ad.creatives})

    def take_changed(self) -> dict[str, Held | None]:
        """Return the ads that changed since the last call as they are now; None: the ad is not active any more."""
        changed, self._changed = self._changed, set()
        return {ad_id: self.table.get(ad_id) for ad_id in changed}

    def resolve(self, ids: list[str], own: Mapping[str, dict[str, Clean]]) -> tuple[Resolved, list[str]]:
        """Return what is known of the candidates that may be shown, and the ids of the others.

        Args:
            ids: Which, each once.
            own: Values that the caller gave for some, by id; they win over the catalog's.
        """
        found = self.table.resolve(ids, own)
        unknown = np.flatnonzero(found.rows == 0).tolist() if self._inactive else []
        if not (gone := [index for index in unknown if ids[index] in self._inactive]):
            return found, []
        return found.without(gone), [ids[index] for index in gone]
