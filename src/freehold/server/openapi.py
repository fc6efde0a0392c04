"""The server's own description: /openapi.json for programs, /docs for people.

Owns both, made from the list of endpoints, so that neither can name what is not there. The page needs no other server:
whoever runs models offline reads its documentation offline.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse

from freehold import __version__
from freehold.server.body import Body
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import dialect_of

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_REFERENCE = "#/components/schemas/{model}"
_MEANINGS = {
    200: "The answer.",
    400: "The request is wrong; the message says what was found and what was expected.",
    401: "An API key is missing or unknown.",
    403: "This host, web page or operation is not allowed.",
    404: "There is no such thing; for a model, the message names the nearest.",
    408: "The request's body did not arrive in time.",
    413: "The request is too large.",
    415: "The request's body is compressed, which is not supported.",
    429: "Too many requests are waiting; Retry-After says when to come back.",
    500: "The server failed; its log says why, under the request's id.",
    503: "The model cannot be loaded now, or the server is shutting down.",
    504: "The request took longer than it may.",
}
_ERRORS: Mapping[str, Mapping[str, Any]] = {
    "openai": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "anthropic": {
        "type": "object",
        "required": ["type", "error", "request_id"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
            "request_id": {"type": "string"},
        },
    },
    "ollama": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
}


def description(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `endpoints`."""
    bodies = list(dict.fromkeys(endpoint.body for endpoint in endpoints if endpoint.body is not None))
    names, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    references = {body: names[body, "validation"] for body in bodies}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = _PARAMETER.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, references)
    errors = {f"{dialect}_error": schema for dialect, schema in _ERRORS.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Freehold",
            "version": __version__,
            "description": "Open-weight language models on your own machine, behind the APIs that tools already speak.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), **errors},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(endpoint: Endpoint, path: str, references: Mapping[type[Body], Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()} {path}",
        "summary": endpoint.summary.rstrip("."),
        "tags": [endpoint.tag],
        "security": [{}] if endpoint.public else [{}, {"bearer": []}, {"key": []}],
        "responses": _responses(endpoint),
    }
    if endpoint.handle.__doc__:
        operation["description"] = " ".join(endpoint.handle.__doc__.split())
    if names := _PARAMETER.findall(endpoint.path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if endpoint.body is not None:
        content = {"application/json": {"schema": references[endpoint.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    statuses = {401, 403, 500, *endpoint.statuses} | ({400, 408, 413, 415} if endpoint.body is not None else set())
    refused = {"schema": {"$ref": f"#/components/schemas/{dialect_of(endpoint.path)}_error"}}
    answered = {"200": {"description": _MEANINGS[200], "content": {media: {} for media in endpoint.answers}}}
    return answered | {
        str(status): {"description": _MEANINGS[status], "content": {"application/json": refused}}
        for status in sorted(statuses)
    }


_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font:14px/1.45 ui-monospace,monospace}h2{margin-top:2.5rem;border-bottom:1px solid #8885}
details{margin:.4rem 0;padding:.3rem .6rem;border:1px solid #8885;border-radius:.4rem}summary{cursor:pointer}
summary b{display:inline-block;width:4.5rem;font:600 13px ui-monospace,monospace}
table{border-collapse:collapse;width:100%}.soft{opacity:.7}
td,th{text-align:left;vertical-align:top;padding:.15rem .8rem .15rem 0;font-size:15px}
"""


def page(document: Mapping[str, Any]) -> str:
    """A description as one HTML page without scripts, fonts or anything else from elsewhere."""
    sections: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            entry = _entry(path, method, operation, document["components"]["schemas"])
            sections.setdefault(operation["tags"][0], []).append(entry)
    parts = [f"<h2>{html.escape(tag)}</h2>{''.join(entries)}" for tag, entries in sections.items()]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Freehold {__version__}</title><style>{_STYLE}</style><h1>Freehold {__version__}</h1>"
        f"<p>{html.escape(document['info']['description'])} <a href=openapi.json>openapi.json</a> says the same to "
        f"programs.</p>{''.join(parts)}</html>"
    )


def _entry(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    head = (
        f"<b>{method.upper()}</b><code>{html.escape(path)}</code> <span class=soft>{html.escape(operation['summary'])}"
    )
    text = f"<p>{html.escape(operation['description'])}</p>" if "description" in operation else ""
    rows = ""
    if "requestBody" in operation:
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = schemas[reference.rsplit("/", 1)[1]]
        required = schema.get("required", ())
        rows = "".join(_row(name, field, name in required) for name, field in schema.get("properties", {}).items())
        rows = f"<table><tr><th>field<th>type<th>meaning{rows}</table>"
    answers = "".join(
        f"<tr><td><code>{status}</code><td>{html.escape(answer['description'])}"
        for status, answer in operation["responses"].items()
    )
    return f"<details><summary>{head}</span></summary>{text}{rows}<table>{answers}</table></details>"


def _row(name: str, field: Mapping[str, Any], required: bool) -> str:
    needed = " <span class=soft>required</span>" if required else ""
    meaning = html.escape(field.get("description", ""))
    return f"<tr><td><code>{html.escape(name)}</code>{needed}<td>{html.escape(_type(field))}<td>{meaning}"


def _type(field: Mapping[str, Any]) -> str:
    """A field's type in a few words."""
    if "enum" in field or "const" in field:
        return " | ".join(map(repr, field.get("enum", [field.get("const")])))
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[1])
    if "anyOf" in field or "oneOf" in field:
        return " | ".join(dict.fromkeys(_type(one) for one in field.get("anyOf", field.get("oneOf", ()))))
    if field.get("type") == "array":
        return f"[{_type(field.get('items', {}))}]"
    bounds = [f"{sign} {field[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in field]
    return " ".join([str(field.get("type", "any")), *bounds])


def described(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """The endpoints that describe `endpoints`: all that are in it when the first of them is asked."""

    @cache
    def document() -> dict[str, Any]:
        return description(endpoints)

    async def openapi(call: Call) -> Json:
        """This description."""
        return Json(document())

    async def docs(call: Call) -> HTMLResponse:
        """This description as a page to read."""
        return HTMLResponse(page(document()))

    return (
        Endpoint("GET", "/openapi.json", openapi, "The description of this server", "Server", public=True),
        Endpoint("GET", "/docs", docs, "The documentation", "Server", answers=("text/html",), public=True),
    )
