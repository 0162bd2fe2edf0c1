"""One streamed answer on the wire, through sse-starlette. The only module that imports it.

1. sse-starlette ends every stream as soon as uvicorn hears a signal, by a flag of the whole process that nothing takes
   back. Here a stream ends because its generation does, so that is switched off: at shutdown the router ends what is
   still running after the grace period, and every stream says so in its last frame (`server.serve`).
2. Its pings come by the clock, one possibly after the last frame. Ours come out of the stream itself, and only when
   it has been silent.
3. The frames come as bytes, encoded by us. An exception inside the generator would cut the body, which a client cannot
   tell from a lost connection: it becomes a last frame instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from anyio import CancelScope
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.errors import GatewayError

AppStatus.enable_automatic_graceful_drain = False

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
PING = b": keepalive\n\n"
HEADERS = {"Cache-Control": "no-cache"}  # sse-starlette adds X-Accel-Buffering: no
SEND_TIMEOUT_S = 60.0  # a client that has not read for so long has its request cancelled

_LINE_BREAKS = [(char.encode(), rb"\u%04x" % ord(char)) for char in ("\u0085", "\u2028", "\u2029")]

_log = logging.getLogger(__name__)
_json = msgspec.json.Encoder()


def frame(payload: Any, event: str = "") -> bytes:
    """One server-sent event: `payload` as one line of JSON, under `event`'s name where the dialect names events."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, _on_one_line(_json.encode(payload)))


def _on_one_line(json: bytes) -> bytes:
    """Escape what is no line break in server-sent events but is one to Python's `splitlines`, which clients use."""
    for raw, escaped in _LINE_BREAKS:
        json = json.replace(raw, escaped)
    return json


class EventStream(EventSourceResponse):
    """Sends `pieces` as they come.

    Args:
        pieces: the encoded frames; its exceptions become one last frame.
        failed: encodes that frame.
        source: what `pieces` reads from; closed when the response ends for whatever reason, also when the client left
            before the first piece was asked for.
        ping_s: a comment is sent whenever nothing else was for so long.
        media_type: of another format than server-sent events, which then has no comments either.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        failed: Callable[[GatewayError], bytes],
        source: AsyncGenerator[Any, None],
        ping_s: float,
        media_type: str = MEDIA_TYPE,
    ) -> None:
        super().__init__(
            _with_pings(_ending_in_a_frame(pieces, failed), ping_s if media_type == MEDIA_TYPE else None),
            headers=HEADERS,
            media_type=media_type,
            ping=0,
            send_timeout=SEND_TIMEOUT_S,
        )
        del self.headers["connection"]  # the server's business; wrong for HTTP/1.0
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            _log.info("a client stopped reading its stream for %.0f s; its request was cancelled", SEND_TIMEOUT_S)
        finally:
            await self._source.aclose()


async def _with_pings(pieces: AsyncGenerator[bytes, None], ping_s: float | None) -> AsyncGenerator[bytes, None]:
    following = asyncio.ensure_future(anext(pieces, None))
    try:
        while True:
            await asyncio.wait([following], timeout=ping_s)
            if not following.done():
                yield PING
            elif (piece := following.result()) is not None:
                yield piece
                # A stream that always has its next piece ready never waits, and what never waits is never cancelled.
                await asyncio.sleep(0)
                following = asyncio.ensure_future(anext(pieces, None))
            else:
                return
    finally:
        following.cancel()
        with CancelScope(shield=True):  # what cancels this generator does so at every step, and would end the waiting
            await asyncio.wait([following])
            await pieces.aclose()


async def _ending_in_a_frame(
    pieces: AsyncGenerator[bytes, None], failed: Callable[[GatewayError], bytes]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except GatewayError as error:
            yield failed(error)
        except Exception:
            _log.exception("a stream failed")
            yield failed(GatewayError("The gateway failed while it answered; its log says why."))
