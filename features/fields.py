"""What a field is: the one description that encoding, priors, networks and the ledger share.

Owns the `Field` and `History` types and the slot layout that follows from a list of fields. Must not know where values
come from (a log, a request, a catalog) or how they are encoded.

Invariants: names are unique; a cross names earlier, uncrossed fields; the slot layout depends on the fields alone.

Shape legend: `F` fields, `S` slots (a `categories` field takes `values_max` slots, every other field one).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import msgspec

Side = Literal["user", "item", "context", "creative", "cross"]
Kind = Literal["category", "categories", "number"]

COLUMN_PREFIX = "field."  # keeps a field called `position` apart from the row's own position


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One named input of the model, as the configuration file's `[[fields]]` describes it.

    Attributes:
        name: Its column in the log and its key in the `values` of an event.
        side: Whom it describes; a `cross` is computed from the fields in `of`.
        kind: `category` (one value), `categories` (several) or `number`.
        of: The parts of a cross, two or more, of which at most one has several values; empty otherwise.
        values_max: How many values of a `categories` field are kept; the rest is cut, in the order given.
    """

    name: str
    side: Side
    kind: Kind = "category"
    of: tuple[str, ...] = ()
    values_max: int = 4

    @property
    def column(self) -> str:
        """The column of this field in a frame of examples."""
        return COLUMN_PREFIX + self.name


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field of the user's side that a log does not hold but implies: what was clicked, or left, before a row.

    Attributes:
        name: The field's; it is of kind `categories` and its `values_max` says how many values are kept.
        of: The field whose values are remembered.
        clicked: Those of impressions that were clicked; false: those of impressions that were not.
    """

    name: str
    of: str
    clicked: bool = True


def raw_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields that events carry: all but the crosses, which are computed when rows are encoded."""
    return tuple(field for field in fields if field.side != "cross")


def id_field(fields: Sequence[Field], side: Side) -> Field | None:
    """Return the field that identifies one side: the first `category` field of it, or None.

    The user's identifies users (the gate's buckets), the item's holds the ad_id of a candidate.
    """
    return next((field for field in fields if field.side == side and field.kind == "category"), None)


def slot_counts(fields: Sequence[Field]) -> tuple[int, ...]:
    """Return how many slots each field takes, in field order, F numbers that sum to S."""
    by_name = {field.name: field for field in fields}

    def width(field: Field) -> int:
        if field.side == "cross":
            return max(width(by_name[part]) for part in field.of)
        return field.values_max if field.kind == "categories" else 1

    return tuple(width(field) for field in fields)


def field_slots(fields: Sequence[Field]) -> list[slice]:
    """Return the slots that each field takes, in field order, F slices of S."""
    widths = slot_counts(fields)
    return [slice(end - width, end) for end, width in zip(itertools.accumulate(widths), widths, strict=True)]


def shard_fields(fields: Sequence[Field], n_shards: int) -> tuple[int, ...]:
    """Return which of `n_shards` shards each field belongs to: about as many slots for each, and no shard empty.

    A cross goes with its first part: so a shard encodes little that it does not count.

    Raises:
        ValueError: If there are more shards than fields that events carry.
    """
    raw = raw_fields(fields)
    if not 1 <= n_shards <= len(raw):
        raise ValueError(f"priors must have 1 to {len(raw)} shards (fields other than crosses), got {n_shards}")
    slots = {field.name: 0 for field in raw}
    for field, width in zip(fields, slot_counts(fields), strict=True):
        slots[_lead(field)] += width
    load = [0] * n_shards
    shard: dict[str, int] = {}
    for name in sorted(slots, key=lambda name: -slots[name]):  # stable: the order of the fields breaks ties
        shard[name] = load.index(min(load))
        load[shard[name]] += slots[name]
    return tuple(shard[_lead(field)] for field in fields)


def _lead(field: Field) -> str:
    return field.of[0] if field.side == "cross" else field.name


def check_fields(fields: Sequence[Field]) -> None:
    """Check that the fields can be encoded together.

    Raises:
        ValueError: If there is none, a name repeats, or a cross is not made of known, uncrossed parts.
    """
    if not fields:
        raise ValueError("[[fields]] must name at least one field, got none; describe each input column once")
    by_name: dict[str, Field] = {}
    for field in fields:
        where = f'[[fields]] name = "{field.name}"'
        if field.name in by_name:
            raise ValueError(f"{where} must be unique, got it twice; remove one")
        if field.values_max < 1:
            raise ValueError(f"{where} values_max must be >= 1, got {field.values_max}")
        if field.side == "cross":
            _check_cross(field, by_name, where)
        elif field.of:
            raise ValueError(f'{where} has parts in `of`, so its side must be "cross", got "{field.side}"')
        by_name[field.name] = field
    if id_field(fields, "item") is None:
        raise ValueError('[[fields]] must hold one of side = "item", kind = "category": the ad\'s id; got none')


def _check_cross(field: Field, by_name: dict[str, Field], where: str) -> None:
    if len(field.of) < 2:
        raise ValueError(f"{where} is a cross and must name two or more parts in `of`, got {list(field.of)}")
    for part in field.of:
        if part not in by_name or by_name[part].side == "cross":
            raise ValueError(f'{where} must cross fields that stand before it and are no crosses, got "{part}"')
    if sum(by_name[part].kind == "categories" for part in field.of) > 1:
        raise ValueError(f"{where} may hold one part of kind categories, got several: {list(field.of)}")
