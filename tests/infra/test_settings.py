"""Every way in which a configuration can be wrong is one clear error; every configuration that we ship is right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from features.fields import raw_fields
from infra.settings import (
    Settings,
    SettingsError,
    api_key_hashes,
    parse_settings,
    read_settings,
    registry_url,
    state_dir,
    to_plan,
    token_keys,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = """
name = "shop"
[log]
files = ["log.csv"]
time = "time"
[[fields]]
name = "user"
side = "user"
[[fields]]
name = "ad"
side = "item"
"""


def parse(more: str = "", *, small: str = SMALL) -> Settings:
    return parse_settings(tomllib.loads(small + more))


def error_of(more: str = "", *, small: str = SMALL) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(more, small=small)
    return str(caught.value)


def without_log() -> str:
    return SMALL.replace('[log]\nfiles = ["log.csv"]\ntime = "time"\n', "")


def with_log(line: str) -> str:
    return SMALL.replace('time = "time"\n', f'time = "time"\n{line}\n')


def with_history(keys: str) -> str:
    field = '[[fields]]\nname = "before"\nside = "user"\nkind = "categories"\n'
    return with_log(f"histories = [{{ {keys} }}]") + field


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_right_and_named_after_its_file(path: Path) -> None:
    settings = read_settings(path)
    assert settings.name == path.stem
    assert settings.log is not None


def test_no_shipped_configuration_shows_the_model_what_it_must_not_see() -> None:
    after_the_click = {"rating", "true_ctr", "click", "click_time_s", "is_click", "long_view", "play_time_ms"}
    for path in CONFIGS.glob("*.toml"):
        assert not after_the_click & {field.name for field in raw_fields(read_settings(path).fields)}


def test_a_small_file_has_defaults_for_the_rest() -> None:
    settings = parse()
    assert (settings.prefix, settings.window.slide_s, settings.kafka.partitions) == ("shop", 3600.0, 4)


def test_the_prefix_stands_before_the_name() -> None:
    assert parse('[kafka]\nprefix = "other"').prefix == "other"


def test_the_state_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FRESHRANK_HOME", str(tmp_path))
    assert state_dir() == tmp_path
    assert registry_url(parse()) == str(tmp_path / "registry" / "shop")
    assert registry_url(parse('[registry]\nurl = "s3://bucket"')) == "s3://bucket"


# The file ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml must be a readable file, got: No such file"):
        read_settings(tmp_path / "none.toml")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must be a readable file, got: Is a directory; check the path"):
        read_settings(tmp_path)


def test_other_bytes_than_utf8_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'name = "\xff\xfe"')
    with pytest.raises(SettingsError, match=r"a\.toml must be UTF-8 text, got other bytes; save it as UTF-8"):
        read_settings(tmp_path / "a.toml")


def test_what_is_no_toml_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("name 5")
    with pytest.raises(SettingsError, match=r"a\.toml must be TOML, got: Expected '=' .*line 1, column 6\)"):
        read_settings(tmp_path / "a.toml")


def test_an_error_inside_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(SMALL + "[ledger]\nwait_s = -5.0")
    with pytest.raises(SettingsError, match=r"a\.toml: \[ledger\] wait_s must be > 0, got -5\.0"):
        read_settings(tmp_path / "a.toml")


# Keys and types ---------------------------------------------------------------------------------------------------


def test_an_unknown_key_comes_with_the_nearest_one() -> None:
    assert error_of("[ledger]\nwait = 5.0") == (
        '[ledger] must hold known keys only, got "wait"; did you mean "wait_s"?'
    )


def test_an_unknown_key_that_is_like_none_comes_with_all_of_them() -> None:
    assert error_of("[registry]\nzzz = 1") == ('[registry] must hold known keys only, got "zzz"; known keys: url, keep')


def test_an_unknown_section_is_an_unknown_key_of_the_file() -> None:
    assert (
        error_of("[legder]\nwait_s = 5.0") == 'the file must hold known keys only, got "legder"; did you mean "ledger"?'
    )


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (SMALL.replace('name = "shop"', ""), 'the file must hold the key "name", got none; add it'),
        (SMALL.replace('time = "time"', ""), '[log] must hold the key "time", got none; add it'),
        (SMALL.replace('name = "ad"', ""), '[[fields]] number 2 must hold the key "name", got none; add it'),
        ('name = "shop"', 'the file must hold the key "fields", got none; add it'),
        (with_log('joins = [{ file = "a.csv" }]'), '[log] joins[0] must hold the key "on", got none; add it'),
    ],
)
def test_a_missing_key_is_named(small: str, message: str) -> None:
    assert error_of(small=small) == message


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (SMALL.replace('"shop"', "5"), "name has a value of the wrong type: expected text, got whole number"),
        (SMALL.replace('["log.csv"]', '"a"'), "[log] files has a value of the wrong type: expected list, got text"),
        (
            SMALL + "[ledger]\nwait_s = true",
            "[ledger] wait_s has a value of the wrong type: expected number, got boolean",
        ),
        (
            SMALL + "[model]\nhidden = [8.5]",
            "[model] hidden[0] has a value of the wrong type: expected whole number, got",
        ),
        (
            SMALL.replace('"ad"', "7"),
            "[[fields]] number 2 name has a value of the wrong type: expected text, got whole",
        ),
        (without_log() + "[log]", '[log] must hold the key "files", got none; add it'),
        ('name = "a"\nledger = 5\nfields = []', "[ledger] has a value of the wrong type: expected table, got whole"),
        ('name = "a"\n[fields]\nb = 1', "fields has a value of the wrong type: expected list, got table"),
        ("fields = []\n[name]\nb = 1", "name has a value of the wrong type: expected text, got table"),
    ],
)
def test_a_wrong_type_says_what_was_expected(small: str, message: str) -> None:
    assert error_of(small=small).startswith(message)


def test_an_unknown_key_of_a_field_is_named() -> None:
    assert error_of("size = 5") == '[[fields]] number 2 must hold known keys only, got "size"; remove it'


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (with_log('time_unit = "h"'), "[log] time_unit must be one of s, ms, us, iso, got 'h'"),
        (
            SMALL + 'kind = "word"',
            "[[fields]] number 2 kind must be one of category, categories, number, got 'word'",
        ),
        (SMALL + '[update]\ndevice = "x"', "[update] device must be one of auto, cpu, cuda, got 'x'"),
    ],
)
def test_a_choice_that_is_none_comes_with_the_choices(small: str, message: str) -> None:
    assert error_of(small=small) == message


# Values -----------------------------------------------------------------------------------------------------------


POSITIVE = [
    *("ledger.wait_s", "ledger.block_rows", "ledger.block_s", "priors.publish_s", "model.dim", "update.batch_rows"),
    *("update.threads", "update.learning_rate", "update.embedding_learning_rate", "gate.alpha", "gate.buckets"),
    *("gate.evidence_clip", "gate.harm_max"),
    *("serve.candidates_max", "serve.events_max", "serve.body_bytes_max", "serve.top"),
    *("kafka.partitions", "registry.keep"),
]
NOT_NEGATIVE = [
    *("ledger.grace_s", "ledger.disorder_s", "window.window_s", "window.warmup_s", "priors.evidence_min"),
    *("model.admit_min", "model.forget_min", "gate.margin", "gate.clicks_min", "serve.port", "kafka.max_delay_s"),
    *("gate.slice_margin", "gate.rollback_wait", "kafka.max_ahead_s", "update.seed"),
]


def raw_with(key: str, value: Any) -> dict[str, Any]:
    raw = tomllib.loads(SMALL + "[window]\nslide_s = 3600.0")
    section, name = key.split(".")
    raw.setdefault(section, {})[name] = value
    return raw


@pytest.mark.parametrize("key", POSITIVE)
def test_what_must_be_positive_is_not_zero(key: str) -> None:
    with pytest.raises(SettingsError, match=rf"\[{key.replace('.', '] ')} must be > 0, got 0"):
        parse_settings(raw_with(key, 0))


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_what_must_not_be_negative_is_not(key: str) -> None:
    with pytest.raises(SettingsError, match=rf"\[{key.replace('.', '] ')} must be >= 0, got -1"):
        parse_settings(raw_with(key, -1))


@pytest.mark.parametrize("key", ["ledger.wait_s", "ledger.disorder_s", "model.admit_min", "gate.margin"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_infinite_or_none(key: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"\[{key.replace('.', '] ')} must be >=? 0, got {value}"):
        parse_settings(raw_with(key, value))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[priors]\nhalf_lives_s = []", "[priors] half_lives_s must hold at least one half-life, got []"),
        ("[priors]\nhalf_lives_s = [60.0, 0.0]", "[priors] half_lives_s must be > 0, got 0.0"),
        ('[priors]\nlevels = ["shop"]', '[priors] levels must name fields, got "shop"; fields: ad, user'),
        ("[model]\nhidden = [8, 0]", "[model] hidden must be > 0, got 0"),
        ("[model]\nforget_min = 3.0", "[model] forget_min must be <= admit_min (2.0), got 3.0"),
        ("[gate]\nbuckets = 9", "[gate] buckets must be >= 10: fewer do not say how precise a slide is, got 9"),
        ("[gate]\nshift_max = 1.0", "[gate] shift_max must be a ratio above 1, got 1.0"),
        ("[gate]\nalpha = 1.0", "[gate] alpha must be a probability below 1, got 1.0"),
        (
            "[gate]\ncalibration = [1.1, 2.0]",
            "[gate] calibration must be two bounds around 1, e.g. [0.5, 2.0], got [1.1, 2.0]",
        ),
        ("[serve]\nport = 65536", "[serve] port must be <= 65535, got 65536"),
        ("[kafka]\npartitions = 10001", "[kafka] partitions must be <= 10000, got 10001"),
        (
            "[update]\nseed = 9223372036854775808",
            "[update] seed must be <= 9223372036854775807, got 9223372036854775808",
        ),
    ],
)
def test_impossible_values_are_errors(more: str, message: str) -> None:
    assert error_of(more) == message


@pytest.mark.parametrize(
    ("small", "key", "got"),
    [
        (SMALL.replace('"shop"', '"my shop"'), "name", "my shop"),
        (SMALL.replace('"shop"', '""'), "name", ""),
        (SMALL + '[kafka]\nprefix = "a/b"', "[kafka] prefix", "a/b"),
        (SMALL + '[model]\nfamily = "../up"', "[model] family", "../up"),
    ],
)
def test_a_name_must_be_fit_for_topics_and_files(small: str, key: str, got: str) -> None:
    rule = 'must be letters, digits, ".", "_" or "-" (it names topics and files)'
    assert error_of(small=small) == f'{key} {rule}, got "{got}"'


def test_unknown_security_is_named_with_what_is_known() -> None:
    message = error_of('[kafka.security]\npassword = "x"')
    assert message.startswith('[kafka] security must hold known keys only, got "password"; known: protocol, ')


# The window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("slide_s = 0.0", "[window] must hold either slide_s > 0 or edges, got neither; keep one"),
        ("slide_s = 60.0\nedges = [1.0]", "[window] must hold either slide_s > 0 or edges, got both; keep one"),
        ("edges = [2.0, 2.0]", "[window] edges must grow, got one that is not later than the one before; sort them"),
        (
            "edges = [nan]",
            "[window] edges must be finite event times, got NaN or infinity; the last slide is open anyway",
        ),
        ("slide_s = 60.0\nwindow_s = 59.0", "[window] window_s must be >= slide_s (60.0), got 59.0"),
        ("slide_s = -1.0", "[window] slide_s must be >= 0, got -1.0"),
    ],
)
def test_impossible_windows_are_errors(more: str, message: str) -> None:
    assert error_of(f"[window]\n{more}") == message


# The log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (SMALL.replace('["log.csv"]', "[]"), "[log] files must name at least one file, got []"),
        (
            SMALL.replace('"log.csv"', '""'),
            "[log] files must not hold an empty name; write the file's or column's name",
        ),
        (SMALL.replace('time = "time"', 'time = ""'), "[log] time must not hold an empty name; write the file's or"),
        (with_log('label = ""'), "[log] label must not hold an empty name; write the file's or column's name"),
        (with_log('request = [""]'), "[log] request must not hold an empty name; write the file's or column's name"),
        (with_log('joins = [{ file = "a", on = "" }]'), "[log] joins must not hold an empty name; write the file's or"),
        (with_log('separator = ""'), '[log] separator must be one ASCII character, got ""'),
        (with_log('separator = "€"'), '[log] separator must be one ASCII character, got "€"'),
        (with_log('stages = ["shown"]'), "[log] request must name columns where [log] stages does"),
        (with_log('stages = ["shown", ""]\nrequest = ["user"]'), "[log] stages must not hold an empty name"),
        (with_log('sample_rate = "rate"'), "[log] sample_rate must be empty unless [log] stages says what was shown"),
        (with_log('bid_micros = "bid"'), '[log] bid_micros must be empty unless one of the joins is on = "ad"'),
        (with_log("label_at_least = nan"), "[log] label_at_least must be a finite number, got nan"),
        (with_log("click_delay_s = { mean = -1.0 }"), "[log] click_delay_s.mean must be >= 0, got -1.0"),
        (with_log("click_delay_s = { seed = -1 }"), "[log] click_delay_s.seed must be >= 0, got -1"),
        (
            with_log("click_delay_s = { seed = 9223372036854775808 }"),
            "[log] click_delay_s.seed must be <= 9223372036854775807, got 9223372036854775808",
        ),
        (
            with_log('histories = [{ name = "seen", of = "ad" }]'),
            '[log] histories must name a field of side = "user", kind = "categories", each once, got "seen"',
        ),
        (
            with_history('name = "before", of = "ad" }, { name = "before", of = "ad"'),
            '[log] histories must name a field of side = "user", kind = "categories", each once, got "before"',
        ),
        (
            with_history('name = "before", of = "before"'),
            '[log] histories must be of a field of kind = "category", for "before", got "before"',
        ),
        (
            with_history('name = "before", of = "other"'),
            '[log] histories must be of a field of kind = "category", for "before", got "other"',
        ),
        (
            with_history('name = "before", of = "ad"') + "values_max = 101\n",
            '[[fields]] name = "before" values_max must be <= 100, got 101',
        ),
        (
            with_history('name = "before", of = "ad"').replace(
                'name = "user"\nside = "user"', 'name = "user"\nside = "context"'
            ),
            '[log] histories must be empty unless [[fields]] holds one of side = "user", kind = "category"',
        ),
        (
            with_log("click_delay_s = { men = 1.0 }"),
            '[log] click_delay_s must hold known keys only, got "men"; remove it',
        ),
    ],
)
def test_impossible_logs_are_errors(small: str, message: str) -> None:
    assert error_of(small=small).startswith(message)


def test_a_label_is_not_needed_where_the_log_has_the_times_of_clicks() -> None:
    assert parse(small=with_log('label = ""\nclick_time = "clicked_at"')).log is not None


def test_a_deployment_needs_no_log() -> None:
    assert parse(small=without_log()).log is None


# The fields -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "[[fields]] must name at least one field, got none; describe each input column once"),
        (
            '{ name = "a", side = "item" }, { name = "a", side = "user" }',
            '[[fields]] name = "a" must be unique, got it',
        ),
        ('{ name = "a", side = "item", values_max = 0 }', '[[fields]] name = "a" values_max must be >= 1, got 0'),
        ('{ name = "a", side = "item", of = ["b"] }', '[[fields]] name = "a" has parts in `of`, so its side must be'),
        ('{ name = "a", side = "user" }', '[[fields]] must hold one of side = "item", kind = "category": the ad\'s id'),
        ('{ name = "a", side = "item" }, { name = "", side = "user" }', "[[fields]] name must be the name of a column"),
        (
            '{ name = "a", side = "item" }, { name = "c", side = "cross", of = ["a"] }',
            "[[fields]] name = \"c\" is a cross and must name two or more parts in `of`, got ['a']",
        ),
        (
            '{ name = "a", side = "item" }, { name = "c", side = "cross", of = ["a", "b"] }',
            '[[fields]] name = "c" must cross fields that stand before it and are no crosses, got "b"',
        ),
        (
            (
                '{ name = "a", side = "item" }, { name = "b", side = "item", kind = "categories" },'
                ' { name = "d", side = "user", kind = "categories" }, { name = "c", side = "cross", of = ["b", "d"] }'
            ),
            "[[fields]] name = \"c\" may hold one part of kind categories, got several: ['b', 'd']",
        ),
    ],
)
def test_fields_that_cannot_be_encoded_are_errors(fields: str, message: str) -> None:
    assert error_of(small=f'name = "shop"\nfields = [{fields}]').startswith(message)


def test_password_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {
        "name": "n",
        "fields": [{"name": "ad", "side": "item"}],
        "kafka": {"security": {"protocol": "SASL_SSL", "sasl_password_env": "KAFKA_PASSWORD"}},
    }
    monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
    with pytest.raises(
        SettingsError, match="sasl_password_env must name a variable that is set, got none in KAFKA_PASS"
    ):
        parse_settings(raw)
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    settings = parse_settings(raw)
    assert settings.kafka.security == {"protocol": "SASL_SSL", "sasl_password": "secret"}
    assert "secret" not in str(to_plan(settings))


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({"kind": "redis"}, "[store] kind must be one of none, feast, got"),
        ({"push_s": 0.0}, "[store] push_s must be > 0, got 0.0"),
        ({"max_age_s": -1.0}, "[store] max_age_s must be > 0, got -1.0"),
        ({"users_max": 0}, "[store] users_max must be > 0, got 0"),
        ({"redis_url": "localhost:6379"}, "[store] redis_url must be like redis://[:PASSWORD@]HOST:PORT[/DB], got"),
        ({"kind": "feast"}, '[store] kind must be "none" unless [[fields]] holds one of side = "user", kind ='),
    ],
)
def test_a_store_that_cannot_be_is_an_error(store: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_settings({"name": "n", "fields": [{"name": "ad", "side": "item"}], "store": store})


def test_the_password_of_a_redis_is_never_shown() -> None:
    raw = {"name": "n", "fields": [{"name": "ad", "side": "item"}]}
    settings = parse_settings(raw | {"store": {"redis_url": "rediss://:secret@host:6379/2"}})
    assert to_plan(settings)["store"]["redis_url"] == "rediss://***@host:6379/2"
    with pytest.raises(SettingsError, match=r"got \"redis://\*\*\*@host/x\"") as caught:
        parse_settings(raw | {"store": {"redis_url": "redis://:secret@host/x"}})
    assert "secret" not in str(caught.value)


def test_retention_must_be_longer_than_a_resume_needs() -> None:
    assert error_of("[ledger]\nwait_s = 400_000.0") == (
        "[kafka] retention_s must be > 2 x (wait_s + grace_s) = 800120.0, got 604800.0"
    )


def test_keys_of_tokens_come_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings(tomllib.loads(SMALL + '[ledger]\ntoken_key_env = "KEYS_OF_TOKENS"'))
    with pytest.raises(SettingsError, match="token_key_env must name a variable that holds keys, got none in KEYS_OF"):
        token_keys(settings)
    monkeypatch.setenv("KEYS_OF_TOKENS", "new key, old key")
    assert token_keys(settings) == (b"new key", b"old key")
    assert token_keys(parse_settings(tomllib.loads(SMALL))) == ()


def test_hashes_of_callers_keys_come_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings(tomllib.loads(SMALL + '[serve]\napi_keys_env = "KEYS_OF_CALLERS"'))
    with pytest.raises(SettingsError, match=r"api_keys_env must name a variable .*, got none in KEYS_OF"):
        api_key_hashes(settings)
    monkeypatch.setenv("KEYS_OF_CALLERS", f"{'AB' * 32}, {'cd' * 32},")
    assert api_key_hashes(settings) == (b"\xab" * 32, b"\xcd" * 32)
    assert api_key_hashes(parse_settings(tomllib.loads(SMALL))) == ()


def test_a_key_in_place_of_its_hash_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings(tomllib.loads(SMALL + '[serve]\napi_keys_env = "KEYS_OF_CALLERS"'))
    monkeypatch.setenv("KEYS_OF_CALLERS", f"{'ab' * 32},freshrank_secret")
    with pytest.raises(SettingsError, match="got 16 characters as number 2 in KEYS_OF_CALLERS") as caught:
        api_key_hashes(settings)
    assert "secret" not in str(caught.value)


BRIDGE = """
[bridge]
align_s = 1.0
[bridge.impressions]
topic = "views"
time = "at"
key = ["view.id", "slot"]
ad_id = "ads[0].id"
position = "slot"
values = { user = "who.id" }
defaults = { user = "nobody", propensity = 0.5 }
[bridge.clicks]
topic = "clicks"
time = "at"
time_unit = "iso"
key = ["view", "slot"]
ad_id = "ad"
position = "slot"
"""


def test_a_bridge_has_two_topics_and_a_path_for_each_thing() -> None:
    bridge = parse(BRIDGE).bridge
    assert bridge is not None
    assert bridge.impressions.paths == {
        "time": "at",
        "ad_id": "ads[0].id",
        "key[0]": "view.id",
        "key[1]": "slot",
        "position": "slot",
        "values.user": "who.id",
    }
    assert (bridge.clicks.keys, bridge.idle_s) == (("view", "slot"), 1.0)
    assert parse().bridge is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("align_s = 1.0", "align_s = 1.5", "[bridge] align_s must be <= [ledger] disorder_s (1.0): what is behind"),
        ("align_s = 1.0", "align_s = -1.0", "[bridge] align_s must be >= 0, got -1.0"),
        ("align_s = 1.0", "align_s = 1.0\nidle_s = -1.0", "[bridge] idle_s must be >= 0, got -1.0"),
        ('topic = "views"', 'topic = ""', '[bridge.impressions] topic must be the full name of a topic, got ""'),
        ('topic = "views"', 'topic = "clicks"', "[bridge.clicks] topic must be another than that of the impressions"),
        ('topic = "views"\n', "", '[bridge.impressions] must hold the key "topic", got none; add it'),
        ('time_unit = "iso"', 'time_unit = "h"', "[bridge.clicks] time_unit must be one of s, ms, us, iso, got 'h'"),
        ('"ads[0].id"', '"ads[x].id"', "[bridge.impressions] ad_id must be a path such as user.ids[0]"),
        ('"who.id"', '""', "[bridge.impressions] values.user must be a path such as user.ids[0]"),
        ('["view", "slot"]', "[]", "[bridge.clicks] key must name at least one path, got []"),
        ('["view", "slot"]', '"view"', "[bridge.clicks] key must have as many paths as [bridge.impressions] key (2)"),
        ("values = { user", "values = { age", "[bridge.impressions] values must name fields (user, ad), got"),
        ('{ user = "nobody"', "{ ad = 1", "[bridge.impressions] defaults must name position, propensity, user, got"),
        ("propensity = 0.5", "propensity = 2", "[bridge.impressions] defaults.propensity must be in (0, 1], got 2"),
        ("propensity = 0.5", "position = -1", "[bridge.impressions] defaults.position must be a whole number >= 0"),
        ('ad_id = "ad"\nposition = "slot"', 'ad_id = "ad"', "[bridge.clicks] position must stand in both topics or in"),
        ('ad_id = "ad"\n', 'ad_id = "ad"\ndefaults = { ad = 1 }\n', "[bridge.clicks] defaults must name position, got"),
        ("[bridge.clicks]", "[bridge.clix]", '[bridge] must hold known keys only, got "clix"; did you mean "clicks"?'),
    ],
)
def test_what_is_wrong_with_a_bridge_is_said(old: str, new: str, message: str) -> None:
    assert old in BRIDGE
    assert message in error_of(BRIDGE.replace(old, new, 1))


def test_the_bridge_in_the_documentation_is_one() -> None:
    text = (CONFIGS.parent / "docs" / "bridge.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert parse_settings(tomllib.loads(example)).bridge is not None


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"share": 1.0, "name": "a"}, "[split] share must be in [0, 1): the rest is the champion's, got 1.0"),
        ({"share": -0.1}, "[split] share must be in [0, 1): the rest is the champion's, got -0.1"),
        ({"share": float("nan")}, "[split] share must be in [0, 1)"),
        ({"share": 0.1}, '[split] name must be letters, digits, ".", "_" or "-" where there is a share'),
        ({"share": 0.1, "name": "a b"}, 'and users are drawn by it), got "a b"'),
        ({"share": 0.1, "name": "a"}, '[split] share must be 0 unless [[fields]] holds one of side = "user"'),
    ],
)
def test_an_experiment_that_cannot_be_is_an_error(split: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_settings({"name": "n", "fields": [{"name": "ad", "side": "item"}], "split": split})


def test_there_is_no_experiment_unless_one_is_asked_for() -> None:
    assert parse().split.share == 0.0
