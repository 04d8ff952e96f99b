"""Dead letters: what a record that could not be used leaves behind, and what may be sent again.

Owns the JSON of the topic `dead-letters`, the headers of an event that is sent again, and which letters a person means.
Must not know Kafka's clients, the ledger or the bridge.

Invariants: a letter holds the raw record byte for byte; what is sent again says how often it has been sent and from
which letter it comes, and its next letter repeats that, so a record that breaks each time comes to an end.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from stream.events import EVENT_BYTES_MAX
from stream.partitioner import murmur2_partition

VERSION = 1
ATTEMPTS_HEADER = "freshrank-attempts"  # how often this record has been sent again
LETTER_HEADER = "freshrank-letter"  # partition:offset, in `dead-letters`, of the letter that was sent again

Headers = Sequence[tuple[str, bytes]]


class DeadLetterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record on `dead-letters`; bytes are base64 in its JSON.

    Attributes:
        topic: Full name of the topic that the raw record stands in.
        partition: Of that topic.
        offset: Of that topic.
        rule: Which rule the record broke, from the list in docs/events.md.
        field: The part of the record that breaks it, empty when it is the whole.
        value: What stood there, cut.
        key: As produced; None where there was none.
        record: The raw value; None where there was none.
        attempts: How often it had been sent again when it broke the rule.
        appended_s: When the broker appended the raw record.
    """

    v: int = VERSION
    topic: str
    partition: int
    offset: int
    rule: str
    field: str = ""
    value: str = ""
    key: bytes | None = None
    record: bytes | None = None
    attempts: int = 0
    appended_s: float = 0.0


class Refusal(Protocol):
    """What broke which rule, and where it stands; `stream.ledger.DeadLetter` is one."""

    @property
    def offset(self) -> int:
        """Of the record in its partition."""

    @property
    def rule(self) -> str:
        """The rule that it breaks."""

    @property
    def field(self) -> str:
        """The part that breaks it."""

    @property
    def value(self) -> str:
        """What stands there."""


class RawRecord(Protocol):
    """A record as a client read it; aiokafka's `ConsumerRecord` is one (`timestamp` is in milliseconds)."""

    topic: str
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers


class Letter(NamedTuple):
    """A dead letter and where it stands itself: partition, offset and append time in `dead-letters`."""

    partition: int
    offset: int
    append_s: float
    record: DeadLetterRecord

    @property
    def when_s(self) -> float:
        """When the raw record was appended; letters of earlier releases do not say, so when they were themselves."""
        return self.record.appended_s or self.append_s


class Wanted(msgspec.Struct, frozen=True):
    """Which letters a person means; an empty part means all.

    Attributes:
        rules: Any of these.
        partition: Of `dead-letters`, which is that of the event.
        field: Exactly this.
        since_s: Raw records appended at this time or later.
        until_s: Raw records appended before this time.
        offsets: Of the letters in `dead-letters`.
    """

    rules: Collection[str] = ()
    partition: int | None = None
    field: str = ""
    since_s: float | None = None
    until_s: float | None = None
    offsets: Collection[int] = ()

    def takes(self, letter: Letter) -> bool:
        """Tell whether a letter is one of them."""
        return not (
            (self.rules and letter.record.rule not in self.rules)
            or (self.partition is not None and letter.partition != self.partition)
            or (self.field and letter.record.field != self.field)
            or (self.since_s is not None and letter.when_s < self.since_s)
            or (self.until_s is not None and letter.when_s >= self.until_s)
            or (self.offsets and letter.offset not in self.offsets)
        )


class _Named(msgspec.Struct):
    request_id: str


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(DeadLetterRecord)
_named_decoder = msgspec.json.Decoder(_Named)


def dead_letter_bytes(partition: int, letter: Refusal, raw: RawRecord) -> bytes:
    """Return the JSON of a dead letter: where it stood, what it broke, and the raw record."""
    return encode_dead_letter(
        DeadLetterRecord(
            topic=raw.topic,
            partition=partition,
            offset=letter.offset,
            rule=letter.rule,
            field=letter.field,
            value=letter.value,
            key=raw.key,
            record=raw.value,
            attempts=attempts_in(raw.headers),
            appended_s=raw.timestamp / 1000.0,
        )
    )


def encode_dead_letter(letter: DeadLetterRecord) -> bytes:
    """Return the JSON of a dead letter."""
    return _encoder.encode(letter)


def decode_dead_letter(value: bytes | None) -> DeadLetterRecord:
    """Return the dead letter that the bytes hold.

    Raises:
        ValueError: If they hold none of a version that this program reads.
    """
    try:
        letter = _decoder.decode(value or b"")
    except msgspec.MsgspecError as error:
        raise ValueError(f"a dead letter must be as docs/dead-letters.md says, got: {error}") from None
    if letter.v != VERSION:
        raise ValueError(f"a dead letter must have version {VERSION}, got {letter.v}; update freshrank")
    return letter


def attempts_in(headers: Headers) -> int:
    """Return how often a record has been sent again, as its headers say; 0 if they do not or are none of ours."""
    for name, value in headers:
        if name == ATTEMPTS_HEADER and re.fullmatch(rb"[0-9]{1,9}", value):
            return int(value)
    return 0


def again_headers(letter: Letter) -> list[tuple[str, bytes]]:
    """Return the headers of an event that is sent again because of a letter."""
    return [
        (ATTEMPTS_HEADER, b"%d" % (letter.record.attempts + 1)),
        (LETTER_HEADER, b"%d:%d" % (letter.partition, letter.offset)),
    ]


def home_partition(letter: DeadLetterRecord, n_partitions: int) -> int:
    """Return the partition of `events` where the letter's record belongs.

    That of the request_id inside; where none can be read, that of its key; without a key, where it stood.
    """
    try:
        key = _named_decoder.decode(letter.record or b"").request_id.encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        key = b""
    key = key or letter.key or b""
    return murmur2_partition(key, n_partitions) if key else letter.partition % n_partitions


def is_hopeless(letter: DeadLetterRecord) -> bool:
    """Tell whether no program will ever take the record: it is empty, or too big for an event."""
    return not letter.record or len(letter.record) > EVENT_BYTES_MAX


def to_row(letter: Letter, *, is_requeued: bool) -> dict[str, Any]:
    """Return a letter as people read it: the raw record as JSON or text where it is that, else as base64."""
    record = letter.record
    return {
        "letter": f"{letter.partition}:{letter.offset}",
        "rule": record.rule,
        "field": record.field,
        "value": record.value,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "appended_s": letter.when_s,
        "attempts": record.attempts,
        "requeued": is_requeued,
        "key": _readable(record.key),
        "record": _readable(record.record, is_json=True),
    }


def _readable(data: bytes | None, *, is_json: bool = False) -> Any:
    if data is None:
        return None
    try:
        return msgspec.json.decode(data) if is_json else data.decode()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    try:
        return data.decode()
    except UnicodeError:
        return {"base64": base64.b64encode(data).decode()}
