from models.swap import Holder


def test_nothing_serves_before_the_first_swap() -> None:
    assert Holder[str]().current is None


def test_a_swap_hands_back_what_served_before() -> None:
    holder = Holder[str]()
    assert holder.swap("first") is None
    kept = holder.current
    assert holder.swap("second") == "first"
    assert (kept, holder.current) == ("first", "second")
