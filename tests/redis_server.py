"""A real Redis for a test: the one in the environment, or else the one on the PATH."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Run a server on a free port of this machine; give its address."""
    beside = Path(sys.executable).parent / "redis-server"
    server = str(beside) if beside.exists() else shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server in the environment or on the PATH")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            deadline_s = time.monotonic() + 10.0
            while not _answers(client):
                assert time.monotonic() < deadline_s, f"redis-server does not answer on port {port}"
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/1"
    finally:
        process.terminate()
        process.wait(10.0)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
