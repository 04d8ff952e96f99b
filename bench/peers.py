"""What the ledger and the bridge are measured against, each in a process of its own: `python -m bench.peers NAME ...`.

Each peer reads events from Kafka, does its work on them, writes to Kafka, and prints what it took as one JSON object:
seconds and processor seconds from the first events in hand until the last output is acknowledged. Starting, joining a
group and finding partitions are not counted. See bench/ledger.py for what each stands for.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

FETCH_BYTES = 8 * 1024 * 1024


class Stopwatch:
    """Wall clock and processor time of this process, from the first events in hand."""

    def __init__(self) -> None:
        self._begun: tuple[float, float] | None = None

    def start(self) -> None:
        if self._begun is None:
            self._begun = (time.perf_counter(), time.process_time())

    def report(self, n_events: int, **more: Any) -> None:
        assert self._begun is not None, "nothing came"
        seconds, cpu_s = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "events": n_events, **more}), flush=True)


def forward_confluent(arguments: argparse.Namespace) -> None:
    """Consume and produce again, by librdkafka."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    watch, n_done, n_events = Stopwatch(), 0, arguments.events
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.servers,
            "group.id": arguments.target,
            "enable.auto.commit": False,
            "fetch.message.max.bytes": FETCH_BYTES,
            "queued.min.messages": 100_000,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": arguments.servers,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1_000_000,
            "batch.size": 1_000_000,
            "batch.num.messages": 10_000,
            "linger.ms": 20,
        }
    )
    consumer.assign([TopicPartition(arguments.source, 0, 0)])
    produce, target = producer.produce, arguments.target
    while n_done < n_events:
        messages = consumer.consume(10_000, 0.2)
        if messages:
            watch.start()
        for message in messages:
            produce(target, message.value(), message.key(), 0)
        producer.poll(0)
        n_done += len(messages)
    producer.flush()
    watch.report(n_done)


def forward_aiokafka(arguments: argparse.Namespace) -> None:
    """Consume and produce again, by aiokafka's batches."""
    asyncio.run(_forward_aiokafka(arguments))


async def _forward_aiokafka(arguments: argparse.Namespace) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

    watch, n_done = Stopwatch(), 0
    consumer = AIOKafkaConsumer(
        bootstrap_servers=arguments.servers, auto_offset_reset="earliest", max_partition_fetch_bytes=FETCH_BYTES
    )
    producer = AIOKafkaProducer(bootstrap_servers=arguments.servers, max_batch_size=128 * 1024)
    await consumer.start()
    await producer.start()
    consumer.assign([TopicPartition(arguments.source, 0)])
    batch, sent = producer.create_batch(), []
    while n_done < arguments.events:
        for records in (await consumer.getmany(timeout_ms=200, max_records=4000)).values():
            watch.start()
            n_done += len(records)
            for record in records:
                if batch.append(key=record.key, value=record.value, timestamp=None) is None:
                    sent.append(await producer.send_batch(batch, arguments.target, partition=0))
                    batch = producer.create_batch()
                    batch.append(key=record.key, value=record.value, timestamp=None)
    sent.append(await producer.send_batch(batch, arguments.target, partition=0))
    await asyncio.gather(*sent)
    watch.report(n_done)
    await producer.stop()
    await consumer.stop()


def forward_faust(arguments: argparse.Namespace) -> None:
    """Decode and send again in a plain Faust agent, event by event."""
    import faust

    from stream.events import decode_event, encode_event

    watch = Stopwatch()
    app = faust.App(
        arguments.group,
        broker=f"aiokafka://{arguments.servers}",
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        datadir=arguments.directory,
        store="memory://",
        value_serializer="raw",
        key_serializer="raw",
    )
    target = app.topic(arguments.target)

    @app.agent(app.topic(arguments.source))
    async def forward(stream: Any) -> None:
        n_done = 0
        async for value in stream:
            watch.start()
            await target.send(value=encode_event(decode_event(value)))
            n_done += 1
            if n_done == arguments.events:
                await app.producer.flush()
                watch.report(n_done)
                os._exit(0)  # its shutdown is not what is measured

    worker = faust.Worker(app, loglevel="ERROR", quiet=True, redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()


def join_quix(arguments: argparse.Namespace) -> None:
    """Join impressions and clicks by the interval join of Quix Streams: two topics, one key, `wait_s` forward."""
    from quixstreams import Application
    from quixstreams.models import JSONDeserializer

    watch = Stopwatch()

    class Timed(JSONDeserializer):
        def __call__(self, value: bytes, ctx: Any) -> Any:
            watch.start()
            return super().__call__(value, ctx)

    app = Application(
        broker_address=arguments.servers,
        consumer_group=arguments.group,
        auto_offset_reset="earliest",
        state_dir=arguments.directory,
        processing_guarantee=arguments.guarantee,
        loglevel="ERROR",
        auto_create_topics=True,
    )
    impressions, clicks = (
        app.dataframe(app.topic(f"{arguments.source}.{kind}", key_deserializer="str", value_deserializer=Timed()))
        for kind in ("impressions", "clicks")
    )
    wait_ms = int(arguments.wait_s * 1000)
    joined = impressions.join_interval(
        clicks, how="inner", on_merge="keep-left", grace_ms=2 * wait_ms, forward_ms=wait_ms
    )
    joined.to_topic(app.topic(arguments.target, value_serializer="json"))
    app.run(count=arguments.events)
    watch.report(arguments.events)


PEERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "confluent-kafka": forward_confluent,
    "aiokafka": forward_aiokafka,
    "faust": forward_faust,
    "quixstreams": join_quix,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--source", required=True, help="topic; of quixstreams: what stands before .impressions")
    parser.add_argument("--target", required=True, help="topic")
    parser.add_argument("--group", default="bench")
    parser.add_argument("--events", type=int, required=True, help="stop after so many")
    parser.add_argument("--directory", default="", help="for state")
    parser.add_argument("--wait-s", type=float, default=60.0)
    parser.add_argument("--guarantee", default="at-least-once")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # Faust reads them too
    PEERS[arguments.name](arguments)


if __name__ == "__main__":
    main()
