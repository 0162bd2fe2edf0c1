"""GET /schema: the OpenAPI document of the gateway.

It is made from the structs that decode and encode (types, ranges, required fields) and from each handler's `Operation`.
The version is OpenAPI 3.2, the first one that can describe the events and lines of a stream (`itemSchema`).

Litestar 2.25 can write an OpenAPI document too, but not this one:

1. It writes OpenAPI 3.1; its `OpenAPIMediaType` has no `itemSchema`. It has one media type for each status
   (`_openapi/responses.py`), so a stream replaces the JSON reply of the same operation.
2. It loses ranges: `ge=0`, and all ranges of the members of a union (`stop`, `logit_bias`). The decoder enforces them.
3. It takes the body from a parameter `data` and the reply from the return type. Our handlers decode the body themselves
   and return `ASGIApp`.
4. It takes errors from `raises`: Litestar's exceptions with Litestar's body. Each of our APIs has its own error body.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp

from gateway import __version__
from gateway.errors import (
    BodyTimeout,
    BodyTooLarge,
    Forbidden,
    GatewayError,
    InvalidRequest,
    LimitReached,
    Unauthorized,
    Unavailable,
    UnsupportedEncoding,
)
from gateway.lanes.limits.headers import ANTHROPIC_HEADERS, OPENAI_HEADERS, is_anthropic
from gateway.routes.error_handler import body_of
from gateway.routes.respond import json_response
from gateway.routes.wire import Json
from gateway.server.guards import OPEN
from gateway.server.openapi_operation import Operation, Stream, openapi_opt
from gateway.server.request import HttpRequest, router_of
from gateway.server.sse import MEDIA_TYPE as EVENTS

_ANY_ROUTE = (Forbidden, Unavailable)
_WITH_BODY = (InvalidRequest, BodyTimeout, BodyTooLarge, UnsupportedEncoding)
_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_HEADERS: Json = {
    "x-request-id": {
        "required": True,
        "schema": {"type": "string"},
        "description": "Part of the reply's id and of the log line.",
    },
    "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."},
    **{
        name: {"schema": {"type": "string"}, "description": "Of an API key with this limit."}
        for name in (*OPENAI_HEADERS, *ANTHROPIC_HEADERS)
    },
}


@get(["/schema", "/openapi.json"], opt=OPEN | openapi_opt("Get this document", reply=Json))
async def schema(request: HttpRequest) -> ASGIApp:
    """The document is made at the first request, in 0.2 s, and kept."""
    state = request.app.state
    if "schema" not in state:
        routes = [route for route in request.app.routes if isinstance(route, HTTPRoute)]
        state.schema = await asyncio.to_thread(document, routes, router_of(request).config.needs_key)
    return json_response(state.schema)


def document(routes: list[HTTPRoute], needs_key: bool) -> Json:
    """The OpenAPI document of the routes whose handlers have an `Operation`."""
    types = list(_types(routes))
    described, schemas = _described(types)
    writer = _Writer(described, needs_keys=needs_key)
    paths = {_path_of(route): writer.path(route) for route in sorted(routes, key=_path_of)}
    return {
        "openapi": "3.2.0",
        "info": {"title": "npu-gateway", "version": __version__},
        "paths": {path: item for path, item in paths.items() if item},
        "components": {"schemas": schemas, "headers": _HEADERS, "securitySchemes": _SCHEMES if needs_key else {}},
    }


def _operations(route: HTTPRoute) -> Iterator[tuple[str, HTTPRouteHandler, Operation]]:
    for handler in route.route_handlers:
        if operations := handler.opt.get("openapi"):
            yield from ((method.lower(), handler, operations[method]) for method in sorted(handler.http_methods))


def _path_of(route: HTTPRoute) -> str:
    return next((operation.path for _, _, operation in _operations(route) if operation.path), route.path_format)


def _types(routes: list[HTTPRoute]) -> Iterator[tuple[Any, bool]]:
    """Every type in the document, and True if clients send it."""
    for route in routes:
        for _, _, operation in _operations(route):
            yield operation.body, True
            yield from ((parameter.type, True) for parameter in operation.parameters)
            yield operation.reply, False
            yield operation.stream and operation.stream.item, False
            yield from ((body, False) for body in operation.other_replies.values())
            yield _error_type(route.path_format), False


def _error_type(path: str) -> type:
    return type(body_of(path, GatewayError("")))


def _described(types: list[tuple[Any, bool]]) -> tuple[list[tuple[Any, Json]], Json]:
    """The JSON schema of each type, and the components that the schemas refer to."""
    template = "#/components/schemas/{name}"
    sent = [type for type, is_sent in types if is_sent]
    _, request_components = msgspec.json.schema_components(sent, ref_template=template)
    found, components = msgspec.json.schema_components([type for type, _ in types], ref_template=template)
    for name, component in components.items():
        if name not in request_components and "properties" in component:
            component["required"] = sorted(_always_sent(component))
    return [(type, schema) for (type, _), schema in zip(types, found, strict=True)], _portable(components)


def _always_sent(reply: Json) -> set[str]:
    """Replies include defaults, so only fields that are not required and have no default can be missing."""
    return {*reply["required"], *(name for name, field in reply["properties"].items() if "default" in field)}


def _portable(schema: Any) -> Any:
    r"""JSON Schema writes `$` for the end of the text, Python writes `\Z`."""
    match schema:
        case dict():
            return {
                key: value.replace(r"\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
                for key, value in schema.items()
            }
        case list():
            return [_portable(value) for value in schema]
    return schema


class _Writer:
    """Writes the paths. `described`: each type with its JSON schema."""

    def __init__(self, described: list[tuple[Any, Json]], *, needs_keys: bool) -> None:
        self._described = described
        self._needs_keys = needs_keys

    def path(self, route: HTTPRoute) -> Json:
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in route.path_parameters
        ]
        methods = {
            method: self._operation(method, _path_of(route), handler, operation)
            for method, handler, operation in _operations(route)
        }
        return ({"parameters": parameters} if parameters and methods else {}) | methods

    def _operation(self, method: str, path: str, handler: HTTPRouteHandler, operation: Operation) -> Json:
        is_open = not handler.opt.get("needs_key", True)
        written: Json = {
            "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
            "summary": operation.summary,
            "responses": self._responses(path, operation, is_open=is_open),
        }
        if operation.parameters:
            written["parameters"] = [
                {
                    "name": parameter.name,
                    "in": parameter.location,
                    "schema": self._of(parameter.type),
                    "description": parameter.description,
                }
                for parameter in operation.parameters
            ]
        if operation.body is not None:
            content = {"application/json": {"schema": self._of(operation.body)}}
            written["requestBody"] = {"required": True, "content": content}
        if self._needs_keys and not is_open:
            written["security"] = [{name: []} for name in _SCHEMES]
        return written

    def _responses(self, path: str, operation: Operation, *, is_open: bool) -> Json:
        error = self._of(_error_type(path))
        raised = [*_ANY_ROUTE, *operation.raises, *(_WITH_BODY if operation.body is not None else ())]
        if self._needs_keys and not is_open:
            raised.append(Unauthorized)
        limits: tuple[str, ...] = ()
        if LimitReached in operation.raises:
            limits = ANTHROPIC_HEADERS if is_anthropic(path) else OPENAI_HEADERS
        written = {str(kind.status): _response(kind.status, {"application/json": error}, limits) for kind in raised}
        for status, body in operation.other_replies.items():
            written[str(status)] = _response(status, {"application/json": {"anyOf": [self._of(body), error]}}, limits)
        if operation.reply is not None:
            written["200"] = _response(200, {operation.media_type: self._of(operation.reply)}, limits)
        if operation.stream is not None:
            written["200"]["content"] |= self._stream(operation.stream, error)
        return dict(sorted(written.items()))

    def _stream(self, stream: Stream, error: Json) -> Json:
        """The last item of a stream that fails is an error."""
        item = {"anyOf": [self._of(stream.item), error]}
        return {stream.media_type: {"itemSchema": _event(item, stream.end) if stream.media_type == EVENTS else item}}

    def _of(self, type: Any) -> Json:
        return next(schema for known, schema in self._described if known == type)


def _response(status: int, schemas: Mapping[str, Json], limits: Sequence[str]) -> Json:
    """`limits`: the headers of the limits of API keys."""
    names = ["x-request-id", *(["Retry-After"] if status in (429, 503) else []), *limits]
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}


def _event(item: Json, end: str) -> Json:
    """A server-sent event. Its data is JSON, or the text `end`."""
    data: Json = {"contentMediaType": "application/json", "contentSchema": item}
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string"},
            "data": {"type": "string", **({"anyOf": [{"const": end}, data]} if end else data)},
        },
        "required": ["data"],
    }
