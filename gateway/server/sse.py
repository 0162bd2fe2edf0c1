"""One streamed answer over HTTP.

1. A comment is sent after silence, and only then: a proxy or a client then sees that the connection lives.
2. Items that are there at the same time are one write: each has its frames, and the client wakes once.
3. Frames are bytes that we encode. An exception of the source would cut the body, which looks like a lost connection to
   a client. So it becomes the last frame.
4. At shutdown the router ends the requests that still run after the grace period, so each stream sends an error as its
   last frame.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import msgspec
from litestar.types import Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.server.request import note_failure
from gateway.server.streams.waits import ClientDisconnected, Connected, Patience

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
PING = b": keepalive\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # a proxy must not collect frames
SEND_TIMEOUT_S = 60.0  # a client that does not read for this time has its request cancelled

_AT_ONCE = 64 * 1024  # bytes of one write, and then one item more
_LINE_BREAKS = [(char.encode(), rb"\u%04x" % ord(char)) for char in ("\u0085", "\u2028", "\u2029")]

ANY_TEXT = secrets.token_hex(8)  # a text that is in no other frame

_log = logging.getLogger(__name__)
_json = msgspec.json.Encoder()


def frame(payload: Any, event: str = "") -> bytes:
    """One server-sent event: `payload` as one line of JSON, with the name `event` if the API names its events."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, one_line(_json.encode(payload)))


def one_line(json: bytes) -> bytes:
    """Escape characters that end a line for Python's `splitlines`, which clients use, but not in server-sent events."""
    if json.isascii():
        return json
    for raw, escaped in _LINE_BREAKS:
        json = json.replace(raw, escaped)
    return json


def around_text(made: bytes) -> tuple[bytes, bytes]:
    """What is before and after the text ANY_TEXT in a frame: frames that differ only in one text are encoded once."""
    before, _, after = made.partition(_json.encode(ANY_TEXT))
    return before, after


def with_text(around: tuple[bytes, bytes], text: str) -> bytes:
    """The frame with `text`."""
    return one_line(_json.encode(text)).join(around)


class Source(Protocol[T_co]):
    """What a stream is made of. A cancelled read loses nothing."""

    @property
    def is_over(self) -> bool:
        """True if the last item was read. False: perhaps not."""

    def poll(self) -> T_co | None:
        """The next item if it is there. None: `__anext__` waits for it, or has the end or an error."""

    async def __anext__(self) -> T_co: ...

    async def aclose(self) -> None: ...


class EventStream:
    """An HTTP response with the frames of `source`, sent as they come. An ASGI application.

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
        self._source, self._encode, self._failed = source, encode, failed
        is_text = media_type.startswith("text/")
        self._ping_s = ping_s if media_type == MEDIA_TYPE else None
        self.headers = {**HEADERS, "content-type": f"{media_type}; charset=utf-8" if is_text else media_type}
        self._is_complete = False
        self._is_over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with Connected(receive):
                await self._send_all(send)
        except ClientDisconnected:
            pass
        except TimeoutError:
            _log.info("a client stopped reading its stream for %.0f s; its request was cancelled", SEND_TIMEOUT_S)
        finally:
            await self._source.aclose()
            if not self._is_complete:
                note_failure(scope["state"])
            del self._source  # it has the request

    async def _send_all(self, send: Send) -> None:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        patience = Patience()
        try:
            while not self._is_over:
                frames = await self._frames(patience)
                if frames or self._is_over:
                    patience.begin(SEND_TIMEOUT_S)
                    await send({"type": "http.response.body", "body": frames, "more_body": not self._is_over})
        except asyncio.CancelledError:
            if patience.is_over():
                raise TimeoutError from None
            raise
        finally:
            patience.stop()

    async def _frames(self, patience: Patience) -> bytes:
        """What is sent next: the frames of all items that are there, a comment, or the last frame of a failure."""
        frames: list[bytes] = []
        try:
            if (item := self._source.poll()) is None:
                patience.begin(self._ping_s)
                item = await self._source.__anext__()
            else:
                patience.begin(None)  # a limit would lose the item: the machine can sleep between two callbacks
                await asyncio.sleep(0)  # a stream that never waits cannot be cancelled
            self._add(frames, item)
        except asyncio.CancelledError:
            if not patience.is_over():
                raise
            return PING
        except StopAsyncIteration:
            self._is_complete = self._is_over = True
        except GatewayError as error:
            self._fail(frames, error)
        except Exception:
            _log.exception("a stream failed")
            self._fail(frames, GatewayError("The gateway failed while it answered; its log has the reason."))
        return b"".join(frames)

    def _add(self, frames: list[bytes], item: Any) -> None:
        size, next_item = 0, item
        while next_item is not None:
            for each in self._encode(next_item):
                frames.append(each)
                size += len(each)
            next_item = self._source.poll() if size < _AT_ONCE else None
        self._is_complete = self._is_over = self._source.is_over

    def _fail(self, frames: list[bytes], error: GatewayError) -> None:
        frames.append(self._failed(error))
        self._is_over = True
