"""Asks the server of an upstream model, before any request, whether it answers and has the model."""

from __future__ import annotations

import asyncio

import httpcore
import msgspec
from msgspec import Struct

from gateway.config.hosts import server_url
from gateway.config.tables import UpstreamModel
from gateway.engines.upstream.client import HttpClient, start_of_body
from gateway.errors import GatewayError, cut

_MOST_BYTES = 1024 * 1024  # of the list of models
_MOST_NAMES = 5  # of the models in a message


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


async def reach(name: str, model: UpstreamModel, limit_s: float = 3.0) -> str:
    """`GET /models` once. Returns what is wrong, with the next step; "" if the server answers.

    A server without this path counts as one that answers, because some have only the path for chats.

    Args:
        name: of the model in the configuration.
        limit_s: seconds for everything.
    """
    where = cut(model.url, 100)
    try:
        async with asyncio.timeout(limit_s):
            return await _problem(name, model)
    except TimeoutError:
        return f"{where} does not answer within {limit_s:g} s"
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
        return f"{where} does not answer. Start that server, or correct `url`"
    except GatewayError as error:  # a proxy that is not supported
        return error.message
    except ValueError as error:
        return f"{where} is not the URL of a server: write one {error}"


async def _problem(name: str, model: UpstreamModel) -> str:
    client = HttpClient(server_url(model.url), model.api_key)
    await client.open()
    try:
        async with client.get("/models") as response:
            body = await start_of_body(response, _MOST_BYTES)
    finally:
        await client.aclose()
    return _verdict(name, model, response.status, body)


def _verdict(name: str, model: UpstreamModel, status: int, body: bytes) -> str:
    where = cut(model.url, 100)
    if status in (401, 403):
        key = "another `api_key`" if model.api_key else "`api_key`"
        return f"{where} refuses the key (HTTP {status}). Set {key} in the model's table"
    if status >= 500:
        return f"{where} answers with HTTP {status}. Look into the log of that server"
    try:
        names = [each.id for each in msgspec.json.decode(body, type=_Models).data] if status == 200 else []
    except (msgspec.DecodeError, UnicodeDecodeError):
        names = []
    wanted = model.upstream_model or name
    if not names or any(each == wanted or each.startswith(f"{wanted}:") for each in names):  # Ollama: "NAME:latest"
        return ""
    shown = ", ".join(cut(each, 100) for each in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{where} has no model {wanted!r}; it has {shown}{more}. Set `upstream_model` to one of them"
