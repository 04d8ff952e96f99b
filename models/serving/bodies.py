"""Bodies of requests to checked values: the place where anything may come in.

Owns reading the JSON of `POST /v1/rank`, `/v1/explain` and `/v1/events`, the limits on their content and the words of
every refusal. Must not know HTTP, the catalog or models.

Invariants: whatever the bytes, the result is a checked value or one `Rejected`; a value has the one type of its field's
kind; a name that no field has is ignored and said, a value of the wrong kind is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec

from features.fields import Field, Kind, Side, raw_fields
from models.serving.schema import Clean, ClientEvent, ExplainBody, Fault, NamedAd, RankBody, RankQuery, Rejected

_T = TypeVar("_T")


_rank_decoder: msgspec.json.Decoder[RankBody] = msgspec.json.Decoder(RankBody)
_explain_decoder: msgspec.json.Decoder[ExplainBody] = msgspec.json.Decoder(ExplainBody)
_event_decoder: msgspec.json.Decoder[ClientEvent] = msgspec.json.Decoder(ClientEvent)
_list_decoder: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


class ValueReader:
    """Checks the values of one part of a body against the fields of its sides."""

    def __init__(self, fields: Sequence[Field], sides: Iterable[Side]) -> None:
        """Keep the kinds of the raw fields of these sides."""
        wanted = frozenset(sides)
        self.kinds: dict[str, Kind] = {f.name: f.kind for f in raw_fields(fields) if f.side in wanted}

    def read(self, values: Mapping[str, Any], where: str, ignored: set[str]) -> dict[str, Clean]:
        """Return the values that have a field; the names of the others go into `ignored`.

        Raises:
            Rejected: If a value is not of its field's kind.
        """
        clean: dict[str, Clean] = {}
        for name, value in values.items():
            kind = self.kinds.get(name)
            if kind is None:
                ignored.add(f"{where}.{name}"[:200])
            else:
                clean[name] = _clean(value, kind, where, name)
        return clean


class RankReader:
    """Reads bodies of `POST /v1/rank` and `POST /v1/explain` for one list of fields, within limits."""

    def __init__(self, fields: Sequence[Field], *, candidates_max: int, top: int, is_replay: bool = False) -> None:
        """Keep the limits; `top` is the length of an answer when the body does not say.

        Args:
            is_replay: Callers own the clock: a body may say its event time.
        """
        self._candidates_max = candidates_max
        self._top = top
        self._is_replay = is_replay
        self._user = ValueReader(fields, ("user",))
        self._context = ValueReader(fields, ("context",))
        self._ad = ValueReader(fields, ("item", "creative"))

    def read(self, body: bytes) -> RankQuery:
        """Return the checked request.

        Raises:
            Rejected: If the body is not a ranking request within the limits.
        """
        return self._query(_decode(_rank_decoder, body))

    def read_explain(self, body: bytes) -> tuple[RankQuery, list[str]]:
        """Return the checked request of `POST /v1/explain`, and which ads it asks for, each once.

        Raises:
            Rejected: If the body is none within the limits.
        """
        raw = _decode(_explain_decoder, body)
        return self._query(raw), list(dict.fromkeys(raw.ads))

    def _query(self, raw: RankBody) -> RankQuery:
        count = len(raw.candidates)
        if not 1 <= count <= self._candidates_max:
            raise Rejected("candidates", f"must hold 1 to {self._candidates_max} ads", count)
        if raw.time_s is not None and not self._is_replay:
            raise Rejected("time_s", "must be left out, because this deployment's clock is the wall clock", raw.time_s)
        ignored: set[str] = set()
        values = self._user.read(raw.user, "user", ignored)
        values |= self._context.read(raw.context, "context", ignored)
        ids, own = self._candidates(raw.candidates, ignored)
        return RankQuery(
            request_id=raw.request_id or "",
            values=values,
            ids=ids,
            own=own,
            top=raw.top or self._top,
            ignored_fields=sorted(ignored),
            time_s=raw.time_s,
        )

    def _candidates(
        self, candidates: list[str | NamedAd], ignored: set[str]
    ) -> tuple[list[str], dict[str, dict[str, Clean]]]:
        """Return the ids of the candidates, and the values that some come with."""
        named: list[NamedAd] = []
        if NamedAd in {*map(type, candidates)}:  # seldom, and thousands of candidates are quicker looked at together
            named = [one for one in candidates if isinstance(one, NamedAd)]
            ids = [one.ad_id if isinstance(one, NamedAd) else one for one in candidates]
        else:
            ids = cast(list[str], candidates)
        if len(set(ids)) < len(ids):
            twice = next(one for one, count in Counter(ids).items() if count > 1)
            raise Rejected("candidates", "must hold each ad once", f'"{twice}" twice')
        read = {one.ad_id: self._ad.read(one.values, "candidates", ignored) for one in named}
        return ids, {ad_id: values for ad_id, values in read.items() if values}


def read_events(body: bytes, *, events_max: int, now_s: float, ahead_max_s: float) -> list[ClientEvent | Fault]:
    """Return each event of the body, or why it is refused, in the order given.

    Args:
        events_max: How many events one body may hold.
        now_s: The event's time when it says none.
        ahead_max_s: How far behind `now_s` a clock may lag: a later time would end the wait of every impression.

    Raises:
        Rejected: If the body as a whole is neither one event nor a list of them within the limit.
    """
    if not body.lstrip().startswith(b"["):
        return [_read_event(body, now_s, ahead_max_s)]
    raw = _decode(_list_decoder, body)
    if not 1 <= len(raw) <= events_max:
        raise Rejected("events", f"must be 1 to {events_max}", len(raw))
    results: list[ClientEvent | Fault] = []
    for one in raw:
        try:
            results.append(_read_event(bytes(one), now_s, ahead_max_s))
        except Rejected as rejected:
            results.append(rejected.fault)
    return results


def _read_event(body: bytes, now_s: float, ahead_max_s: float) -> ClientEvent:
    event = _decode(_event_decoder, body)
    if event.time_s is None:
        return msgspec.structs.replace(event, time_s=now_s)
    if not 0.0 <= event.time_s <= now_s + ahead_max_s:
        raise Rejected("time_s", f"must be seconds since 1970, at most {ahead_max_s:g} s ahead", event.time_s)
    return event


def _decode(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _violation(str(error)) from None
    except RecursionError:
        raise Rejected("body", "must not be nested this deep", f"{len(body)} bytes") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_json(body, error) from None


def _no_json(body: bytes, error: Exception) -> Rejected:
    try:
        body.decode()
    except UnicodeDecodeError as no_text:
        return Rejected("body", "must be UTF-8", f"{body[no_text.start]:#04x} at byte {no_text.start}")
    return Rejected("body", "must be JSON", error if body.strip() else "nothing")


def _violation(message: str) -> Rejected:
    """Return what the decoder found (`Expected A, got B - at P`) as what, rule and got."""
    message, _, where = message.partition(" - at ")
    what = where.strip("`").removeprefix("$").removeprefix(".") or "body"
    if message.startswith("Expected "):
        rule, _, got = message.removeprefix("Expected ").partition(", got ")
        return Rejected(what, f"must be {rule}", got or "another value")
    if message.startswith("Object contains unknown field "):
        return Rejected(what, "must hold known keys only", message.removeprefix("Object contains unknown field "))
    if message.startswith("Object missing required field "):
        return Rejected(what, f"must hold {message.removeprefix('Object missing required field ')}", "none")
    return Rejected(what, "must be a value that the schema knows", message)


def _clean(value: object, kind: Kind, where: str, name: str) -> Clean:
    """Return the value as its kind's one type; whole numbers are good ids, so they become text."""
    if value is None:
        return None
    if kind == "number":
        number = _number(value)
        if number is None:
            raise Rejected(f"{where}.{name}", "must be a finite number", _shown(value))
        return number
    text = _text(value)
    if kind == "categories":
        texts = [_text(one) for one in value] if isinstance(value, list) else [text]
        whole = [one for one in texts if one is not None]
        if len(whole) < len(texts):
            raise Rejected(f"{where}.{name}", "must be a list of texts or whole numbers", _shown(value))
        return whole
    if text is None:
        raise Rejected(f"{where}.{name}", "must be a text or a whole number", _shown(value))
    return text


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)  # JSON has no infinity: only a whole number can be too large
    except OverflowError:
        return None


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()
