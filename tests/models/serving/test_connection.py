"""Callers who hang or dribble, against the real server: each is let go of, and those who behave notice nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from models.serving import app as app_module
from models.serving import connection
from tests.models.serving.service import BODY, LIMITS, Service, listening, ready_service

SHORT_S = 0.2
POST = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\n"
CONTENT = json.dumps(BODY).encode()
WHOLE = POST + b"content-length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(connection, "IDLE_S_MAX", SHORT_S)
    monkeypatch.setattr(connection, "STALL_S_MAX", SHORT_S)
    monkeypatch.setattr(app_module, "BODY_WAIT_S", SHORT_S)
    return ready_service(tmp_path, concurrent_max=1, queue_max=0)


class Caller:
    """The other side of one connection, and whether the server has let go of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        self.reader, self.writer, self.gone = reader, writer, gone

    async def dribble(self, piece: bytes) -> None:
        """Send the piece again and again until the server has let go."""
        while not self.gone.is_set():
            with suppress(ConnectionError):
                self.writer.write(piece)
                await self.writer.drain()
            await asyncio.sleep(SHORT_S / 10)

    async def answer(self) -> tuple[int, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head.split()[1]), await self.reader.readexactly(int(length.split(b":")[1]))


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[Caller]:
    gone = asyncio.Event()

    class Told(connection.Connection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            gone.set()

    async with listening(service.app, Told) as (host, port), asyncio.timeout(20.0):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            yield Caller(reader, writer, gone)
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/rank HT", POST, b"\r\n"])
async def test_who_sends_no_head_is_let_go_of(service: Service, sent: bytes) -> None:
    async with connected(service) as caller:
        caller.writer.write(sent)
        await caller.gone.wait()


@pytest.mark.parametrize(
    ("begin", "piece"), [(POST, b"x: y\r\n"), (POST + b"x: ", b"y"), (b"", b"\r\n"), (b"GET /", b"a")]
)
async def test_who_dribbles_a_head_is_let_go_of(service: Service, begin: bytes, piece: bytes) -> None:
    async with connected(service) as caller:
        caller.writer.write(begin)
        await caller.dribble(piece)


async def test_who_dribbles_a_body_is_answered_and_let_go_of(service: Service) -> None:
    async with connected(service) as caller:
        caller.writer.write(POST + b"content-length: %d\r\n\r\n" % LIMITS.body_bytes_max)
        dribbling = asyncio.create_task(caller.dribble(b" "))
        assert (await caller.answer())[0] == 408
        await dribbling


async def test_who_dribbles_on_after_an_answer_is_let_go_of(service: Service) -> None:
    async with connected(service) as caller:
        caller.writer.write(WHOLE)
        assert (await caller.answer())[0] == 200
        await caller.dribble(b"\r\n")


async def test_who_takes_no_answer_is_let_go_of(service: Service) -> None:
    async with connected(service) as caller:
        caller.reader._transport.pause_reading()  # type: ignore[attr-defined]
        while not caller.gone.is_set():  # the answers fill the buffers of both sides
            caller.writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
            await asyncio.sleep(0)


async def test_a_head_without_end_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_S_MAX", 60.0)  # it is not the time that ends it
    async with connected(service) as caller:
        caller.writer.write(b"GET /healthz HTTP/1.1\r\nx: ")
        await caller.dribble(b"y" * connection.HEAD_BYTES_MAX)


async def test_a_body_far_larger_than_a_head_may_be_comes_in_one_piece(service: Service) -> None:
    async with connected(service) as caller:
        caller.writer.write(POST)
        await asyncio.sleep(SHORT_S / 10)  # so that the end of the head comes together with the body
        caller.writer.write(b"content-length: 200000\r\n\r\n" + b" " * 200_000 + WHOLE)
        assert (await caller.answer())[0] == 413
        assert (await caller.answer())[0] == 200


async def test_requests_that_follow_each_other_without_waiting_are_all_answered(service: Service) -> None:
    async with connected(service) as caller:
        caller.writer.write(WHOLE * 30)
        for _ in range(30):
            assert (await caller.answer())[0] == 200


async def test_those_who_hang_take_no_place_from_others(service: Service) -> None:
    """One may be worked on and none may wait: were a body on its way to hold the place, nobody else would get it."""
    async with connected(service) as caller, listening(service.app) as (host, port):
        caller.writer.write(POST + b"content-length: %d\r\n\r\n{" % LIMITS.body_bytes_max)
        await caller.writer.drain()
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client:
            assert (await client.post("/v1/rank", json=BODY)).status_code == 200
    assert service.metric("freshrank_rank_queue_count") == 0.0
