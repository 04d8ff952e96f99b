"""The ads that can be named by id: what each is described by, what it bids and the creatives it has, in memory.

Owns the record of the topic `catalog` and the rule for which value wins. Must not know where records come from or how
ads are scored.

Invariants: an ad is whole or absent; values that a caller gives win over the catalog's, field by field; the fields that
identify an ad and a creative hold their ids, whatever the values say; a creative's own values win over what its ad says
of all of them; the number of ads, and of an ad's creatives, has a limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from features.encode import Keys, ValueEncoder
from features.fields import Field, field_slots, id_field, raw_fields, slot_counts
from models.serving.bodies import ValueReader
from models.serving.schema import Ad, Clean, Id

VERSION = 1
ADS_MAX = 2_000_000  # chosen by hand: about 2 GB of values, the most that one process should hold
BID_MICROS_MAX = 10**12  # a million of a currency for one click: a larger one is a slip; by hand
CREATIVES_MAX = 100  # of one ad: each is scored with every request that shows the ad; chosen by hand
BID_MICROS = 1_000_000  # of ads that say none: one for all, so that they rank by their click probability


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


class Creative(msgspec.Struct, frozen=True, gc=False):
    """A way to show an ad.

    Attributes:
        creative_id: Which.
        values: Of the creative's side, that it is scored on.
        keys: Of those values, (their S,).
        tail: Those values as JSON, to be put behind its ad's `head`.
    """

    creative_id: str
    values: dict[str, Clean]
    keys: Keys
    tail: bytes


class Held(msgspec.Struct, frozen=True, gc=False):
    """What the catalog holds of an active ad.

    Attributes:
        values: What it is scored on.
        keys: Of those values, (S,), as `Catalog.encoder` gives them.
        bid_micros: Its bid.
        creatives: The ways to show it.
        creative_keys: The keys of their ids, (how many,).
        creative_names: What each is called among the creatives of all ads.
        head: The values that are the same whatever the creative, as JSON without its end.
        tail: The rest where none is chosen.
    """

    values: dict[str, Clean]
    keys: Keys
    bid_micros: int
    creatives: tuple[Creative, ...]
    creative_keys: Keys
    creative_names: tuple[str, ...]
    head: bytes
    tail: bytes


class Resolved:
    """The candidates that may be ranked, with what is known of them.

    Attributes:
        ids: In the order asked.
        held: What the catalog holds of each; None: nothing.
        own: Values that the caller gave, by id.
        inactive: Ids of the others.
        chosen: With which creative some are shown, by their place.
    """

    def __init__(
        self,
        catalog: Catalog,
        ids: list[str],
        held: list[Held | None],
        own: Mapping[str, dict[str, Clean]],
        inactive: list[str],
    ) -> None:
        """Take what `Catalog.resolve` found."""
        self.ids = ids
        self.held = held
        self.own = own
        self.inactive = inactive
        self.chosen: dict[int, Creative] = {}
        self._catalog = catalog

    def __len__(self) -> int:
        """Return how many may be ranked."""
        return len(self.ids)

    def values(self, index: int) -> dict[str, Clean]:
        """Return the values of a candidate, the caller's over the catalog's."""
        ad_id, held = self.ids[index], self.held[index]
        known = held.values if held else {}
        if creative := self.chosen.get(index):
            others = {name: value for name, value in known.items() if name not in self._catalog.of_creatives}
            known = others | creative.values
        return {**known, **self.own.get(ad_id, {}), self._catalog.id_name: ad_id}

    def has_choice(self, index: int) -> bool:
        """Tell whether a candidate has creatives, and the caller named none of them."""
        held, own = self.held[index], self.own.get(self.ids[index])
        return bool(held and held.creatives) and not (own and self._catalog.creative_name in own)

    def bid_micros(self, index: int) -> int:
        """Return what a click of a candidate is worth, in millionths."""
        held = self.held[index]
        return held.bid_micros if held else BID_MICROS

    def ads(self, indices: Iterable[int]) -> list[Ad]:
        """Return candidates with all their values."""
        return [Ad(self.ids[index], msgspec.Raw(self._json(index))) for index in indices]

    def keys(self, indices: Sequence[int]) -> Keys:
        """Return the keys of candidates' values, (their number, S)."""
        if not indices:
            return self._catalog.encoder.keys({})[None][:0]
        as_held = [self._as_held(index) for index in indices]
        keys = np.stack(
            [
                self._catalog.encoder.keys(self.values(index)) if held is None else held.keys
                for index, held in zip(indices, as_held, strict=True)
            ]
        )
        chosen = [
            (row, creative.keys)
            for row, index in enumerate(indices)
            if (creative := self.chosen.get(index)) is not None and as_held[row] is not None
        ]
        if chosen:
            rows, of_creatives = zip(*chosen, strict=True)
            keys[np.array(rows)[:, None], self._catalog.creative_slots] = np.stack(of_creatives)
        return keys

    def _as_held(self, index: int) -> Held | None:
        """Return what is held of a candidate if that is all that is known of it."""
        return None if self.own and self.ids[index] in self.own else self.held[index]

    def _json(self, index: int) -> bytes:
        held = self._as_held(index)
        if held is None:
            return _encode(self.values(index))
        creative = self.chosen.get(index)
        return held.head + (held.tail if creative is None else creative.tail)


_decoder = msgspec.json.Decoder(CatalogAd)
_encode = msgspec.json.Encoder().encode


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
        id_name: The field that holds an ad's id.
        creative_name: The field that holds a creative's id; empty: there is none.
        encoder: Of the values of ads and their creatives.
        creative_slots: Which of its slots a creative fills.
        of_creatives: Names of the fields of creatives.
    """

    def __init__(self, fields: Sequence[Field], *, ads_max: int = ADS_MAX) -> None:
        """Begin with no ad."""
        named, creative = id_field(fields, "item"), id_field(fields, "creative")
        assert named is not None, "settings without an item id field cannot be read"
        self.id_name = named.name
        self.creative_name = creative.name if creative else ""
        self._creative_encoder = ValueEncoder([field for field in raw_fields(fields) if field.side == "creative"])
        self.of_creatives = {field.name for field in raw_fields(fields) if field.side == "creative"}
        self.encoder = ValueEncoder([field for field in raw_fields(fields) if field.side in ("item", "creative")])
        widths = slot_counts(self.encoder.fields)
        self.creative_slots = np.flatnonzero(np.repeat([f.side == "creative" for f in self.encoder.fields], widths))
        of_creatives = self._creative_encoder.fields
        self._creative_slot = field_slots(of_creatives)[of_creatives.index(creative)].start if creative else None
        self._reader = AdReader(fields)
        self._ads_max = ads_max
        self._ads: dict[str, Held] = {}
        self._inactive: set[str] = set()
        self._changed: set[str] = set()

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
            self._ads.pop(ad_id, None)
            self._inactive.add(ad_id)
            return
        if len(self._ads) >= self._ads_max and ad_id not in self._ads:
            raise ValueError(f'[catalog] must hold at most {self._ads_max} ads, got one more: "{ad_id}"')
        self._inactive.discard(ad_id)
        self._ads[ad_id] = self._held(ad)

    def take_changed(self) -> dict[str, Held | None]:
        """Return the ads that changed since the last call as they are now; None: the ad is not active any more."""
        changed, self._changed = self._changed, set()
        return {ad_id: self._ads.get(ad_id) for ad_id in changed}

    def all_ads(self) -> dict[str, Held | None]:
        """Return every active ad."""
        return dict(self._ads)

    def resolve(self, ids: list[str], own: Mapping[str, dict[str, Clean]]) -> Resolved:
        """Return what is known of candidates.

        Args:
            ids: Which, each once.
            own: Values that the caller gave for some, by id; they win over the catalog's.
        """
        held = list(map(self._ads.get, ids))
        inactive = [ad_id for ad_id in ids if ad_id in self._inactive] if self._inactive and None in held else []
        if inactive:
            gone = {*inactive}
            ids = [ad_id for ad_id in ids if ad_id not in gone]
            held = list(map(self._ads.get, ids))
        return Resolved(self, ids, held, own, inactive)

    def _held(self, ad: CatalogAd) -> Held:
        shared = {name: value for name, value in ad.values.items() if name in self.of_creatives}
        creatives = tuple(self._creative(one.creative_id, shared | one.values) for one in ad.creatives)
        first = creatives[0].values if creatives else {}
        values = ad.values | first | {self.id_name: ad.ad_id}
        slot = self._creative_slot
        ids = np.array([0 if slot is None else one.keys[slot] for one in creatives], np.uint64)
        head = _encode(
            {name: value for name, value in values.items() if not creatives or name not in self.of_creatives}
        )
        tail = creatives[0].tail if creatives else b"}"
        names = tuple(f"{ad.ad_id}\n{one.creative_id}" for one in creatives)
        return Held(values, self.encoder.keys(values), ad.bid_micros, creatives, ids, names, head[:-1], tail)

    def keys_with(self, held: Held, creative: Creative) -> Keys:
        """Return the keys of an ad that is shown with a creative, (S,)."""
        keys = held.keys.copy()
        keys[self.creative_slots] = creative.keys
        return keys

    def _creative(self, creative_id: str, values: dict[str, Clean]) -> Creative:
        named = values | ({self.creative_name: creative_id} if self.creative_name else {})
        tail = b"," + _encode(named)[1:] if named else b"}"
        return Creative(creative_id, named, self._creative_encoder.keys(named), tail)
