"""The one place where an exception becomes a response: error JSON in the path's dialect, nothing of our insides."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException

from gateway.errors import (
    BodyTooLarge,
    Forbidden,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    QueueFull,
    Unauthorized,
    Unavailable,
)
from gateway.logs import RequestLine
from gateway.routes.anthropic_api import render as anthropic_render
from gateway.routes.ollama_api import render as ollama_render
from gateway.server.error_body import error_body, error_headers
from gateway.server.request import ClientLeft, HttpRequest, request_number

_log = logging.getLogger(__name__)

#: Litestar's refusals by their status; any other 4xx is an InvalidRequest.
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


def refuse(request: HttpRequest, exception: Exception) -> Response[bytes]:
    """The response for whatever a handler raised, ours or not."""
    if isinstance(exception, ClientLeft):
        return Response(b"", status_code=499)  # nobody reads it; the number is nginx's
    error = as_gateway_error(request, exception)
    if isinstance(error, ModelNotFound):  # it came to no lane, whose requests are logged
        _log.info(
            "%s",
            RequestLine(id=f"req_{request_number(request.scope)}", requested=error.requested, ending=error.code or ""),
        )
    headers = error_headers(error)
    if isinstance(exception, HTTPException):
        headers |= exception.headers or {}
    match error.status:
        case 401:
            headers["WWW-Authenticate"] = "Bearer"
        case 408:
            headers["Connection"] = "close"  # what is left of the body may come at any time, or never
    body = msgspec.json.encode(body_of(request.scope["path"], error))
    return Response(body, status_code=error.status, media_type="application/json", headers=headers)


def body_of(path: str, error: GatewayError) -> Any:
    """By the path and not by the route: a path that does not exist, or not with this method, has no route."""
    if path.startswith("/api/"):
        return ollama_render.error_body(error)
    if path.startswith("/v1/messages"):
        return anthropic_render.error_body(error)
    return error_body(error)


def as_gateway_error(request: HttpRequest, exception: Exception) -> GatewayError:
    """Ours as it is, Litestar's by its status, anything else as a 500 that tells only the log."""
    match exception:
        case GatewayError():
            return exception
        case HTTPException(status_code=status) if status < 500 or status in _BY_STATUS:
            return _BY_STATUS.get(status, InvalidRequest)(_words(request, exception))
    _log.error("request %s failed", request_number(request.scope), exc_info=exception)
    return GatewayError("The gateway failed on this request; its log says why.")


def _words(request: HttpRequest, exception: HTTPException) -> str:
    match exception.status_code:
        case 404:
            return f"Unknown path: {request.method} {request.scope['path']}. The API is under /v1."
        case 405:
            return f"Method {request.method} is not allowed on {request.scope['path']}."
        case 413:
            return "The request's body is larger than this gateway's 'server.max_body_bytes'."
    return exception.detail
