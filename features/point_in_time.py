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
    seen = np.searchsorted(rows.settled_s, time_s, side="right")  # (N,) how many settled rows each row may see
    first = 0
    for width in widths:
        slots = slice(first, first + width)
        of_field = _under(rows, rows.keys[:, slots])
        place, found = _settled_counts(of_field, keys[:, slots], time_s, seen, table.half_lives_s)
        _add(counts.n[:, slots], place, found[:, 0])
        _add(counts.c[:, slots], place, found[:, 1])
        first += width
    one = np.ones((len(keys), 1), np.uint64)
    everything = _under(rows, np.ones((len(rows.keys), 1), np.uint64))
    place, found = _settled_counts(everything, one, time_s, seen, table.half_lives_s)
    _add(counts.root_n[:, None], place, found[:, 0])
    _add(counts.root_c[:, None], place, found[:, 1])
    return counts


def _under(rows: SettledRows, keys: Keys) -> SettledRows:
    return dataclasses.replace(rows, keys=keys)


def _add(counts: Floats, place: Ints, found: Floats) -> None:
    """Add what was found for some slots of some rows, each once, to counts (N, W, H)."""
    if len(place) == counts.shape[0] * counts.shape[1]:
        counts += found.reshape(counts.shape)  # all of them, in their order: twice as fast
    else:
        counts[place // counts.shape[1], place % counts.shape[1]] += found


def _settled_counts(
    rows: SettledRows, keys: Keys, time_s: Floats, seen: Ints, half_lives_s: Floats
) -> tuple[Ints, Floats]:
    """Return what the settled rows give to the keys of one field: places in the keys, and their n and c, (…, 2, H)."""
    entry_place, place = np.flatnonzero(rows.keys), np.flatnonzero(keys)
    if not len(entry_place) or not len(place):
        return place[:0], np.zeros((0, 2, len(half_lives_s)))
    entry, row = entry_place // rows.keys.shape[1], place // keys.shape[1]
    _, every = codes(np.concatenate([rows.keys.ravel()[entry_place], keys.ravel()[place]]))
    bits = len(rows.settled_s).bit_length()
    order = np.sort((every[: len(entry)] << bits) | entry)  # entries by (key, settling order)
    wanted = every[len(entry) :]
    at = np.searchsorted(order, (wanted << bits) + seen[row], side="left") - 1  # the last entry that it may see
    known = (at >= 0) & (order[at] >> bits == wanted)
    at[~known] = 0
    entry = order & ((1 << bits) - 1)
    running = _running_counts(order >> bits, rows, entry, half_lives_s)  # (SCAN_WIDTH, blocks, 2, H)
    blocks, within = np.divmod(at, SCAN_WIDTH)
    found = running.reshape(-1, 2, len(half_lives_s))[within * running.shape[1] + blocks]
    elapsed_s = np.where(known, time_s[row] - rows.settled_s[entry[at]], np.inf)  # nothing is left of what is not known
    found *= decay(elapsed_s, half_lives_s)[:, None]
    return place, found


def _running_counts(code: Ints, rows: SettledRows, entry: Ints, half_lives_s: Floats) -> Floats:
    """Return the n and c of a key just after each of its entries: entry i at [i % SCAN_WIDTH, i // SCAN_WIDTH].

    Args:
        code: The key of each entry, ascending.
        rows: What settled.
        entry: Which of them each entry is, ascending within a key.
        half_lives_s: Memories kept side by side.
    """
    settled_s = rows.settled_s[entry]
    elapsed_s = np.full(len(code), np.inf)  # nothing is left of another key
    np.subtract(settled_s[1:], settled_s[:-1], out=elapsed_s[1:], where=code[1:] == code[:-1])
    left = decay(_in_blocks(elapsed_s, np.inf), half_lives_s)  # (SCAN_WIDTH, blocks, H)
    left = np.ascontiguousarray(left.transpose(0, 2, 1))
    value = np.empty((SCAN_WIDTH, 2, *left.shape[1:]))  # (SCAN_WIDTH, 2, H, blocks)
    value[:, 0] = _in_blocks(rows.impression[entry], 0.0)[:, None]
    value[:, 1] = _in_blocks(rows.click[entry], 0.0)[:, None]
    _scan(left, value)
    return np.ascontiguousarray(value.transpose(0, 3, 1, 2))


def _in_blocks(values: Floats, filler: float) -> Floats:
    """Return values in a row as blocks of `SCAN_WIDTH` side by side, (…) to (SCAN_WIDTH, ..., blocks)."""
    length = values.shape[-1]
    blocks = -(-length // SCAN_WIDTH)
    padded = np.full((*values.shape[:-1], blocks * SCAN_WIDTH), filler)
    padded[..., :length] = values
    return np.ascontiguousarray(np.moveaxis(padded.reshape(*values.shape[:-1], blocks, SCAN_WIDTH), -1, 0))


def _scan(left: Floats, value: Floats) -> None:
    """Let value become x with x[i] = left[i] * x[i - 1] + value[i], i running through one block after the other.

    Blocks are stepped through side by side; what a block inherits is the same scan over the ends of blocks. `left`
    becomes what is left of it.

    Args:
        left: (SCAN_WIDTH, H, blocks).
        value: (SCAN_WIDTH, 2, H, blocks).
    """
    for i in range(1, SCAN_WIDTH):
        value[i] += left[i] * value[i - 1]
        left[i] *= left[i - 1]
    if (blocks := left.shape[-1]) == 1:
        return
    ends = _in_blocks(value[-1], 0.0)
    _scan(_in_blocks(left[-1], 0.0), ends)
    ended = np.moveaxis(ends, 0, -1).reshape(*value.shape[1:-1], -1)[..., : blocks - 1]
    value[..., 1:] += left[:, None, :, 1:] * ended
