"""The one reader of the TOML file and the environment: bytes on disk to frozen, checked settings.

Owns every key of a deployment's file, its default and its rule. Must not know what the settings are used for: edges
read them once and pass them on as keyword arguments.

Invariants: settings that were read are possible (a slide is not longer than its window, a wait is positive); every
error is one `SettingsError` that names the key, the rule, what was found and what to do.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

import msgspec

from features.fields import Field, History, check_fields, id_field

STATE_DIR_DEFAULT = ".freshrank"
PARTITIONS_MAX = 10_000  # chosen by hand: far beyond what one topic bears, near what a slip of the keyboard gives
HISTORY_MAX = 100  # values of a history: chosen by hand, so that one fits a record whatever its values are
SEED_MAX = 2**63 - 1  # what every generator takes


class SettingsError(ValueError):
    """A configuration that cannot be used; the command line prints it and exits with 2."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ClickDelay(_Section, frozen=True):
    """Delays drawn for logs that do not hold them: exponential, keyed by a hash of the row."""

    mean: float = 5.0
    seed: int = 7


class Join(_Section, frozen=True):
    """A second file whose columns are added to each row."""

    file: str
    on: str


class LogSettings(_Section, frozen=True):
    """[log]: where raw rows come from and which columns mean what.

    Attributes:
        files: Parquet, CSV(.gz) or NDJSON; globs; relative to the configuration file or to `--data DIR`.
        label: Column with 0/1, or with a number when `label_at_least` says from where on it is a click.
        click_time: Column with the event time of the click, empty or null where there was none.
        request: Columns that together make one request; none: each row is its own.
        position: Column with the place in the list; none: the order of the rows within their request.
        propensity: Column with the probability, in (0, 1], with which the ad was put there; none: 1.
        stages: Columns with 0/1 of a log that also holds candidates that were not shown, from the deepest stage of the
            cascade on: the first says what was shown. A candidate's stage is the first that has a 1.
        sample_rate: Column with the probability with which the log holds a candidate; none: it holds all.
        bid_micros: Column, of the file joined on the ad's id, with what a click is worth, in millionths; none: all ads
            bid the same.
        histories: Fields that the log does not hold but implies.
    """

    files: tuple[str, ...]
    time: str
    time_unit: Literal["s", "ms", "us", "iso"] = "s"
    label: str = "click"
    label_at_least: float | None = None
    click_time: str = ""
    click_delay_s: ClickDelay = ClickDelay()
    request: tuple[str, ...] = ()
    position: str = ""
    propensity: str = ""
    stages: tuple[str, ...] = ()
    sample_rate: str = ""
    joins: tuple[Join, ...] = ()
    bid_micros: str = ""
    histories: tuple[History, ...] = ()
    separator: str = ","


class LedgerSettings(_Section, frozen=True):
    """[ledger]: how long an impression waits for its click, when a block closes, and the limits of a partition.

    Attributes:
        late_clicks: `wait`: clicks after `wait_s` are counted only; `correct`: they write a correcting row.
        pending_max: Impressions that may wait for their click; beyond it the oldest expire early.
        known_max: Requests that may be known (the horizon of repeats and late clicks); the oldest are forgotten early.
        known_bytes_max: Bytes of their records.
        candidates_max: Candidates of a request that are kept; the rest is cut.
        token_key_env: The variable that holds the keys of tokens, newest first, with commas between; empty: impressions
            and clicks need no token.
        token_ttl_s: Event time for which a token holds.
        requeue_max: How often a dead letter's record may be sent again.
    """

    wait_s: float = 60.0
    grace_s: float = 60.0
    disorder_s: float = 1.0
    late_clicks: Literal["wait", "correct"] = "wait"
    block_rows: int = 4096
    block_s: float = 1.0
    pending_max: int = 1_000_000
    known_max: int = 2_000_000
    known_bytes_max: int = 2**28
    candidates_max: int = 5_000
    token_key_env: str = ""
    token_ttl_s: float = 86_400.0
    requeue_max: int = 3


class WindowSettings(_Section, frozen=True):
    """[window]: slides of equal length, or given by their edges.

    Attributes:
        slide_s: Length of a slide in event time; 0 when `edges` are given.
        window_s: How far back the strategy `last-window` learns; 0 means the newest slide. No other reads it.
        warmup_s: Event time before the first gate decision; until then every model is promoted.
        edges: Event times that end slides of unequal length; the last slide is open.
    """

    slide_s: float = 0.0
    window_s: float = 0.0
    warmup_s: float = 0.0
    edges: tuple[float, ...] = ()


class PriorSettings(_Section, frozen=True):
    """[priors]: how click rates per value are kept.

    Attributes:
        half_lives_s: Memories kept side by side, in seconds of event time.
        levels: Fields from fine to coarse: each backs off to the next, the last to the overall rate.
        evidence_min: A value whose impressions (longest memory) have decayed below this is forgotten.
        counts_max: How many values are counted, of all fields together (in the priors' worker per shard; in the
            ranking service of all shards): beyond that, those with the least evidence are forgotten. About 60 bytes
            each, three times that while they change.
        publish_s: How often (append time) the live counts are published.
        crosses_max: How many crosses the warm-up may choose, where none is named.
        cells_max: How many distinct values they may have among them.
    """

    half_lives_s: tuple[float, ...] = (3600.0, 86400.0, 2592000.0)
    levels: tuple[str, ...] = ()
    evidence_min: float = 0.1
    counts_max: int = 10_000_000
    publish_s: float = 1.0
    crosses_max: int = 8
    cells_max: int = 2_000_000


class ModelSettings(_Section, frozen=True):
    """[model]: the network and who gets a parameter in it.

    Attributes:
        family: Name of this lineage of models; the trainer's fence and the key in `snapshots`.
        dim: Width of an embedding row.
        admit_min: Impressions (longest memory) from which on a value has an embedding row.
        forget_min: Impressions below which it loses it; lower than `admit_min`.
        values_max: How many values may have one: beyond that, those with the least evidence have none.
    """

    network: str = "dcn"
    family: str = "ctr"
    dim: int = 8
    hidden: tuple[int, ...] = (64, 32)
    admit_min: float = 2.0
    forget_min: float = 0.5
    values_max: int = 5_000_000


class UpdateSettings(_Section, frozen=True):
    """[update]: how a slide is learnt.

    Attributes:
        strategy: Which of models/strategies/ours.py; `freshrank backtest --strategies` compares them.
        learning_rate: Of the network (Adam).
        embedding_learning_rate: Of embedding rows (Adagrad, one step size per row).
        beta: Weight of the earlier model's prediction beside the click's 1, where a strategy gives it one weight.
            The default is IncCTR's lambda = 0.15 (arXiv:2009.02147 uses 0.1 to 0.2).
        n0: Impressions behind a row at which it weighs one half, where a strategy goes by the evidence.
        confidence_share: Size of confidence ranking's gradient relative to the log loss's.
        rows_max: How many rows of a slide are scored and learnt at most, for a trainer that cannot keep up; 0: all. Of
            more, requests are kept by a hash, so the same ones in each run. All rows are counted in the priors.
        threads: How many threads of the CPU torch computes with; the bits of a model depend on it.
        device: `auto`: a GPU where there is one, else the CPU.
        precision: What the network multiplies in while it learns; `auto`: bfloat16 on a GPU, float32 on a CPU. Weights
            and predictions are float32 in any case.
        confidence_margin: Logits by which the new model may be ahead of the earlier one and still be pushed.
    """

    strategy: str = "default"
    learning_rate: float = 0.001
    embedding_learning_rate: float = 0.2
    beta: float = 0.15 / (1.0 - 0.15)
    n0: float = 1000.0
    confidence_share: float = 0.03
    confidence_margin: float = 1.0
    batch_rows: int = 512
    rows_max: int = 0
    threads: int = 1
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class PrerankSettings(_Section, frozen=True):
    """[prerank]: the pre-ranker, a model family of its own that learns from chains, through the same gate.

    Attributes:
        network: One of models/prerank/build.py; empty: nothing is learnt from chains.
        family: Name of the lineage of models.
        keep: How many candidates of a request go on to the ranker; without a pre-ranker those with the best prior.
        sample_rate: Which share of the candidates that were not ranked the record of a request holds beside those that
            were, where a network is named: it learns from them.
        dim: Width of an embedding row.
        hidden: Widths of the layers.
        learning_rate: Of the network (Adam).
        embedding_learning_rate: Of embedding rows (Adagrad).
        gate_penalty: (ecmm) what it adds to the loss to leave all gates open, nats; more closes more of them.
        margin: As `[gate] margin`, in nats per matched candidate; the gate's other limits in nats are to it as those of
            the click model are to theirs.
        rows_max: How many candidates of a slide are learnt at most, whole requests by a hash; 0: all.
    """

    network: str = ""
    family: str = "prerank"
    keep: int = 200
    sample_rate: float = 0.1
    dim: int = 8
    hidden: tuple[int, ...] = (64, 32)
    learning_rate: float = 0.003
    embedding_learning_rate: float = 0.15
    batch_rows: int = 1024
    gate_penalty: float = 0.1
    margin: float = 0.0005
    rows_max: int = 1_000_000


class CreativeSettings(_Section, frozen=True):
    """[creatives]: the creative ranker, a model family of its own that learns which creative is clicked by whom.

    Attributes:
        network: One of the control pre-rankers of models/prerank/build.py that learn clicks of what was exposed; empty:
            creatives are chosen by their prior alone, the same for everybody.
        family: Name of the lineage of models.
        order: When it ranks: `parallel`, beside the ad ranker, which reads the creative that the prior speaks for;
            `pre`, before it, so that it reads the one chosen; `post`, behind it, and of the ads that are shown alone.
        dim: Width of an embedding row.
        hidden: Widths of the layers.
        learning_rate: Of the network (Adam).
        embedding_learning_rate: Of embedding rows (Adagrad).
        rows_max: How many impressions of a slide are learnt at most, whole requests by a hash; 0: all.
    """

    network: Literal["", "exposed-only", "two-tower-exposed", "cold-exposed"] = ""
    family: str = "creatives"
    order: Literal["parallel", "pre", "post"] = "parallel"
    dim: int = 8
    hidden: tuple[int, ...] = (64, 32)
    learning_rate: float = 0.003
    embedding_learning_rate: float = 0.15
    batch_rows: int = 256
    rows_max: int = 1_000_000


class GateSettings(_Section, frozen=True):
    """[gate]: when the challenger replaces the champion.

    Attributes:
        rule: `non_inferiority`: it is certainly not worse by `margin`; `superiority`: it is certainly better.
        alpha: Probability of a false promotion, over all looks together.
        margin: Log loss per impression by which a fresher model may be worse and still be promoted (non_inferiority);
            what is certainly worse by more is rejected (both rules).
        buckets: User-hash buckets per slide, at least 10: from them a slide knows how precise it is.
        evidence_clip: Bound of one bucket's mean difference, log loss; keeps one odd bucket from deciding.
        clicks_min: A slide with fewer clicks is no evidence, unless the champion has predicted so many.
        calibration: Mean prediction over click rate must lie within these bounds.
        shift_max: Mean prediction over the champion's must lie within 1 / this and this, unless it comes nearer to the
            slide's clicks.
        slice_margin: Log loss by which the slide's new, rare or common items may certainly be worse.
        harm_max: Log loss by which what serves may certainly be worse than the former champion on one slide; two such
            slides in succession roll it back at once, what is certainly worse by `margin` in the long run later.
        rollback_wait: Slides after a rollback in which nothing is promoted.
    """

    rule: Literal["non_inferiority", "superiority"] = "non_inferiority"
    alpha: float = 0.05
    margin: float = 0.01
    buckets: int = 128
    evidence_clip: float = 0.25
    clicks_min: int = 50
    calibration: tuple[float, float] = (0.5, 2.0)
    shift_max: float = 1.5
    slice_margin: float = 0.05
    harm_max: float = 0.1
    rollback_wait: int = 12


class ServeSettings(_Section, frozen=True):
    """[serve]: the ranking service and its limits.

    Attributes:
        processes: How many answer on the port; each holds the model and the catalog.
        candidates_max: Ads of a ranking request.
        events_max: Events of a list.
        body_bytes_max: Bytes of a body.
        top: Ads of an answer when the request does not say.
        concurrent_max: Ranking requests that are worked on at once: scored, or waiting for Kafka.
        queue_max: Ranking requests that may wait for their turn; beyond it they are answered 429.
        stale_s: How long one may wait; then it is answered 429 and not worked on.
        deadline_s: How long after a request was taken up its ranking may begin; later it is left out and candidates
            keep the order of their priors, and so is pre-ranking after half of that. The answer says so (`degraded`).
        explore: Share of creatives that are drawn evenly instead of the best by what is known; in [0, 1].
        explore_ads: Share of requests that are shown ads as Thompson sampling draws them; in [0, 1].
        api_keys_env: The variable that holds the hashes of the keys that callers may have (`freshrank key`), with
            commas between; empty: callers need no key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    processes: int = 1
    candidates_max: int = 5000
    events_max: int = 1000
    body_bytes_max: int = 4_000_000
    top: int = 20
    concurrent_max: int = 32
    queue_max: int = 256
    stale_s: float = 1.0
    deadline_s: float = 0.1
    explore: float = 0.1
    explore_ads: float = 0.0
    api_keys_env: str = ""


class SplitSettings(_Section, frozen=True):
    """[split]: an experiment: a share of the users is answered by the newest model instead of the champion.

    Attributes:
        share: Of the users, in [0, 1); 0: no experiment. A request without a user is the champion's.
        name: Of the experiment. Users are drawn by a hash of it and their id: with another name they are drawn anew,
            independently. Change it with the share, or else some users are in both arms.
    """

    share: float = 0.0
    name: str = ""


class KafkaSettings(_Section, frozen=True):
    """[kafka]: the cluster; empty `bootstrap_servers` means the embedded broker.

    Attributes:
        clock: `live`: silent partitions get ticks, events from the future are dead letters; `replay`: the log ticks.
        security: protocol, sasl_mechanism, sasl_username, sasl_password_env (the variable that holds the password; or
            sasl_password itself), ca_file, cert_file, key_file.
        prefix: Stands before each topic and group; empty means the deployment's name.
        max_delay_s: (live) how late an event may arrive; bounds the ticks of silent partitions.
        max_ahead_s: (live) how far an event's time may lie after its append time.
        retention_s: How long topics keep what was appended; a resume needs more than 2 x (wait_s + grace_s).
    """

    bootstrap_servers: str = ""
    clock: Literal["live", "replay"] = "replay"
    security: dict[str, str] = {}
    prefix: str = ""
    partitions: int = 4
    max_delay_s: float = 60.0
    max_ahead_s: float = 60.0
    retention_s: float = 604_800.0


class StoreSettings(_Section, frozen=True):
    """[store]: what the live priors know of users, for the ranking service and others, in a feature store.

    Attributes:
        kind: `none`, or `feast`.
        redis_url: redis://HOST:PORT/DB; empty: a SQLite file in the state directory, for processes of one machine.
        push_s: How often (append time) users that have changed are pushed.
        max_age_s: What is older than this (event time) is not used.
        users_max: Users that may wait to be pushed; beyond it the ones that changed first are dropped.
        read_s: How long a ranking request waits for its user; then it goes on without, and the answer says so.
    """

    kind: Literal["none", "feast"] = "none"
    redis_url: str = ""
    push_s: float = 10.0
    max_age_s: float = 604_800.0
    users_max: int = 100_000
    read_s: float = 0.02


class BridgeClicks(_Section, frozen=True):
    """[bridge.clicks]: how the records of a topic of the user's own are read as clicks; paths are `a.b[0].c`.

    Attributes:
        topic: Its full name.
        time: Path of the event time.
        key: Path, or several, of what names the request; the same values in both topics.
        ad_id: Path of the ad's id.
        position: Path of the place in the list; empty: each record has the default.
        defaults: What holds where a path leads to nothing: `position`.
    """

    topic: str
    time: str
    key: str | tuple[str, ...]
    ad_id: str
    time_unit: Literal["s", "ms", "us", "iso"] = "s"
    position: str = ""
    defaults: dict[str, Any] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """The paths of the key."""
        return (self.key,) if isinstance(self.key, str) else self.key

    @property
    def paths(self) -> dict[str, str]:
        """Every path by what it is for."""
        named = {"time": self.time, "ad_id": self.ad_id} | {f"key[{n}]": key for n, key in enumerate(self.keys)}
        return named | ({"position": self.position} if self.position else {})


class BridgeImpressions(BridgeClicks, frozen=True):
    """[bridge.impressions]: the same for impressions, with the values that they were ranked on.

    Attributes:
        propensity: Path of the probability with which the ad was put there; empty: each record has the default.
        values: Path by field.
        defaults: `position`, `propensity`, and by field.
    """

    propensity: str = ""
    values: dict[str, str] = {}

    @property
    def paths(self) -> dict[str, str]:
        """Every path by what it is for."""
        named = super().paths | {f"values.{name}": path for name, path in self.values.items()}
        return named | ({"propensity": self.propensity} if self.propensity else {})


class BridgeSettings(_Section, frozen=True):
    """[bridge]: impressions and clicks from two topics of the user's own.

    Attributes:
        align_s: How far a partition may be ahead of the others in event time.
        idle_s: How long a partition at its end is waited for, wall time.
    """

    impressions: BridgeImpressions
    clicks: BridgeClicks
    align_s: float = 1.0
    idle_s: float = 1.0


class RegistrySettings(_Section, frozen=True):
    """[registry]: where snapshots live (an fsspec URL; empty: the state directory)."""

    url: str = ""
    keep: int = 10


class Settings(_Section, frozen=True):
    """Everything that one TOML file says, with defaults filled in."""

    name: str
    fields: tuple[Field, ...]
    log: LogSettings | None = None
    ledger: LedgerSettings = LedgerSettings()
    window: WindowSettings = WindowSettings(slide_s=3600.0)
    priors: PriorSettings = PriorSettings()
    model: ModelSettings = ModelSettings()
    update: UpdateSettings = UpdateSettings()
    prerank: PrerankSettings = PrerankSettings()
    creatives: CreativeSettings = CreativeSettings()
    gate: GateSettings = GateSettings()
    serve: ServeSettings = ServeSettings()
    split: SplitSettings = SplitSettings()
    kafka: KafkaSettings = KafkaSettings()
    store: StoreSettings = StoreSettings()
    registry: RegistrySettings = RegistrySettings()
    bridge: BridgeSettings | None = None

    @property
    def prefix(self) -> str:
        """What stands before every topic and consumer group."""
        return self.kafka.prefix or self.name


def read_settings(path: str | Path) -> Settings:
    """Return the checked settings of a TOML file.

    Raises:
        SettingsError: If the file cannot be read, is no TOML, or breaks a rule.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} must be a readable file, got: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} must be UTF-8 text, got other bytes; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} must be TOML, got: {error}") from None
    try:
        return parse_settings(raw)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def parse_settings(raw: dict[str, Any]) -> Settings:
    """Return the checked settings of parsed TOML.

    Raises:
        SettingsError: If a key is unknown, missing, of the wrong type, or the values are impossible together.
    """
    _check_keys(raw, Settings, "")
    for name in Settings.__struct_fields__:
        section = _section_type(name)
        if section is not None and isinstance(raw.get(name), dict):
            _check_keys(raw[name], section, name)
    settings = _convert(raw, Settings)
    try:
        check_fields(settings.fields)
        _check_values(settings)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return _with_secrets(settings)


def to_plan(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values for people to read: secrets are left out."""
    plan: dict[str, Any] = msgspec.to_builtins(settings) | {"prefix": settings.prefix}
    security = plan["kafka"]["security"]
    plan["kafka"]["security"] = {key: "***" if key == "sasl_password" else value for key, value in security.items()}
    plan["store"]["redis_url"] = re.sub("://.*@", "://***@", plan["store"]["redis_url"])
    return plan


def state_dir() -> Path:
    """Return the directory for everything that freshrank keeps on this machine (`FRESHRANK_HOME`)."""
    return Path(os.environ.get("FRESHRANK_HOME", STATE_DIR_DEFAULT)).absolute()


def token_keys(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys of tokens, the one that signs first; empty when none are demanded.

    Raises:
        SettingsError: If `[ledger] token_key_env` names a variable that is not set.
    """
    name = settings.ledger.token_key_env
    if not name:
        return ()
    keys = tuple(key.strip().encode() for key in os.environ.get(name, "").split(",") if key.strip())
    if not keys:
        raise SettingsError(f"[ledger] token_key_env must name a variable that holds keys, got none in {name}; set it")
    return keys


def api_key_hashes(settings: Settings) -> tuple[bytes, ...]:
    """Return the SHA-256 hashes of the keys that callers of the ranking service may have; empty when none is demanded.

    Raises:
        SettingsError: If `[serve] api_keys_env` names a variable that holds none, or something else; it is not shown,
            because it may be a key.
    """
    name = settings.serve.api_keys_env
    if not name:
        return ()
    hashes = [one.strip() for one in os.environ.get(name, "").split(",") if one.strip()]
    rule = "[serve] api_keys_env must name a variable that holds hashes of keys"
    if not hashes:
        raise SettingsError(f"{rule}, got none in {name}; make one with `freshrank key`")
    for number, one in enumerate(hashes, start=1):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", one):
            raise SettingsError(
                f"{rule}, 64 hexadecimal digits each, got {len(one)} characters as number {number} in {name};"
                " put the second line of `freshrank key` there, not the key itself"
            )
    return tuple(bytes.fromhex(one) for one in hashes)


def registry_url(settings: Settings) -> str:
    """Return where the snapshots of a deployment live."""
    return settings.registry.url or str(state_dir() / "registry" / settings.prefix)


_T = TypeVar("_T")
# What TOML calls what the parser names otherwise.
_KINDS = {
    "object": "table",
    "array": "list",
    "float": "number",
    "int": "whole number",
    "str": "text",
    "bool": "boolean",
}


def _section_type(name: str) -> type[msgspec.Struct] | None:
    """Return the section of that name, None for keys that are no section."""
    default = next(f for f in msgspec.structs.fields(Settings) if f.name == name).default
    optional: dict[str, type[msgspec.Struct]] = {"log": LogSettings, "bridge": BridgeSettings}
    if name in optional:
        return optional[name]
    return type(default) if isinstance(default, msgspec.Struct) else None


def _check_keys(raw: dict[str, Any], section: type[msgspec.Struct], name: str) -> None:
    known = section.__struct_fields__
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(known)}"
            raise SettingsError(f'{_label(name)}must hold known keys only, got "{key}"; {hint}')


def _convert(raw: dict[str, Any], into: type[_T]) -> _T:
    try:
        return msgspec.convert(raw, into)
    except msgspec.ValidationError as error:
        rule, _, where = str(error).partition(" - at ")
        path = where.strip("`").removeprefix("$").removeprefix(".")
        if missing := re.fullmatch(r"Object missing required field `(\w+)`", rule):
            raise SettingsError(f'{_place(path)}must hold the key "{missing[1]}", got none; add it') from None
        if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", rule):
            raise SettingsError(f'{_place(path)}must hold known keys only, got "{unknown[1]}"; remove it') from None
        if choice := re.fullmatch(r"Invalid enum value (.*)", rule):
            known = ", ".join(_choices(path))
            raise SettingsError(f"{_place(path)}must be one of {known}, got {choice[1]}") from None
        rule = re.sub(r"`(\w+)( \| null)?`", lambda kind: _KINDS.get(kind[1], kind[1]), rule)
        raise SettingsError(f"{_place(path)}has a value of the wrong type: {rule[0].lower() + rule[1:]}") from None


def _place(path: str) -> str:
    """Return how the file writes a path of the parser's: `fields[0].side` is `side` in the first of [[fields]]."""
    section, _, key = path.partition(".")
    if item := re.fullmatch(r"(\w+)\[(\d+)\]", section):
        return f"[[{item[1]}]] number {int(item[2]) + 1} {key}".rstrip() + " "
    if section and _section_type(section) is None:
        return f"{section} "
    table, _, inner = key.partition(".")
    if section == "bridge" and table in ("impressions", "clicks"):
        return f"[bridge.{table}] {inner} " if inner else _label(f"bridge.{table}")
    return f"[{section}] {key} " if key else _label(section)


def _choices(path: str) -> tuple[str, ...]:
    """Return what a key with a closed list of values may be."""
    section, _, key = path.partition(".")
    kind: Any = Field if section.startswith("fields[") else _section_type(section)
    for name in key.split("."):
        assert kind is not None, "only sections and fields hold closed lists"
        kind = next(field.type for field in msgspec.structs.fields(kind) if field.name == name.split("[")[0])
    return get_args(kind)


def _label(section: str) -> str:
    return f"[{section}] " if section else "the file "


def _check_values(settings: Settings) -> None:
    _check_positive(settings)
    for key, value in (
        ("name", settings.name),
        ("[kafka] prefix", settings.prefix),
        ("[model] family", settings.model.family),
        ("[prerank] family", settings.prerank.family),
        ("[creatives] family", settings.creatives.family),
    ):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", value):
            raise SettingsError(
                f'{key} must be letters, digits, ".", "_" or "-" (it names topics and files), got "{value}"'
            )
    if settings.prerank.family == settings.model.family:
        _impossible("[prerank] family", "be another than [model] family", f'"{settings.prerank.family}"')
    if settings.creatives.family in (settings.model.family, settings.prerank.family):
        rule = "be another than [model] family and [prerank] family"
        _impossible("[creatives] family", rule, f'"{settings.creatives.family}"')
    if settings.creatives.network and id_field(settings.fields, "creative") is None:
        raise SettingsError("[creatives] network needs a field that identifies creatives; name it, or leave this out")
    _check_window(settings.window)
    _check_sources(settings)
    names = {field.name for field in settings.fields}
    if "" in names:
        raise SettingsError("[[fields]] name must be the name of a column, got an empty one")
    for level in settings.priors.levels:
        if level not in names:
            raise SettingsError(f'[priors] levels must name fields, got "{level}"; fields: {", ".join(sorted(names))}')
    _check_store(settings)
    _check_split(settings)
    _check_kafka(settings)
    if settings.model.forget_min > settings.model.admit_min:
        _impossible("[model] forget_min", f"be <= admit_min ({settings.model.admit_min})", settings.model.forget_min)
    _check_gate(settings.gate)


def _check_gate(gate: GateSettings) -> None:
    low, high = gate.calibration
    if not 0.0 < low < 1.0 < high:
        _impossible("[gate] calibration", "be two bounds around 1, e.g. [0.5, 2.0]", [low, high])
    if gate.buckets < 10:
        _impossible("[gate] buckets", "be >= 10: fewer do not say how precise a slide is", gate.buckets)
    if not (gate.shift_max > 1.0 and math.isfinite(gate.shift_max)):
        _impossible("[gate] shift_max", "be a ratio above 1", gate.shift_max)
    if not gate.alpha < 1.0:
        _impossible("[gate] alpha", "be a probability below 1", gate.alpha)


_SECURITY_KEYS = (
    "protocol",
    "sasl_mechanism",
    "sasl_username",
    "sasl_password",
    "sasl_password_env",
    "ca_file",
    "cert_file",
    "key_file",
)


def _with_secrets(settings: Settings) -> Settings:
    """Return the settings with the password that `sasl_password_env` names in its place."""
    security = dict(settings.kafka.security)
    name = security.pop("sasl_password_env", None)
    if name is None:
        return settings
    password = os.environ.get(name)
    if not password:
        raise SettingsError(f"[kafka] security.sasl_password_env must name a variable that is set, got none in {name}")
    kafka = msgspec.structs.replace(settings.kafka, security=security | {"sasl_password": password})
    return msgspec.structs.replace(settings, kafka=kafka)


def _check_kafka(settings: Settings) -> None:
    least_s = 2.0 * (settings.ledger.wait_s + settings.ledger.grace_s)
    if settings.kafka.retention_s <= least_s:
        _impossible("[kafka] retention_s", f"be > 2 x (wait_s + grace_s) = {least_s}", settings.kafka.retention_s)
    for name in settings.kafka.security:
        if name not in _SECURITY_KEYS:
            known = ", ".join(_SECURITY_KEYS)
            raise SettingsError(f'[kafka] security must hold known keys only, got "{name}"; known: {known}')


def _check_split(settings: Settings) -> None:
    split = settings.split
    if not 0.0 <= split.share < 1.0:
        _impossible("[split] share", "be in [0, 1): the rest is the champion's", split.share)
    if (split.share or split.name) and not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", split.name):
        raise SettingsError(
            '[split] name must be letters, digits, ".", "_" or "-" where there is a share (it names the experiment, and'
            f' users are drawn by it), got "{split.name}"'
        )
    if split.share and id_field(settings.fields, "user") is None:
        raise SettingsError(
            '[split] share must be 0 unless [[fields]] holds one of side = "user", kind = "category" (the user\'s id),'
            f" because users are drawn by it, got {split.share}"
        )


def _check_store(settings: Settings) -> None:
    if settings.store.kind != "none" and id_field(settings.fields, "user") is None:
        raise SettingsError(
            '[store] kind must be "none" unless [[fields]] holds one of side = "user", kind = "category" (the user\'s'
            f' id), got "{settings.store.kind}"'
        )
    url = settings.store.redis_url
    if url and not re.fullmatch(r"rediss?://([^/\s@]*@)?[^/\s@]+(/\d+)?", url):
        hidden = re.sub("://.*@", "://***@", url)
        raise SettingsError(f'[store] redis_url must be like redis://[:PASSWORD@]HOST:PORT[/DB], got "{hidden}"')


def _check_sources(settings: Settings) -> None:
    if settings.log is not None:
        _check_log(settings.log, settings.fields)
        _check_histories(settings.log, settings.fields)
    if settings.bridge is not None:
        _check_bridge(settings.bridge, settings)


def _check_log(log: LogSettings, fields: tuple[Field, ...]) -> None:
    if not log.files:
        _impossible("[log] files", "name at least one file", [])
    label = ("click_time", log.click_time) if log.click_time else ("label", log.label)
    named = [("files", file) for file in log.files] + [("time", log.time), label]
    named += [("request", column) for column in log.request] + [("stages", column) for column in log.stages]
    named += [("joins", name) for join in log.joins for name in (join.file, join.on)]
    for key, value in named:
        if not value:
            raise SettingsError(f"[log] {key} must not hold an empty name; write the file's or column's name")
    if log.stages and not log.request:
        _impossible("[log] request", "name columns where [log] stages does: candidates of one request share them", [])
    if log.sample_rate and not log.stages:
        _impossible("[log] sample_rate", "be empty unless [log] stages says what was shown", f'"{log.sample_rate}"')
    if log.label_at_least is not None and not math.isfinite(log.label_at_least):
        _impossible("[log] label_at_least", "be a finite number", log.label_at_least)
    item = id_field(fields, "item")
    if log.bid_micros and item and item.name not in [join.on for join in log.joins]:
        rule = f'be empty unless one of the joins is on = "{item.name}", the ad\'s id'
        _impossible("[log] bid_micros", rule, f'"{log.bid_micros}"')
    if len(log.separator.encode()) != 1:
        raise SettingsError(f'[log] separator must be one ASCII character, got "{log.separator}"')


def _check_histories(log: LogSettings, fields: tuple[Field, ...]) -> None:
    by_name = {field.name: field for field in fields}
    names = [history.name for history in log.histories]
    if log.histories and id_field(fields, "user") is None:
        raise SettingsError(
            '[log] histories must be empty unless [[fields]] holds one of side = "user", kind = "category" (the user\'s'
            f" id), got {', '.join(names)}"
        )
    for history in log.histories:
        own, of = by_name.get(history.name), by_name.get(history.of)
        if own is None or own.side != "user" or own.kind != "categories" or names.count(own.name) > 1:
            rule = 'name a field of side = "user", kind = "categories", each once'
            _impossible("[log] histories", rule, f'"{history.name}"')
        if own.values_max > HISTORY_MAX:
            _impossible(f'[[fields]] name = "{own.name}" values_max', f"be <= {HISTORY_MAX}", own.values_max)
        if of is None or of.side == "cross" or of.kind != "category" or of.name in names:
            rule = f'be of a field of kind = "category", for "{history.name}"'
            _impossible("[log] histories", rule, f'"{history.of}"')


_PATH = re.compile(r"[^.\[\]]+(\[\d+\])*(\.[^.\[\]]+(\[\d+\])*)*")


def _check_bridge(bridge: BridgeSettings, settings: Settings) -> None:
    for key, value in (("align_s", bridge.align_s), ("idle_s", bridge.idle_s)):
        if not (value >= 0.0 and math.isfinite(value)):
            _impossible(f"[bridge] {key}", "be >= 0", value)
    if bridge.align_s > settings.ledger.disorder_s:
        rule = f"be <= [ledger] disorder_s ({settings.ledger.disorder_s}): what is behind would be late"
        _impossible("[bridge] align_s", rule, bridge.align_s)
    impressions, clicks = bridge.impressions, bridge.clicks
    for name, source in (("impressions", impressions), ("clicks", clicks)):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", source.topic):
            _impossible(f"[bridge.{name}] topic", "be the full name of a topic", f'"{source.topic}"')
        if not source.keys:
            _impossible(f"[bridge.{name}] key", "name at least one path", [])
        for key, path in source.paths.items():
            if not _PATH.fullmatch(path):
                _impossible(f"[bridge.{name}] {key}", "be a path such as user.ids[0]", f'"{path}"')
    if impressions.topic == clicks.topic:
        _impossible("[bridge.clicks] topic", "be another than that of the impressions", f'"{clicks.topic}"')
    if len(impressions.keys) != len(clicks.keys):
        rule = f"have as many paths as [bridge.impressions] key ({len(impressions.keys)})"
        _impossible("[bridge.clicks] key", rule, len(clicks.keys))
    if bool(impressions.position) != bool(clicks.position):
        rule = "stand in both topics or in none: it names the impression"
        _impossible("[bridge.clicks] position", rule, f'"{clicks.position}"')
    _check_bridge_values(impressions, clicks, settings.fields)


def _check_bridge_values(impressions: BridgeImpressions, clicks: BridgeClicks, fields: tuple[Field, ...]) -> None:
    raw = [field.name for field in fields if field.side != "cross"]
    for name in impressions.values:
        if name not in raw:
            _impossible("[bridge.impressions] values", f"name fields ({', '.join(raw)})", f'"{name}"')
    known = ("position", "propensity", *impressions.values)
    for name in impressions.defaults:
        if name not in known:
            _impossible("[bridge.impressions] defaults", f"name {', '.join(known)}", f'"{name}"')
    for name in clicks.defaults:
        if name != "position":
            _impossible("[bridge.clicks] defaults", "name position", f'"{name}"')
    for table, source in (("impressions", impressions), ("clicks", clicks)):
        position = source.defaults.get("position", 0)
        if type(position) is not int or position < 0:
            _impossible(f"[bridge.{table}] defaults.position", "be a whole number >= 0", position)
    propensity = impressions.defaults.get("propensity", 1.0)
    if type(propensity) not in (int, float) or not 0.0 < propensity <= 1.0:
        _impossible("[bridge.impressions] defaults.propensity", "be in (0, 1]", propensity)


_POSITIVE = {  # numbers that must be > 0
    "ledger": (
        "wait_s",
        "block_rows",
        "block_s",
        "pending_max",
        "known_max",
        "known_bytes_max",
        "candidates_max",
        "token_ttl_s",
    ),
    "priors": ("publish_s", "counts_max"),
    "model": ("dim", "values_max"),
    "update": ("batch_rows", "threads", "learning_rate", "embedding_learning_rate", "n0", "confidence_margin"),
    "prerank": ("keep", "sample_rate", "dim", "batch_rows", "learning_rate", "embedding_learning_rate", "margin"),
    "creatives": ("dim", "batch_rows", "learning_rate", "embedding_learning_rate"),
    "gate": ("alpha", "buckets", "evidence_clip", "harm_max"),
    "serve": (
        "processes",
        "deadline_s",
        "candidates_max",
        "events_max",
        "body_bytes_max",
        "top",
        "concurrent_max",
        "stale_s",
    ),
    "kafka": ("partitions",),
    "store": ("push_s", "max_age_s", "users_max", "read_s"),
    "registry": ("keep",),
}
_AT_LEAST_ZERO = {  # and >= 0
    "ledger": ("grace_s", "disorder_s", "requeue_max"),
    "window": ("slide_s", "window_s", "warmup_s"),
    "priors": ("evidence_min", "crosses_max", "cells_max"),
    "model": ("admit_min", "forget_min"),
    "update": ("seed", "beta", "confidence_share", "rows_max"),
    "prerank": ("rows_max", "gate_penalty"),
    "creatives": ("rows_max",),
    "gate": ("margin", "slice_margin", "rollback_wait", "clicks_min"),
    "serve": ("port", "queue_max", "explore", "explore_ads"),
    "kafka": ("max_delay_s", "max_ahead_s", "retention_s"),
}


def _check_positive(settings: Settings) -> None:
    positive = _numbers(settings, _POSITIVE)
    positive += [("[priors] half_lives_s", value) for value in settings.priors.half_lives_s]
    positive += [("[model] hidden", value) for value in settings.model.hidden]
    positive += [("[prerank] hidden", value) for value in settings.prerank.hidden]
    positive += [("[creatives] hidden", value) for value in settings.creatives.hidden]
    at_least_zero = _numbers(settings, _AT_LEAST_ZERO)
    if settings.log is not None:
        at_least_zero.append(("[log] click_delay_s.mean", settings.log.click_delay_s.mean))
        at_least_zero.append(("[log] click_delay_s.seed", settings.log.click_delay_s.seed))
    for key, value in positive:
        if not (value > 0 and math.isfinite(value)):
            _impossible(key, "be > 0", value)
    for key, value in at_least_zero:
        if not (value >= 0 and math.isfinite(value)):
            _impossible(key, "be >= 0", value)
    for key, value, most in (
        ("[serve] explore", settings.serve.explore, 1.0),
        ("[serve] explore_ads", settings.serve.explore_ads, 1.0),
        ("[prerank] sample_rate", settings.prerank.sample_rate, 1.0),
        ("[serve] port", settings.serve.port, 65_535),
        ("[kafka] partitions", settings.kafka.partitions, PARTITIONS_MAX),
        ("[update] seed", settings.update.seed, SEED_MAX),
        ("[log] click_delay_s.seed", settings.log.click_delay_s.seed if settings.log else 0, SEED_MAX),
    ):
        if value > most:
            _impossible(key, f"be <= {most}", value)
    if not settings.priors.half_lives_s:
        _impossible("[priors] half_lives_s", "hold at least one half-life", [])


def _numbers(settings: Settings, keys: Mapping[str, tuple[str, ...]]) -> list[tuple[str, float]]:
    return [
        (f"[{section}] {key}", getattr(getattr(settings, section), key))
        for section, names in keys.items()
        for key in names
    ]


def _check_window(window: WindowSettings) -> None:
    if bool(window.edges) == bool(window.slide_s):
        got = "both" if window.edges else "neither"
        raise SettingsError(f"[window] must hold either slide_s > 0 or edges, got {got}; keep one")
    if not all(math.isfinite(edge) for edge in window.edges):
        raise SettingsError(
            "[window] edges must be finite event times, got NaN or infinity; the last slide is open anyway"
        )
    if any(later <= sooner for sooner, later in zip(window.edges, window.edges[1:], strict=False)):
        raise SettingsError("[window] edges must grow, got one that is not later than the one before; sort them")
    if window.window_s and window.window_s < window.slide_s:
        _impossible("[window] window_s", f"be >= slide_s ({window.slide_s})", window.window_s)


def _impossible(key: str, rule: str, got: object) -> NoReturn:
    raise SettingsError(f"{key} must {rule}, got {got}")
