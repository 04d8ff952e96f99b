"""Why a model serves, in words: announcements and manifests to what `freshrank models` says.

Owns those words and the rows of its list. Must not know where announcements and snapshots are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stream.announcement import Announcement, Promotion

_GUARDS = {
    "clicks": "clicks of the slide",
    "calibration": "mean prediction over click rate",
    "shift": "mean prediction over the champion's",
    "slide": "certain harm on the slide, nats",
}


def model_rows(manifests: Sequence[Mapping[str, Any]], newest: Announcement | None) -> list[dict[str, Any]]:
    """Return what is known of each snapshot: version, slide, parent, what it does, quality and decision.

    A snapshot is judged on the slide after its own, so its figures and decision stand in what was saved then.
    """
    judged = {manifest["context"].get("judged"): manifest["context"] for manifest in manifests}
    rows = []
    for manifest in manifests:
        found = judged.get(manifest["version"])
        quality = found["evaluation"]["latest"] if found else {}
        rows.append(
            {name: manifest[name] for name in ("version", "slide", "parent")}
            | {"does": _does(manifest["version"], newest)}
            | {name: quality.get(name) for name in ("rows", "logloss", "auc", "calibration")}
            | {"decision": found["decision"] if found else None, "reason": found["reason"] if found else None}
        )
    return rows


def explain(newest: Announcement) -> list[str]:
    """Return why the champion serves, a sentence or so a line."""
    lines = [*_since(newest), *_now(newest)]
    if newest.former:
        lines.append(
            f"{newest.former} scores on in the shadow: it comes back if what serves is certainly worse by more than the"
            " margin."
        )
    return lines


def _since(newest: Announcement) -> list[str]:
    since = newest.since
    if since is None:
        return [f"{newest.champion} serves; since when is not known: an earlier release announced it."]
    instead = f" in place of {since.former}" if since.former else ""
    how = {
        "warmup": f"the warm-up, in which each newest model is promoted{instead}: nothing was to be proven.",
        "promote": f"a promotion{instead}: {since.reason}.",
        "rollback": f"a rollback{instead}: {since.reason}.",
        "hold": "the first slide: there was no other.",
    }.get(since.decision, f"{since.decision}: {since.reason}.")
    return [
        f"{newest.champion} serves since slide {since.slide}, by {how}",
        *_evidence(since),
        *map(_guard, since.guards),
    ]


def _evidence(since: Promotion) -> list[str]:
    found = since.evidence
    if found.get("mean") is None:
        return []
    what = "what served had" if since.decision == "rollback" else "it had"
    other = "this model" if since.decision == "rollback" else "the champion of the time"
    word = "lower" if found["mean"] < 0.0 else "higher"
    line = f"Over {found['pieces']} slides {what} a log loss {abs(found['mean']):.4f} nats {word} than {other}"
    return [f"{line}, certainly between {found['lower']:+.4f} and {found['upper']:+.4f}."]


def _guard(guard: Mapping[str, Any]) -> str:
    name = _GUARDS.get(guard["name"], f"certain harm on {guard['name'].removeprefix('slice ')} items, nats")
    limits = {"at least": guard["low"], "at most": guard["high"]}
    allowed = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
    found = "not known" if guard["value"] is None else f"{guard['value']:.4g}"
    return f"  {'passed' if guard['passes'] else 'FAILED'}: {name} {found}, must be {allowed}"


def _now(newest: Announcement) -> list[str]:
    if newest.since is not None and newest.since.slide == newest.slide:
        return []
    return [f"Newest slide, {newest.slide}: {newest.decision}: {newest.reason}."]


def _does(version: str, newest: Announcement | None) -> str:
    if newest is None:
        return ""
    pointers = {"serves": newest.champion, "learns": newest.latest, "in the shadow": newest.former}
    return ", ".join(word for word, named in pointers.items() if named == version)
