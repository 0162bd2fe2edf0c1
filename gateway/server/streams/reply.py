"""Writes a reply in as few packets as it can: each write costs a system call and wakes the client.

1. What is sent in one turn of the event loop is one write: the head with the first part of the body, and the last part
   with the end. The end of a reply does not wait for the end of the turn, and a part between them not either.
2. A part of a chunked body is framed here. uvicorn and h11 write everything else.
3. A large body is written in parts, as fast as the client reads: to copy it at once would hold up the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_LARGE = 256 * 1024  # bytes that are not joined with others
_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"


class Reply:
    """The reply to one request. `send` takes the position of the `send` that uvicorn gives to an application.

    Args:
        call_soon: of the event loop.
    """

    def __init__(self, cycle: RequestResponseCycle, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._cycle = cycle
        self._is_chunked = False
        self._writer = _Writer(cycle.transport, call_soon)
        cycle.transport = self._writer  # type: ignore[assignment]
        self._complete, cycle.on_response = cycle.on_response, self._ended

    def take_part(self, part: bytes, *, is_last: bool) -> bool:
        """Write a part of a chunked body, if that does not wait for the client to read. False: use `send`.

        The part leaves now, unless there is something to join it with: the head, or the end after the last part.
        """
        if not self._is_chunked or self._cycle.flow.write_paused:
            return False
        if part and not self._cycle.disconnected:
            self._writer.write(_framed(part), now=not is_last)
        return True

    async def send(self, message: Any) -> None:
        """Raises what uvicorn's function raises."""
        if self._is_chunked and message.get("more_body"):
            await self._send_part(message["body"])
            return
        if not self._is_chunked and len(message.get("body", b"")) > _LARGE:
            message = await self._send_all_but_last(message)
        await self._cycle.send(message)
        if message["type"] == "http.response.start":
            self._is_chunked = self._cycle.scope["method"] != "HEAD" and _CHUNKED in self._writer.held.lower()

    async def _send_all_but_last(self, message: Any) -> Any:
        """Send the start of a large body. Returns the message with its last part."""
        body = memoryview(message["body"])
        last = (len(body) - 1) // _LARGE * _LARGE
        for start in range(0, last, _LARGE):
            part: Any = {"type": message["type"], "body": bytes(body[start : start + _LARGE]), "more_body": True}
            await self._cycle.send(part)
        return {**message, "body": bytes(body[last:])}

    async def _send_part(self, part: bytes) -> None:
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if part and not cycle.disconnected:
            self._writer.write(_framed(part))

    def _ended(self) -> None:
        self._writer.flush()  # the next reply of this connection comes after it
        self._complete()


class _Writer:
    """The part of a transport that uvicorn's cycle uses. It writes at the end of the turn, or with `flush`."""

    def __init__(self, transport: Any, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._transport, self._call_soon = transport, call_soon
        self.held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes, *, now: bool = False) -> None:
        if len(data) >= _LARGE or (now and not self.held):  # to join a large part would copy it on the event loop
            self.flush()
            self._transport.write(data)
            return
        if not self.held:
            self._call_soon(self.flush)
        self.held += data

    def flush(self) -> None:
        if self.held:
            held, self.held = self.held, b""
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()


def _framed(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)
