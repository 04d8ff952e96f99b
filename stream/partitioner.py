"""Which partition a key goes to: the Java client's default partitioner, bit for bit.

Owns the hash. Must not know topics or clients. Impressions, clicks and their request meet only because every producer
agrees on this function; librdkafka's default is another one (it needs `partitioner=murmur2_random`).
"""

from __future__ import annotations

from functools import lru_cache
from struct import unpack_from

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2_partition(key: bytes, n_partitions: int) -> int:
    """Return the partition of a key, in [0, n_partitions).

    Source: org.apache.kafka.common.utils.Utils.murmur2 and BuiltInPartitioner; masks are left out where the next
    operation masks anyway.
    """
    n_bytes = len(key)
    n_words = n_bytes >> 2
    h = _SEED ^ n_bytes
    for word in unpack_from(f"<{n_words}I", key):
        k = word * _MULTIPLIER & _MASK
        h = (h * _MULTIPLIER ^ (k ^ k >> 24) * _MULTIPLIER) & _MASK
    if n_bytes & 3:
        h = (h ^ int.from_bytes(key[n_words << 2 :], "little")) * _MULTIPLIER & _MASK
    h = (h ^ h >> 13) * _MULTIPLIER & _MASK
    return ((h ^ h >> 15) & 0x7FFFFFFF) % n_partitions


@lru_cache(maxsize=100_000)  # the events of a request come close together
def request_partition(request_id: str, n_partitions: int) -> int:
    """Return the partition of a request and of all impressions and clicks that follow from it."""
    return murmur2_partition(request_id.encode(), n_partitions)
