"""Every exception becomes an error reply here: JSON in the form of the path's API, without internal details."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException

from gateway.errors import (
    LONGEST_QUOTE,
    BodyTooLarge,
    Forbidden,
    GatewayError,
    InvalidRequest,
    LimitReached,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    QueueFull,
    Unauthorized,
    Unavailable,
    cut,
)
from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.request_line import RequestLine, error_text
from gateway.routes.anthropic_api import render as anthropic_render
from gateway.routes.ollama_api import render as ollama_render
from gateway.server.body import ENCODINGS
from gateway.server.error_body import error_body, error_headers
from gateway.server.request import HttpRequest, note_failure, owner_of, request_number, router_of
from gateway.server.streams.waits import ClientDisconnected

_log = logging.getLogger(__name__)

#: Our error for each status of a Litestar exception. Any other 4xx is an InvalidRequest.
_BY_STATUS: dict[int, type[GatewayError]] = {
    error.status: error
    for error in (
        Unauthorized,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        BodyTooLarge,
        QueueFull,
        Unavailable,
    )
}
#: Paths of Ollama's API that change models, and our commands for it.
_OLLAMA_COMMANDS = {
    "/api/pull": "pull",
    "/api/delete": "rm",
    "/api/create": "build",
    "/api/copy": "pull --as NAME",
    "/api/push": "list",
}


def handle_error(request: HttpRequest, exception: Exception) -> Response[bytes]:
    """The response for any exception of a handler. Litestar calls it."""
    note_failure(request.scope["state"])
    if isinstance(exception, ClientDisconnected):
        return Response(b"", status_code=499)  # nginx's status for a disconnect; it is never sent
    error = as_gateway_error(request, exception)
    if isinstance(
        error, ModelNotFound | LimitReached
    ):  # requests of a lane are recorded by the lane; this one has none
        _record(request, error)
    elif not error.is_logged:
        request.app.state.refusals.refused(request.method, request.scope["path"], request.scope["client"], error)
    headers = error_headers(error)
    if isinstance(exception, HTTPException):
        headers |= exception.headers or {}
    match error.status:
        case 401:
            headers["WWW-Authenticate"] = "Bearer"
        case 408:
            headers["Connection"] = "close"  # the rest of the body may still arrive
        case 415:
            headers["Accept-Encoding"] = ENCODINGS
    body = msgspec.json.encode(body_of(request.scope["path"], error))
    return Response(body, status_code=error.status, media_type="application/json", headers=headers)


def _record(request: HttpRequest, error: ModelNotFound | LimitReached) -> None:
    """Write the log line and the record of a request for a model that does not exist, or above a limit of its key."""
    record = AnswerRecord(
        at=time.time(),
        id=f"req_{request_number(request.scope)}",
        endpoint=cut(request.scope["path"], LONGEST_QUOTE),  # a path can have the name of a model
        key=owner_of(request),
        requested=cut(error.requested, LONGEST_QUOTE),
        ending=error.code or "",
        status=error.status,
        error=error_text(error.message),
    )
    _log.info("%s", RequestLine(record))
    router_of(request).observers.ended(record)


def body_of(path: str, error: GatewayError) -> Any:
    """The error body of the path's API. An unknown path or method has no route, so the path decides."""
    if path.startswith("/api/"):
        return ollama_render.error_body(error)
    if path.startswith("/v1/messages"):
        return anthropic_render.error_body(error)
    return error_body(error)


def as_gateway_error(request: HttpRequest, exception: Exception) -> GatewayError:
    """Keep our errors, map Litestar's by status; any other exception is a 500 whose details are only in the log."""
    match exception:
        case GatewayError():
            return exception
        case HTTPException(status_code=status) if status < 500 or status in _BY_STATUS:
            return _BY_STATUS.get(status, InvalidRequest)(_message(request, exception))
    _log.error("request %s failed", request_number(request.scope), exc_info=exception)
    error = GatewayError("The gateway failed on this request. See the log of the gateway.")
    error.is_logged = True
    return error


def _message(request: HttpRequest, exception: HTTPException) -> str:
    method, path = cut(request.method, LONGEST_QUOTE), cut(request.scope["path"], LONGEST_QUOTE)
    match exception.status_code:
        case 404 if command := _OLLAMA_COMMANDS.get(path):
            return f"This gateway does not change its models for clients. On its machine, use `npu-gateway {command}`."
        case 404:
            return f"Unknown path: {method} {path}. The API is under /v1."
        case 405:
            return f"Method {method} is not allowed on {path}."
    return exception.detail
