"""HTTP/1.1 as uvicorn speaks it, with limits: on patience with a client, on connections, on what is held for one.

1. A client owes something when the next move is its own: the head of a request, the rest of a body that nobody waits
   for any more, or reading what was sent. Once a second the server looks at every connection (`settle`); who has owed
   the same thing for too long is cut off. A body that a handler waits for has its own limit, in server/body.py.
2. uvicorn stops reading while more requests wait behind the one that runs, and then does not hear that the client has
   left. Here it goes on reading, up to MAX_PIPELINED bytes. Nor is a connection idle on which the next head has begun.
3. One connection too many is answered (503, by a guard) and then closed, as long as the system has files to spare.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import sys
from contextlib import suppress
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from gateway.errors import BodyTimeout, GatewayError, InvalidRequest
from gateway.server.error_body import ErrorBody, ErrorDetail

MAX_CONNECTIONS = 10_240
MAX_PIPELINED = 64 * 1024
BACKLOG = 256  # connections that may wait to be accepted, and the most that are accepted at once
RESERVED_FILES = 512  # for the rest of the gateway, and for those that are accepted only to be refused
SPARE_CONNECTIONS = 64  # beyond the limit: these are told so
#: Seconds that a client may owe a thing.
PATIENCE_S = {"head": 30.0, "rest": 5.0, "reading": 60.0}
#: After 30 s of silence, and then three times, ask whether the other side is still there: one that lost its power
#: never says goodbye. The last is Linux's, in milliseconds, for what was sent and never acknowledged.
TCP_OPTIONS = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,  # macOS's name of the same
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}

_log = logging.getLogger(__name__)


def connection_limit() -> int:
    """How many connections are served at once: fewer where the system allows this process fewer open files."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(SPARE_CONNECTIONS, min(MAX_CONNECTIONS, allowed - RESERVED_FILES))


def allow_open_files() -> None:
    """Raise the system's limit to what MAX_CONNECTIONS need, or as far as it lets us; Windows has none."""
    if sys.platform == "win32":
        return
    import resource

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with suppress(ValueError, OSError):  # macOS has a second, lower one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class LimitedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._owed: tuple[str, object] | None = None  # what, and how far it has come
        self._since = 0.0
        self._is_excess = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _ask_whether_alive(transport.get_extra_info("socket"))
        excess = len(self.connections) - connection_limit()
        if excess > SPARE_CONNECTIONS:
            transport.abort()
        elif excess > 0:
            self._is_excess = True
            self.app_state = {**self.app_state, "is_excess": True}

    def handle_events(self) -> None:
        super().handle_events()
        if self.flow.read_paused and self.conn.their_state is h11.DONE:  # a request waits behind the one that runs
            if len(self.conn.trailing_data[0]) <= MAX_PIPELINED:
                self.flow.resume_reading()
            else:
                self._cut_off("it sent more requests than it waits for answers to")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # the next head has begun
            self._unset_keepalive_if_required()
        if self._is_excess and not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("The request is not HTTP/1.1 as this gateway reads it."))

    def settle(self, now: float) -> None:
        """Cut the client off if it has owed the same thing for too long. `now`: seconds of the event loop's clock."""
        owed = self._owes()
        if owed != self._owed:
            self._owed, self._since = owed, now
        elif owed is not None and now - self._since >= PATIENCE_S[owed[0]]:
            self._end_patience(owed[0])

    def _owes(self) -> tuple[str, object] | None:
        if unread := self.transport.get_write_buffer_size():
            return "reading", unread
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            return "head", self.cycle
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            return "rest", self.cycle
        return None

    def _end_patience(self, owed: str) -> None:
        if owed == "head" and self.conn.trailing_data[0] and not self.transport.is_closing():
            self._refuse(BodyTimeout(f"The request's head did not arrive within {PATIENCE_S[owed]:.0f} seconds."))
        elif owed == "reading":
            self._cut_off(f"it has read nothing for {PATIENCE_S[owed]:.0f} s")
        else:
            self.transport.abort()

    def _cut_off(self, why: str) -> None:
        _log.info("a client was cut off: %s", why)
        self.transport.abort()

    def _refuse(self, error: GatewayError) -> None:
        """Answer what never became a request, in OpenAI's shape, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # in the middle of an answer there is no room for another
            return
        detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
        body = msgspec.json.encode(ErrorBody(error=detail))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": f"req_{secrets.token_hex(12)}",
        }
        head = h11.Response(
            status_code=error.status, headers=list(headers.items()), reason=STATUS_PHRASES[error.status]
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()


def _ask_whether_alive(connection: socket.socket) -> None:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    options += [
        (socket.IPPROTO_TCP, option, value)
        for name, value in TCP_OPTIONS.items()
        if (option := getattr(socket, name, None)) is not None
    ]
    for option in options:
        with suppress(OSError):  # gone already, or not on this system
            connection.setsockopt(*option)
