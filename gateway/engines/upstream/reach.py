"""Asks a server whether it answers, takes the key and has the model: one `GET /models`."""

from __future__ import annotations

import asyncio
from typing import Literal

import httpcore
import msgspec
from msgspec import Struct

from gateway.config.hosts import server_url
from gateway.config.tables import UpstreamTarget
from gateway.config.upstream import missing_key
from gateway.engines.upstream.chunks import MALFORMED
from gateway.engines.upstream.client import HttpClient, start_of_body
from gateway.errors import GatewayError, cut

_MOST_BYTES = 1024 * 1024  # of the list of models
_MOST_NAMES = 5  # of the models in a message
#: doubtful: some servers take any name of a model, and some keys may not list the models, so requests decide.
Level = Literal["good", "doubtful", "broken", "silent"]
_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.ProxyError, OSError)


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


async def reach(server: UpstreamTarget, limit_s: float = 3.0) -> str:
    """Ask on a new connection. Returns what is wrong, with the next step; "" if the server answers.

    Args:
        server: with the model's name there.
        limit_s: seconds for everything.
    """
    where = cut(server.url, 100)
    if missing := missing_key(server):
        return f"{where} got no request: {missing}"
    try:
        client = HttpClient(server_url(server.url), server.api_key)
        await client.open()
    except GatewayError as error:  # a proxy that is not supported
        return error.message
    except ValueError as error:
        return f"{where} is not the URL of a server: write one {error}"
    try:
        problem, _ = await check(client, server, limit_s)
    finally:
        await client.aclose()
    return f"{where} {problem}" if problem else ""


async def check(client: HttpClient, server: UpstreamTarget, limit_s: float) -> tuple[str, Level]:
    """Ask with an open client. Returns what is wrong, with the next step, for the end of a sentence; "": nothing.

    A server without this path counts as one that answers, because some have only the path for chats.
    """
    try:
        async with asyncio.timeout(limit_s), client.get("/models") as response:
            return _verdict(server, response.status, await start_of_body(response, _MOST_BYTES))
    except TimeoutError:
        return f"does not answer within {limit_s:g} s", "silent"
    except _FAILURES:
        return "does not answer. Start that server, or correct `url`", "silent"


def _verdict(server: UpstreamTarget, status: int, body: bytes) -> tuple[str, Level]:
    if status in (401, 403):
        step = (
            "another key in the table of this server or of the model"
            if server.api_key
            else "`api_key` in the model's table"
        )
        return f"refuses the key (HTTP {status}). Set {step}", "doubtful"
    if status >= 500:
        level: Level = "doubtful" if status == 501 else "broken"
        return f"answers with HTTP {status}. Look into the log of that server", level
    try:
        names = [each.id for each in msgspec.json.decode(body, type=_Models).data] if status == 200 else []
    except MALFORMED:
        names = []
    wanted = server.upstream_model
    if not names or any(each == wanted or each.startswith(f"{wanted}:") for each in names):  # Ollama: "NAME:latest"
        return "", "good"
    shown = ", ".join(cut(each, 100) for each in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"has no model {wanted!r}; it has {shown}{more}. Set `upstream_model` to one of them", "doubtful"
