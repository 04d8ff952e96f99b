"""What the command line shows as tables.

Owns columns and their words. Must not know where the values come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.table import Column, Table
from rich.text import Text

VALUE_CHARS_MAX = 60
FIELDS_SHOWN = 3
LISTED_MAX = 3  # of a value's parts


def letter_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of `freshrank dlq list`: letters by rule, and the newest."""
    rules = Table("rule", "letters", "requeued", "first", "last", "fields")
    for name, rule in found["rules"].items():
        fields = sorted((item for item in rule["fields"].items() if item[0]), key=lambda item: -item[1])
        shown = ", ".join(f"{field} {count:,}" for field, count in fields[:FIELDS_SHOWN])
        more = f" and {len(fields) - FIELDS_SHOWN} more" if len(fields) > FIELDS_SHOWN else ""
        counts = (f"{rule['letters']:,}", f"{rule['requeued']:,}")
        rules.add_row(name, *counts, _moment(rule["first_s"]), _moment(rule["last_s"]), Text(shown + more))
    yield rules
    if not found["newest"]:
        return
    newest = Table("letter", "appended", "rule", "field", "value", "attempts", "requeued")
    for row in found["newest"]:
        value = Text(row["value"][:VALUE_CHARS_MAX])
        place = (row["letter"], _moment(row["appended_s"]), row["rule"])
        newest.add_row(*place, Text(row["field"]), value, str(row["attempts"]), "yes" if row["requeued"] else "")
    yield newest


def model_table(found: dict[str, Any]) -> Table:
    """Return the table of `freshrank models list`."""
    version = Column("version", no_wrap=True)  # it is what the other commands take
    table = Table("slide", version, "does", "log loss", "AUC", "calibration", "decision")
    for row in found["models"]:
        figures = ("–" if row[name] is None else f"{row[name]:.4f}" for name in ("logloss", "auc", "calibration"))
        slide = "initial" if row["slide"] is None else str(row["slide"])
        table.add_row(slide, row["version"], row["does"], *figures, row["decision"] or "")
    return table


def catalog_table(found: dict[str, Any]) -> Table:
    """Return the table of `freshrank catalog show`."""
    table = Table("ad", "active", "bid (micros)", "values")
    for ad in found["shown"]:
        told = (Text(ad["ad_id"]), "yes" if ad["active"] else "no", f"{ad['bid_micros']:,}")
        table.add_row(*told, Text(values_text(ad["values"], ad["ad_id"])))
    return table


def policy_table(found: dict[str, Any]) -> Table:
    """Return the table of `freshrank ope`: click rates in per cent with their intervals."""
    columns = ("policy", "IPS", "SNIPS", "DR", "effective rows", "largest weight", "mean weight")
    table = Table(*columns, title="click rate in per cent, with its interval")
    table.add_row("(logged)", _rate(found["logged"]), "", "", f"{found['rows']:,}", "1", "1.000")
    for name, one in found["policies"].items():
        weights = (f"{one['effective_rows']:,.0f}", f"{one['largest']:,.1f}", f"{one['mean']:.3f}")
        table.add_row(name, *(_rate(one[kind]) for kind in ("ips", "snips", "dr")), *weights)
    return table


def arm_table(found: dict[str, Any]) -> Table:
    """Return the table of `freshrank ab`: click rates in per cent, with intervals of 95 % over users."""
    table = Table("arm", "users", "requests", "impressions", "clicks", "click rate", title="click rates in per cent")
    for arm, one in found["arms"].items():
        counts = (f"{one[name]:,}" for name in ("users", "requests", "impressions", "clicks"))
        table.add_row(arm, *counts, _interval(one["ctr"]))
    return table


def arm_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what `freshrank ab` says below its table."""
    difference, draw = found["difference"], found["draw"]
    p_value = "–" if difference["p_value"] is None else f"{difference['p_value']:.3g}"
    yield f"difference: {_interval(difference['absolute'])} per cent points"
    yield f"relative difference: {_interval(difference['relative'])} per cent; p = {p_value}"
    if draw is not None:
        shares = f"{100 * draw['observed']:.2f} per cent of the users, {100 * draw['expected']:g} were to be"
        yield f"draw: {shares}; p = {draw['p_value']:.3g}"


def _interval(found: dict[str, float | None]) -> str:
    mean, lower, upper = ("–" if one is None else f"{100 * one:.3f}" for one in found.values())
    return f"{mean} ({lower} to {upper})"


def _rate(estimate: dict[str, Any]) -> str:
    rate = "–" if estimate["rate"] is None else f"{100 * estimate['rate']:.3f}"
    return f"{rate} ({100 * estimate['lower']:.3f} to {100 * estimate['upper']:.3f})"


def values_text(values: Mapping[str, Any], ad_id: str = "") -> str:
    """Return the values that are known in one line, but for what says the ad's id again."""
    texts = [f"{name} {_value(value)}" for name, value in values.items() if value not in (None, ad_id)]
    return " · ".join(texts) or "–"


def _value(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    more = f" and {len(value) - LISTED_MAX} more" if len(value) > LISTED_MAX else ""
    return ", ".join(map(str, value[:LISTED_MAX])) + more


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
