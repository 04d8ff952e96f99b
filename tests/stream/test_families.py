import pytest

from infra.settings import Settings, SettingsError, parse_settings
from stream.families import family_of


def settings_with(**sections: object) -> Settings:
    return parse_settings({"name": "test", "fields": [{"name": "ad", "side": "item"}], **sections})


def test_each_kind_is_the_family_that_the_settings_name() -> None:
    settings = settings_with(model={"family": "rates"}, prerank={"network": "ecm", "family": "first"})
    assert [(family_of(settings, kind).name, family_of(settings, kind).topic) for kind in ("click", "prerank")] == [
        ("rates", "examples"),
        ("first", "chains"),
    ]


def test_a_pre_ranker_that_is_not_turned_on_is_no_family() -> None:
    with pytest.raises(SettingsError, match=r"\[prerank\] network must be named for the family prerank"):
        family_of(settings_with(), "prerank")
