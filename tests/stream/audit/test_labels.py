"""The audit's second reading of docs/ledger.md agrees with the ledger, and finds what is not as it must be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.fields import Field
from models.window import Slides
from stream.audit.blocks import Block, Comparison, Difference, Head, Letter, Unprovable, check_heads, open_block
from stream.audit.events import Logged, Place
from stream.audit.labels import Reading
from stream.audit.story import Expected, Rules
from stream.blocks import Rules as LedgerRules
from stream.blocks import chain_schema, encode_block, encode_chains, row_schema
from stream.events import Candidate, Click, Event, EventError, Impression, Request, Tick, decode_event, encode_event
from stream.ledger import Closed, Ledger
from stream.tokens import Tokens
from tests.stream.mutations import records

FIELDS = (
    Field(name="user", side="user"),
    Field(name="ad", side="item"),
    Field(name="tags", side="item", kind="categories"),
    Field(name="price", side="creative", kind="number"),
)
SCHEMA, CHAIN_SCHEMA = row_schema(FIELDS), chain_schema(FIELDS)
RULES = LedgerRules(wait_s=10.0, grace_s=20.0, disorder_s=2.0)
KEY = b"0123456789abcdef"
TOKENS = Tokens((KEY,), ttl_s=30.0)
END = Tick(10_000.0)


@dataclass
class Run:
    """A stream of records, and what a ledger wrote about them."""

    records: list[Logged]
    blocks: list[Closed]
    place: Place


def ledger(rules: LedgerRules, *, tokens: Tokens | None = None, n_partitions: int = 1, block_rows: int = 3) -> Ledger:
    slides = Slides(slide_s=50.0)
    return Ledger(
        0,
        FIELDS,
        slides,
        rules=rules,
        block_rows=block_rows,
        block_s=3.0,
        tokens=tokens,
        n_partitions=n_partitions,
    )


def run(
    stream: Sequence[tuple[float, bytes]], rules: LedgerRules = RULES, *, tokens: bool = False, n_partitions: int = 1
) -> Run:
    own = TOKENS if tokens else None
    place = Place(0, n_partitions, FIELDS, token_keys=(KEY,) if tokens else (), token_ttl_s=30.0)
    records = [Logged(offset, append_s, value) for offset, (append_s, value) in enumerate(stream)]
    return Run(records, step(ledger(rules, tokens=own, n_partitions=n_partitions), records), place)


def step(machine: Ledger, records: Sequence[Logged]) -> list[Closed]:
    closed: list[Closed] = []
    for record in records:
        try:
            event: Event | EventError = decode_event(record.value)
        except EventError as error:
            event = error
        closed += machine.step(record.offset, record.append_s, event, len(record.value or b""))
    return closed


def stream(*events: Event, append_s: float = 0.0) -> list[tuple[float, bytes]]:
    return [(append_s, encode_event(event)) for event in [*events, END]]


def request(name: str, time_s: float, n: int = 3) -> Request:
    candidates = [Candidate(f"ad{i}", {"ad": f"ad{i}", "tags": ["a", i], "price": i}, "ranked") for i in range(n)]
    return Request(name, time_s, candidates, {"user": 7})


def impression(name: str, time_s: float, position: int = 0, ad: str = "") -> Impression:
    return Impression(name, ad or f"ad{position}", position, time_s)


def click(name: str, time_s: float, position: int = 0, ad: str = "") -> Click:
    return Click(name, ad or f"ad{position}", position, time_s)


@dataclass
class Topics:
    """What stands in the topics: blocks as the audit opens them, and dead letters."""

    examples: list[Block]
    chains: list[Block]
    letters: list[Letter]


def topics(blocks: Sequence[Closed]) -> Topics:
    return Topics(
        [open_block(encode_block(b.header, b.rows, SCHEMA)) for b in blocks],
        [open_block(encode_chains(b.header, b.chains, CHAIN_SCHEMA)) for b in blocks],
        [Letter(letter.offset, letter.rule) for b in blocks for letter in b.dead_letters],
    )


def audit(there: Topics, ran: Run, start: Head | None = None) -> Comparison:
    """Raise the first difference, if there is one."""
    heads = [(block.head, block.raw_head) for block in there.examples]
    check_heads(0, heads, [(block.head, block.raw_head) for block in there.chains])
    refused = {letter.offset: letter.rule for letter in there.letters if start and letter.offset <= start.through}
    comparison = Comparison(0, worked_out(ran, [head for head, _ in heads], start, refused), start)
    for block, twin in zip(there.examples, there.chains, strict=True):
        if start is None or block.head.number > start.number:
            comparison.take(block, twin)
    comparison.check_letters(there.letters)
    return comparison


def worked_out(
    ran: Run, heads: Sequence[Head], start: Head | None, refused: Mapping[int, str] | None = None
) -> Expected:
    spans = [*(start.earlier if start else []), *((head.through, head.rules) for head in heads)]
    ends = [through for through, _ in spans]

    def rules_at(offset: int) -> Rules:
        return spans[min(bisect_left(ends, offset), len(spans) - 1)][1]

    floors = [(head.through + 1, head.watermark_s) for head in heads]
    from_offset, start_s = (start.resume_at, start.resume_watermark_s) if start else (0, 0.0)
    records = [record for record in ran.records if record.offset >= from_offset]
    changed = [floor for floor, head, nxt in zip(floors, heads, heads[1:], strict=False) if head.rules != nxt.rules]
    reading = Reading(ran.place, rules_at, start_s=start_s, floors=changed, refused=refused)
    for record in records:
        reading.take(record)
    return reading.finish()


# The audit agrees with the ledger --------------------------------------------------------------------------------

RULE_SETS = st.builds(
    LedgerRules,
    wait_s=st.sampled_from([5.0, 10.0]),
    grace_s=st.sampled_from([0.0, 5.0, 20.0]),
    disorder_s=st.sampled_from([0.0, 2.5]),
    late_clicks=st.sampled_from(["wait", "correct"]),
    candidates_max=st.sampled_from([1, 2, 100]),
)
DELAYS_S = (0.0, 0.0, 0.0, 0.0, 0.0, 2.5, 5.0, 10.0, 30.0)
ARMED = ("r2", "r4")  # requests that an arm of an experiment answered
LATER_S = (0.0, 2.5, 5.0, 7.5, 10.0, 12.5, 25.0, 30.0)
ADS = ("", "", "", "", "", "", "", "", "ad1", "zz")
ODD = Request("r1", 0.0, [Candidate("ad0", {"ad": "ad0"})] * 2, {"user": ["list"]})
NOISE = (b"", b"{", b"\xff", b'{"type":"tick","time_s":-1}', b'{"type":"tick","time_s":"x"}', b'{"type":"walk"}')


@st.composite
def streams(draw: st.DrawFn, *, tokens: bool = False) -> list[tuple[float, bytes]]:
    """Few names, positions and times, so that everything meets everything, often on the very edge of a rule."""
    rng = draw(st.randoms(use_true_random=True))  # evenly; what hypothesis draws by itself seldom gives a valid story
    arriving = [
        (event.time_s + rng.choice(DELAYS_S), rng.choice(NOISE) if rng.random() < 0.03 else encode_event(event))
        for _ in range(rng.randint(1, 12))
        for event in story(rng, tokens=tokens)
        for _ in range(rng.choice([1, 1, 1, 2]))
    ]
    arriving.sort(key=lambda one: one[0])
    append_s, records = 0.0, []
    for _, value in arriving:
        append_s += rng.choice([0.0, 0.1, 2.0])
        records.append((append_s, value))
    return [*records, (append_s, encode_event(END))]


def story(rng: Random, *, tokens: bool) -> Iterator[Event]:
    """A request, its impressions and their clicks; some have a fault, or no cause at all."""
    name, asked_s = rng.choice(["r1", "r2", "r3", "r4", "r5"]), rng.randrange(24) * 2.5
    asked = request(name, asked_s)
    if name in ARMED:
        asked = msgspec.structs.replace(asked, split="s", arm="a", snapshot="v")
    yield rng.choice([asked] * 7 + [request(name, asked_s, 1), ODD, Tick(asked_s)])
    for position in rng.sample(range(4), rng.randrange(4)):
        shown_s = asked_s + rng.choice([0.0, 0.0, 2.5, 5.0, 30.0])
        events: list[Impression | Click] = [impression(name, shown_s, position, rng.choice(ADS))]
        for _ in range(rng.randrange(3)):
            events.append(click(name, shown_s + rng.choice(LATER_S), position, rng.choice(ADS)))  # noqa: PERF401
        for event in events:
            issued_s = max(0.0, event.time_s - rng.choice([0.0, 2.5, 30.0, 32.5]))
            token = TOKENS.sign(name, event.ad_id, position, time_s=issued_s) if tokens and rng.random() < 0.9 else ""
            yield msgspec.structs.replace(event, token=token)


@settings(max_examples=40)
@given(streams(), RULE_SETS)
def test_audit_agrees_with_the_ledger(sent: list[Any], rules: LedgerRules) -> None:
    ran = run(sent, rules)
    audit(topics(ran.blocks), ran)


@settings(max_examples=40)
@given(streams(tokens=True), RULE_SETS)
def test_audit_agrees_with_the_ledger_where_tokens_and_partitions_are_checked(
    sent: list[Any], rules: LedgerRules
) -> None:
    ran = run(sent, rules, tokens=True, n_partitions=2)
    audit(topics(ran.blocks), ran)


@settings(max_examples=40)
@given(streams(), RULE_SETS)
def test_audit_that_begins_behind_any_block_agrees_with_the_ledger(sent: list[Any], rules: LedgerRules) -> None:
    ran = run(sent, rules)
    there = topics(ran.blocks)
    for block in there.examples:
        audit(there, ran, start=block.head)


@settings(max_examples=40)
@given(streams(), RULE_SETS, RULE_SETS, st.integers(0, 30))
def test_audit_follows_rules_that_change_between_runs(
    sent: list[Any], first: LedgerRules, second: LedgerRules, at: int
) -> None:
    before = run(sent, first)
    kept = before.blocks[: min(at, len(before.blocks) - 1) + 1]
    header = kept[-1].header
    letters = {letter.offset: letter.rule for block in kept for letter in block.dead_letters}
    machine = ledger(second)
    machine.rewind(header, {offset: rule for offset, rule in letters.items() if offset >= header.resume_at})
    step(machine, before.records[header.resume_at : header.through + 1])
    machine.seal(header)
    blocks = [*kept, *step(machine, before.records[header.through + 1 :])]
    there = topics(blocks)
    audit(there, before)
    audit(there, before, start=there.examples[-1].head)


def served(request_id: str, time_s: float, **changes: Any) -> Request:
    """Return a request whose first ad says its click probability."""
    event = request(request_id, time_s)
    first, *others = event.candidates
    ads = [msgspec.structs.replace(first, pctr=0.25), *others]
    return msgspec.structs.replace(event, candidates=ads, snapshot="v", **changes)


CORNERS: dict[str, list[Event]] = {
    "some requests say what they were served with": [
        *(served("r", 0.0, counts_s=-1.5), impression("r", 1.0), impression("r", 1.0, 1), click("r", 2.0)),
        *(request("t", 2.0), impression("t", 3.0), served("u", 3.0), impression("u", 4.0), Tick(40.0)),
    ],
    "one that says it has an arm, and others do not": [
        *(served("r", 0.0, split="s", arm="a"), impression("r", 1.0), served("t", 2.0), impression("t", 3.0)),
        *(request("u", 4.0), impression("u", 5.0), Tick(40.0)),
    ],
    "some requests were answered by an arm of an experiment": [
        *(msgspec.structs.replace(request("r", 0.0), split="s", arm="a", snapshot="v"), impression("r", 1.0)),
        *(request("t", 2.0), impression("t", 3.0), click("t", 4.0), Tick(40.0)),
    ],
    "the earlier of two clicks that came before their impression counts": [
        *(request("r", 0.0), click("r", 12.0), click("r", 5.0), impression("r", 0.0)),
    ],
    "a click that came before its impression waits for as long as the last of them": [
        *(request("r", 0.0), click("r", 1.0), click("r", 9.0), Tick(18.0), impression("r", 3.0), Tick(40.0)),
    ],
    "an ad that is shown at several positions has the first of them": [
        *(request("r", 0.0), impression("r", 1.0, 2, "ad1"), impression("r", 2.0, 0, "ad1"), click("r", 3.0, 2, "ad1")),
    ],
    "an impression whose wait is over when it comes leaves at once, with its click": [
        *(request("r", 0.0), click("r", 12.0), Tick(20.0), impression("r", 5.0), click("r", 6.0), Tick(30.0)),
    ],
    "a row that corrects one long gone stands behind all that leaves at the late click": [
        *(request("r", 0.0), impression("r", 0.0), request("s", 5.0), impression("s", 5.0)),
        *(Tick(12.5), click("r", 17.0), Tick(30.0)),
    ],
    "a request is used again after it was forgotten": [
        *(request("r", 0.0), impression("r", 1.0), Tick(60.0), request("r", 60.0), impression("r", 61.0)),
    ],
}


@pytest.mark.parametrize("late_clicks", ["wait", "correct"])
@pytest.mark.parametrize("events", CORNERS.values(), ids=CORNERS.keys())
def test_audit_agrees_with_the_ledger_where(events: list[Event], late_clicks: Any) -> None:
    ran = run(stream(*events), msgspec.structs.replace(RULES, late_clicks=late_clicks))
    assert audit(topics(ran.blocks), ran).n_rows


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_audit_agrees_with_the_ledger_about_records_that_anybody_may_send(seed: int) -> None:
    rng = Random(seed)
    values = records(rng, 1_500, tokens=TOKENS if seed % 2 else None)
    rules = msgspec.structs.replace(RULES, late_clicks="correct", grace_s=5.0)
    ran = run([(number * 0.01, value) for number, value in enumerate(values)], rules, tokens=bool(seed % 2))
    comparison = audit(topics(ran.blocks), ran)
    assert min(comparison.n_rows, comparison.n_chains, comparison.n_letters) > 10


# The audit finds what is not as it must be -----------------------------------------------------------------------


def test_audit_finds_an_arm_that_did_not_answer() -> None:
    ran = run(stream(*CORNERS["some requests were answered by an arm of an experiment"]), RULES)
    there = topics(ran.blocks)
    row = next(row for block in there.examples for row in block.rows if row["request_id"] == "t")
    assert (row["split"], row["arm"], row["snapshot"]) == ("", "", "")
    row["arm"] = "a"
    with pytest.raises(Difference, match="arm in examples must be , got a"):
        audit(there, ran)


def test_audit_finds_a_probability_that_was_not_served() -> None:
    ran = run(stream(*CORNERS["some requests say what they were served with"]), RULES)
    there = topics(ran.blocks)
    rows = {(row["request_id"], row["position"]): row for block in there.examples for row in block.rows}
    assert (rows["r", 0]["pctr"], rows["r", 0]["counts_s"], rows["r", 0]["snapshot"]) == (0.25, -1.5, "v")
    assert (rows["r", 1]["pctr"], rows["r", 1]["snapshot"]) == (None, "")
    rows["r", 0]["pctr"] = 0.5
    with pytest.raises(Difference, match=r"pctr in examples must be 0\.25, got 0\.5"):
        audit(there, ran)


def busy() -> Run:
    """A run with several blocks, clicks, dead letters and chains."""
    events: list[Event] = [Tick(0.0)]
    for index in range(8):
        start_s = index * 12.0
        name = f"r{index}"
        events += [request(name, start_s), impression(name, start_s, 0), impression(name, start_s + 1.0, 1)]
        events += [click(name, start_s + 2.0, index % 2), impression("nobody", start_s), click(name, start_s + 40.0)]
    return run(stream(*events))


def blocks_with_rows(there: Topics, n_rows: int = 2) -> Block:
    return next(block for block in there.examples if len(block.rows) >= n_rows)


def lose_a_row(there: Topics) -> None:
    del blocks_with_rows(there).rows[0]


def lose_the_last_row(there: Topics) -> None:
    del blocks_with_rows(there).rows[-1]


def double_a_row(there: Topics) -> None:
    rows = blocks_with_rows(there).rows
    rows.insert(1, rows[0])


def flip_a_label(there: Topics) -> None:
    row = blocks_with_rows(there).rows[0]
    row["click"] = 1 - row["click"]


def change_a_value(there: Topics) -> None:
    blocks_with_rows(there).rows[1]["field.user"] = "8"


def change_a_price_a_little(there: Topics) -> None:
    blocks_with_rows(there).rows[1]["field.price"] += 1e-12


def settle_earlier(there: Topics) -> None:
    blocks_with_rows(there).rows[0]["settled_s"] -= 0.5


def swap_rows(there: Topics) -> None:
    rows = blocks_with_rows(there).rows
    rows[0], rows[1] = rows[1], rows[0]


def change_a_kind(there: Topics) -> None:
    blocks_with_rows(there).rows[0]["kind"] = "late_corrected"


def lose_a_dead_letter(there: Topics) -> None:
    del there.letters[1]


def double_a_dead_letter(there: Topics) -> None:
    there.letters.insert(1, there.letters[1])


def change_a_dead_letters_rule(there: Topics) -> None:
    there.letters[0] = Letter(there.letters[0].offset, "schema")


def lose_a_block(there: Topics) -> None:
    del there.examples[2], there.chains[2]


def double_a_block(there: Topics) -> None:
    there.examples.insert(2, there.examples[2])
    there.chains.insert(2, there.chains[2])


def lose_a_twin(there: Topics) -> None:
    del there.chains[2]


def lose_the_last_twin(there: Topics) -> None:
    del there.chains[-1]


def relabel_a_candidate(there: Topics) -> None:
    chain = next(chain for block in there.chains for chain in block.rows)
    chain["candidates"][2]["label"] = "exposed"


def lose_a_candidate(there: Topics) -> None:
    next(chain for block in there.chains for chain in block.rows)["candidates"].pop()


def lose_a_chain(there: Topics) -> None:
    del next(block.rows for block in there.chains if block.rows)[0]


def miscount(there: Topics) -> None:
    change_heads(there, 3, lambda head: msgspec.structs.replace(head, counts=head.counts | {"late": 99}))


def break_a_law(there: Topics) -> None:
    change_heads(there, 3, lambda head: msgspec.structs.replace(head, counts=head.counts | {"records": 99}))


def hurry_the_watermark(there: Topics) -> None:
    change_heads(there, 3, lambda head: msgspec.structs.replace(head, watermark_s=head.watermark_s + 1e5))


def part_the_clocks(there: Topics) -> None:
    change_heads(there, 3, lambda head: msgspec.structs.replace(head, horizon_s=head.horizon_s + 1e-6))


def forget_too_much(there: Topics) -> None:
    number = next(block.head.number for block in there.examples if block.head.resume_at <= block.head.through)
    change_heads(there, number, lambda head: msgspec.structs.replace(head, resume_at=head.through + 1))


def miscount_letters(there: Topics) -> None:
    change_heads(there, 3, lambda head: msgspec.structs.replace(head, resume_letters=head.resume_letters + 1))


def change_heads(there: Topics, number: int, change: Callable[[Head], Head]) -> None:
    for blocks in (there.examples, there.chains):
        blocks[number] = blocks[number]._replace(head=change(blocks[number].head))


FAULTS = [
    (lose_a_row, "the next row of examples must be"),
    (lose_the_last_row, "got nothing"),
    (double_a_row, "the next row of examples must be"),
    (flip_a_label, "click in examples must be"),
    (change_a_value, "field.user in examples must be 7, got 8"),
    (change_a_price_a_little, "field.price in examples must be"),
    (settle_earlier, "settled_s in examples must be"),
    (swap_rows, "the next row of examples must be"),
    (change_a_kind, "the next row of examples must be"),
    (lose_a_dead_letter, "the next dead letter must be Letter"),
    (double_a_dead_letter, "the next dead letter must be Letter"),
    (change_a_dead_letters_rule, "the next dead letter must be Letter"),
    (lose_a_block, "the number of the next block of examples must be 2, got 3"),
    (double_a_block, "the number of the next block of examples must be 3, got 2"),
    (lose_a_twin, "the number of the next block of chains must be 2, got 3"),
    (lose_the_last_twin, "the number of the last block of chains"),
    (relabel_a_candidate, "candidate 2: label in chains must be unexposed, got exposed"),
    (lose_a_candidate, "the next row of chains must be"),
    (lose_a_chain, "the next row of chains must be"),
    (miscount, "late in the header must be"),
    (break_a_law, "records in the header must be"),
    (part_the_clocks, "horizon_s in the header must be"),
    (forget_too_much, "resume_at in the header must be <="),
    (miscount_letters, "resume_letters in the header must be"),
    (hurry_the_watermark, "watermark_s in the header must be in"),
]


@pytest.mark.parametrize(("plant", "says"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_planted_fault_is_found(plant: Callable[[Topics], None], says: str) -> None:
    ran = busy()
    there = topics(ran.blocks)
    audit(there, ran)
    plant(there)
    with pytest.raises(Difference, match="partition 0") as error:
        audit(there, ran)
    assert says in str(error.value)


def test_difference_names_block_request_and_position() -> None:
    ran = busy()
    there = topics(ran.blocks)
    flip_a_label(there)
    block = blocks_with_rows(there)
    with pytest.raises(Difference) as error:
        audit(there, ran)
    row = block.rows[0]
    assert error.value.report == {
        "what": "click in examples",
        "partition": 0,
        "block": block.head.number,
        "request_id": row["request_id"],
        "position": row["position"],
        "expected": 1 - row["click"],
        "found": row["click"],
    }


def test_twins_whose_headers_differ_are_found() -> None:
    ran = busy()
    there = topics(ran.blocks)
    there.chains[1] = there.chains[1]._replace(raw_head=b"{}")
    with pytest.raises(Difference, match="the header of its twin in chains"):
        audit(there, ran)


def test_blocks_after_a_limit_was_reached_cannot_be_proven() -> None:
    limited = msgspec.structs.replace(RULES, pending_max=1)
    ran = run(stream(request("r", 0.0), *(impression("r", 0.0, position) for position in range(3))), limited)
    assert ran.blocks[-1].header.counts.expired_early
    with pytest.raises(Unprovable, match=r"limits were reached \(expired_early = \d+"):
        audit(topics(ran.blocks), ran)


def test_bytes_that_are_no_block_are_named() -> None:
    with pytest.raises(ValueError, match="a block must be an Arrow IPC stream"):
        open_block(b"{}")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([])):
        pass
    with pytest.raises(ValueError, match="its metadata must hold the key freshrank"):
        open_block(sink.getvalue().to_pybytes())
