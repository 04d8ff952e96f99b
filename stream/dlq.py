"""Reading dead letters and sending what they hold again.

Owns the way of a letter back to `events` and the note of what was sent. Must not know what a letter's JSON is or which
letters are meant (stream/dead_letters.py), nor print anything.

Invariants: events and the note that they were sent are one transaction, so nothing is sent twice, whatever dies when;
one `requeue` of a deployment runs at a time: the transactional id `<prefix>.requeue` fences the one before; letters are
sent in the order in which their records were appended, so a request goes before its impressions.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerFenced

from infra.settings import Settings
from stream.blocks import decode_header
from stream.bridge import bridge_record
from stream.bridge_worker import new_signer, new_sources
from stream.dead_letters import Letter, Wanted, again_headers, decode_dead_letter, home_partition, is_hopeless, to_row
from stream.events import EventError
from stream.kafka import read_last, read_range
from stream.partitioner import request_partition
from stream.roles import Cluster
from stream.transactions import fenced_producer

NOTE_KEY = b"dead-letters"  # of the notes on `commands`; a family's own commands have its name as their key
LETTERS_MAX = 500  # of one transaction; chosen by hand: what it holds back for readers is a blink
BYTES_MAX = 4_000_000  # of one transaction, as far as one letter alone is not more
FIELDS_MAX = 100  # fields of a rule that are counted apart: what a producer names has no limit

REASONS = {
    "requeued": "sent again before",
    "attempts": "at [ledger] requeue_max attempts",
    "too_late": "older than the ledger remembers (wait_s + grace_s)",
    "hopeless": "empty or too big for an event",
    "unmapped": "still refused by [bridge], or of a topic that is none of its own",
}

log = logging.getLogger("freshrank.dlq")


class _Note(msgspec.Struct):
    """Letters that were sent again, by partition of `dead-letters`; a record on `commands`."""

    letters: dict[int, list[int]]
    at_s: float
    type: str = "requeued"
    v: int = 1


@dataclass(frozen=True)
class Outgoing:
    """An event that goes to `events` once more."""

    partition: int
    key: bytes | None
    value: bytes


@dataclass(frozen=True)
class Choice:
    """What is sent although it would stay by default, and how much at most.

    Attributes:
        limit: Letters at most, the oldest first; None: all.
        allowed: Reasons of `REASONS` that do not keep a letter.
    """

    limit: int | None = None
    allowed: frozenset[str] = frozenset()


@dataclass
class Plan:
    """What sending again amounts to.

    Attributes:
        letters: How many are sent, by rule.
        kept: How many stay, by reason.
        events: How many events they become.
    """

    letters: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    events: int = 0

    def lines(self) -> Iterator[str]:
        """Yield the plan as people read it."""
        by_rule = ", ".join(f"{n_letters} {rule}" for rule, n_letters in self.letters.most_common())
        yield f"{self.letters.total()} letters to send again{': ' if by_rule else ''}{by_rule}"
        for reason, n_letters in self.kept.most_common():
            yield f"{n_letters} stay: {REASONS[reason]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {"letters": dict(self.letters), "kept": dict(self.kept), "events": self.events}


async def read_letters(
    cluster: Cluster, wanted: Wanted, ends: Mapping[int, int] | None = None
) -> AsyncGenerator[Letter, None]:
    """Yield the letters that are wanted, over all partitions in the order in which their records were appended.

    Args:
        ends: Offset after the last letter of each partition; None: all that stand there now.
    """
    partitions = range(cluster.partitions) if wanted.partition is None else [wanted.partition]
    async with AsyncExitStack() as stack:
        heads: dict[int, Letter] = {}
        readers = {}
        for partition in partitions:
            end = None if ends is None else ends.get(partition, 0)
            readers[partition] = await stack.enter_async_context(aclosing(_read(cluster, partition, end, wanted)))
        for partition, reader in readers.items():
            if (letter := await anext(reader, None)) is not None:
                heads[partition] = letter
        while heads:
            partition = min(heads, key=lambda p: heads[p].when_s)
            yield heads.pop(partition)
            if (letter := await anext(readers[partition], None)) is not None:
                heads[partition] = letter


async def _read(cluster: Cluster, partition: int, end: int | None, wanted: Wanted) -> AsyncGenerator[Letter, None]:
    topic = cluster.topic("dead-letters")
    async with aclosing(read_range(topic, partition, None, end, options=cluster.options)) as records:
        async for record in records:
            try:
                content = decode_dead_letter(record.value)
            except ValueError as error:
                log.warning("%s[%d] offset %d is left out: %s", topic, partition, record.offset, error)
                continue
            letter = Letter(partition, record.offset, record.timestamp_ms / 1000.0, content)
            if wanted.takes(letter):
                yield letter


async def read_requeued(cluster: Cluster) -> set[tuple[int, int]]:
    """Return partition and offset of the letters that were sent again."""
    done: set[tuple[int, int]] = set()
    records = read_range(cluster.topic("commands"), 0, None, None, options=cluster.options)
    async with aclosing(records):
        async for record in records:
            if record.key == NOTE_KEY and record.value is not None:
                note = msgspec.json.decode(record.value, type=_Note)
                done.update((partition, offset) for partition, offsets in note.letters.items() for offset in offsets)
    return done


async def summarise(cluster: Cluster, wanted: Wanted, newest: int) -> dict[str, Any]:
    """Return how many letters there are by rule and field, and the newest ones as rows, the newest last."""
    done = await read_requeued(cluster)
    rules: dict[str, dict[str, Any]] = {}
    last: deque[Letter] = deque(maxlen=newest)
    async with aclosing(read_letters(cluster, wanted)) as letters:
        async for letter in letters:
            rule = rules.setdefault(
                letter.record.rule, {"letters": 0, "requeued": 0, "first_s": letter.when_s, "last_s": 0.0, "fields": {}}
            )
            rule["letters"] += 1
            rule["requeued"] += (letter.partition, letter.offset) in done
            rule["first_s"] = min(rule["first_s"], letter.when_s)
            rule["last_s"] = max(rule["last_s"], letter.when_s)
            fields = rule["fields"]
            if letter.record.field in fields or len(fields) < FIELDS_MAX:
                fields[letter.record.field] = fields.get(letter.record.field, 0) + 1
            last.append(letter)
    return {
        "letters": sum(rule["letters"] for rule in rules.values()),
        "rules": dict(sorted(rules.items(), key=lambda item: -item[1]["letters"])),
        "newest": [to_row(letter, is_requeued=(letter.partition, letter.offset) in done) for letter in last],
    }


async def read_rows(cluster: Cluster, wanted: Wanted, limit: int) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the first letters as rows that people read."""
    done = await read_requeued(cluster)
    n_rows = 0
    async with aclosing(read_letters(cluster, wanted)) as letters:
        async for letter in letters:
            yield to_row(letter, is_requeued=(letter.partition, letter.offset) in done)
            n_rows += 1
            if n_rows == limit:
                return


async def requeue(
    settings: Settings, cluster: Cluster, wanted: Wanted, choice: Choice, *, confirm: Callable[[Plan], bool]
) -> Plan | None:
    """Send the wanted letters' records to `events` once more; return what was sent, None if it was not confirmed.

    Raises:
        RuntimeError: If another `requeue` of this deployment began meanwhile, or the broker takes no more.
    """
    sorter = _Sorter(settings, cluster, choice, await _watermarks(cluster))
    sorter.done = await read_requeued(cluster)
    plan, ends = Plan(), {}
    async with aclosing(read_letters(cluster, wanted)) as letters:
        async for letter in letters:
            ends[letter.partition] = letter.offset + 1
            sorter.sort(letter, plan)
    if not confirm(plan):
        return None
    sent = Plan()
    try:
        async with fenced_producer(cluster, f"{cluster.prefix}.requeue") as producer:
            sorter.done = await read_requeued(cluster)  # those of a requeue that ended while the person thought
            await _send_all(producer, cluster, sorter, read_letters(cluster, wanted, ends), sent)
    except ProducerFenced:
        raise RuntimeError(
            "one requeue at a time: another one of this deployment has begun; see what it sent"
        ) from None
    except KafkaError as error:
        raise RuntimeError(f"{cluster.topic('events')} must take events, got from the broker: {error}") from error
    return sent


class _Sorter:
    """Tells which letters are sent, and as what."""

    def __init__(self, settings: Settings, cluster: Cluster, choice: Choice, watermarks: Mapping[int, float]) -> None:
        self._settings = settings
        self._cluster = cluster
        self._choice = choice
        self._watermarks = watermarks
        self._sources = new_sources(settings)
        self._sign = new_signer(settings)
        self.done: set[tuple[int, int]] = set()

    def sort(self, letter: Letter, plan: Plan) -> list[Outgoing]:
        """Return the events that a letter becomes, none if it stays; the plan counts it."""
        limit = self._choice.limit
        if limit is not None and plan.letters.total() >= limit:
            return []
        events = self._events(letter)
        for reason in self._reasons(letter, events):
            if reason not in self._choice.allowed:
                plan.kept[reason] += 1
                return []
        plan.letters[letter.record.rule] += 1
        plan.events += len(events)
        return events

    def _reasons(self, letter: Letter, events: list[Outgoing]) -> Iterator[str]:
        ledger = self._settings.ledger
        if is_hopeless(letter.record):
            yield "hopeless"
        if not events:
            yield "unmapped"
            return
        if (letter.partition, letter.offset) in self.done:
            yield "requeued"
        if letter.record.attempts >= ledger.requeue_max:
            yield "attempts"
        last_s = max(self._watermarks.get(event.partition, 0.0) for event in events) - ledger.wait_s - ledger.grace_s
        if max(_time_s(event.value) for event in events) <= last_s:
            yield "too_late"

    def _events(self, letter: Letter) -> list[Outgoing]:
        record = letter.record
        if record.topic == self._cluster.topic("events"):
            partition = home_partition(record, self._cluster.partitions)
            return [Outgoing(partition, record.key, record.record or b"")]
        source = self._sources.get(record.topic)
        if source is None:
            return []
        try:
            bridged = bridge_record(record.record, source, self._sign)
        except EventError:
            return []
        partition = request_partition(bridged.request_id, self._cluster.partitions)
        return [Outgoing(partition, bridged.request_id.encode(), value) for value in bridged.values]


class _Timed(msgspec.Struct):
    time_s: float = float("inf")


_timed_decoder = msgspec.json.Decoder(_Timed)


def _time_s(value: bytes) -> float:
    """Return an event's time, inf where none can be read: nothing can be said then, so it is not too late."""
    try:
        return _timed_decoder.decode(value).time_s
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return float("inf")


async def _watermarks(cluster: Cluster) -> dict[int, float]:
    """Return up to where the ledger of each partition has come, by its last block."""
    topic, options = cluster.topic("examples"), cluster.options
    last = {p: await read_last(topic, p, options=options) for p in range(cluster.partitions)}
    return {p: decode_header(record.value).watermark_s for p, record in last.items() if record and record.value}


async def _send_all(
    producer: AIOKafkaProducer,
    cluster: Cluster,
    sorter: _Sorter,
    letters: AsyncGenerator[Letter, None],
    sent: Plan,
) -> None:
    batch: list[tuple[Letter, list[Outgoing]]] = []
    n_bytes = 0
    async with aclosing(letters):
        async for letter in letters:
            events = sorter.sort(letter, sent)
            if not events:
                continue
            batch.append((letter, events))
            n_bytes += sum(len(event.value) for event in events)
            if len(batch) >= LETTERS_MAX or n_bytes >= BYTES_MAX:
                await _send(producer, cluster, batch)
                batch, n_bytes = [], 0
    if batch:
        await _send(producer, cluster, batch)


async def _send(producer: AIOKafkaProducer, cluster: Cluster, batch: list[tuple[Letter, list[Outgoing]]]) -> None:
    note = _Note({}, time.time())
    async with producer.transaction():
        for letter, events in batch:
            note.letters.setdefault(letter.partition, []).append(letter.offset)
            headers = again_headers(letter)
            for event in events:
                await producer.send(
                    cluster.topic("events"),
                    event.value,
                    partition=event.partition,
                    key=event.key,
                    headers=headers,
                )
        await producer.send(cluster.topic("commands"), msgspec.json.encode(note), partition=0, key=NOTE_KEY)
