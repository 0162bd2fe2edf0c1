"""Who may ask: the right host name, the gateway's own pages or a listed web origin, and a key where there are keys.

1. A web page anywhere can make a browser post to localhost. It cannot read the answer (CORS), but the model would run:
   requests whose `Origin` is not allowed are refused, not only left without headers.
2. A page whose name was re-bound to 127.0.0.1 comes from its own origin; the list of host names stops it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Any

from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gateway.config import ServerConfig
from gateway.errors import Forbidden, Unauthorized, Unavailable

Connection = ASGIConnection[Any, Any, Any, Any]
#: Coroutines, though none of them waits: Litestar calls a plain function in a thread, at a third of a millisecond each.
Guard = Callable[[Connection, BaseRouteHandler], Awaitable[None]]

#: `opt` of the routes that need no key.
OPEN = {"needs_key": False}


def guards_of(config: ServerConfig) -> list[Guard]:
    """In the order in which they look."""
    guards = [_check_room, _host_guard(config), _origin_guard(config)]
    return [*guards, _key_guard(config.api_keys)] if config.api_keys else guards


def cors_of(config: ServerConfig) -> CORSConfig | None:
    """What pages of other origins may do: nothing, unless the config names some."""
    if not config.cors_origins:
        return None
    return CORSConfig(allow_origins=list(config.cors_origins), expose_headers=["x-request-id", "retry-after"])


async def _check_room(connection: Connection, _: BaseRouteHandler) -> None:
    if connection.scope["state"].get("is_excess"):  # says gateway/server/connections.py
        raise Unavailable("The gateway has as many connections as it can hold.", retry_after_s=5.0)


def _host_guard(config: ServerConfig) -> Guard:
    allowed = {*config.allowed_hosts, config.host}

    async def check_host(connection: Connection, _: BaseRouteHandler) -> None:
        host = re.sub(r":\d*$", "", connection.headers.get("host", "")).lower()
        if host and host not in allowed and "*" not in allowed:  # HTTP/1.0 knows no Host, and browsers no HTTP/1.0
            raise Forbidden(f"The host name {host!r} is not in this gateway's 'server.allowed_hosts'.")

    return check_host


def _origin_guard(config: ServerConfig) -> Guard:
    cors = cors_of(config)

    async def check_origin(connection: Connection, _: BaseRouteHandler) -> None:
        origin = connection.headers.get("origin", "")
        scheme, _sep, host = origin.partition("://")
        if scheme not in ("http", "https", "null"):  # none, or the one of an editor or a browser's extension
            return
        if host != connection.headers.get("host") and not (cors and cors.is_origin_allowed(origin)):
            raise Forbidden(f"The origin {origin!r} is not in this gateway's 'server.cors_origins'.")

    return check_origin


def _key_guard(api_keys: dict[str, str]) -> Guard:
    async def check_key(connection: Connection, handler: BaseRouteHandler) -> None:
        if not handler.opt.get("needs_key", True):
            return
        given = _given_key(connection)
        if not given:
            raise Unauthorized("You did not provide an API key: send it as 'Authorization: Bearer KEY'.")
        # every key is compared, whichever fits, so that the time taken says nothing
        owners = [name for name, key in api_keys.items() if hmac.compare_digest(key.encode(), given)]
        if not owners:
            raise Unauthorized("Incorrect API key provided.")
        connection.scope["state"]["owner"] = owners[0]

    return check_key


def _given_key(connection: Connection) -> bytes:
    """OpenAI's and everybody's bearer token, or Anthropic's header; the bytes as they came."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else connection.headers.get("x-api-key", "")
    return key.encode("latin-1")
