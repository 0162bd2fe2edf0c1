"""GET and HEAD /: a short text for people, and for clients that check that the server is there."""

from __future__ import annotations

from litestar import route
from litestar.enums import HttpMethod, MediaType

from gateway import __version__
from gateway.server.guards import OPEN
from gateway.server.openapi_operation import openapi_opt

_OPERATION = openapi_opt("Get a short text that names the gateway", reply=str, media_type="text/plain")


@route(
    "/",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    media_type=MediaType.TEXT,
    status_code=200,
    opt=OPEN | _OPERATION,
)
async def root() -> str:
    return f"npu-gateway {__version__} is running. The OpenAI-compatible API is under /v1; try GET /v1/models.\n"
