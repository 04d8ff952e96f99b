"""The OpenAPI 3.1 document of a deployment, made from the routes, the types that read and write bodies, and the fields.

Owns how those become a document. Must not hold a schema of its own: a description is the type's docstring, a limit the
type's or the deployment's.

Invariants: what the document allows the service accepts, but for three rules that JSON Schema cannot say and the
descriptions do: an ad stands once among the candidates, an event's time is not ahead of now, and a whole number is
written as one (JSON Schema takes 3.0 for 3).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from features.fields import Field, Kind, Side, id_field, raw_fields
from models.serving.routes import REQUEST_ID, ROUTES, Reply, Route
from models.serving.schema import Click, ExplainBody, Impression, Limits, NamedAd, RankBody, Readiness

Json = dict[str, Any]

_SCHEMA_PREFIX = "#/components/schemas/"
_KINDS: dict[Kind, Json] = {
    "category": {"type": ["string", "integer", "null"]},
    "categories": {
        "anyOf": [
            {"type": "array", "items": {"type": ["string", "integer"]}},
            {"type": ["string", "integer", "null"]},
        ]
    },
    "number": {"type": ["number", "null"], "minimum": -sys.float_info.max, "maximum": sys.float_info.max},
}
_SAMPLES: dict[Kind, Any] = {"category": "17", "categories": ["17", "18"], "number": 1.5}
_COME_BACK = {"Retry-After": {"description": "Seconds until it is worth trying again.", "schema": {"type": "integer"}}}
_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"description": "The scheme, Bearer.", "schema": {"type": "string"}}},
    429: _COME_BACK,
    503: _COME_BACK,
}


def to_openapi(fields: Sequence[Field], limits: Limits, *, has_keys: bool) -> Json:
    """Return the document.

    Args:
        fields: They describe the values of users, contexts and ads.
        limits: They stand beside what they limit.
        has_keys: Callers need a key.
    """
    schemas = _Schemas()
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "freshrank",
            "version": "1",
            "description": f"Bodies hold at most {limits.body_bytes_max} bytes. A whole number is written without a"
            " point. A refusal says what, rule and got.",
        },
        "paths": {r.path: {r.method.lower(): _operation(r, fields, schemas, has_keys=has_keys)} for r in ROUTES},
        "components": {"schemas": schemas.components},
    }
    _limit(document, limits)
    _describe_values(schemas.components, fields)
    schemas.components["ExplainBody"]["properties"] |= schemas.components["RankBody"]["properties"]  # that, and `ads`
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


class _Schemas:
    """Schemas of the types that routes name."""

    def __init__(self) -> None:
        kinds = [route.body for route in ROUTES if route.body is not None]
        kinds += [kind for route in ROUTES for reply in route.replies.values() for kind in reply.types]
        found, self.components = msgspec.json.schema_components(kinds, ref_template=_SCHEMA_PREFIX + "{name}")
        self._by_kind = list(zip(kinds, found, strict=True))
        for component in self.components.values():
            _describe(component)

    def of(self, kind: Any) -> Json:
        return next(schema for known, schema in self._by_kind if known == kind)


def _operation(route: Route, fields: Sequence[Field], schemas: _Schemas, *, has_keys: bool) -> Json:
    is_keyed = has_keys and not route.is_open
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {
            str(status): _reply(status, reply, schemas)
            for status, reply in route.replies.items()
            if is_keyed or status != 401
        },
    }
    if route.body is not None:
        media = {"schema": schemas.of(route.body), "examples": _body_samples(route, fields)}
        operation["requestBody"] = {"required": True, "content": {"application/json": media}}
    if is_keyed:
        operation["security"] = [{"key": []}]
    return operation


def _reply(status: int, reply: Reply, schemas: _Schemas) -> Json:
    found = [schemas.of(kind) for kind in reply.types]
    media = {"schema": found[0] if len(found) == 1 else {"anyOf": found}, "example": msgspec.to_builtins(reply.example)}
    is_text = isinstance(reply.example, str)
    described: Json = {
        "description": reply.meaning,
        "content": {"text/plain" if is_text else "application/json": media},
    }
    if status in _HEADERS and not isinstance(reply.example, Readiness):
        described["headers"] = _HEADERS[status]
    return described


def _body_samples(route: Route, fields: Sequence[Field]) -> Json:
    if route.body in (RankBody, ExplainBody):
        user, context, ad = (_sample(fields, sides) for sides in (("user",), ("context",), ("item", "creative")))
        body = route.body(["ad-2", NamedAd("ad-3", ad)], REQUEST_ID, user, context, 20)
        samples: dict[str, Any] = {"ranking": body}
    else:
        shown, click = Impression(REQUEST_ID, "ad-2", 0), Click(REQUEST_ID, "ad-2", 0)
        samples = {"impression": shown, "both": [shown, click]}
    return {name: {"value": msgspec.to_builtins(value)} for name, value in samples.items()}


def _limit(document: Json, limits: Limits) -> None:
    schemas = document["components"]["schemas"]
    body = schemas["RankBody"]["properties"]
    body["candidates"] |= {"minItems": 1, "maxItems": limits.candidates_max, "uniqueItems": True}
    body["top"]["description"] += f" {limits.top} when it is left out."
    for kind in ("Impression", "Click"):
        time_s = schemas[kind]["properties"]["time_s"]
        time_s["anyOf"][0]["minimum"] = 0
        time_s["description"] += f" At most {limits.ahead_max_s:g} s ahead of now."
    events = document["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    (many,) = (one for one in events["anyOf"] if one.get("type") == "array")
    many |= {"minItems": 1, "maxItems": limits.events_max}


def _describe_values(schemas: Json, fields: Sequence[Field]) -> None:
    sides: list[tuple[str, str, tuple[Side, ...]]] = [
        ("RankBody", "user", ("user",)),
        ("RankBody", "context", ("context",)),
        ("NamedAd", "values", ("item", "creative")),
    ]
    for schema, name, wanted in sides:
        schemas[schema]["properties"][name]["properties"] = {f.name: _KINDS[f.kind] for f in _of(fields, wanted)}


def _sample(fields: Sequence[Field], sides: Iterable[Side]) -> Json:
    named = id_field(fields, "item")  # holds the ad_id, whatever a caller says
    return {field.name: _SAMPLES[field.kind] for field in _of(fields, sides) if field != named}


def _of(fields: Sequence[Field], sides: Iterable[Side]) -> list[Field]:
    return [field for field in raw_fields(fields) if field.side in sides]


def _describe(component: Json) -> None:
    """Take a docstring apart: its text to the schema, what stands under `Attributes:` to the properties."""
    text, _, attributes = inspect.cleandoc(component.get("description", "")).partition("\n\nAttributes:\n")
    component["description"] = " ".join(text.split())
    for name, said in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
        component["properties"][name]["description"] = " ".join(said.split())
