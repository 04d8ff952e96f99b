"""Dead letters on a real broker: found, mended, sent again once, and a poison record comes to an end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner, Result

from infra.broker import BrokerInfo
from infra.settings import read_settings
from stream.cli import app
from stream.dead_letters import Wanted
from stream.dlq import Choice, Plan, read_letters, requeue
from stream.events import Candidate, Click, Event, Impression, Request, Tick, encode_event
from stream.kafka import murmur2_partition
from tests.broker.deployment import Deployment, deploy, until

CONFIG = """
name = "letters"
[[fields]]
name = "age"
side = "user"
kind = "number"
[[fields]]
name = "ad"
side = "item"
[window]
slide_s = 1000.0
"""
LEDGER = "wait_s = 10.0\ngrace_s = 1000.0\ndisorder_s = 0.0\nblock_s = 0.1"
AD = Candidate("a", {"ad": "a"})
R = murmur2_partition(b"r", 3)


@pytest.fixture
def deployment(tmp_path: Path, broker: BrokerInfo, topic_prefix: str) -> Deployment:
    config = tmp_path / "letters.toml"
    config.write_text(CONFIG)
    return deploy(tmp_path, broker.bootstrap_servers, topic_prefix, config=config, ledger=LEDGER)


async def send(deployment: Deployment, *events: Event, partition: int = R) -> None:
    async with AIOKafkaProducer(**deployment.cluster.options) as producer:
        for event in events:
            value = encode_event(event)
            await producer.send_and_wait(deployment.cluster.topic("events"), value, key=b"r", partition=partition)


async def letters(deployment: Deployment, n_letters: int) -> list[Any]:
    async def checks() -> AsyncIterator[bool]:
        while True:
            for partition in range(3):  # a block closes, and letters leave with it, at the next record
                await send(deployment, Tick(102.0), partition=partition)
            found = await asyncio.gather(*[deployment.read("dead-letters", partition) for partition in range(3)])
            yield sum(map(len, found)) >= n_letters

    await until(checks(), 40.0)
    return [letter async for letter in read_letters(deployment.cluster, Wanted())]


async def call(*arguments: str | Path, answer: str | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, [str(argument) for argument in arguments], input=answer)


async def settled(deployment: Deployment, n_rows: int) -> AsyncIterator[bool]:
    while True:
        await send(deployment, Tick(200.0))
        header = (await deployment.headers())[R]
        yield header is not None and header.counts.clicked + header.counts.expired_negative >= n_rows


@pytest.mark.slow
async def test_letters_settle_when_they_are_sent_again_after_the_schema_was_mended(deployment: Deployment) -> None:
    config = deployment.config
    with deployment.role("worker", "ledger"):
        bad = Request("r", 100.0, [AD], {"age": "thirty"})
        await send(deployment, bad, Impression("r", "a", 0, 100.0), Click("r", "a", 0, 101.0), Tick(102.0))
        found = await letters(deployment, 2)
        assert [letter.record.rule for letter in found] == ["bad_value", "no_request"]
        assert [letter.record.attempts for letter in found] == [0, 0]

    shown = await call("dlq", "show", config, "--rule", "bad_value", "--field", "age")
    row = json.loads(shown.stdout)
    assert (row["value"], row["record"]["values"]) == ("thirty", {"age": "thirty"})
    listed = await call("dlq", "list", config, "--json", "-")
    assert {rule: n["letters"] for rule, n in json.loads(listed.stdout)["rules"].items()} == {
        "bad_value": 1,
        "no_request": 1,
    }

    config.write_text(config.read_text().replace('kind = "number"', 'kind = "category"'))
    with deployment.role("worker", "ledger"):
        refused = await call("dlq", "requeue", config, "--json", "-", answer="n\n")
        assert (refused.exit_code, '"sent": false' in refused.stdout) == (0, True)
        dry = await call("dlq", "requeue", config, "--dry-run", "--json", "-")
        assert json.loads(dry.stdout) == {
            "letters": {"bad_value": 1, "no_request": 1},
            "kept": {},
            "events": 2,
            "sent": False,
        }
        sent = await call("dlq", "requeue", config, "--json", "-", answer="y\n")
        assert (sent.exit_code, '"sent": true' in sent.stdout) == (0, True), sent.stderr
        await until(settled(deployment, 1), 40.0)
    header = (await deployment.headers())[R]
    assert header is not None
    assert (header.counts.clicked, header.counts.dead_letters) == (1, 2)
    assert header.counts.violations() == {"impressions": 0, "clicks": 0, "records": 0}

    again = await call("dlq", "requeue", config, "--yes", "--json", "-")
    assert json.loads(again.stdout) == {"letters": {}, "kept": {"requeued": 2}, "events": 0, "sent": False}
    assert len(await letters(deployment, 2)) == 2


@pytest.mark.slow
async def test_a_record_that_breaks_each_time_is_sent_no_more_than_requeue_max_times(deployment: Deployment) -> None:
    config = deployment.config
    with deployment.role("worker", "ledger"):
        await send(deployment, Request("r", 100.0, [AD], {"age": "thirty"}))
        for n_sent in range(3):
            found = await letters(deployment, n_sent + 1)
            assert [letter.record.attempts for letter in found] == list(range(n_sent + 1))
            result = await call("dlq", "requeue", config, "--yes", "--json", "-")
            assert json.loads(result.stdout)["letters"] == {"bad_value": 1}
        found = await letters(deployment, 4)
        assert found[-1].record.attempts == 3
        stopped = await call("dlq", "requeue", config, "--yes", "--json", "-")
        assert json.loads(stopped.stdout)["kept"] == {"requeued": 3, "attempts": 1}
        forced = await call("dlq", "requeue", config, "--yes", "--force-attempts", "--json", "-")
        assert json.loads(forced.stdout)["letters"] == {"bad_value": 1}
        assert (await letters(deployment, 5))[-1].record.attempts == 4
    events = [record for record in await deployment.read("events", R) if b"request" in (record.value or b"")]
    assert len({record.value for record in events}) == 1
    assert len(events) == 5


@pytest.mark.slow
async def test_a_record_in_a_wrong_partition_goes_home(deployment: Deployment) -> None:
    with deployment.role("worker", "ledger"):
        wrong = (R + 1) % 3
        await send(deployment, Request("r", 100.0, [AD]), Impression("r", "a", 0, 100.0), partition=wrong)
        assert [letter.record.rule for letter in await letters(deployment, 2)] == ["wrong_partition"] * 2
        sent = await requeue(
            deployment.settings, deployment.cluster, Wanted(), Choice(), confirm=lambda plan: bool(plan.letters)
        )
        assert sent is not None
        assert sent.letters == Counter(wrong_partition=2)
        await until(settled(deployment, 1), 40.0)


async def test_what_was_sent_again_while_a_person_thought_is_not_sent_twice(deployment: Deployment) -> None:
    await put_letters(deployment, 3)
    told: list[Plan] = []

    def say_yes(plan: Plan) -> bool:
        told.append(plan)
        return True

    async def ask(choice: Choice) -> Plan | None:
        return await requeue(deployment.settings, deployment.cluster, Wanted(), choice, confirm=say_yes)

    first, second = await asyncio.gather(ask(Choice(limit=2)), ask(Choice()), return_exceptions=True)
    n_sent = 0

    async def checks() -> AsyncIterator[bool]:
        nonlocal n_sent
        while True:
            noted = await read_all_notes(deployment)
            n_sent = len(noted)
            yield n_sent > 0 and n_sent == len(set(noted)) == len(await deployment.read("events", R))

    await until(checks(), 20.0)  # whoever was fenced, each letter is noted once and sent once
    third = await ask(Choice())
    assert third is not None
    assert third.letters.total() == 3 - n_sent
    assert not (isinstance(first, Exception) and isinstance(second, Exception))


@pytest.mark.slow
async def test_letters_whose_time_has_passed_stay_unless_told_otherwise(deployment: Deployment) -> None:
    await put_letters(deployment, 2)
    with deployment.role("worker", "ledger"):
        await send(deployment, Tick(5000.0))
        await send(deployment, Tick(5001.0))

        async def checks() -> AsyncIterator[bool]:
            while True:
                header = (await deployment.headers())[R]
                yield header is not None and header.watermark_s >= 5000.0

        await until(checks(), 40.0)
    kept = await call("dlq", "requeue", deployment.config, "--yes", "--json", "-")
    assert json.loads(kept.stdout)["kept"] == {"too_late": 2}
    sent = await call("dlq", "requeue", deployment.config, "--yes", "--too-late", "--json", "-")
    assert json.loads(sent.stdout)["letters"] == {"bad_value": 2}


async def put_letters(deployment: Deployment, n_letters: int) -> None:
    from stream.dead_letters import DeadLetterRecord, encode_dead_letter

    record = encode_event(Request("r", 100.0, [AD], {"age": "thirty"}))
    async with AIOKafkaProducer(**deployment.cluster.options) as producer:
        for offset in range(n_letters):
            letter = DeadLetterRecord(
                topic=deployment.cluster.topic("events"),
                partition=R,
                offset=offset,
                rule="bad_value",
                key=b"r",
                record=record,
            )
            topic = deployment.cluster.topic("dead-letters")
            await producer.send_and_wait(topic, encode_dead_letter(letter), partition=R)


async def read_all_notes(deployment: Deployment) -> list[tuple[str, int]]:
    notes = [json.loads(record.value or b"") for record in await deployment.read("commands", 0)]
    return [
        (partition, offset) for note in notes for partition, offsets in note["letters"].items() for offset in offsets
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "--since must be seconds since 1970 or ISO 8601"),
        (["--partition", "9"], "partition 9"),
    ],
)
async def test_a_wish_that_makes_no_sense_exits_with_2(
    deployment: Deployment, arguments: list[str], message: str
) -> None:
    result = await call("dlq", "list", deployment.config, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


async def test_the_requeue_max_of_the_settings_is_checked(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(CONFIG + "[ledger]\nrequeue_max = -1\n")
    with pytest.raises(ValueError, match=r"\[ledger\] requeue_max must be >= 0, got -1"):
        read_settings(config)
