import socket

import pytest

from infra.settings import SettingsError, parse_settings
from stream.servers import serve_together

SETTINGS = {"name": "test", "fields": [{"name": "ad", "side": "item"}]}


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_port_that_somebody_listens_on_is_said_at_the_start_also_if_they_would_share_it(*, is_shared: bool) -> None:
    settings = parse_settings(SETTINGS | {"serve": {"processes": 2}})
    with socket.create_server(("127.0.0.1", 0), reuse_port=is_shared) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"must be free to listen on, got 127.0.0.1:{port}"):
            serve_together(settings, "", port=port, announce=print)


def test_there_is_one_process_at_least() -> None:
    with pytest.raises(SettingsError, match=r"\[serve\] processes must be > 0"):
        parse_settings(SETTINGS | {"serve": {"processes": 0}})
