"""A million records that nobody should send: nothing escapes the ledger, and nothing vanishes in it."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest

from features.fields import Field
from models.window import Slides
from stream.blocks import Rules, chain_schema, decode_block, decode_chains, encode_block, encode_chains, row_schema
from stream.dead_letters import dead_letter_bytes, decode_dead_letter
from stream.events import Event, EventError, Tick, decode_event
from stream.ledger import Closed, Ledger
from stream.tokens import Tokens
from tests.stream.mutations import END_S, SEEDS, records

FIELDS = (
    Field(name="user", side="user"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="price", side="item", kind="number"),
)
SCHEMA, CHAIN_SCHEMA = row_schema(FIELDS), chain_schema(FIELDS)
RULES = Rules(wait_s=10.0, grace_s=20.0, disorder_s=2.0)
TOKENS = Tokens((b"a key of the fuzz's own",), 30.0)
EPISODE = 500  # records of one ledger: after one from the far future all others come too late
EPISODES: tuple[dict[str, Any], ...] = (
    {},
    {"late_clicks": "correct"},
    {"pending_max": 8, "late_clicks": "correct"},
    {"known_max": 16},
    {"known_bytes_max": 5_000, "candidates_max": 2},
    {"tokens": TOKENS},
    {"n_partitions": 2},
)


class RawRecord(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: tuple[()] = ()


def new_ledger(*, tokens: Tokens | None = None, n_partitions: int | None = None, **rules: Any) -> Ledger:
    return Ledger(
        0,
        FIELDS,
        Slides(slide_s=50.0, edges=()),
        rules=msgspec.structs.replace(RULES, **rules),
        block_rows=64,
        block_s=3.0,
        tokens=tokens,
        n_partitions=n_partitions,
    )


def step(ledger: Ledger, offset: int, value: bytes) -> list[Closed]:
    """Take a record as the worker does."""
    event: Event | EventError
    try:
        event = decode_event(value)
    except EventError as error:
        event = error
    return ledger.step(offset, offset * 0.01, event, len(value))


class Account:
    """What a ledger took, and what came out of it."""

    def __init__(self, *, tokens: Tokens | None = None, n_partitions: int | None = None, **rules: Any) -> None:
        self.ledger = new_ledger(tokens=tokens, n_partitions=n_partitions, **rules)
        self.values: list[bytes] = []
        self.taken: dict[str, list[int]] = {"rows": [], "letters": [], "chains": []}
        self.left: dict[str, Counter[int]] = {"rows": Counter(), "letters": Counter(), "chains": Counter()}

    def take(self, value: bytes) -> None:
        """Step through one record and put down what it was taken for."""
        ledger, counts, offset = self.ledger, self.ledger.counts, len(self.values)
        self.values.append(value)
        before = (counts.impressions, counts.dead_letters, counts.requests)
        closed = step(ledger, offset, value)
        if counts.impressions > before[0]:
            self.taken["rows"].append(offset)
        elif counts.dead_letters > before[1]:
            self.taken["letters"].append(offset)
        elif counts.requests > before[2]:
            event = decode_event(value)
            if event.time_s + RULES.wait_s + RULES.grace_s > ledger.horizon_s:  # else it is forgotten as it comes
                self.taken["chains"].append(offset)
        assert counts.records == offset + 1
        assert not any(counts.violations().values()), (value, counts)
        for block in closed:
            self._read(block)

    def _read(self, block: Closed) -> None:
        """Put down what a block holds, as a reader of its bytes sees it."""
        header, rows = decode_block(encode_block(block.header, block.rows, SCHEMA))
        assert header == block.header
        _, candidates = decode_chains(encode_chains(block.header, block.chains, CHAIN_SCHEMA))
        self.left["rows"].update(
            offset for offset, kind in rows.select("source_offset", "kind").iter_rows() if kind != "late_corrected"
        )
        offsets = block.chains.requests["source_offset"]
        self.left["chains"].update(offsets)
        n_candidates = dict(zip(offsets, block.chains.n_candidates, strict=True))
        assert Counter(candidates["source_offset"]) == +Counter(n_candidates)
        for letter in block.dead_letters:
            raw = RawRecord("events", None, self.values[letter.offset], 0)
            assert decode_dead_letter(dead_letter_bytes(0, letter, raw)).record == raw.value
            self.left["letters"].update([letter.offset])

    def settle(self) -> None:
        """Let all time pass: whatever was taken must have left, once."""
        assert self.ledger.watermark_s < END_S - 1000.0, "the last tick would not be the last"
        for block in (
            *self.ledger.step(len(self.values), 1e9, Tick(END_S)),
            *self.ledger.step(len(self.values) + 1, 2e9, Tick(END_S)),
            *self.ledger.step(len(self.values) + 2, 3e9, Tick(END_S)),
        ):
            self._read(block)
        counts = self.ledger.counts
        assert (counts.pending, counts.held, self.ledger.known) == (0, 0, (0, 0))
        for what, offsets in self.taken.items():
            assert self.left[what] == Counter(offsets), what


def fuzz(seed: int, n_records: int) -> Counter[str]:
    """Step through so many records, 500 a ledger; return how often each thing happened."""
    happened: Counter[str] = Counter()
    for episode in range(n_records // EPISODE):
        options = EPISODES[episode % len(EPISODES)]
        account = Account(**options)
        for value in records(Random(f"{seed} {episode}"), EPISODE, tokens=options.get("tokens")):
            account.take(value)
        account.settle()
        happened.update(msgspec.to_builtins(account.ledger.counts))
    return happened


def to_bytes(blocks: list[Closed]) -> list[tuple[bytes, bytes, str]]:
    return [
        (
            encode_block(block.header, block.rows, SCHEMA),
            encode_chains(block.header, block.chains, CHAIN_SCHEMA),
            repr(block.dead_letters),
        )
        for block in blocks
    ]


def resume(options: dict[str, Any], values: list[bytes], blocks: list[Closed]) -> list[Closed]:
    """Return the blocks that a new ledger writes after the last of these."""
    header, ledger = blocks[-1].header, new_ledger(**options)
    letters = [letter for block in blocks for letter in block.dead_letters]
    ledger.rewind(header, {letter.offset: letter.rule for letter in letters if letter.offset >= header.resume_at})
    for offset in range(header.resume_at, header.through + 1):
        step(ledger, offset, values[offset])
    ledger.seal(header)
    return [
        block for offset in range(header.through + 1, len(values)) for block in step(ledger, offset, values[offset])
    ]


def check_all_reached(happened: Counter[str]) -> None:
    """Every state of docs/ledger.md must have been reached, or the records were not odd enough to prove anything."""
    assert {name for name, count in happened.items() if not count} == {"pending", "held"}  # 0 at each end


@pytest.mark.parametrize("value", SEEDS.values(), ids=SEEDS)
def test_each_seed_is_taken_or_is_one_dead_letter(value: bytes) -> None:
    account = Account()
    account.take(value)
    account.settle()


def test_twenty_thousand_mutated_records_are_all_accounted_for() -> None:
    check_all_reached(fuzz(1, 20_000))


@pytest.mark.parametrize("options", EPISODES, ids=lambda options: "+".join(options) or "defaults")
def test_resuming_amid_mutated_records_gives_the_same_bytes(options: dict[str, Any]) -> None:
    rng = Random(3)
    for _ in range(4):
        values = list(records(rng, EPISODE, tokens=options.get("tokens")))
        ledger, blocks, ends = new_ledger(**options), [], []
        for offset, value in enumerate(values):
            if closed := step(ledger, offset, value):
                blocks += closed
                ends.append(len(blocks))  # where a transaction may end
        for end in rng.sample(ends, 3):
            assert to_bytes(resume(options, values, blocks[:end])) == to_bytes(blocks[end:])


@pytest.mark.slow
def test_a_million_mutated_records_are_all_accounted_for() -> None:
    check_all_reached(fuzz(2, 1_000_000))
