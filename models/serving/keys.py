"""Keys of callers: how the service knows that a request comes from somebody who may send it.

Owns the form of a key and the check. Must not know where hashes come from or HTTP.

A key is 256 random bits, so its SHA-256 is all that the service needs: nobody can try that many keys, however fast the
hash is. A slow, salted hash is for passwords, which people choose and others guess; here it would only let anybody
make the service compute.

Invariants: the key itself is kept nowhere; a check compares with every hash in constant time, so that its duration
says nothing about which one is near.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

KEY_BYTES = 32
PREFIX = "freshrank_"  # so that a key in the wrong place can be found
SCHEME = "bearer "


def to_key(drawn: bytes) -> str:
    """Return random bytes as a key."""
    assert len(drawn) == KEY_BYTES, "a shorter key can be guessed"
    return PREFIX + base64.urlsafe_b64encode(drawn).rstrip(b"=").decode()


def hash_of(key: str) -> bytes:
    """Return what the service keeps of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def is_allowed(authorization: str, hashes: Sequence[bytes]) -> bool:
    """Return whether a header `Authorization: Bearer KEY` holds the key of one of the hashes."""
    scheme, key = authorization[: len(SCHEME)], authorization[len(SCHEME) :]
    own = hash_of(key.strip())
    found = [hmac.compare_digest(own, one) for one in hashes]
    return any(found) and scheme.lower() == SCHEME
