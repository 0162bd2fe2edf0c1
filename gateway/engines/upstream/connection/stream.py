"""A connection to a server that is not trusted, for httpcore and for the reader of the body.

httpcore gets the bytes of heads only. It keeps nothing of the body, so the body can be read without it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpcore

from gateway.engines.upstream.connection.framing import Framing

READ_BYTES = 16 * 1024  # read and parsed without a pause of the event loop
HEAD_BYTES = 128 * 1024  # status line, headers and interim answers; also of an answer that is an error
_UNREAD_BYTES = 64 * 1024  # from here on, the server has to wait
_EYEBALLS_S = 0.25  # RFC 8305
_REST_S = 4.0  # uvicorn, and so vLLM, closes a connection after 5 s without a request
_OLD_S = 60.0  # then another connection may lead to another server behind the same name
_BLANK = re.compile(rb"\n\r?\n")


class AnswerTooLarge(httpcore.ProtocolError):
    """The server sent more than the gateway accepts."""


class Gone(httpcore.ReadError):
    """A connection that rested before the request has ended without a byte of an answer."""


class Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """It breaks after `left` bytes more. `is_tls`: it ends in both directions at once."""

    def __init__(self, *, is_tls: bool = False) -> None:
        self.left = HEAD_BYTES
        self._is_tls = is_tls
        self._transport: Any = None
        self._tcp: Any = None  # the same, or below TLS, where all that is not sent waits
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._line = b""  # the end of what httpcore has of a head
        self._is_paused = self._is_over = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None  # there while too much is not sent
        self._until = 0.0  # when the reader waits no longer
        self._timer: asyncio.TimerHandle | None = None
        self._made_at = self._loop.time()
        self._has_ended = False  # the body of the last answer, for httpcore
        self._rests = False  # between two requests
        self._waits_again = False  # for the first byte of an answer that is not the first one

    # --- for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._tcp = self._tcp or transport

    def data_received(self, data: bytes) -> None:
        if self._rests:  # no request is there that could have this answer
            self._is_over = True
            self._transport.abort()
            return
        self._unread += data
        if len(self._unread) > _UNREAD_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        _wake(self._reader)
        _wake(self._writer)

    def eof_received(self) -> bool:
        self._is_over = True
        if self._rests:
            self._transport.abort()
        _wake(self._reader)
        return not self._is_tls

    def connection_lost(self, error: Exception | None) -> None:
        self._is_over, self._error = True, error
        for waiting in (self._reader, self._writer):
            _wake(waiting)

    def pause_writing(self) -> None:
        self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        _wake(self._writer)
        self._writer = None

    # --- for the reader of the body

    async def next(self, until: float | None) -> bytes:
        """What came next, at most READ_BYTES; b"" at the end of the connection.

        Args:
            until: seconds of the event loop; None: without a limit.

        Raises:
            AnswerTooLarge, httpcore.ReadError, TimeoutError: there is no more.
        """
        if self._unread:
            await asyncio.sleep(0)  # a server that is always faster than this loop does not keep it
        else:
            await self._wait(until)
        return self._take(min(READ_BYTES, len(self._unread)))

    async def ends(self, framing: Framing) -> bool:
        """Read what is left after the last event. True if that is the end of the body, and nothing after it."""
        while not framing.is_over:
            if framing.feed(await self.next(None)) or self._is_over:
                return False
        return True

    def rest(self, framing: Framing) -> bool:
        """Wait for the next request, after an answer whose end was read. False: the connection has to be closed."""
        is_old = self._loop.time() - self._made_at > _OLD_S
        is_unread = any(each.get_write_buffer_size() for each in (self._transport, self._tcp))  # the request
        if not framing.can_follow or self._unread or self._is_over or self._is_paused or is_old or is_unread:
            return False
        self._rests = self._has_ended = self._waits_again = True
        self.left = HEAD_BYTES
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_REST_S, self._transport.abort)
        return True

    def _wake_up(self) -> None:
        self._rests = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self, count: int) -> bytes:
        if not count:
            if self._error is not None:
                raise httpcore.ReadError(str(self._error)) from self._error
            return b""
        if count == len(self._unread):
            data = bytes(self._unread)
            self._unread.clear()
        else:
            data = bytes(self._unread[:count])
            del self._unread[:count]
        if self._is_paused and len(self._unread) < READ_BYTES:
            self._is_paused = False
            self._transport.resume_reading()
        self.left -= count
        if self.left < 0:
            raise AnswerTooLarge("too many bytes")
        return data

    async def _wait(self, until: float | None) -> None:
        """Return when there are bytes, or the end."""
        while not self._unread and not self._is_over:
            if until is not None:
                self._limit(until)
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def _limit(self, until: float) -> None:
        """One timer for many waits: it moves only when it is due."""
        self._until = until
        if self._timer is None or self._timer.when() > until:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(until, self._is_due)

    def _is_due(self) -> None:
        self._timer = None
        if self._until > self._loop.time():
            self._limit(self._until)
        elif self._reader is not None and not self._reader.done():
            self._reader.set_exception(TimeoutError())

    # --- for httpcore

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Bytes of a head, and none after its end. For the body, httpcore sees only that it has ended."""
        if self._has_ended:
            self._has_ended = False
            return b"0\r\n\r\n"
        await self._wait(None if timeout is None else self._loop.time() + timeout)
        if self._waits_again and not self._unread:
            raise Gone("the server closed the connection") from self._error
        self._waits_again = False
        start = bytes(self._unread[: min(max_bytes, READ_BYTES)])
        found = _BLANK.search(self._line + start)
        data = self._take(found.end() - len(self._line) if found else len(start))
        self._line = b"" if found else (self._line + data)[-2:]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if self._rests:
            self._wake_up()
        if self._is_over and self._transport.is_closing():
            raise httpcore.WriteError("the connection is closed") from self._error
        self._transport.write(buffer)
        while self._writer is not None and not self._writer.done() and not self._transport.is_closing():
            await self._writer  # not longer than to an answer: the server may not read what it refuses

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        stream = Stream(is_tls=True)
        stream._tcp = self._tcp
        try:
            if self._unread:  # not from the server that TLS will name
                raise httpcore.ConnectError("bytes before TLS")
            with _connecting():
                async with asyncio.timeout(timeout):
                    stream._transport = await self._loop.start_tls(
                        self._transport, stream, ssl_context, server_hostname=server_hostname
                    )
        except BaseException:
            self._transport.abort()
            raise
        return stream

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # of a connection without a request: it cannot be used
            return bool(self._unread) or self._is_over or self._transport.is_closing()
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._transport.get_extra_info(names.get(info, info))


class Backend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any) -> Stream:  # noqa: ASYNC109
        with _connecting():
            async with asyncio.timeout(timeout):
                made = await asyncio.get_running_loop().create_connection(
                    Stream, host, port, happy_eyeballs_delay=_delay_s(host)
                )
        return made[1]


@cache
def _delay_s(host: str) -> float | None:
    """Only for a name: asyncio leaves the socket of a race that is cancelled to the garbage collector."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _EYEBALLS_S
    return None


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise httpcore.ConnectTimeout from error
    except (OSError, ssl.CertificateError, UnicodeError) as error:  # ssl.SSLError is an OSError; names as `a..b`
        raise httpcore.ConnectError(str(error)) from error


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
