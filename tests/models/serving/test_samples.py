from hypothesis import given
from hypothesis import strategies as st

from models.serving.samples import SAMPLES_MAX, Samples


def test_what_is_no_request_is_held_until_the_first_real_one_comes() -> None:
    samples = Samples("nothing")
    assert samples.held == ("nothing",)
    samples.add("first", 3)
    assert samples.held == ("first",)


def test_a_rare_size_stays_while_a_common_one_keeps_its_newest() -> None:
    samples = Samples(0)
    samples.add(-1, 1000)
    for number in range(100):
        samples.add(number, 200 + number % 3)
    assert samples.held == (-1, *range(100 - SAMPLES_MAX + 1, 100))


def test_of_many_sizes_none_keeps_two_before_all_have_one() -> None:
    samples = Samples(0)
    for number in range(60):
        samples.add(number, 2 ** (number % 6))
    sizes = [number % 6 for number in samples.held]
    assert set(sizes) == {*range(6)}
    assert sorted(sizes.count(size) for size in range(6)) == [1, 1, 1, 1, 2, 2]


@given(st.lists(st.integers(0, 5000), min_size=1))
def test_there_are_never_more_than_its_number_and_the_newest_is_there(sizes: list[int]) -> None:
    samples = Samples(-1)
    for number, size in enumerate(sizes):
        before = samples.held
        samples.add(number, size)
        assert before is not samples.held
        assert samples.held[-1] == number
        assert len(samples.held) <= SAMPLES_MAX
        assert list(samples.held) == sorted(samples.held), "the oldest first"
