"""POST /gateway/stop: end the gateway as Ctrl-C does. For `npu-gateway stop`, because Windows has no signals."""

from __future__ import annotations

import hmac

from litestar import post
from litestar.types import ASGIApp
from msgspec import Struct

from gateway.config.hosts import is_loopback
from gateway.errors import Forbidden, Unauthorized
from gateway.routes.respond import json_response
from gateway.server.guards import OPEN
from gateway.server.openapi_operation import Parameter, openapi_opt
from gateway.server.request import HttpRequest, router_of

TOKEN = "x-stop-token"
TOKEN_PARAMETER = Parameter(
    TOKEN, "header", str, "The `token` in the gateway's run file, which only its user can read."
)


class Stopping(Struct):
    requests: int  # that run or wait
    grace_s: float  # the time that they have


_OPERATION = openapi_opt(
    "Stop the gateway when its requests have ended, from this machine",
    reply=Stopping,
    raises=(Unauthorized,),
    parameters=(TOKEN_PARAMETER,),
)


@post("/gateway/stop", status_code=200, opt=OPEN | _OPERATION)
async def stop(request: HttpRequest) -> ASGIApp:
    check_token(request, "stop")
    requests = router_of(request).requests
    request.app.state.stop_server()
    return json_response(Stopping(requests=requests, grace_s=router_of(request).config.server.shutdown_grace_s))


def check_token(request: HttpRequest, command: str) -> None:
    """Raises Forbidden for another machine, and Unauthorized without the token of the run file.

    Args:
        command: the one that sends the token.
    """
    stop_token, given = request.app.state.stop_token, request.headers.get(TOKEN, "")
    own, _ = request.scope["server"] or ("", 0)  # a connection of this machine to its own address comes from there
    if request.client is None or not (is_loopback(request.client.host) or request.client.host == own):
        raise Forbidden(f"Only programs on the gateway's machine can {command} it.")
    if not stop_token or not hmac.compare_digest(stop_token.encode(), given.encode()):
        raise Unauthorized(f"Send the token of the gateway's run file as {TOKEN!r}, or use `npu-gateway {command}`.")
