"""Tokens: how the ledger knows that an impression or a click is about an ad that the service really showed.

Owns their form and the check. Must not know where keys come from or who asks. A browser sends back what it was given;
without the key it can neither invent an impression nor change its position or propensity, and an old token ends.

A token is `ISSUED.PROPENSITY.MAC`: milliseconds of event time in hexadecimal, the propensity as JSON writes it, and
the first 16 bytes of HMAC-SHA-256 (RFC 2104) over these two, the ids and the position, in URL-safe base64.
"""

from __future__ import annotations

import base64
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from stream.events import Click, Event, EventError, Impression

MAC_BYTES = 16  # RFC 2104, section 5: no fewer than half of the hash's
KEY_BYTES_MIN = 16


@dataclass(frozen=True)
class Tokens:
    """The keys and for how long a token holds.

    Attributes:
        keys: The first signs, all are believed: put a new key in front, drop the old one after `ttl_s`.
        ttl_s: Event time from the request on for which a token holds.
    """

    keys: Sequence[bytes]
    ttl_s: float

    def __post_init__(self) -> None:
        """Refuse keys that can be guessed.

        Raises:
            ValueError: If there is no key or one is too short.
        """
        if not self.keys or min(len(key) for key in self.keys) < KEY_BYTES_MIN:
            shortest = min((len(key) for key in self.keys), default=0)
            raise ValueError(f"token keys must have at least {KEY_BYTES_MIN} bytes, got {shortest}; draw a longer one")

    def sign(self, request_id: str, ad_id: str, position: int, *, time_s: float, propensity: float = 1.0) -> str:
        """Return the token of an ad that is shown at a position in answer to a request of `time_s`."""
        head = f"{int(time_s * 1000.0):x}.{propensity!r}"
        return f"{head}.{_mac(self.keys[0], head, request_id, ad_id, position)}"

    def signed(self, event: Event) -> Event:
        """Return the event as it comes from somebody who was shown it: a replay plays service and browser."""
        if not isinstance(event, Impression | Click):
            return event
        propensity = event.propensity if isinstance(event, Impression) else 1.0
        ids = (event.request_id, event.ad_id, event.position)
        return msgspec.structs.replace(event, token=self.sign(*ids, time_s=event.time_s, propensity=propensity))

    def check(self, event: Impression | Click, watermark_s: float) -> None:
        """Return if the event's token is ours, about this very event, and still holds.

        Raises:
            EventError: With rule `no_token`, `bad_token` or `expired_token`.
        """
        if not event.token:
            raise EventError("no_token", "token")
        head, _, mac = event.token.rpartition(".")
        rest = (event.request_id, event.ad_id, event.position)
        if not any(hmac.compare_digest(mac.encode(), _mac(key, head, *rest).encode()) for key in self.keys):
            raise EventError("bad_token", "token", event.token)
        issued, _, propensity = head.partition(".")
        if isinstance(event, Impression) and not math.isclose(event.propensity, float(propensity), rel_tol=1e-9):
            raise EventError("bad_token", "propensity", event.propensity)
        if max(event.time_s, watermark_s) > int(issued, 16) / 1000.0 + self.ttl_s:
            raise EventError("expired_token", "token", event.token)


def _mac(key: bytes, head: str, request_id: str, ad_id: str, position: int) -> str:
    # Lengths first: no two different events may give the same text.
    text = f"{len(request_id)}.{len(ad_id)}.{position}.{head}.{request_id}.{ad_id}"
    digest = hmac.digest(key, text.encode(errors="surrogatepass"), "sha256")
    return base64.urlsafe_b64encode(digest[:MAC_BYTES]).rstrip(b"=").decode()
