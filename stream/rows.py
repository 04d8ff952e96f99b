"""Records of any topic as rows that people read: one JSON object a row.

Owns what `freshrank topics cat` prints. Must not know where records come from.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from stream.blocks import decode_block, decode_chains, decode_prior_update
from stream.kafka import Record


def to_rows(topic: str, partition: int, record: Record) -> Iterator[str]:
    """Yield the rows of one record: a block gives its header and its rows, everything else one row."""
    place = {"partition": partition, "offset": record.offset, "append_s": record.timestamp_ms / 1000.0}
    if record.value is None:
        yield _row(place | {"key": _text(record.key), "deleted": True})
    elif topic in ("examples", "chains"):
        header, frame = (decode_block if topic == "examples" else decode_chains)(record.value)
        yield _row(place | {"header": msgspec.to_builtins(header)})
        for row in frame.iter_rows(named=True):
            yield _row(row)
    elif topic == "prior-updates":
        update = decode_prior_update(record.value)
        yield _row(place | {"at_s": update.at_s, "n": update.root_n.tolist(), "c": update.root_c.tolist()})
        for index in range(len(update.keys)):
            counts = {"n": update.n[index].tolist(), "c": update.c[index].tolist()}
            yield _row({"key": f"{update.keys[index]:016x}", "field": int(update.field[index])} | counts)
    else:
        try:
            value: Any = msgspec.json.decode(record.value)
        except msgspec.DecodeError:
            value = {"raw": base64.b64encode(record.value).decode()}
        yield _row(place | {"key": _text(record.key), "value": value})


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="replace")


def _row(row: dict[str, Any]) -> str:
    return msgspec.json.encode(row).decode()
