"""What had settled when each row was shown: exact counts of many rows at their own moments, in one pass.

Owns the vectorised walk through settled rows. Must not know networks or where rows come from. Backtest, replay and the
trainer all take it, wherever a log does not bring the counts that were served.

Invariants: it equals a slow loop over the rows; a label is seen from the moment it settled on and never before; nothing
is subtracted, so nothing cancels, and no power grows, so nothing overflows however long the span.

Shape legend: `N` rows, `M` settled rows, `S` slots, `W` slots of one field, `H` half-lives, `E` entries (a settled row
under one of its keys).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from features.encode import Keys
from features.priors import Counts, Floats, Ints, PriorTable, SettledRows, codes, decay, lookup

SCAN_WIDTH = 32  # entries of a block that one numpy call steps over; the quickest of a few on slides of 25,000 rows


def point_in_time(table: PriorTable, rows: SettledRows, keys: Keys, time_s: Floats, widths: Sequence[int]) -> Counts:
    """Return for each row the counts of the table and of all settled rows that had settled when it was shown.

    Args:
        table: What had settled up to its moment.
        rows: What settled later than that.
        keys: The rows to know about, (N, S).
        time_s: When they were shown, (N,), none before the table's moment.
        widths: How many slots each field takes.

    Raises:
        ValueError: If a row was shown before the table's moment, or a settled row is not later than it.
    """
    if len(rows.settled_s) and rows.settled_s[0] <= table.as_of_s:
        raise ValueError(f"settled rows must be later than the table's {table.as_of_s}, got {rows.settled_s[0]}")
    counts = lookup(table, keys, time_s)
    visible = np.searchsorted(rows.settled_s, time_s, side="right")  # (N,) how many settled rows each row may see
    first = 0
    for width in widths:
        slots = slice(first, first + width)
        n, c = _settled_counts(_under(rows, rows.keys[:, slots]), keys[:, slots], time_s, visible, table.half_lives_s)
        counts.n[:, slots] += n
        counts.c[:, slots] += c
        first += width
    everything = _under(rows, np.ones((len(rows.keys), 1), np.uint64))
    n, c = _settled_counts(everything, np.ones((len(keys), 1), np.uint64), time_s, visible, table.half_lives_s)
    return dataclasses.replace(counts, root_n=counts.root_n + n[:, 0], root_c=counts.root_c + c[:, 0])


def _under(rows: SettledRows, keys: Keys) -> SettledRows:
    return dataclasses.replace(rows, keys=keys)


def _settled_counts(
    rows: SettledRows, keys: Keys, time_s: Floats, visible: Ints, half_lives_s: Floats
) -> tuple[Floats, Floats]:
    """Return n and c, (N, W, H), that the settled rows alone give to the keys of one field."""
    entry, entry_slot = np.nonzero(rows.keys)
    row, slot = np.nonzero(keys)
    out = np.zeros((2, *keys.shape, len(half_lives_s)))
    if not len(entry) or not len(row):
        return out[0], out[1]
    _, every = codes(np.concatenate([rows.keys[entry, entry_slot], keys[row, slot]]))
    bits = len(rows.settled_s).bit_length()
    order = np.sort((every[: len(entry)] << bits) | entry)  # entries by (key, settling order)
    code, entry = order >> bits, order & ((1 << bits) - 1)
    running = _running_counts(code, rows.settled_s[entry], rows.click[entry], half_lives_s)  # (2, H, E)
    wanted = every[len(order) :]
    at = np.searchsorted(order, (wanted << bits) + visible[row], side="left") - 1  # the last entry that it may see
    known = (at >= 0) & (code[at] == wanted)
    at, row, slot = at[known], row[known], slot[known]
    left = decay(time_s[row] - rows.settled_s[entry[at]], half_lives_s)  # (known, H)
    out[0, row, slot] = running[0].T[at] * left
    out[1, row, slot] = running[1].T[at] * left
    return out[0], out[1]


def _running_counts(code: Ints, settled_s: Floats, click: Floats, half_lives_s: Floats) -> Floats:
    """Return the n and c of a key just after each of its entries, (2, H, E); entries sorted by key and time."""
    left = np.zeros((len(half_lives_s), len(code)))
    same = code[1:] == code[:-1]
    left[:, 1:] = decay((settled_s[1:] - settled_s[:-1]) * same, half_lives_s).T * same
    value = np.empty((2, *left.shape))
    value[0], value[1] = 1.0, click
    return _scan(left, value)


def _scan(left: Floats, value: Floats) -> Floats:
    """Return x with x[..., i] = left[..., i] * x[..., i - 1] + value[..., i].

    Blocks of `SCAN_WIDTH` are stepped through side by side; what a block inherits is the same scan over block ends.
    """
    length = value.shape[-1]
    if length <= SCAN_WIDTH:
        for i in range(1, length):
            value[..., i] += left[..., i] * value[..., i - 1]
        return value
    blocks = -(-length // SCAN_WIDTH)
    padding = [(0, 0)] * (value.ndim - 1) + [(0, blocks * SCAN_WIDTH - length)]
    value = np.pad(value, padding).reshape(*value.shape[:-1], blocks, SCAN_WIDTH)
    left = np.pad(left, padding[1:]).reshape(*left.shape[:-1], blocks, SCAN_WIDTH)
    value, carry = np.moveaxis(value, -1, 0).copy(), np.moveaxis(left, -1, 0).copy()  # (SCAN_WIDTH, ..., blocks)
    for i in range(1, SCAN_WIDTH):
        value[i] += carry[i] * value[i - 1]
        carry[i] *= carry[i - 1]
    ends = _scan(carry[-1].copy(), value[-1].copy())
    value[..., 1:] += carry[:, None, :, 1:] * ends[..., :-1]
    return np.moveaxis(value, 0, -1).reshape(*value.shape[1:-1], blocks * SCAN_WIDTH)[..., :length]
