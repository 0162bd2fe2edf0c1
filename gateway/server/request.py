"""What a handler needs from its request: ids, the router, the API key's owner, and the end of the connection."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine, MutableMapping, Sequence
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.datastructures import State
from litestar.types import Message, Scope

from gateway.generation import Generation
from gateway.lanes.limits.headers import anthropic_headers, is_anthropic, openai_headers
from gateway.lanes.limits.key_router import KeyRouter
from gateway.lanes.limits.limits import Limits
from gateway.lanes.router import Router
from gateway.server.ignored import HEADER, header_of
from gateway.server.streams.waits import Connected

T = TypeVar("T")

MAX_TOKENS = "x-gateway-max-tokens"  # a header of the reply: the token limit, if the request has none
TRUNCATED = "x-gateway-truncated"  # and the messages of the chat that did not fit into the context
FALLBACK = "x-gateway-fallback"  # and the fallback that answers, and why

UNKNOWN_PATH = "(unknown path)"  # in the metrics

HttpRequest = Request[str, str, State]


def request_number(scope: Scope) -> str:
    """The request's unique hexadecimal number: part of `x-request-id`, of the reply's id and of the log line."""
    return cast(str, scope["state"].setdefault("request_number", secrets.token_hex(12)))


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers of the request by their names in small letters; the first of several with one name."""
    state = scope["state"]
    if "headers" not in state:
        pairs = reversed(list(scope["headers"]))
        state["headers"] = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
    return cast(dict[str, str], state["headers"])


def note_failure(state: MutableMapping[str, Any]) -> None:
    """The request has an error, or no complete reply. Only the garbage collector frees its body; see body.py."""
    state["has_failed"] = True


async def add_headers(message: Message, scope: Scope) -> None:
    """Add `x-request-id`, and what the client should know of its request. A `before_send` hook of Litestar."""
    if message["type"] == "http.response.start":
        added = {
            "x-request-id": f"req_{request_number(scope)}",
            HEADER: header_of(scope),
            MAX_TOKENS: scope["state"].get("max_tokens", ""),
            **_limit_headers(scope, message["status"]),
        }
        pairs = [(name.encode(), value.encode()) for name, value in added.items() if value]
        message["headers"] = [*message["headers"], *pairs]
        path = scope.get("path_template") or UNKNOWN_PATH
        scope["app"].state.metrics.http_response(path, message["status"])


def _limit_headers(scope: Scope, status: int) -> dict[str, str]:
    """What is left of the limits of the request's key."""
    limits: Limits = scope["app"].state.limits
    handler, state = scope.get("route_handler"), scope["state"]
    if limits.are_none or handler is None or not handler.opt.get("needs_key", True):
        return {}
    key = state.get("owner", None if scope["app"].state.router.config.needs_key else "")
    quota = None if key is None else limits.quota(key)
    if key is None or quota is None:
        return {}
    if "lease" in state and (status >= 400 or limits.is_complete(state["lease"])):
        end_lease(scope)
    levels = limits.counters.levels(key, quota)
    if is_anthropic(scope["path"]):
        return anthropic_headers(levels, quota, time.time())
    return openai_headers(levels, quota)


async def take_limits(request: HttpRequest, generations: Sequence[Generation]) -> None:
    """Take from the limits of the key what one request needs; `end_lease` gives the rest back. Raises LimitReached."""
    limits: Limits = request.app.state.limits
    if limits.quota(owner_of(request)) is None:
        return
    engine, _ = router_of(request).speed(generations[0].model)
    await limits.begin(owner_of(request), generations, engine.context_length)
    request.scope["state"]["lease"] = generations[0].id


def end_lease(scope: Scope) -> None:
    """Give back what the request did not use of the limits of its key. May be called again."""
    if "lease" in scope["state"]:
        scope["app"].state.limits.end(scope["state"].pop("lease"))


def router_of(request: HttpRequest) -> Router:
    """The router, as the API key of the request sees it."""
    router, limits = cast(Router, request.app.state.router), cast(Limits, request.app.state.limits)
    models = limits.models(owner_of(request))
    return router if models is None else KeyRouter(router, models, owner_of(request))


def owner_of(request: HttpRequest) -> str:
    """The name of the request's API key; empty if the config has no API keys."""
    return cast(str, request.scope["state"].get("owner", ""))


async def while_connected(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client disconnects first, `work` is cancelled and ClientDisconnected raised.

    The request body must have been read.
    """
    async with Connected(request.receive):
        try:
            await asyncio.sleep(0)  # a disconnect right after the request is known two turns of the event loop later;
            await asyncio.sleep(0)  # without them, many clients that disconnect would fill the admission queue
        except BaseException:
            work.close()
            raise
        return await work
