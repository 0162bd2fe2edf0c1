"""From the bytes of a request to a typed struct: strictly, and with the field's name when it does not fit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from litestar.exceptions import InternalServerException
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from gateway.errors import BodyTimeout, InvalidRequest, Unavailable
from gateway.server.request import ClientLeft, HttpRequest

T = TypeVar("T")

BODY_TIMEOUT_S = 60.0
MAX_DEPTH, MAX_VALUES = 64, 20_000  # of JSON inside a field that takes any JSON (a schema, template variables)
MAX_SEPARATORS = 500_000  # commas and opening brackets of a body, which its values cannot outnumber

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")


def bodies_within(most: int) -> Callable[[ASGIApp], ASGIApp]:
    """Middleware that bounds what the bodies of all requests in progress take together, from the first byte to the
    end of the answer: at most `most` bytes; a request that brings more is refused with Unavailable."""
    held = 0

    def middleware(app: ASGIApp) -> ASGIApp:
        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal held
            mine = 0

            async def counted() -> ReceiveMessage:
                nonlocal held, mine
                message = await receive()
                if message["type"] == "http.request":
                    mine += len(message["body"])
                    held += len(message["body"])
                    if held > most:
                        raise Unavailable("The requests in progress take too much memory.", retry_after_s=1.0)
                return message

            try:
                await app(scope, counted, send)
            finally:
                held -= mine

        return count

    return middleware


async def read_json(request: HttpRequest, decoder: msgspec.json.Decoder[T]) -> T:
    """The request's body as a struct, whatever its content type says.

    Raises InvalidRequest (malformed, or a field of the wrong type or out of range), BodyTimeout, and Litestar's own
    error when the body is larger than the app allows; ClientLeft when it ends early.
    """
    return parse(await _read(request), decoder)


async def _read(request: HttpRequest) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError:
        raise BodyTimeout(f"The request's body did not arrive within {BODY_TIMEOUT_S:.0f} seconds.") from None
    except InternalServerException:  # "client disconnected prematurely"
        raise ClientLeft from None


def parse(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """One JSON text as a struct; InvalidRequest names the field at fault in `param`."""
    if not body:
        raise InvalidRequest("The request has no body: send a JSON object.")
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_SEPARATORS:
        raise InvalidRequest("The request's body holds more values than any model can read.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except RecursionError:
        raise InvalidRequest("The request's JSON is nested too deeply.") from None
    except ValueError as error:  # msgspec.DecodeError, and UnicodeDecodeError for bytes that are no UTF-8
        detail = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest(f"The request's body is not valid JSON: {detail}.") from None


def _explained(message: str) -> InvalidRequest:
    found = _WHERE.match(message)
    assert found is not None  # the pattern's first group takes anything
    what, path = found["what"], _dotted(found["path"] or "")
    if missing := _MISSING.match(what):
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    if not path:
        return InvalidRequest(f"The request's body is not what this endpoint takes: {what.lower()}.")
    return InvalidRequest(f"Invalid value for '{path}': {_lower_first(what)}.", param=path)


def _dotted(path: str) -> str:
    """`messages[0].content[1]` as clients write it: `messages.0.content.1`."""
    return re.sub(r"\[(\d+)\]", r".\1", path).replace("[...]", "").lstrip(".")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def check_depth(value: Any, param: str) -> None:
    """Refuse JSON so deep, or so large, that a walk over it could exhaust the stack or hold the others up."""
    level, found = [value], 0
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        found += len(level)
        if found > MAX_VALUES:
            raise InvalidRequest(f"Invalid value for '{param}': it holds more than {MAX_VALUES} values.", param=param)
        if not level:
            return
    raise InvalidRequest(f"Invalid value for '{param}': nested more than {MAX_DEPTH} levels deep.", param=param)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
