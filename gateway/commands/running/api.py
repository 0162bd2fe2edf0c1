"""Requests of the commands to the API of a running gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from gateway.commands.running.find import Found, others
from gateway.commands.running.run_file import running_gateways
from gateway.config.hosts import is_loopback
from gateway.errors import GatewayError, UpstreamFailed

LIMIT_S = 30.0
T = TypeVar("T")


class Engine(Struct):
    state: str
    device: str = ""
    load_s: float = 0.0
    pid: Annotated[int, Meta(ge=1)] | None = None


class Breaker(Struct):
    state: str


class Memory(Struct, frozen=True):
    need: int = 0
    is_measured: bool = False
    load_s: float | None = None
    budget: int | None = None


class ModelStatus(Struct):
    """The fields of a model's status that commands use."""

    model: str
    engine: Engine
    breaker: Breaker
    running: int = 0
    waiting: int = 0
    memory: Memory = Memory()


class Readiness(Struct):
    """The body of /readyz."""

    models: list[ModelStatus]


def call(
    found: Found,
    method: str,
    path: str,
    kind: type[T],
    *,
    limit_s: float | None = LIMIT_S,
    accepts: tuple[int, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> T:
    """The JSON object that the gateway replies, as a `kind`: `--url` can name any server.

    Args:
        limit_s: of the wait for the reply; None: for ever.
        accepts: statuses of errors whose reply is as good as one without an error.
    Raises UpstreamFailed if no gateway answers, and GatewayError with its message if it answers with an error.
    """
    import httpx

    sent = {**({"authorization": f"Bearer {found.key}"} if found.key else {}), **(headers or {})}
    use_proxy = not is_loopback(urlsplit(found.url).hostname or "")
    try:
        reply = httpx.request(method, f"{found.url}{path}", headers=sent, timeout=limit_s, trust_env=use_proxy)
        body = msgspec.json.decode(reply.content)
    except httpx.TimeoutException:
        raise UpstreamFailed(f"the gateway at {found.url} did not answer in {limit_s:g} s") from None
    except httpx.HTTPError:
        gateways = [run for run in running_gateways() if run.url != found.url]
        raise UpstreamFailed(f"no server answers at {found.url}{others(gateways)}") from None
    except (RecursionError, msgspec.MsgspecError):
        body = None
    if reply.is_error and reply.status_code not in accepts and isinstance(body, dict):
        raise GatewayError(_message(body, found, reply.status_code))
    return converted(found, body, kind)


def converted(found: Found, value: object, kind: type[T]) -> T:
    """`value` as a `kind`. Raises UpstreamFailed."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.MsgspecError:
        raise UpstreamFailed(f"the server at {found.url} is not an npu-gateway; check the URL") from None


def _message(body: dict[str, Any], found: Found, status: int) -> str:
    error = body.get("error")
    text = error.get("message") if isinstance(error, dict) else None
    hint = " Give it with --api-key." if status == 401 else ""
    return f"{text or f'the server at {found.url} answered with status {status}'}{hint}"
