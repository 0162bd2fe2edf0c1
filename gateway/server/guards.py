"""Guards of every route: the connection limit, the host name, the web origin and the API key.

1. Any web page can make a browser send a POST to localhost. CORS only stops the page from reading the reply; the model
   would still run. So a request with an `Origin` that is not allowed gets 403.
2. DNS rebinding: a page whose host name resolves to 127.0.0.1 has the same origin as the gateway. The list of host
   names stops it. An address, and a name that no DNS server of an attacker can answer for, needs no list.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Callable

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.config.hosts import host_name, web_origin
from gateway.config.tables import ServerConfig
from gateway.errors import LONGEST_QUOTE, Forbidden, Unauthorized, Unavailable, quote
from gateway.lanes.limits.headers import ANTHROPIC_HEADERS, OPENAI_HEADERS
from gateway.lanes.limits.shared_keys import SharedKeys
from gateway.server.error_body import ROUTE
from gateway.server.ignored import HEADER as IGNORED
from gateway.server.request import FALLBACK, MAX_TOKENS, TRUNCATED, headers_of

#: Raises a GatewayError for a request that is refused.
Guard = Callable[[Scope], None]

#: The `opt` of routes without an API key.
OPEN = {"needs_key": False}
#: The names of the machine for programs in its containers. `.internal` is for private networks, so no attacker has it.
CONTAINER_HOSTS = ("host.docker.internal", "gateway.docker.internal", "host.containers.internal", "host.lima.internal")

_EXPOSED = ("x-request-id", "retry-after", IGNORED, MAX_TOKENS, TRUNCATED, FALLBACK, ROUTE)
_PORT = re.compile(r":\d*$")


class Guards:
    """The guards of the configuration that runs.

    Args:
        shared: the keys of the database; None: only those of the configuration count.
    """

    def __init__(self, config: ServerConfig, shared: SharedKeys | None = None) -> None:
        self._shared = shared
        self.apply(config)

    def apply(self, config: ServerConfig) -> None:
        """Let another configuration decide about the next requests."""
        self._guards = guards_of(config, self._shared)

    def check(self, scope: Scope) -> None:
        """Raise the error of a request that is refused. Its route must be known."""
        for guard in self._guards:
            guard(scope)


def guards_of(config: ServerConfig, shared: SharedKeys | None = None) -> list[Guard]:
    """The guards in the order in which they run."""
    guards = [_check_connection_limit, _host_guard(config), _origin_guard(config)]
    return [*guards, _key_guard(config.api_keys, shared)] if config.api_keys or shared else guards


def cors_of(config: ServerConfig) -> CORSConfig | None:
    """None, unless the config lists web origins."""
    if not config.cors_origins:
        return None
    return CORSConfig(
        allow_origins=[web_origin(text) for text in config.cors_origins],
        expose_headers=[*_EXPOSED, *OPENAI_HEADERS, *ANTHROPIC_HEADERS],
    )


def set_cors(app: Litestar, config: ServerConfig) -> None:
    """Let `cors_of(config)` count for the next requests."""
    app.cors_config = cors_of(config)
    app.asgi_handler = app._create_asgi_handler()  # as Litestar does in its constructor, the only reader of the config


def _check_connection_limit(scope: Scope) -> None:
    if scope["state"].get("is_excess"):  # set in server/connections.py
        raise Unavailable("The gateway has reached its limit of connections.", retry_after_s=5.0)


def _host_guard(config: ServerConfig) -> Guard:
    own = socket.gethostname()
    allowed = {_name(host) for host in (*config.allowed_hosts, *CONTAINER_HOSTS, config.host, own, f"{own}.local")}

    def check_host(scope: Scope) -> None:
        host = _PORT.sub("", headers_of(scope).get("host", ""))
        if not host or "*" in allowed:  # only HTTP/1.0 has no Host; browsers do not use it
            return
        if host not in allowed and _name(host) not in allowed and not _needs_no_dns(host):
            raise Forbidden(_not_allowed("host name", host, "allowed_hosts"))

    return check_host


def _needs_no_dns(host: str) -> bool:
    """True for an IP address, for `localhost` and for a name under it."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else ""
    try:
        ipaddress.IPv6Address(bare) if bare else ipaddress.IPv4Address(host)
    except ValueError:
        return f".{host.lower().removesuffix('.')}".endswith(".localhost")
    return True


def _name(host: str) -> str:
    """The host's usual spelling; `*`, and a text that is not a host name, as it is."""
    try:
        return host_name(host)
    except ValueError:
        return host


def _origin_guard(config: ServerConfig) -> Guard:
    cors = cors_of(config)

    def check_origin(scope: Scope) -> None:
        origin = headers_of(scope).get("origin", "")
        scheme, _sep, host = origin.lower().partition("://")
        if scheme not in ("http", "https", "null"):  # no origin, an editor or a browser extension
            return
        if host != headers_of(scope).get("host", "").lower() and not (cors and cors.is_origin_allowed(origin)):
            raise Forbidden(_not_allowed("origin", origin, "cors_origins"))

    return check_origin


def _not_allowed(what: str, value: str, key: str) -> str:
    """The message with the line of config.toml that allows `value`, if that line can be pasted."""
    message = f"The {what} {quote(value)} is not in 'server.{key}' of the gateway's config."
    if len(value) > LONGEST_QUOTE or not re.fullmatch(r"[A-Za-z0-9._:/\[\]-]+", value):
        return message
    return f'{message} To allow it, add to config.toml: [server] {key} = ["{value}"]'


def _key_guard(api_keys: dict[str, str], shared: SharedKeys | None) -> Guard:
    def check_key(scope: Scope) -> None:
        if not scope["route_handler"].opt.get("needs_key", True):
            return
        given = _given_key(scope)
        if not given:
            raise Unauthorized("You did not provide an API key: send it as 'Authorization: Bearer KEY'.")
        owner = _configured_owner(given, api_keys) or (shared and shared.name_of(given))
        if not owner:
            raise Unauthorized("Incorrect API key provided.")
        scope["state"]["owner"] = owner

    return check_key


def _configured_owner(given: bytes, api_keys: dict[str, str]) -> str:
    """The name of the key; "": the configuration does not have it."""
    # compare all keys, so that the time does not depend on which one matches
    owners = [name for name, key in api_keys.items() if hmac.compare_digest(key.encode(), given)]
    return owners[0] if owners else ""


def fresh_keys(shared: SharedKeys) -> Callable[[ASGIApp], ASGIApp]:
    """Middleware: a request with a key of the database is checked with keys that are not older than seconds."""

    def middleware(app: ASGIApp) -> ASGIApp:
        async def with_keys(scope: Scope, receive: Receive, send: Send) -> None:
            key = _given_key(scope) if scope["route_handler"].opt.get("needs_key", True) else b""
            if key and not _configured_owner(key, scope["app"].state.router.config.server.api_keys):
                await shared.fresh(key)
            await app(scope, receive, send)

        return with_keys

    return middleware


def _given_key(scope: Scope) -> bytes:
    """The bearer token, or Anthropic's `x-api-key` header, as the received bytes."""
    scheme, _, token = headers_of(scope).get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else headers_of(scope).get("x-api-key", "")
    return key.encode("latin-1")
