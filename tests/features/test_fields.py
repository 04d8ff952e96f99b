import pytest

from features.fields import Field, check_fields, field_slots, id_field, raw_fields, slot_counts

USER, ITEM = Field("user", "user"), Field("item", "item")
TAGS = Field("tags", "item", "categories", values_max=3)
CROSS = Field("both", "cross", of=("user", "tags"))


def test_a_field_with_several_values_and_its_cross_take_as_many_slots() -> None:
    assert slot_counts((USER, ITEM, TAGS, CROSS)) == (1, 1, 3, 3)
    assert field_slots((USER, ITEM, TAGS, CROSS)) == [slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 8)]


def test_crosses_are_computed_and_not_carried_by_events() -> None:
    assert raw_fields((USER, ITEM, TAGS, CROSS)) == (USER, ITEM, TAGS)


def test_a_side_is_identified_by_its_first_category() -> None:
    age = Field("age", "user", "number")
    assert id_field((age, USER, ITEM), "user") == USER
    assert id_field((ITEM,), "user") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((), "at least one field"),
        ((ITEM, ITEM), "unique"),
        ((ITEM, Field("tags", "item", "categories", values_max=0)), "values_max must be >= 1"),
        ((ITEM, Field("x", "cross", of=("item",))), "two or more parts"),
        ((ITEM, Field("x", "cross", of=("item", "later")), Field("later", "user")), "before it"),
        ((ITEM, TAGS, Field("t2", "item", "categories"), Field("x", "cross", of=("tags", "t2"))), "one part of kind"),
        ((ITEM, Field("x", "user", of=("item", "item"))), 'side must be "cross"'),
        ((USER,), "the ad's id"),
    ],
)
def test_fields_that_cannot_be_encoded_together_are_refused(fields: tuple[Field, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_fields(fields)
