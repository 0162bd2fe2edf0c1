"""POST /v1/models/{id}/load and /unload: put a model into memory, and free the memory of one. Not OpenAI's.

Names can have slashes, so Litestar cannot route these paths: server/target.py replaces them by /v1/load/{id}.
"""

from __future__ import annotations

from typing import cast

from litestar import post
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.errors import Conflict, ModelNotFound, ModelNotReady
from gateway.lanes.limits.key_router import KeyRouter
from gateway.lanes.memory.residency import Residency
from gateway.lanes.status import LaneStatus
from gateway.routes.respond import json_response
from gateway.server.body import read_body
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of, while_connected

_LOAD = openapi_opt(
    "Load a model and wait until it is ready",
    path="/v1/models/{model_id}/load",
    reply=LaneStatus,
    raises=(ModelNotFound, Conflict, ModelNotReady),
)
_UNLOAD = openapi_opt(
    "Unload a model when its requests have ended; the next request for it loads it",
    path="/v1/models/{model_id}/unload",
    reply=LaneStatus,
    raises=(ModelNotFound, Conflict),
)


@post("/v1/load/{model_id:path}", status_code=200, opt=_LOAD)
async def load_model(request: HttpRequest, model_id: FromPath[str]) -> ASGIApp:
    await read_body(request)
    name = _name(request, model_id)
    return json_response(await while_connected(request, _residency(request).load(name)))


@post("/v1/unload/{model_id:path}", status_code=200, opt=_UNLOAD)
async def unload_model(request: HttpRequest, model_id: FromPath[str]) -> ASGIApp:
    return json_response(await _residency(request).unload(_name(request, model_id)))


def _residency(request: HttpRequest) -> Residency:
    return cast(Residency, request.app.state.residency)


def _name(request: HttpRequest, model_id: str) -> str:
    """The name in the path. Raises ModelNotFound for a model that the key may not use."""
    name = model_id.removeprefix("/")  # Litestar's `path` includes the leading slash
    if isinstance(router := router_of(request), KeyRouter):
        router.check(name)
    return name
