"""`freshrank audit` on a real broker: what a worker wrote is proven, and what is not as it must be is found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import polars as pl
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from infra.broker import BrokerInfo
from stream.audit.proof import Proof, audit
from stream.blocks import decode_block, decode_header, encode_block, row_schema
from tests.broker.deployment import Deployment, deploy

pytestmark = pytest.mark.slow
ROWS = 1_500
BAD = (b"", b"{", b'{"type":"click","request_id":"nobody","ad_id":"a","position":0,"time_s":1}')
LEDGER = 'wait_s = 60.0\ngrace_s = 60.0\nlate_clicks = "correct"\nblock_s = 0.1'
TOPICS = ("events", "examples", "chains", "dead-letters")
Values = dict[str, list[bytes | None]]  # by topic, of partition 0


@pytest.fixture(scope="module")
def ledgered(tmp_path_factory: pytest.TempPathFactory, broker: BrokerInfo) -> Deployment:
    """A deployment whose events, some of them bad, a worker has gone through."""
    return asyncio.run(_ledgered(tmp_path_factory.mktemp("audit"), broker))


async def _ledgered(directory: Path, broker: BrokerInfo) -> Deployment:
    prefix = f"audit-{uuid.uuid4().hex[:8]}"
    deployment = deploy(directory, broker.bootstrap_servers, prefix, rows=ROWS, ledger=LEDGER, slide_s=600.0)
    async with AIOKafkaProducer(**deployment.cluster.options) as producer:
        for value in BAD:
            await producer.send_and_wait(deployment.cluster.topic("events"), value, partition=0)
    with deployment.role("worker", "ledger"):
        await deployment.replay(append=True)
        await deployment.wait_settled()
    return deployment


@pytest.fixture
async def values(ledgered: Deployment) -> Values:
    return {topic: [record.value for record in await ledgered.read(topic, 0)] for topic in TOPICS}


async def rewritten(directory: Path, ledgered: Deployment, values: Values) -> Proof:
    """The proof about partition 0 of topics that hold these values instead."""
    servers = ledgered.cluster.bootstrap_servers
    copy = deploy(directory, servers, f"copy-{uuid.uuid4().hex[:8]}", ledger=LEDGER, slide_s=600.0)
    topic = {name: copy.cluster.topic(name) for name in TOPICS}
    old, new = ledgered.cluster.topic("events").encode(), topic["events"].encode()
    async with AIOKafkaProducer(**copy.cluster.options, max_request_size=8_000_000) as producer:
        for name in TOPICS:
            for value in values[name]:
                if name == "dead-letters":
                    value = value and value.replace(old, new)  # noqa: PLW2901
                await producer.send(topic[name], value, partition=0)
    return (await audit(copy.settings, copy.cluster))[0]


async def test_audit_proves_what_a_worker_wrote(ledgered: Deployment, tmp_path: Path) -> None:
    report = tmp_path / "audit.json"
    command = [sys.executable, "-m", "stream.cli", "audit", str(ledgered.config), "--json", str(report)]
    env = os.environ | {"FRESHRANK_HOME": str(tmp_path / "state")}
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=env, timeout=60.0)
    assert done.returncode == 0, done.stderr
    assert b"3 of 3 partitions are proven" in done.stderr
    result = msgspec.json.decode(report.read_bytes())
    assert result["equal"]
    assert sum(one["rows"] for one in result["partitions"]) >= ROWS
    assert sum(one["dead_letters"] for one in result["partitions"]) == len(BAD)
    assert all(one["first_block"] is None for one in result["partitions"])


def change_a_row(values: Values, change: Callable[[pl.DataFrame], pl.DataFrame], deployment: Deployment) -> None:
    for index, value in enumerate(values["examples"]):
        header, frame = decode_block(value or b"")
        if len(frame) > 1:
            columns = change(frame).to_dict(as_series=False)
            values["examples"][index] = encode_block(header, columns, row_schema(deployment.settings.fields))
            return


def flip_a_label(values: Values, deployment: Deployment) -> str:
    change_a_row(values, lambda rows: rows.with_columns((1 - pl.col("click")).alias("click")), deployment)
    return "click in examples must be"


def swap_rows(values: Values, deployment: Deployment) -> str:
    change_a_row(values, lambda rows: rows.reverse(), deployment)
    return "the next row of examples must be"


def lose_a_block(values: Values, _: Deployment) -> str:
    del values["examples"][1], values["chains"][1]
    return "the number of the next block of examples must be 1, got 2"


def lose_the_first_block(values: Values, _: Deployment) -> str:
    del values["examples"][0], values["chains"][0]
    return "the number of the first block must be 0, got 1"


def double_a_block(values: Values, _: Deployment) -> str:
    values["examples"].insert(1, values["examples"][1])
    return "the number of the next block of examples must be 2, got 1"


def write_rubbish(values: Values, _: Deployment) -> str:
    values["chains"][1] = b"rubbish"
    return "the record in chains must be a block"


def lose_a_dead_letter(values: Values, _: Deployment) -> str:
    del values["dead-letters"][1]
    return "the next dead letter must be Letter(offset=1, rule='not_json')"


def change_a_raw_record(values: Values, _: Deployment) -> str:
    values["dead-letters"][1] = (values["dead-letters"][1] or b"").replace(b'"record":"ew=="', b'"record":"fQ=="')
    return "record in the dead letter must be b'{', got b'}'"


def lose_an_event(values: Values, _: Deployment) -> str:
    del values["events"][len(values["events"]) // 2]
    return "partition 0, block"


FAULTS = (
    flip_a_label,
    swap_rows,
    lose_a_block,
    lose_the_first_block,
    double_a_block,
    write_rubbish,
    lose_a_dead_letter,
    change_a_raw_record,
    lose_an_event,
)


async def test_audit_of_a_copy_agrees(ledgered: Deployment, values: Values, tmp_path: Path) -> None:
    proof = await rewritten(tmp_path, ledgered, values)
    assert proof.equal, proof.text


@pytest.mark.parametrize("plant", FAULTS)
async def test_audit_finds_a_fault_in_the_topics(
    plant: Callable[[Values, Deployment], str], ledgered: Deployment, values: Values, tmp_path: Path
) -> None:
    says = plant(values, ledgered)
    proof = await rewritten(tmp_path, ledgered, values)
    assert not proof.equal
    assert says in proof.text
    assert proof.difference is not None


# What retention took; these come last, for they take it from the deployment that all tests share -----------------


async def delete_before(deployment: Deployment, topic: str, offset: int) -> None:
    admin = AIOKafkaAdminClient(**deployment.cluster.options)
    await admin.start()
    try:
        tp = TopicPartition(deployment.cluster.topic(topic), 0)
        await admin.delete_records({tp: RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()


async def prove_first(deployment: Deployment) -> Proof:
    return (await audit(deployment.settings, deployment.cluster))[0]


async def test_audit_says_which_dead_letters_are_gone(ledgered: Deployment) -> None:
    records = await ledgered.read("dead-letters", 0)
    await delete_before(ledgered, "dead-letters", records[1].offset)
    proof = await prove_first(ledgered)
    assert proof.equal, proof.text
    assert proof.dead_letters == len(records) - 1
    assert "dead letters of events before offset 1 are gone by retention" in proof.text


async def test_audit_begins_where_retention_allows_and_says_so(ledgered: Deployment) -> None:
    headers = [decode_header(record.value or b"") for record in await ledgered.read("examples", 0)]
    await delete_before(ledgered, "events", 100)
    proof = await prove_first(ledgered)
    start = next(header for header in headers if header.resume_at >= 100)
    assert proof.equal, proof.text
    assert (proof.first_block, proof.blocks) == (start.number + 1, headers[-1].number - start.number)
    assert f"proven behind block {start.number} (offset {start.through}): what lies before rests on" in proof.text
    records = await ledgered.read("chains", 0)
    await delete_before(ledgered, "chains", records[start.number + 2].offset)
    proof = await prove_first(ledgered)
    assert proof.equal, proof.text
    assert proof.first_block == start.number + 3


async def test_audit_says_when_retention_left_nothing_to_prove(ledgered: Deployment) -> None:
    last = decode_header((await ledgered.read("examples", 0))[-1].value or b"")
    await delete_before(ledgered, "events", last.resume_at + 1)
    proof = await prove_first(ledgered)
    assert not proof.equal
    assert "nothing can be proven, because retention took what even the last block" in proof.text
