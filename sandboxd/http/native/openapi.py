"""The API's own description: OpenAPI 3.1 made from the route table and its models, and a page to read it."""

import functools
import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from quart.wrappers import Response

from sandboxd import __version__
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import to_json
from sandboxd.http.native import attribute_docs, fields
from sandboxd.http.native.errors import ErrorBody

_PARAMETER = re.compile(r"<(\w+)>")
_REF = "#/components/schemas/{model}"
_STREAM_TYPES = {"sse": "text/event-stream", "download": "application/octet-stream"}


def routes(api: tuple[Route, ...]) -> tuple[Route, ...]:
    # Made when it is first asked for: it would be a sixth of what a start takes.
    document = functools.cache(functools.partial(describe, api))

    async def openapi(_: Call) -> Response:
        return Response(to_json(document()).encode(), content_type="application/json")

    async def docs(_: Call) -> Response:
        return Response(_page(document()).encode(), content_type="text/html; charset=utf-8")

    return (
        Route(method="GET", path="/v1/openapi.json", handler=openapi, scope=None, summary="This description"),
        Route(method="GET", path="/v1/docs", handler=docs, scope=None, summary="A page to read it"),
    )


def describe(api: tuple[Route, ...]) -> dict[str, Any]:
    """The OpenAPI document."""
    models = {model for route in api for model in (route.body, route.response) if model is not None} | {ErrorBody}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema([(model, "validation") for model in ordered], ref_template=_REF)
    for model in _kinds_of(fields.Request, fields.Response):
        if model.__name__ in definitions["$defs"]:
            attribute_docs.add_to(definitions["$defs"][model.__name__], model)
    paths: dict[str, dict[str, Any]] = {}
    for route in api:
        if route.streams != "websocket":
            path = _PARAMETER.sub(r"{\1}", route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sandboxd", "version": __version__, "description": "Throw-away Linux machines."},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _kinds_of(*models: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """These models, and all that are made of them."""
    for model in models:
        yield model
        yield from _kinds_of(*model.__subclasses__())


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}",
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": {str(route.status): _success(route), "default": _json("An error", ErrorBody)},
        "security": [] if route.scope is None else [{"bearer": []}, {"apiKey": []}],
    }
    if route.scope is not None:
        operation["description"] = f"Needs a key with the scope `{route.scope}`."
    if route.body is not None:
        content = {"application/json": {"schema": {"$ref": _ref(route.body)}}}
        operation["requestBody"] = {"required": not route.optional_body, "content": content}
    elif route.streams == "upload":
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": binary}
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    names = _PARAMETER.findall(route.path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = route.query.model_json_schema()
    attribute_docs.add_to(schema, route.query)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _inline(field, schema.get("$defs", {}))}
        for name, field in schema["properties"].items()
    ]


def _inline(field: Any, definitions: Mapping[str, Any]) -> Any:
    """A query field's schema on its own: models' references point into a document that it is not part of."""
    if isinstance(field, dict):
        if "$ref" in field:
            return definitions[field["$ref"].rpartition("/")[2]]
        return {key: _inline(value, definitions) for key, value in field.items()}
    return [_inline(item, definitions) for item in field] if isinstance(field, list) else field


def _success(route: Route) -> dict[str, Any]:
    """A route may have both: a page of events, or a stream of them."""
    content: dict[str, Any] = {}
    if route.response is not None:
        content["application/json"] = {"schema": {"$ref": _ref(route.response)}}
    if route.streams in _STREAM_TYPES:
        content[_STREAM_TYPES[route.streams]] = {}
    return {"description": route.summary, "content": content}


def _json(description: str, model: type[BaseModel]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _ref(model)}}}}


def _ref(model: type[BaseModel]) -> str:
    return _REF.format(model=model.__name__)


# -- the page -----------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h2 { font-size: 1rem; margin: 2rem 0 .2rem; font-family: ui-monospace, monospace }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; color: #0a5 } .DELETE { color: #b22 }
.POST { color: #06c } .PUT { color: #a60 }
pre { background: #f4f5f7; padding: .8rem; overflow: auto; font-size: .85rem }
p { margin: .2rem 0 } .needs { color: #667 } table { border-collapse: collapse; font-size: .9rem }
td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top } @media (prefers-color-scheme: dark) {
body { background: #14171a; color: #dde } pre { background: #1f2429 } .needs { color: #99a } }
"""


def _page(document: Mapping[str, Any]) -> str:
    sections = [
        _section(path, method, operation, document["components"]["schemas"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>sandboxd API</title><style>{_STYLE}</style><h1>sandboxd {html.escape(__version__)}</h1>"
        "<p>The native API. As a document: <a href=/v1/openapi.json>openapi.json</a>. Interactive commands: "
        "websocket <code>GET /v1/sandboxes/{sandbox}/exec</code>, terminals: <code>…/pty/{pty}/ws</code>; the "
        "<a href=../docs>manual</a> has their messages.</p>" + "".join(sections) + "</html>"
    )


def _section(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    parts = [
        f"<h2><span class='method {method.upper()}'>{method.upper()}</span> {html.escape(path)}</h2>",
        f"<p>{html.escape(operation['summary'])}</p>",
        f"<p class=needs>{html.escape(operation.get('description', ''))}</p>",
    ]
    query = [parameter for parameter in operation["parameters"] if parameter["in"] == "query"]
    if query:
        rows = "".join(
            f"<tr><td><code>{html.escape(item['name'])}</code><td>{html.escape(_type_of(item['schema']))}"
            f"<td>{html.escape(item['schema'].get('description', ''))}"
            for item in query
        )
        parts.append(f"<table><tr><th>query<th>type<th>{rows}</table>")
    for title, content in (
        ("request", operation.get("requestBody", {}).get("content", {})),
        ("answer", next(iter(operation["responses"].values())).get("content", {})),
    ):
        for kind, media in content.items():
            parts.append(_fields(f"{title} ({kind})", media.get("schema", {}), schemas))
    return "".join(parts)


def _fields(title: str, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    model = schemas.get(schema.get("$ref", "").rpartition("/")[2], {})
    lines = [
        f"{name}{'' if name in model.get('required', []) else '?'}: {_type_of(field)}"
        for name, field in model.get("properties", {}).items()
    ]
    return f"<p>{html.escape(title)}</p>" + (f"<pre>{html.escape(chr(10).join(lines))}</pre>" if lines else "")


def _type_of(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " | ".join(_type_of(option) for option in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return " | ".join(repr(value) for value in field["enum"])
    if field.get("type") == "array":
        return f"[{_type_of(field.get('items', {}))}]"
    return str(field.get("format") or field.get("const") or field.get("type", "any"))
