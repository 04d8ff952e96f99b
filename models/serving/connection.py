"""One connection of the HTTP server, with an end to every wait for its other side.

Owns how long a connection may take to send a request's head or to take an answer, and how large a head may be: uvicorn
waits for both for ever and takes heads of any size. Bodies have their own limits (app.py). Must not know what is asked.

Invariants: a connection without a request that is being answered is closed within `IDLE_S_MAX`, whatever bytes dribble
in; one whose answers are not taken within `STALL_S_MAX` is closed; both let go of everything that it holds.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

IDLE_S_MAX = 10.0  # by hand: as long as a body may take; uvicorn itself ends an idle connection after 5 s
STALL_S_MAX = 10.0  # by hand: nobody who waits for a ranking takes this long to read it
HEAD_BYTES_MAX = 65_536  # by hand: eight times what other servers take


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, with these limits."""

    _idle: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _head: _Head | None = None  # while one comes in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those that are nothing but more of the same head are counted."""
        head = self._head
        super().data_received(data)
        if head is None or head is not self._head:
            return
        head.n_bytes += len(data)
        if head.n_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response(f"The head of a request must be at most {HEAD_BYTES_MAX} bytes.")

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._head = _Head()

    def on_headers_complete(self) -> None:
        """Stop waiting: there is a request."""
        self._head = None
        _cancel(self._idle)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next head, unless it has come already."""
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next:
            self._wait_for_head()

    def pause_writing(self) -> None:
        """Note that the other side does not read."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_S_MAX, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it reads again."""
        super().resume_writing()
        _cancel(self._stall)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go."""
        _cancel(self._idle)
        _cancel(self._stall)
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        _cancel(self._idle)
        # Not `close`: that would wait for the other side to take what was written.
        self._idle = self.loop.call_later(IDLE_S_MAX, self.transport.abort)


class _Head:
    n_bytes = 0


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
