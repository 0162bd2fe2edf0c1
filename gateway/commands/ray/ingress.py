"""The HTTP side of the Ray application: reads a request, has a replica answer it, and sends the answer as it comes.

A request needs its own deployment in front of the replicas because Ray routes an HTTP request before its body is read,
and only the body has the prompt. Without Ray, so that a test can do the same.

A replica that is lost before the answer has content: another one gets the request. Later: the answer ends with an error
in the format of its API.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from gateway.commands.ray.call import Call, portable
from gateway.commands.ray.replica import Messages, Receive
from gateway.config.hosts import is_loopback
from gateway.config.tables import Config
from gateway.errors import BodyTooLarge, Forbidden, GatewayError, Unavailable
from gateway.routes.error_handler import body_of
from gateway.server.error_body import error_headers
from gateway.server.sse import MEDIA_TYPE, frame

Send = Callable[[Any], Awaitable[None]]
Forward = Callable[[Call], AsyncGenerator[Messages, None]]

_ATTEMPTS = 3
_BODIES_IN_MEMORY = 16  # the bodies of all running requests together may have this number of `max_body_bytes`

_log = logging.getLogger(__name__)
_json = msgspec.json.Encoder()


class _Disconnected(Exception):
    """The client closed the connection before its request was complete."""


class Ingress:
    """An ASGI application.

    Args:
        config: the limits of bodies, and whether other machines need a key. Ray's proxy may listen for them although
            `[server] host` is this machine; without keys they are refused then.
        forward: sends a request to a replica.
        lost: the exceptions of `forward` that say that the replica is no longer there.
    """

    def __init__(self, config: Config, forward: Forward, lost: tuple[type[BaseException], ...]) -> None:
        self._longest = config.server.max_body_bytes
        self._is_private = not (config.needs_key or config.server.insecure)
        self._forward, self._lost = forward, lost
        self._held = 0  # bytes of the bodies of running requests

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await _live(receive, send)
            case _:
                await send({"type": "websocket.close"})

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        plain = portable(scope)
        reply = _Reply(plain["path"], send)
        body = bytearray()
        try:
            self._check_client(scope["client"])
            await self._read(receive, body)
            await self._pass_on(Call(plain, bytes(body)), reply)
        except _Disconnected:
            pass
        except GatewayError as error:
            await reply.fail(error)
        finally:
            self._held -= len(body)

    def _check_client(self, client: tuple[str, int] | None) -> None:
        if self._is_private and client is not None and not is_loopback(client[0]):
            raise Forbidden(
                "This gateway has no API keys, so it answers its own machine only. Set 'server.api_keys' in its config."
            )

    async def _read(self, receive: Receive, body: bytearray) -> None:
        """Read the body. Raises _Disconnected, BodyTooLarge and Unavailable."""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise _Disconnected
            part = message.get("body", b"")
            body += part
            self._held += len(part)
            if len(body) > self._longest:
                raise BodyTooLarge("The request body is larger than 'server.max_body_bytes' of the gateway allows.")
            if self._held > _BODIES_IN_MEMORY * self._longest:
                raise Unavailable("The running requests use too much memory. Try again later.", retry_after_s=1.0)
            if not message.get("more_body", False):
                return

    async def _pass_on(self, call: Call, reply: _Reply) -> None:
        for _ in range(_ATTEMPTS):
            try:
                async with aclosing(self._forward(call)) as answer:
                    async for messages in answer:
                        await reply.send(messages)
                return
            except self._lost as error:
                _log.warning("a replica was lost: %s", str(error).partition("\n")[0])
                if reply.has_begun:
                    break
            except Exception as error:
                _log.exception("a replica failed")
                raise GatewayError("The gateway failed on this request. See the log of the gateway.") from error
        raise Unavailable("The replica that answered was lost. Send the request again.", retry_after_s=1.0)


class _Reply:
    """What the client has got, so that an error has the right form."""

    def __init__(self, path: str, send: Send) -> None:
        self._path, self._send = path, send
        self.has_begun = False
        self._head: Any = None  # waits for the first part of the body: until then another replica can answer
        self._media_type = ""

    async def send(self, messages: Messages) -> None:
        for message in messages:
            if message["type"] == "http.response.start":
                self._head = message
                continue
            if not self.has_begun:
                self.has_begun = True
                self._media_type = dict(self._head["headers"]).get(b"content-type", b"").decode("latin-1")
                await self._send(self._head)
            await self._send(message)

    async def fail(self, error: GatewayError) -> None:
        """End the reply with an error. Raises it if the reply is a body that cannot have one: the connection breaks."""
        body = body_of(self._path, error)
        if not self.has_begun:
            headers = {"content-type": "application/json", **error_headers(error)}
            pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": error.status, "headers": pairs})
            await self._send({"type": "http.response.body", "body": _json.encode(body), "more_body": False})
        elif self._media_type.startswith((MEDIA_TYPE, "application/x-ndjson")):
            await self._send({"type": "http.response.body", "body": self._last_frame(body), "more_body": False})
        else:
            raise error

    def _last_frame(self, body: Any) -> bytes:
        if self._path.startswith("/api/"):
            return _json.encode(body) + b"\n"
        has_names = self._path.startswith(("/v1/messages", "/v1/responses"))
        return b"\n\n" + frame(body, event="error" if has_names else "")  # what came before can be half of a frame


async def _live(receive: Receive, send: Send) -> None:
    """Nothing starts or stops with an ingress."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
