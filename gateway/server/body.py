"""The bytes of a request body become a struct. The decoder is strict; an error names the field."""

from __future__ import annotations

import asyncio
import gc
import re
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import copy_context
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar

import msgspec
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from gateway.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    UnsupportedEncoding,
    quote,
)
from gateway.lanes.reload.presence import Presence
from gateway.server.connections import connection_limit
from gateway.server.error_body import validation_error
from gateway.server.ignored import begin_notes, note_unknown_fields
from gateway.server.request import HttpRequest, end_lease, headers_of, note_failure, router_of
from gateway.server.shares import Holding, Shares
from gateway.server.streams.waits import ClientDisconnected

P = ParamSpec("P")
T = TypeVar("T")

BODY_TIMEOUT_S = 60.0
LARGE_BODY = 64 * 1024  # bytes; up to this size, parsing takes less than 15 ms
MAX_DEPTH, MAX_VALUES = 64, 20_000  # of a field that accepts any JSON (a JSON schema, template variables)
MAX_SEPARATORS = 500_000  # commas and opening brackets in a body; it cannot have more values than these

ENCODINGS = "gzip, deflate"  # of a body
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": zlib.MAX_WBITS}  # how zlib reads each
_MAX_MEMBERS = 100  # of a gzip body; zlib copies the rest after each
_BOM = b"\xef\xbb\xbf"  # Windows programs write it
#: A string in JSON, up to the end if it is not complete, or an integer with zeros behind the point.
_INTEGRAL = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"?)|(?<!\d)(\d++)\.0++(?![\deE.])', re.DOTALL)
#: Half of a surrogate pair in JSON, or a whole pair, after an even number of backslashes. The pattern begins with one
#: backslash: `re` then skips other text 100 times as fast, and it holds the interpreter lock meanwhile.
_SURROGATE = re.compile(
    rb"\\(?<!\\\\)((?:\\\\)*+)(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)


class _Collector:
    """Runs the garbage collector in the thread of large bodies. Requests that end before it runs share one run."""

    def __init__(self) -> None:
        self._is_due = False

    def request(self, thread: Executor) -> None:
        if not self._is_due:
            self._is_due = True
            with suppress(RuntimeError):  # the server stops
                thread.submit(self._run)

    def _run(self) -> None:
        self._is_due = False
        gc.collect()


def limit_bodies(
    longest: Callable[[], int], count: int, check: Callable[[Scope], None], presence: Presence
) -> Callable[[ASGIApp], ASGIApp]:
    """Middleware: a body has at most `longest` bytes, those of all running requests `count` times as many together.

    `presence` can let a request wait, and then `check` can refuse it before its body is read. Clients share the bytes,
    and the connections: requests in progress, with connections that cannot be closed. A body counts until its reply is
    complete. The request that exceeds a share fails with Unavailable.
    """
    bodies, requests, collector = Shares(lambda: count * longest()), Shares(cache(connection_limit)), _Collector()

    def check_length(length: int) -> None:
        if length > longest():
            raise BodyTooLarge("The request body is larger than 'server.max_body_bytes' of the gateway allows.")

    def middleware(app: ASGIApp) -> ASGIApp:
        async def limit(scope: Scope, receive: Receive, send: Send) -> None:
            holding = Holding(scope, bodies, requests)
            scope["state"]["count_body"] = holding.add
            received, is_complete = 0, False

            async def counted() -> ReceiveMessage:
                nonlocal received, is_complete
                if not is_complete:  # after it, a reload can have lowered the limit
                    check_length(max(received, _announced(scope)))
                holding.begin()
                message = await receive()
                if message["type"] == "http.request":
                    received += len(message["body"])
                    check_length(received)
                    holding.add(len(message["body"]))
                    is_complete = not message["more_body"]
                return message

            try:
                if not presence.is_fresh:
                    await presence.fresh()  # the keys, too, can have changed
                check(scope)
                await app(scope, counted, send)
            except BaseException:
                note_failure(scope["state"])
                raise
            finally:
                holding.end()
                end_lease(scope)
                if holding.is_garbage:
                    collector.request(scope["app"].state.parser)

        return limit

    return middleware


def _announced(scope: Scope) -> int:
    """The length of the body in the header; 0 without one."""
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(text) if text.isdigit() else 0


async def read_json(request: HttpRequest, decoder: msgspec.json.Decoder[T]) -> T:
    """The request body as a struct. The content type is ignored.

    Raises InvalidRequest (malformed JSON, a wrong field), UnsupportedEncoding, and the errors of `read_body`.
    """
    begin_notes(request.scope)
    body = await read_body(request)
    if encoding := headers_of(request.scope).get("content-encoding", "").strip().lower():
        longest = router_of(request).config.server.max_body_bytes
        body = await in_thread(request, inflated, body, encoding, longest)
        request.scope["state"]["count_body"](len(body))
    request.scope["state"]["body_bytes"] = len(body)
    return await by_size(request, parse, body, decoder)


async def by_size(request: HttpRequest, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, whose time grows with the size of the body that `read_json` has read.

    For a large body a thread does it, and the event loop continues. All large bodies share one thread: several would
    compete with the event loop for the interpreter lock.
    """
    if request.scope["state"]["body_bytes"] <= LARGE_BODY:
        return work(*args, **kwargs)
    return await in_thread(request, work, *args, **kwargs)


async def in_thread(request: HttpRequest, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, done in the thread of large bodies, with the context of the request."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(request.app.state.parser, partial(copy_context().run, work, *args, **kwargs))


async def read_body(request: HttpRequest) -> bytes:
    """Raises BodyTimeout, BodyTooLarge, and ClientDisconnected if the body ends early."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _whole_body(request)
    except TimeoutError:
        raise BodyTimeout(f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} seconds.") from None


async def _whole_body(request: HttpRequest) -> bytes:
    """Litestar's own function costs 60 us for a short body."""
    parts: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnected
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


def inflated(body: bytes, encoding: str, longest: int) -> bytes:
    """The body without its compression. Stops at `longest` bytes, so a small body cannot fill the memory.

    Raises UnsupportedEncoding, BodyTooLarge, and InvalidRequest for a body that is damaged or not complete.
    """
    if encoding in ("identity", "none", "utf-8", "utf8"):  # clients confuse it with the character set
        return body
    if encoding not in _WINDOWS:
        raise UnsupportedEncoding(f"The content encoding {quote(encoding)} is not supported. Send {ENCODINGS} or none.")
    if not body:
        return body
    is_raw = encoding == "deflate" and body[0] & 15 != 8  # some clients send it without zlib's header
    parts: list[bytes] = []
    left = longest + 1
    try:
        for _ in range(_MAX_MEMBERS):
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS if is_raw else _WINDOWS[encoding])
            parts.append(unpacker.decompress(body, left))
            left -= len(parts[-1])
            if not unpacker.eof and left:
                raise zlib.error("it is not complete")
            body = unpacker.unused_data
            if not (body and left):
                break
        else:
            raise zlib.error("it has too many parts")
    except zlib.error as error:
        raise InvalidRequest(f"The request body is not valid {quote(encoding)} data: {error}.") from None
    if not left:
        raise BodyTooLarge("The request body without its compression is larger than 'server.max_body_bytes' allows.")
    return b"".join(parts)


def parse(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """One JSON text as a struct. Raises InvalidRequest; its `param` names the field."""
    body = body.removeprefix(_BOM)
    if not body:
        raise InvalidRequest("The request has no body: send a JSON object.")
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_SEPARATORS:
        raise InvalidRequest("The request body has too many values.")
    try:
        return _decoded(body, decoder)
    except msgspec.ValidationError as error:
        raise validation_error(str(error)) from None
    except RecursionError:
        raise InvalidRequest("The request's JSON is nested too deeply.") from None
    except ValueError as error:  # msgspec.DecodeError, and UnicodeDecodeError for bytes that are not UTF-8
        detail = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest(f"The request body is not valid JSON: {detail}.") from None


def _decoded(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
        body = _with_integers(body)
        decoded = decoder.decode(body)
    except msgspec.DecodeError:
        body, given = with_whole_characters(body), body
        if body == given:
            raise
        decoded = decoder.decode(body)
    note_unknown_fields(body, decoder.type)
    return decoded


def _with_integers(json: bytes) -> bytes:
    """JSON with 8 for 8.0: they are the same number, and some languages have only one kind. Strings stay."""
    return _INTEGRAL.sub(lambda found: found[1] or found[2], json)


def with_whole_characters(json: bytes) -> bytes:
    """JSON with U+FFFD for half of a surrogate pair: clients cut texts, and JSON can write what UTF-8 cannot."""
    return _SURROGATE.sub(lambda found: rb"\%bufffd" % found[1] if found[3] else found[0], json)


def check_depth(value: Any, param: str) -> None:
    """Raise InvalidRequest for JSON that is too deep (a walk overflows the stack) or too large (it delays others)."""
    level, found = [value], 0
    for _ in range(MAX_DEPTH):
        inside: list[Any] = []
        for outer in level:
            if isinstance(outer, dict):
                inside.extend(outer.values())
            elif isinstance(outer, list):
                inside.extend(outer)
        level, found = inside, found + len(inside)
        if found > MAX_VALUES:
            raise InvalidRequest(f"Invalid value for '{param}': it has more than {MAX_VALUES} values.", param=param)
        if not level:
            return
    raise InvalidRequest(f"Invalid value for '{param}': nested more than {MAX_DEPTH} levels deep.", param=param)
