"""Who asks, and whether they are still there."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.datastructures import State
from litestar.types import Message, Scope

from gateway.lanes.router import Router

T = TypeVar("T")

HttpRequest = Request[str, str, State]


class ClientLeft(Exception):
    """The client closed its connection before there was anything to answer it with."""


def request_number(scope: Scope) -> str:
    """This request's own hexadecimal number; the ids of its header, its answer and its log line all carry it."""
    return cast(str, scope["state"].setdefault("request_number", secrets.token_hex(12)))


async def add_request_id(message: Message, scope: Scope) -> None:
    """Add the `x-request-id` header. A `before_send` hook of Litestar."""
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], (b"x-request-id", f"req_{request_number(scope)}".encode())]


def router_of(request: HttpRequest) -> Router:
    return cast(Router, request.app.state.router)


def owner_of(request: HttpRequest) -> str:
    """The name of the API key the request came with; empty when the server asks for none."""
    return cast(str, request.scope["state"].get("owner", ""))


async def while_connected(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`; when the client leaves first, `work` is cancelled and ClientLeft raised.

    The request's body must have been read: from then on the only message a server sends is the disconnect.
    """
    left = asyncio.ensure_future(_disconnected(request))
    task = asyncio.ensure_future(_unless_gone(left, work))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _unless_gone(left: asyncio.Future[None], work: Coroutine[Any, Any, T]) -> T:
    """`work`, or ClientLeft. That a client left right behind its request is known two turns of the event loop later:
    work begun at once for many such would take every place in a queue."""
    try:
        for _ in range(2):
            await asyncio.sleep(0)
        if left.done():
            raise ClientLeft
    except BaseException:
        work.close()
        raise
    return await work


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
