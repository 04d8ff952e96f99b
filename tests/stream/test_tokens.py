"""Tokens: what the service did not give out is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import Click, EventError, Impression
from stream.tokens import Tokens

TOKENS = Tokens([b"0123456789abcdef"], ttl_s=100.0)


def shown(time_s: float = 50.0, propensity: float = 0.25) -> Impression:
    token = TOKENS.sign("r", "ad", 3, time_s=time_s, propensity=propensity)
    return Impression("r", "ad", 3, time_s + 1.0, propensity, token)


def rule(event: Impression | Click, tokens: Tokens = TOKENS, watermark_s: float = 0.0) -> str:
    with pytest.raises(EventError) as caught:
        tokens.check(event, watermark_s)
    return caught.value.rule


def test_what_was_given_out_is_taken_for_the_impression_and_its_click() -> None:
    impression = shown()
    TOKENS.check(impression, 0.0)
    TOKENS.check(Click("r", "ad", 3, 60.0, impression.token), 0.0)


@pytest.mark.parametrize(
    "changed",
    [{"request_id": "q"}, {"ad_id": "other"}, {"position": 0}, {"propensity": 1.0}, {"token": "x.y.z"}, {"token": "1"}],
)
def test_token_of_something_else_is_refused(changed: dict[str, object]) -> None:
    assert rule(msgspec.structs.replace(shown(), **changed)) == "bad_token"


def test_missing_token_is_refused() -> None:
    assert rule(Impression("r", "ad", 3, 50.0)) == "no_token"


def test_old_token_is_refused_by_the_events_time_and_by_the_watermark() -> None:
    TOKENS.check(msgspec.structs.replace(shown(), time_s=150.0), 0.0)
    assert rule(msgspec.structs.replace(shown(), time_s=150.1)) == "expired_token"
    assert rule(shown(), watermark_s=150.1) == "expired_token"


def test_new_key_in_front_signs_and_the_old_one_is_still_believed() -> None:
    rolled = Tokens([b"another key, 16+", *TOKENS.keys], ttl_s=100.0)
    rolled.check(shown(), 0.0)
    assert rule(rolled.signed(Click("r", "ad", 3, 60.0)), TOKENS) == "bad_token"  # type: ignore[arg-type]


def test_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="token keys must have at least 16 bytes, got 3"):
        Tokens([b"abc"], ttl_s=1.0)


@given(st.text(max_size=60))
def test_any_text_as_a_token_is_refused_and_nothing_else_happens(token: str) -> None:
    assert rule(msgspec.structs.replace(shown(), token=token)) in {"no_token", "bad_token"}
