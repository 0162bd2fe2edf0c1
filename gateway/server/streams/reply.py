"""Writes a reply in as few packets as it can: each write costs a system call and wakes the client.

1. The head waits for the first part of the body until the other callbacks of this turn of the event loop have run. The
   last part and the end of the body are one write.
2. A part of a chunked body is framed here. uvicorn and h11 write everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"


class Reply:
    """The reply to one request. `send` takes the position of the `send` that uvicorn gives to an application.

    Args:
        call_soon: of the event loop.
    """

    def __init__(self, cycle: RequestResponseCycle, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._cycle = cycle
        self._call_soon = call_soon
        self._is_chunked = False
        self._writer = _Writer(cycle.transport)
        cycle.transport = self._writer  # type: ignore[assignment]
        self._complete, cycle.on_response = cycle.on_response, self._ended

    async def send(self, message: Any) -> None:
        """Raises what uvicorn's function raises."""
        if self._is_chunked and message.get("more_body"):
            await self._send_part(message["body"])
            return
        writer, is_head = self._writer, message["type"] == "http.response.start"
        writer.is_holding = True
        try:
            await self._cycle.send(message)
        finally:
            writer.is_holding = False
        if is_head:
            self._is_chunked = self._cycle.scope["method"] != "HEAD" and _CHUNKED in writer.held.lower()
            self._call_soon(writer.flush)
        else:
            writer.flush()

    async def _send_part(self, part: bytes) -> None:
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if part and not cycle.disconnected:
            self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))

    def _ended(self) -> None:
        self._writer.flush()  # the next reply of this connection comes after it
        self._complete()


class _Writer:
    """The part of a transport that uvicorn's cycle uses. It can hold what is written."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.held = b""
        self.is_holding = False
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        self.held += data
        if not self.is_holding:
            self.flush()

    def flush(self) -> None:
        if self.held:
            held, self.held = self.held, b""
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()
