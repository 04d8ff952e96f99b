"""The active ads, column by column, and what of them a request asks for.

Owns where an ad stands, and which of its values win in a request. Must not know records, requests' bodies or how ads
are scored.

One look-up of a candidate's id gives its row; all else is taken from columns by rows. Row 0 is of what is not known.

Invariants: an ad is whole or absent; values that a caller gives win over the table's, field by field; the fields that
identify an ad and a creative hold their ids, whatever the values say; what is known of an ad or of one of its creatives
has a number, which never stands for anything else; `Resolved` is to be read before the table changes again.

Shape legend: `A` rows, `K` candidates, `S` slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from features.encode import Keys, ValueEncoder, field_key
from features.fields import Field, field_slots, id_field, raw_fields
from features.priors import Floats, Ints
from models.serving.schema import Ad, Clean

BID_MICROS = 1_000_000  # of ads that say none: one for all, so that they rank by their click probability
NO_NUMBER = -1
_ROWS_MIN = 1024
_encode = msgspec.json.Encoder().encode


class Creative(msgspec.Struct, frozen=True, gc=False):
    """A way to show an ad.

    Attributes:
        creative_id: Which.
        values: Of the creative's side, that it is scored on.
        keys: Of the values of its ad when it is shown with it, (S,), as `AdTable.encoder` gives them.
        tail: Its end of the ad as JSON, instead of its ad's.
    """

    creative_id: str
    values: dict[str, Clean]
    keys: Keys
    tail: bytes


class Held(msgspec.Struct, frozen=True, gc=False):
    """What is known of an ad.

    Attributes:
        number: What it is known by.
        values: What it is scored on where no creative is chosen.
        keys: Of those values, (S,).
        creatives: The ways to show it.
        creative_keys: The keys of their ids, (how many,).
        creative_numbers: Theirs, (how many,).
        head: The ad as JSON (`Ad`) up to the values that are the same whatever the creative.
        tail: The other values where none is chosen, and the end of the values.
    """

    number: int
    values: dict[str, Clean]
    keys: Keys
    creatives: tuple[Creative, ...]
    creative_keys: Keys
    creative_numbers: Ints
    head: bytes
    tail: bytes


class AdTable:
    """The columns.

    Attributes:
        id_name: The field that holds an ad's id.
        creative_name: The field that holds a creative's id; empty: there is none.
        encoder: Of the values of ads and their creatives.
        id_slot: Which of its slots holds the key of an ad's id.
        of_creatives: Names of the fields of creatives.
        keys: Of each ad's values, (A, S), as `encoder` gives them.
        bids: In millionths, (A,).
        numbers: (A,).
        held: Each ad itself, A; None where the row is free.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        """Begin with no ad."""
        named, creative = id_field(fields, "item"), id_field(fields, "creative")
        assert named is not None, "settings without an item id field cannot be read"
        self.id_name = named.name
        self.creative_name = creative.name if creative else ""
        self.of_creatives = {field.name for field in raw_fields(fields) if field.side == "creative"}
        self.encoder = ValueEncoder([field for field in raw_fields(fields) if field.side in ("item", "creative")])
        self._named = named
        slots = dict(zip(self.encoder.fields, field_slots(self.encoder.fields), strict=True))
        self.id_slot = slots[named].start
        self._creative_slot = slots[creative].start if creative else None
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._next_number = itertools.count()
        self.keys = np.zeros((_ROWS_MIN, len(self.encoder.keys({}))), np.uint64)
        self.bids = np.full(_ROWS_MIN, BID_MICROS, np.int64)
        self.numbers = np.full(_ROWS_MIN, NO_NUMBER, np.int64)
        self.held: list[Held | None] = [None]

    def __len__(self) -> int:
        """Return how many ads there are."""
        return len(self._rows)

    def __contains__(self, ad_id: str) -> bool:
        """Return whether an ad is there."""
        return ad_id in self._rows

    def get(self, ad_id: str) -> Held | None:
        """Return an ad, None if it is not there."""
        return self.held[self._rows.get(ad_id, 0)]

    def all_ads(self) -> dict[str, Held | None]:
        """Return every ad by its id."""
        return {ad_id: self.held[row] for ad_id, row in self._rows.items()}

    def put(
        self, ad_id: str, values: Mapping[str, Clean], bid_micros: int, creatives: Mapping[str, dict[str, Clean]]
    ) -> None:
        """Hold an ad, whatever was held of it before.

        Args:
            ad_id: Which.
            values: Its own; those of the creative's side hold for all its creatives.
            bid_micros: What a click of it is worth, in millionths.
            creatives: The values of each by its id.
        """
        held = self._held(ad_id, values, creatives)
        row = self._rows.get(ad_id, 0) or self._new_row()
        self._rows[ad_id] = row
        self.held[row] = held
        self.keys[row] = held.keys
        self.bids[row] = bid_micros
        self.numbers[row] = held.number

    def remove(self, ad_id: str) -> None:
        """Hold an ad no longer."""
        if row := self._rows.pop(ad_id, 0):
            self.held[row] = None
            self._free.append(row)

    def resolve(self, ids: list[str], own: Mapping[str, dict[str, Clean]]) -> Resolved:
        """Return what is known of candidates.

        Args:
            ids: Which, each once.
            own: Values that the caller gave for some, by id.
        """
        rows = np.fromiter(map(self._rows.get, ids, itertools.repeat(0)), np.int64, len(ids))
        return Resolved(self, ids, rows, own)

    def id_key(self, ad_id: str) -> int:
        """Return the key of an ad's id."""
        return field_key(self._named, ad_id)

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        row = len(self.held)
        self.held.append(None)
        if row == len(self.keys):
            self.keys, self.bids, self.numbers = (
                np.concatenate([column, np.zeros_like(column)]) for column in (self.keys, self.bids, self.numbers)
            )
        return row

    def _held(self, ad_id: str, own: Mapping[str, Clean], creatives: Mapping[str, dict[str, Clean]]) -> Held:
        shared = {name: value for name, value in own.items() if name in self.of_creatives}
        of_ad = {name: value for name, value in own.items() if name not in self.of_creatives} | {self.id_name: ad_id}
        made = tuple(self._creative(of_ad, name, shared | values) for name, values in creatives.items())
        slot, values = self._creative_slot, of_ad | (made[0].values if made else shared)
        return Held(
            number=next(self._next_number),
            values=values,
            keys=self.encoder.keys(values),
            creatives=made,
            creative_keys=np.array([0 if slot is None else one.keys[slot] for one in made], np.uint64),
            creative_numbers=np.fromiter(itertools.islice(self._next_number, len(made)), np.int64, len(made)),
            head=b'{"ad_id":' + _encode(ad_id) + b',"values":' + _encode(of_ad)[:-1],
            tail=made[0].tail if made else _tail(shared),
        )

    def _creative(self, of_ad: dict[str, Clean], creative_id: str, values: dict[str, Clean]) -> Creative:
        named = values | ({self.creative_name: creative_id} if self.creative_name else {})
        return Creative(creative_id, named, self.encoder.keys(of_ad | named), _tail(named))


class Resolved:
    """Candidates with what is known of them.

    Attributes:
        ids: In the order asked.
        rows: Of each, (K,).
        numbers: Of what is known of each, (K,); `NO_NUMBER` where that is nothing, or the caller gave values.
        chosen: With which creative some are shown, by their place.
    """

    def __init__(self, table: AdTable, ids: list[str], rows: Ints, own: Mapping[str, dict[str, Clean]]) -> None:
        """Take what `AdTable.resolve` found."""
        self.ids = ids
        self.rows = rows
        self.chosen: dict[int, Creative] = {}
        self._table = table
        self._own = own
        self._whole = rows  # where what is held is all that is known; 0 elsewhere
        if own:
            self._whole = rows.copy()
            self._whole[[index for index, ad_id in enumerate(ids) if ad_id in own]] = 0
        self.numbers = table.numbers[self._whole]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.ids)

    def without(self, indices: Sequence[int]) -> Resolved:
        """Return the others."""
        others = np.delete(np.arange(len(self.ids)), indices)
        return Resolved(self._table, [self.ids[index] for index in others.tolist()], self.rows[others], self._own)

    def held(self, index: int) -> Held | None:
        """Return what the table holds of a candidate; None: nothing."""
        return self._table.held[int(self.rows[index])]

    def values(self, index: int) -> dict[str, Clean]:
        """Return the values of a candidate, the caller's over the table's."""
        ad_id, held = self.ids[index], self.held(index)
        known = held.values if held else {}
        if creative := self.chosen.get(index):
            others = {name: value for name, value in known.items() if name not in self._table.of_creatives}
            known = others | creative.values
        return {**known, **self._own.get(ad_id, {}), self._table.id_name: ad_id}

    def with_choice(self, indices: Sequence[int]) -> list[tuple[int, Held]]:
        """Return those candidates, by their places, that have creatives of which the caller named none."""
        held, name = self._table.held, self._table.creative_name
        rows = self.rows[np.asarray(indices, np.int64)].tolist()
        found = [(index, one) for index, row in zip(indices, rows, strict=True) if (one := held[row]) and one.creatives]
        return [one for one in found if name not in self._own.get(self.ids[one[0]], ())] if self._own else found

    def bids(self, indices: Sequence[int]) -> Floats:
        """Return what a click of each candidate is worth, in millionths."""
        return self._table.bids[self.rows[np.asarray(indices, np.int64)]].astype(np.float64)

    def id_keys(self, indices: Sequence[int] | slice = slice(None)) -> Keys:
        """Return the keys of candidates' ids."""
        at = indices if isinstance(indices, slice) else np.asarray(indices, np.int64)
        rows = self.rows[at]
        keys: Keys = self._table.keys[rows, self._table.id_slot]
        if len(unknown := np.flatnonzero(rows == 0)):
            places = np.arange(len(self.ids))[at]
            keys[unknown] = [self._table.id_key(self.ids[place]) for place in places[unknown]]
        return keys

    def keys(self, indices: Sequence[int]) -> Keys:
        """Return the keys of candidates' values, (their number, S)."""
        whole = self._whole[np.asarray(indices, np.int64)]
        keys: Keys = self._table.keys[whole]
        if self.chosen:
            chosen = [(place, one.keys) for place, index in enumerate(indices) if (one := self.chosen.get(index))]
            if chosen:
                places, of_chosen = zip(*chosen, strict=True)
                keys[list(places)] = np.concatenate(of_chosen).reshape(len(places), -1)
        for place in np.flatnonzero(whole == 0).tolist():
            keys[place] = self._table.encoder.keys(self.values(indices[place]))
        return keys

    def ads(self, indices: Iterable[int]) -> list[Ad]:
        """Return candidates with all their values."""
        return [Ad(self.ids[index], self.values(index)) for index in indices]

    def ads_json(self, indices: Sequence[int]) -> list[bytes]:
        """Return candidates with all their values: each an `Ad` as JSON without its closing brace."""
        held, chosen, found = self._table.held, self.chosen, []
        for index, row in zip(indices, self._whole[np.asarray(indices, np.int64)].tolist(), strict=True):
            if (one := held[row]) is None:
                found.append(_encode(Ad(self.ids[index], self.values(index)))[:-1])
            else:
                found.append(one.head + (one if (creative := chosen.get(index)) is None else creative).tail)
        return found


def _tail(values: dict[str, Clean]) -> bytes:
    return b"," + _encode(values)[1:] if values else b"}"
