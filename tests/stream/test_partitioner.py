"""The partitioner equals the Java client's."""

import aiokafka.partitioner
import hypothesis.strategies as st
import pytest
from hypothesis import given

from stream.partitioner import murmur2_partition

# From Kafka's own UtilsTest.testMurmur2: signed 32-bit hashes.
JAVA_HASHES = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", list(JAVA_HASHES))
def test_it_gives_the_hashes_of_javas_client(key: bytes) -> None:
    assert murmur2_partition(key, 1 << 31) == JAVA_HASHES[key] & 0x7FFFFFFF


@given(st.binary(max_size=80), st.integers(1, 1000))
def test_it_gives_the_partitions_of_aiokafka(key: bytes, n_partitions: int) -> None:
    expected = (aiokafka.partitioner.murmur2(key) & 0x7FFFFFFF) % n_partitions
    assert murmur2_partition(key, n_partitions) == expected
