"""POST /gateway/reload: apply the changed configuration. For `npu-gateway reload`, because Windows has no signals."""

from __future__ import annotations

from typing import cast

from litestar import post
from litestar.types import ASGIApp

from gateway.errors import Conflict, Forbidden, GatewayError, Unauthorized
from gateway.lanes.reload.plan import Reloaded
from gateway.lanes.reload.reloader import Reloader
from gateway.routes.respond import json_response
from gateway.routes.stop import TOKEN_PARAMETER, check_token
from gateway.server.guards import OPEN
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest

_OPERATION = openapi_opt(
    "Apply the changed configuration, from this machine",
    reply=Reloaded,
    raises=(Unauthorized, Forbidden, Conflict),
    parameters=(TOKEN_PARAMETER,),
)


@post("/gateway/reload", status_code=200, opt=OPEN | _OPERATION)
async def reload(request: HttpRequest) -> ASGIApp:
    check_token(request, "reload")
    reloader = cast(Reloader | None, request.app.state.reloader)
    if reloader is None:
        raise Conflict("The configuration came from a pipe, which can be read only once. Restart the gateway.")
    try:
        return json_response(await reloader.reload())
    except GatewayError as error:
        raise Conflict(error.message) from None
