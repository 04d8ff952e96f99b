"""What had settled when each row was shown: exact counts of many rows at their own moments, in one pass.

Owns the vectorised walk through settled rows. Must not know networks or where rows come from. Backtest, replay and the
trainer all take it, wherever a log does not bring the counts that were served.

Settled rows and rows are put into one order, that of time, once. Field by field it is split by key, so that each row
stands right behind the last settled row of its key that it may see.

Invariants: it equals a slow loop over the rows; a label is seen from the moment it settled on and never before; nothing
is subtracted, so nothing cancels, and no power grows, so nothing overflows however long the span.

Shape legend: `N` rows, `M` settled rows, `S` slots, `W` slots of one field, `H` half-lives, `D` distinct keys of a
field, `E` entries (a settled row under one of its keys), `Q` questions (a row under one of its keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.encode import Keys
from features.priors import Counts, Floats, Ints, PriorTable, SettledRows, codes, decay, elapsed, find

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
    half_lives_s = table.half_lives_s[:, None]
    if not len(keys):  # what had settled need not be walked through
        nobody = np.zeros((0, keys.shape[1], len(half_lives_s)))
        return Counts(nobody, nobody, nobody.sum(axis=1), nobody.sum(axis=1))
    walk = _Walk(rows, time_s, half_lives_s, decay(elapsed(table.as_of_s, time_s), half_lives_s))
    order = _in_time(rows.settled_s, time_s)
    by_slot = np.ascontiguousarray(np.concatenate([rows.keys, keys]).T)  # (S, M + N)
    counts = np.zeros((2, len(half_lives_s), keys.shape[1], len(keys)))
    first = 0
    for width in widths:
        slots = slice(first, first + width)
        both = by_slot[slots][:, order].T.ravel()
        distinct, code = codes(both)
        place = np.argsort(code.astype(np.min_scalar_type(len(distinct))), kind="stable")  # quick for short integers
        place = place[len(both) - np.count_nonzero(both) :]  # the absent key comes first
        walk.put(code[place], order[place // width], place % width, _of_table(table, distinct), counts[:, :, slots])
        first += width
    root = np.zeros((2, len(half_lives_s), 1, len(keys)))
    nothing = np.zeros_like(order)
    walk.put(nothing, order, nothing, np.stack([table.root_n, table.root_c])[:, :, None], root)
    (n, c), (root_n, root_c) = counts.transpose(0, 3, 2, 1), root[:, :, 0].transpose(0, 2, 1)
    return Counts(n, c, root_n, root_c)


@dataclass(frozen=True)
class _Walk:
    """What the walks through the keys of all fields share.

    Attributes:
        rows: What settled.
        time_s: When the rows were shown, (N,).
        half_lives_s: (H, 1).
        left: What is left of the table's counts at each row, (H, N).
    """

    rows: SettledRows
    time_s: Floats
    half_lives_s: Floats
    left: Floats

    def put(self, code: Ints, who: Ints, slot: Ints, of_table: Floats, counts: Floats) -> None:
        """Put what rows see under the keys of one field.

        Args:
            code: The key of each entry and question, ascending, (E + Q,).
            who: Whose it is, in the order of time within a key: a settled row's number, or M + a row's.
            slot: Under which slot of the field.
            of_table: What the table knows of the keys, (2, H, D).
            counts: Where impressions and clicks go, (2, H, W, N), 0 so far.
        """
        is_row = who >= len(self.rows.settled_s)
        asked, entries = np.flatnonzero(is_row), np.flatnonzero(~is_row)
        row, key = who[asked] - len(self.rows.settled_s), code[asked]
        entry, entry_key = who[entries], code[entries]
        last = asked - np.arange(1, len(asked) + 1)  # the last entry before each question
        place = slot[asked] * len(self.time_s) + row
        running, since_s = np.zeros((2, len(self.half_lives_s), 1)), np.full(len(row), np.inf)
        if len(entry):  # what a row does not see is infinitely long ago: nothing is left of it
            running = _running_counts(entry_key, self.rows, entry, self.half_lives_s)  # (2, H, E)
            sees = (last >= 0) & (entry_key[last] == key)
            np.subtract(self.time_s[row], self.rows.settled_s[entry[last]], out=since_s, where=sees)
        for h, half_life_s in enumerate(self.half_lives_s):
            left, left_of_table = decay(since_s, half_life_s), self.left[h][row]
            for k in range(2):
                found = of_table[k, h][key]
                found *= left_of_table
                found += running[k, h][last] * left
                counts[k, h].reshape(-1)[place] = found


def _in_time(settled_s: Floats, time_s: Floats) -> Ints:
    """Return settled rows and rows in the order of time, (M + N,): row i as M + i, behind all that it may see."""
    return np.argsort(np.concatenate([settled_s, time_s]), kind="stable")


def _of_table(table: PriorTable, keys: Keys) -> Floats:
    """Return the table's counts of some keys, (2, H, D)."""
    at, known = find(table.keys, keys)
    counts = np.zeros((2, len(table.half_lives_s), len(keys)))
    for of_all, of_keys in zip((table.n, table.c), counts, strict=True):
        of_keys[:, known] = of_all[at[known]].T
    return counts


def _running_counts(code: Ints, rows: SettledRows, entry: Ints, half_lives_s: Floats) -> Floats:
    """Return the n and c of a key just after each of its entries, (2, H, E), and what fills the last block.

    Args:
        code: The key of each entry, ascending.
        rows: What settled.
        entry: Which of them each entry is, ascending within a key.
        half_lives_s: Memories kept side by side, (H, 1).
    """
    settled_s = rows.settled_s[entry]
    elapsed_s = np.full(len(code), np.inf)  # nothing is left of another key
    np.subtract(settled_s[1:], settled_s[:-1], out=elapsed_s[1:], where=code[1:] == code[:-1])
    left = decay(_in_blocks(elapsed_s, np.inf)[:, None], half_lives_s)  # (SCAN_WIDTH, H, blocks)
    value = np.empty((SCAN_WIDTH, 2, *left.shape[1:]))
    value[:, 0] = _in_blocks(rows.impression[entry], 0.0)[:, None]
    value[:, 1] = _in_blocks(rows.click[entry], 0.0)[:, None]
    _scan(left, value)
    return _in_a_row(value)


def _in_blocks(values: Floats, filler: float) -> Floats:
    """Return values in a row as blocks of `SCAN_WIDTH` side by side, (…) to (SCAN_WIDTH, ..., blocks)."""
    length = values.shape[-1]
    blocks = -(-length // SCAN_WIDTH)
    padded = np.full((*values.shape[:-1], blocks * SCAN_WIDTH), filler)
    padded[..., :length] = values
    return np.ascontiguousarray(np.moveaxis(padded.reshape(*values.shape[:-1], blocks, SCAN_WIDTH), -1, 0))


def _in_a_row(values: Floats) -> Floats:
    """Return blocks side by side one after the other, (SCAN_WIDTH, ..., blocks) to (…)."""
    return np.moveaxis(values, 0, -1).reshape(*values.shape[1:-1], -1)


def _scan(left: Floats, value: Floats) -> None:
    """Let value become x with x[i] = left[i] * x[i - 1] + value[i], i running through one block after the other.

    Blocks are stepped through side by side; what a block inherits is the same scan over the ends of blocks. `left`
    becomes what is left of it.

    Args:
        left: (SCAN_WIDTH, H, blocks).
        value: (SCAN_WIDTH, 2, H, blocks).
    """
    carried = np.empty(value.shape[1:])
    for i in range(1, SCAN_WIDTH):
        value[i] += np.multiply(left[i], value[i - 1], out=carried)
        left[i] *= left[i - 1]
    if (blocks := left.shape[-1]) == 1:
        return
    ends = _in_blocks(value[-1], 0.0)
    _scan(_in_blocks(left[-1], 0.0), ends)
    inherited = np.zeros(value.shape[1:])
    inherited[..., 1:] = _in_a_row(ends)[..., : blocks - 1]
    value[:, 0] += left * inherited[0]
    value[:, 1] += np.multiply(left, inherited[1], out=left)
