"""One streamed answer over HTTP, with sse-starlette. The only module that imports it.

1. sse-starlette ends all streams when uvicorn gets a signal, with a flag of the process that cannot be reset, and looks
   for that signal twice a second, from the first stream on. Both are switched off. At shutdown the router ends the
   requests that still run after the grace period, and each stream sends an error as its last frame.
2. Pings of sse-starlette follow a fixed clock, and one can come after the last frame. So `_frames` makes the pings, and
   only after silence.
3. Items that are there at the same time are one write: each has its frames, and the client wakes once.
4. Frames are bytes that we encode. An exception in the generator would cut the body, which looks like a lost
   connection to a client. So it becomes the last frame.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

import anyio._backends._asyncio  # anyio imports it at its first use, on the event loop: 12 ms
import msgspec
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.server.request import note_failure
from gateway.server.streams.patience import OutOfPatience, Patience
from gateway.server.streams.reply import Reply

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

AppStatus.enable_automatic_graceful_drain = False

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
PING = b": keepalive\n\n"
HEADERS = {"Cache-Control": "no-cache"}  # sse-starlette adds X-Accel-Buffering: no
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
        self._source, self._encode, self._failed = source, encode, failed
        self._patience = Patience(ping_s if media_type == MEDIA_TYPE else None)
        #: Awaited before frames are sent: what they say is true then for every gateway.
        self.before_frames: Callable[[], Awaitable[None]] | None = None
        self._is_complete = False
        self._is_over = False
        super().__init__(
            self._writes(),
            headers=HEADERS,
            media_type=media_type,
            ping=0,
            send_timeout=SEND_TIMEOUT_S,
            client_close_handler_callable=self._gone,
        )
        del self.headers["connection"]  # the server sets it; wrong for HTTP/1.0
        self._send_lock = anyio.Lock(fast_acquire=True)  # the last frame and the end of the body are one write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._reply: Reply | None = scope["state"].get("reply")
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            _log.info("a client stopped reading its stream for %.0f s; its request was cancelled", SEND_TIMEOUT_S)
        finally:
            self._patience.end()
            await self._source.aclose()
            if not self._is_complete:
                note_failure(scope["state"])
            # anyio's cancellation leaves a cycle that keeps the response; these have the request
            del self._source, self._encode, self._failed, self._reply

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Without a timer if the send does not wait, and past what only looks at the head of a response."""
        if self._reply is None or not self._reply.take_part(message["body"], is_last=self._is_over):
            await super()._send_with_timeout(send, message)

    async def _gone(self, _: Message) -> None:
        """anyio cancels no task whose wait has just ended, and so no stream with an item in each turn."""
        self._is_over = True

    async def _listen_for_exit_signal_with_grace(self) -> None:
        """Without end, because the router ends the requests. sse-starlette's would wake the process for ever."""
        await asyncio.Event().wait()

    async def _writes(self) -> AsyncGenerator[bytes, None]:
        while not self._is_over:
            if frames := await self._frames():
                if self.before_frames is not None:
                    await self.before_frames()
                yield frames

    async def _frames(self) -> bytes:
        """What is sent next: the frames of all items that are there, a comment, or the last frame of a failure."""
        frames: list[bytes] = []
        try:
            self._add(frames, await self._next())
        except OutOfPatience:
            return PING
        except StopAsyncIteration:
            self._is_complete = self._is_over = True
        except GatewayError as error:
            self._fail(frames, error)
        except Exception:
            _log.exception("a stream failed")
            self._fail(frames, GatewayError("The gateway failed while it answered; its log has the reason."))
        return b"".join(frames)

    async def _next(self) -> Any:
        """The next item. Raises OutOfPatience if there is none in time."""
        if (item := self._source.poll()) is not None:
            # A stream that never waits cannot be cancelled. No limit: it would lose the item if the machine sleeps now.
            await asyncio.sleep(0)
            return item
        return await self._patience.wait(self._source.__anext__())

    def _add(self, frames: list[bytes], item: Any) -> None:
        size, next_item = 0, item
        while next_item is not None:
            for each in self._encode(next_item):
                frames.append(each)
                size += len(each)
            next_item = self._source.poll() if size < _AT_ONCE else None
        if self._source.is_over:
            self._is_complete = self._is_over = True

    def _fail(self, frames: list[bytes], error: GatewayError) -> None:
        frames.append(self._failed(error))
        self._is_over = True
