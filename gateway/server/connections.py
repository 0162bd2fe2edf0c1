"""uvicorn's HTTP/1.1 protocol with limits on slow clients, on connections and on pipelined bytes.

1. Slow clients. A client is pending if the server waits for it: for the head of a request, for the rest of a body that
   no handler reads, or until it reads what was sent. `check_pending` looks at every connection once a second and closes
   one that is pending for the same reason too long. A body that a handler reads has its own limit (body.py).
2. Pipelined requests. uvicorn stops reading while a request waits behind the running one, and then misses a disconnect.
   This class reads on, up to MAX_PIPELINED bytes. A connection with the start of a next head does not count as idle.
3. At the limit of connections, a new one closes an idle one. If none is idle, connections over the limit get 503 from
   a guard and are closed, up to SPARE_CONNECTIONS of them. Clients share the connections that are not idle (body.py),
   so one client can use up neither kind.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from gateway.errors import BodyTimeout, GatewayError, InvalidRequest
from gateway.monitoring.refusals import RefusalLog
from gateway.server.error_body import error_body
from gateway.server.streams.reply import Reply

MAX_CONNECTIONS = 10_240
MAX_PIPELINED = 64 * 1024
BACKLOG = 256  # connections that wait to be accepted; asyncio accepts up to this many at once
RESERVED_FILES = 512  # open files for the rest of the gateway and for the spare connections
SPARE_CONNECTIONS = 64  # over the limit; they get the reply 503
MAX_LOOKED_AT = 64  # idle connections of which the longest idle one is closed
#: Seconds that a client may be pending, by reason.
PENDING_LIMIT_S = {"head": 30.0, "rest": 5.0, "reading": 60.0}
#: TCP keepalive: the first probe after 30 s of silence, 3 probes. A computer that lost its power never closes a
#: connection. TCP_USER_TIMEOUT (Linux, milliseconds) is the limit for data that is sent and never acknowledged.
TCP_OPTIONS = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,  # the same on macOS
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}


def connection_limit() -> int:
    """The number of connections served at once. It is lower if the system allows the process fewer open files."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(SPARE_CONNECTIONS, min(MAX_CONNECTIONS, allowed - RESERVED_FILES))


def allow_open_files() -> None:
    """Raise the limit of open files to what MAX_CONNECTIONS need, or as far as allowed. Windows has no limit."""
    if sys.platform == "win32":
        return
    import resource

    allowed, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if hard_limit != resource.RLIM_INFINITY:
        wanted = min(wanted, hard_limit)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with suppress(ValueError, OSError):  # macOS has a second, lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard_limit))


class LimitedProtocol(H11Protocol):
    """One connection. See the module's docstring for the limits.

    Args:
        refusals: logs what is not HTTP.
        came: called when a client connects.
    """

    def __init__(self, *args: Any, refusals: RefusalLog, came: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusals, self._came = refusals, came
        self._pending: tuple[str, object] | None = None  # the reason, and its progress
        self._since = 0.0
        self._is_excess = False
        self._idle_since = self.loop.time()
        self._serve, self.app = self.app, self._answer

    @property
    def is_idle(self) -> bool:
        """True if no request is in progress. The start of a head, or a part of a body that no handler reads, may have
        arrived."""
        is_between = self.cycle is None or self.cycle.response_complete
        is_waiting = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return is_between and is_waiting and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._came()
        _enable_keepalive(transport.get_extra_info("socket"))
        excess = len(self.connections) - connection_limit()
        if excess > 0 and self._close_an_idle_one():
            return
        if excess > SPARE_CONNECTIONS:
            self._abort(f"{connection_limit()} connections are the limit")
        elif excess > 0:
            self._is_excess = True
            self.app_state = {**self.app_state, "is_excess": True}

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """The application, with a faster `send`."""
        scope["state"]["reply"] = reply = Reply(self.cycle, self.loop.call_soon)
        try:
            await self._serve(scope, receive, reply.send)
        finally:
            del scope["state"]["reply"]  # it refers to the scope

    def handle_events(self) -> None:
        super().handle_events()
        if self.flow.read_paused and self.conn.their_state is h11.DONE:  # a request waits behind the one that runs
            if len(self.conn.trailing_data[0]) <= MAX_PIPELINED:
                self.flow.resume_reading()
            else:
                self._abort("it sent too many pipelined requests")

    def _close_an_idle_one(self) -> bool:
        """Close the longest idle connection of the first ones that are found. False if none is idle."""
        others = (each for each in self.connections if each is not self and isinstance(each, LimitedProtocol))
        found = list(itertools.islice((each for each in others if each.is_idle), MAX_LOOKED_AT))
        if not found:
            return False
        min(found, key=lambda each: each._idle_since).transport.close()
        return True

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # the start of the next head
            self._unset_keepalive_if_required()
        if self._is_excess and not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("The request is not valid HTTP/1.1."))

    def check_pending(self, now: float) -> None:
        """Close the connection if the client is pending too long. `now`: seconds of the event loop's clock."""
        pending = self._pending_reason()
        if pending != self._pending:
            self._pending, self._since = pending, now
        elif pending is not None and now - self._since >= PENDING_LIMIT_S[pending[0]]:
            self._end_pending(pending[0])

    def _pending_reason(self) -> tuple[str, object] | None:
        if unread := self.transport.get_write_buffer_size():
            return "reading", unread
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            return "head", self.cycle
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            return "rest", self.cycle
        return None

    def _end_pending(self, reason: str) -> None:
        if reason == "head" and self.conn.trailing_data[0] and not self.transport.is_closing():
            self._refuse(BodyTimeout(f"The request head did not arrive within {PENDING_LIMIT_S[reason]:.0f} seconds."))
        elif reason == "reading":
            self._abort(f"it read nothing for {PENDING_LIMIT_S[reason]:.0f} s")
        else:
            self.transport.abort()

    def _abort(self, reason: str) -> None:
        self._refusals.connection_closed(self.client, reason)
        self.transport.abort()

    def _refuse(self, error: GatewayError) -> None:
        """Send an error in OpenAI's form for bytes that are not a request, and close."""
        self._refusals.no_request(self.client, self.conn.trailing_data[0][:2], error)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # a reply has started; a second one would corrupt it
            return
        body = msgspec.json.encode(error_body(error))
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


def _enable_keepalive(connection: socket.socket) -> None:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    options += [
        (socket.IPPROTO_TCP, option, value)
        for name, value in TCP_OPTIONS.items()
        if (option := getattr(socket, name, None)) is not None
    ]
    for option in options:
        with suppress(OSError):  # closed already, or not supported by the system
            connection.setsockopt(*option)
