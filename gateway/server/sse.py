"""One streamed answer over HTTP, with sse-starlette. The only module that imports it.

1. sse-starlette ends all streams when uvicorn gets a signal, with a flag of the process that cannot be reset. This is
   switched off. At shutdown the router ends the requests that still run after the grace period, and each stream sends
   an error as its last frame.
2. Pings of sse-starlette follow a fixed clock, and one can come after the last frame. So `_frames` makes the pings, and
   only after silence.
3. Frames are bytes that we encode. An exception in the generator would cut the body, which looks like a lost
   connection to a client. So it becomes the last frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Protocol, TypeVar

import msgspec
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.server.request import note_failure

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

AppStatus.enable_automatic_graceful_drain = False

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
PING = b": keepalive\n\n"
HEADERS = {"Cache-Control": "no-cache"}  # sse-starlette adds X-Accel-Buffering: no
SEND_TIMEOUT_S = 60.0  # a client that does not read for this time has its request cancelled

_LINE_BREAKS = [(char.encode(), rb"\u%04x" % ord(char)) for char in ("\u0085", "\u2028", "\u2029")]

_log = logging.getLogger(__name__)
_json = msgspec.json.Encoder()


def frame(payload: Any, event: str = "") -> bytes:
    """One server-sent event: `payload` as one line of JSON, with the name `event` if the API names its events."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, _on_one_line(_json.encode(payload)))


def _on_one_line(json: bytes) -> bytes:
    """Escape characters that end a line for Python's `splitlines`, which clients use, but not in server-sent events."""
    for raw, escaped in _LINE_BREAKS:
        json = json.replace(raw, escaped)
    return json


class Source(Protocol[T_co]):
    """What a stream is made of. A cancelled read loses nothing."""

    async def __anext__(self) -> T_co: ...

    async def aclose(self) -> None: ...


class EventStream(EventSourceResponse):
    """An HTTP response with the frames of `source`, sent as they come.

    Args:
        source: read to its end and then closed, also when the client disconnects before the first frame.
        encode: the frames of one item. An exception of `source` or `encode` becomes one last frame.
        failed: the last frame for an error.
        ping_s: seconds without a frame after which a comment is sent.
        media_type: a format that is not server-sent events has no comments.
    """

    def __init__(
        self,
        source: Source[T],
        encode: Callable[[T], Iterable[bytes]],
        *,
        failed: Callable[[GatewayError], bytes],
        ping_s: float,
        media_type: str = MEDIA_TYPE,
    ) -> None:
        self._source = source
        self._is_complete = False
        super().__init__(
            self._frames(source, encode, failed, ping_s if media_type == MEDIA_TYPE else None),
            headers=HEADERS,
            media_type=media_type,
            ping=0,
            send_timeout=SEND_TIMEOUT_S,
        )
        del self.headers["connection"]  # the server sets it; wrong for HTTP/1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            _log.info("a client stopped reading its stream for %.0f s; its request was cancelled", SEND_TIMEOUT_S)
        finally:
            await self._source.aclose()
            if not self._is_complete:
                note_failure(scope["state"])
            del self._source  # anyio's cancellation leaves a cycle that keeps the response; this has the request

    async def _frames(
        self,
        source: Source[T],
        encode: Callable[[T], Iterable[bytes]],
        failed: Callable[[GatewayError], bytes],
        ping_s: float | None,
    ) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                try:
                    async with asyncio.timeout(ping_s) as silence:
                        item = await source.__anext__()
                except TimeoutError:
                    if not silence.expired():
                        raise
                    yield PING
                    continue
                except StopAsyncIteration:
                    self._is_complete = True
                    return
                for frame in encode(item):
                    yield frame
                await asyncio.sleep(0)  # a stream that never waits cannot be cancelled
        except GatewayError as error:
            yield failed(error)
        except Exception:
            _log.exception("a stream failed")
            yield failed(GatewayError("The gateway failed while it answered; its log has the reason."))
