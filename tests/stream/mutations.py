"""Records that anybody may send: those of a small ad world in every order, and what becomes of them on the way.

Everything follows from a seed. Most records are about a few requests of a moment ago, so that requests, impressions and
clicks meet in every order, twice, too late and too early; many are mutated, as trees or as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from stream.events import TIME_S_MAX
from stream.tokens import Tokens

SEEDS = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "seeds").iterdir())}
START_S = 3_000_000_000.0  # so that no odd number below is a valid time in the future: one ends an episode
END_S = TIME_S_MAX - 1.0  # behind all that is made here
HUGE = 10**400
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, HUGE, 0.1, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), TIME_S_MAX, START_S * 1000),
    *("", "0", "x" * 256, "x" * 257, "\x00", "\ud800", "a\udfff", "\U0001f600", "\u202e", "1e5", "ad0", "user"),
    *([], {}, [[]], [None], [1, "a"], [1.5], ["\ud83d"], {"a": 1}, {"": {}}, ["x"] * 300),
]


def records(rng: Random, n_records: int, *, tokens: Tokens | None = None) -> Iterator[bytes]:
    """Yield the values of records, one after the other."""
    world, last = _World(rng, tokens), b"{}"
    for _ in range(n_records):
        dice = rng.random()
        if dice < 0.0002:
            yield rng.choice(BIG)(rng)
            continue
        if dice < 0.02:
            record = rng.choice(tuple(SEEDS.values()))
            yield mutate_bytes(rng, record, last) if rng.random() < 0.5 else record
            continue
        tree = world.record()
        if dice < 0.22:
            mutate_tree(rng, tree)
        record = json.dumps(tree).encode()
        if 0.22 <= dice < 0.32:
            record = mutate_bytes(rng, record, last)
        last = record
        yield record


class _World:
    """A clock and the requests of a moment ago."""

    def __init__(self, rng: Random, tokens: Tokens | None) -> None:
        self._rng = rng
        self._tokens = tokens
        self._now_s = START_S
        self._names = ["r"]
        self._n_names = 0

    def record(self) -> dict[str, Any]:
        rng = self._rng
        self._now_s += rng.random() * 0.4
        dice, time_s = rng.random(), self._time_s()
        if dice < 0.01:
            return {"type": "tick", "time_s": time_s}
        if dice < 0.16:
            self._n_names += 1
            self._names.append(f"r{self._n_names}")
            del self._names[:-20]
            if dice < 0.12:
                return self._request(self._names[-1], time_s)
        name = rng.choice(self._names)
        if dice < 0.25:
            return self._request(name, time_s)
        ad = position = rng.randrange(3)
        if rng.random() < 0.05:
            ad = rng.randrange(6)
        shown = {"request_id": name, "ad_id": f"ad{ad}", "position": position, "time_s": time_s}
        if self._tokens is not None:
            shown["token"] = self._tokens.sign(name, f"ad{ad}", position, time_s=time_s)
        return {"type": "impression" if dice < 0.6 else "click", **shown}

    def _request(self, name: str, time_s: float) -> dict[str, Any]:
        ads = [{"ad_id": f"ad{i}", "values": {"ad": f"ad{i}", "tags": ["a", i], "price": i / 2}} for i in range(4)]
        request = {"type": "request", "request_id": name, "time_s": time_s, "candidates": ads, "values": {"user": "u1"}}
        kind = self._n_names % 4  # no draw: what is said of serving changes no other record
        if kind >= 2:
            request |= {"snapshot": "ctr-1", "counts_s": time_s - 30.0} if kind == 2 else {"snapshot": "ctr-2"}
            for i in range(kind):
                ads[i]["pctr"] = 0.25 * i
        return request

    def _time_s(self) -> float:
        """Nearly always about now; now and then far away, and once in a while the world goes there."""
        rng = self._rng
        dice = rng.random()
        if dice < 0.9:
            return self._now_s + rng.uniform(-3.0, 1.0)
        if dice < 0.9995:
            return max(0.0, self._now_s + rng.choice([-1e9, -1e4, -40.0, -25.0, -12.0, -8.0, 3.0, 8.0]))
        time_s = min(self._now_s + rng.choice([30.0, 1e3, 1e6, 1e9]), END_S - 1e6)
        if rng.random() < 0.9:
            self._now_s = time_s
        return time_s


def mutate_tree(rng: Random, tree: dict[str, Any]) -> None:
    """Change a node or two: another type or value, dropped, renamed, wrapped, or one from elsewhere in the tree."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        nodes = _nodes(tree)
        if not nodes:
            return
        parent, key = rng.choice(nodes)
        dice = rng.random()
        if dice < 0.5:
            parent[key] = _copy(rng.choice(ODD))
        elif dice < 0.65:
            del parent[key]
        elif dice < 0.75 and isinstance(parent, dict):
            parent[rng.choice([str(key).upper(), f"{key} ", "", "v", "type", "values", "token"])] = parent.pop(key)
        elif dice < 0.85:
            parent[key] = rng.choice([[parent[key]], {"a": parent[key]}, [parent[key]] * 3, str(parent[key])])
        else:
            other, other_key = rng.choice(nodes)
            parent[key] = _copy(other[other_key])


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value)) if isinstance(value, dict | list) else value


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Return where each value of a tree stands: the container and the key or index."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        container = waiting.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            found.append((container, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def mutate_bytes(rng: Random, record: bytes, other: bytes) -> bytes:
    """Cut, splice, flip, double or put in bytes."""
    if not record:
        return other[: rng.randrange(len(other) + 1)]
    at, dice = rng.randrange(len(record)), rng.randrange(7)
    if dice == 0:
        return record[:at]
    if dice == 1:
        return record[:at] + other[rng.randrange(len(other) + 1) :]
    if dice == 2:
        return record[:at] + bytes([record[at] ^ 1 << rng.randrange(8)]) + record[at + 1 :]
    if dice == 3:
        return record[:at] + rng.randbytes(rng.randrange(1, 6)) + record[at:]
    if dice == 4:
        return b"{" + rng.choice(DOUBLED) + b"," + record.lstrip()[1:]
    if dice == 5:
        return record[:at] + rng.choice((b"NaN", b"-Infinity", b"1e999", b"\\ud800", b"\xff", b"\x00", b"[" * 50))
    return record[:at] + record[at // 2 :]


DOUBLED = (b'"type":"click"', b'"type":"tick"', b'"request_id":"r"', b'"time_s":1e400', b'"time_s":null', b'"v":2')
BIG: Sequence[Callable[[Random], bytes]] = (
    lambda rng: b'{"type":"click","request_id":"' + b"r" * rng.choice((999_900, 1_000_000, 1_200_000)) + b'"}',
    lambda rng: b"[" * rng.choice((1_000, 100_000, 999_999)),
    lambda rng: b'{"type":"click","x":' + b'{"a":' * rng.choice((500, 100_000)),
    lambda rng: b'{"type":"tick","time_s":1' + b"0" * rng.choice((400, 900_000)) + b"}",
    lambda rng: rng.randbytes(1_000_001),
    lambda rng: json.dumps(
        {
            "type": "request",
            "request_id": f"big{rng.random()}",
            "time_s": START_S,
            "candidates": [{"ad_id": f"ad{i}"} for i in range(rng.choice((5_000, 20_000)))],
            "values": {"user": "u1"},
        }
    ).encode(),
)
