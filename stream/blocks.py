"""Blocks: what stages behind the ledger read and write, Arrow IPC bytes with a header of our own.

Owns the columns of a block of examples and of a block of prior counts, and the header that says where it came from.
Must not know Kafka or what the rows are used for.

Invariants: the same rows and header give the same bytes; a header carries everything that a resume needs; a reader of
a partition drops a block whose `number` it has seen, so delivery at least once is delivery once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from features.fields import Field, raw_fields
from features.live_priors import CountUpdate

VERSION = 1
REQUEST_SIDES = ("user", "context")  # fields whose values a request has once; the others', each candidate has
_HEADER_KEY = b"freshrank"
_CANDIDATES = "candidates"
_IPC = pa.ipc.IpcWriteOptions(compression="lz4")
_T = TypeVar("_T", bound=msgspec.Struct)
# Of the request: its experiment, empty where a row has no arm, and what answered, empty where it has no `pctr` either.
ARM_COLUMNS = {"split": pa.string(), "arm": pa.string(), "snapshot": pa.string()}
# What a row was served with (docs/events.md), null where its request does not say.
SERVED_COLUMNS = {"pctr": pa.float64(), "counts_s": pa.float64(), "request_s": pa.float64()}
OPTIONAL_COLUMNS = ARM_COLUMNS | SERVED_COLUMNS
ARROW_TYPES = {"category": pa.string(), "categories": pa.list_(pa.string()), "number": pa.float64()}


Columns = dict[str, list[Any] | pa.Array]


class BlockError(ValueError):
    """Bytes that are no block, or a block of a version that this program does not read."""


class Rules(msgspec.Struct, frozen=True):
    """The ledger's rules that decided a block: seconds of event time, and limits (docs/ledger.md)."""

    wait_s: float
    grace_s: float
    disorder_s: float
    late_clicks: Literal["wait", "correct"] = "wait"
    pending_max: int = 1_000_000
    known_max: int = 2_000_000
    known_bytes_max: int = 2**28
    candidates_max: int = 5_000


class Counts(msgspec.Struct):
    """What the ledger of one partition has done since its first record; cumulative but for `pending` and `held`.

    Three conservation laws hold after every record: see `violations`. `corrected` counts the late clicks that wrote a
    row, `chains` the requests whose chain left; what limits did is in the last three.
    """

    records: int = 0
    requests: int = 0
    impressions: int = 0
    clicks: int = 0
    ticks: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    clicked: int = 0
    expired_negative: int = 0
    pending: int = 0
    matched: int = 0
    repeated: int = 0
    late: int = 0
    orphan: int = 0
    held: int = 0
    corrected: int = 0
    chains: int = 0
    expired_early: int = 0
    forgotten_early: int = 0
    candidates_cut: int = 0

    def violations(self) -> dict[str, int]:
        """Return by how much each conservation law is broken, by its name; all 0 unless there is a fault."""
        return {
            "impressions": self.impressions - self.clicked - self.expired_negative - self.pending,
            "clicks": self.clicks - self.matched - self.repeated - self.late - self.orphan - self.held,
            "records": self.records
            - (self.requests + self.impressions + self.clicks + self.ticks + self.duplicates + self.dead_letters),
        }


class Chains(msgspec.Struct):
    """The chains of a closed block in columns (see `chain_schema`): of the requests, and of all their candidates."""

    requests: Columns
    n_candidates: list[int]
    candidates: Columns


def add_counts(counts: Sequence[Counts]) -> Counts:
    """Return the sum over partitions."""
    return Counts(*(sum(getattr(one, name) for one in counts) for name in Counts.__struct_fields__))


class Header(msgspec.Struct, frozen=True):
    """Where a block came from, and the state in which the ledger closed it.

    Attributes:
        partition: Of `events` and of the block alike.
        number: 0, 1, 2 … within the partition; with the partition it names the block (its tag).
        through: Offset of the last event that is fully accounted for in this block and those before it.
        append_s: When the event that closed the block was appended: `through`, or the one after it.
        watermark_s: No row that settles before this event time will follow.
        horizon_s: No chain that leaves before this event time will follow.
        resume_at: Offset of the oldest event that is still needed: where a resume begins to read.
        resume_watermark_s: The watermark as the event at `resume_at` moved it.
        resume_horizon_s: The horizon likewise.
        resume_letters: How many of the dead letters lie before it.
        rules: In force at `through`.
        counts: Cumulative over the partition, when the block closed.
        rows_ahead: How many rows have left on account of the event after `through`.
        chains_ahead: How many chains.
        earlier: Rules that have changed since `resume_at`, each with the last offset that they decided.
        forced: Offset, watermark and horizon of each time since `resume_at` that a limit moved them on.
    """

    partition: int
    number: int
    through: int
    append_s: float
    watermark_s: float
    horizon_s: float
    resume_at: int
    resume_watermark_s: float
    resume_horizon_s: float
    resume_letters: int
    rules: Rules
    counts: Counts
    rows_ahead: int = 0
    chains_ahead: int = 0
    earlier: list[tuple[int, Rules]] = []
    forced: list[tuple[int, float, float]] = []
    v: int = VERSION


def row_schema(fields: Sequence[Field]) -> pa.Schema:
    """Return the columns of a block of examples: one row per settled impression.

    `ARM_COLUMNS` follow where a row of the block has an arm, `snapshot` and `SERVED_COLUMNS` where one has a `pctr`: a
    log without either has the blocks that it had before there were any.
    """
    columns = [
        ("request_id", pa.string()),
        ("position", pa.int32()),
        ("kind", pa.string()),  # clicked | expired_negative | late_corrected
        ("time_s", pa.float64()),
        ("settled_s", pa.float64()),
        ("click", pa.int8()),
        ("propensity", pa.float64()),
        ("ad_id", pa.string()),
        ("source_partition", pa.int32()),
        ("source_offset", pa.int64()),
    ]
    columns += [(field.column, ARROW_TYPES[field.kind]) for field in raw_fields(fields)]
    return pa.schema(columns)


def chain_schema(fields: Sequence[Field]) -> tuple[pa.Schema, pa.Schema]:
    """Return the columns of a block of chains: those of a request, and those of each of its candidates."""
    raw = raw_fields(fields)
    request = [
        ("request_id", pa.string()),
        ("time_s", pa.float64()),
        ("settled_s", pa.float64()),
        ("source_partition", pa.int32()),
        ("source_offset", pa.int64()),
    ]
    candidate = [
        ("candidate", pa.int32()),
        ("ad_id", pa.string()),
        ("stage", pa.string()),
        ("sample_rate", pa.float64()),
        ("label", pa.string()),  # clicked | exposed | unexposed
        ("position", pa.int32()),
    ]
    request += [(field.column, ARROW_TYPES[field.kind]) for field in raw if field.side in REQUEST_SIDES]
    candidate += [(field.column, ARROW_TYPES[field.kind]) for field in raw if field.side not in REQUEST_SIDES]
    return pa.schema(request), pa.schema(candidate)


def to_batch(columns: Columns, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows of a closed block as Arrow columns."""
    found = [(columns[name], kind) for name, kind in zip(schema.names, schema.types, strict=True)]
    arrays = [values if isinstance(values, pa.Array) else pa.array(values, kind) for values, kind in found]
    return pa.record_batch(arrays, schema=schema)


def encode_block(header: Header, columns: Columns, schema: pa.Schema) -> bytes:
    """Return the bytes of a block of examples."""
    return _to_ipc(to_batch(columns, _with_optional(schema, columns)), header)


def encode_chains(header: Header, chains: Chains, schema: tuple[pa.Schema, pa.Schema]) -> bytes:
    """Return the bytes of a block of chains: a row per request, its candidates nested, so that values stand once."""
    requests, candidates = to_batch(chains.requests, schema[0]), to_batch(chains.candidates, schema[1])
    ends = np.cumsum([0, *chains.n_candidates], dtype=np.int32)
    nested = pa.ListArray.from_arrays(pa.array(ends), candidates.to_struct_array())
    return _to_ipc(requests.append_column(_CANDIDATES, nested), header)


def to_frame(columns: Columns, schema: pa.Schema) -> pl.DataFrame:
    """Return what `decode_block` gives for a closed block, without going through bytes."""
    frame = pl.from_arrow(pa.Table.from_batches([to_batch(columns, _with_optional(schema, columns))]))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _with_optional(schema: pa.Schema, columns: Columns) -> pa.Schema:
    return pa.schema([*schema, *(one for one in OPTIONAL_COLUMNS.items() if one[0] in columns)])


def decode_header(data: bytes) -> Header:
    """Return the header alone; the rows are not touched.

    Raises:
        BlockError: If the bytes are no block of a version that this program reads.
    """
    return _header(_open(data).schema, Header)


def decode_block(data: bytes) -> tuple[Header, pl.DataFrame]:
    """Return a block of examples as its header and a frame with the columns of `row_schema`, and optional ones.

    Raises:
        BlockError: If the bytes are no block of a version that this program reads.
    """
    reader = _open(data)
    return _header(reader.schema, Header), _frame(reader)


def decode_chains(data: bytes) -> tuple[Header, pl.DataFrame]:
    """Return a block of chains as its header and a frame with one row per candidate of a request.

    Raises:
        BlockError: If the bytes are no block of a version that this program reads.
    """
    reader = _open(data)
    header = _header(reader.schema, Header)
    if reader.schema.get_field_index(_CANDIDATES) < 0:
        raise BlockError("a block of chains must have the column candidates, got none; is it the right topic?")
    frame = _frame(reader).filter(pl.col(_CANDIDATES).list.len() > 0)
    return header, frame.explode(_CANDIDATES).unnest(_CANDIDATES)


class _UpdateHeader(msgspec.Struct, frozen=True):
    at_s: float
    root_n: list[float]
    root_c: list[float]
    fields: tuple[str, ...] = ()
    v: int = VERSION


def encode_prior_update(update: CountUpdate) -> bytes:
    """Return the bytes of a block of prior counts."""
    n_half_lives = update.n.shape[1]
    columns: dict[str, pa.Array] = {"key": pa.array(update.keys), "field": pa.array(update.field)}
    for index in range(n_half_lives):
        columns[f"n{index}"] = pa.array(update.n[:, index])
        columns[f"c{index}"] = pa.array(update.c[:, index])
    header = _UpdateHeader(update.at_s, update.root_n.tolist(), update.root_c.tolist(), update.fields)
    return _to_ipc(pa.record_batch(list(columns.values()), names=list(columns)), header)


def decode_prior_update(data: bytes) -> CountUpdate:
    """Return the counts that a block of `prior-updates` holds.

    Raises:
        BlockError: If the bytes are no block of a version that this program reads.
    """
    reader = _open(data)
    header = _header(reader.schema, _UpdateHeader)
    table = reader.read_all()
    count = range(len(header.root_n))
    return CountUpdate(
        at_s=header.at_s,
        keys=table["key"].to_numpy(),
        field=table["field"].to_numpy(),
        n=np.stack([table[f"n{index}"].to_numpy() for index in count], axis=1),
        c=np.stack([table[f"c{index}"].to_numpy() for index in count], axis=1),
        root_n=np.array(header.root_n),
        root_c=np.array(header.root_c),
        fields=header.fields,
    )


def _to_ipc(batch: pa.RecordBatch, header: msgspec.Struct) -> bytes:
    batch = batch.replace_schema_metadata({_HEADER_KEY: msgspec.json.encode(header)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_IPC) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _open(data: bytes) -> pa.RecordBatchStreamReader:
    try:
        return pa.ipc.open_stream(data)
    except (pa.ArrowInvalid, OSError) as error:
        raise BlockError(f"a block must be an Arrow IPC stream, got {len(data)} other bytes: {error}") from None


def _header(schema: pa.Schema, kind: type[_T]) -> _T:
    raw = (schema.metadata or {}).get(_HEADER_KEY)
    if raw is None:
        raise BlockError("a block must carry a freshrank header, got an Arrow stream without; is it the right topic?")
    try:
        version = msgspec.json.decode(raw).get("v")
        if version != VERSION:
            raise BlockError(f"a block must have version {VERSION}, got {version}; update freshrank")
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise BlockError(f"a block's header must follow {kind.__name__}, got: {error}") from None


def _frame(reader: pa.RecordBatchStreamReader) -> pl.DataFrame:
    frame = pl.from_arrow(reader.read_all())
    assert isinstance(frame, pl.DataFrame)
    return frame
