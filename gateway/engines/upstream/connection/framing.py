"""Where the body of an answer ends: its chunks, its length, or the end of the connection.

h11 reads only the head. It would take a third of the time that an answer's tokens cost here.
"""

from __future__ import annotations

import re
from typing import Protocol

import httpcore

_LINE = 16 * 1024  # bytes, of the longest line that has a size, and of all trailers
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")
_TRAILER = re.compile(rb"(?:[!#-'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*)?\r\n")
_SIZE_LINE, _DATA, _DATA_END, _TRAILERS = range(4)


class Framing(Protocol):
    is_over: bool

    @property
    def can_follow(self) -> bool:
        """True after a body that shows itself where it ends, if nothing came after it."""

    def feed(self, data: bytes) -> bytes:
        """The part of the body in `data`, which is what came next. Raises httpcore.RemoteProtocolError."""

    def end(self) -> None:
        """The connection has ended. Raises httpcore.RemoteProtocolError if the body has not."""


class Chunked:
    """A body in chunks. `rest`: what came after its end. `is_last`: the connection must not be used again."""

    def __init__(self, *, is_last: bool = False) -> None:
        self.is_over = False
        self.rest = b""
        self._is_last = is_last
        self._state = _SIZE_LINE
        self._left = 0  # bytes of the chunk that are still to come
        self._held = b""  # the start of the next line

    @property
    def can_follow(self) -> bool:
        return self.is_over and not self.rest and not self._is_last

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = self._held + data, b""
        parts: list[bytes] = []
        at = 0
        while at < len(data) and not self.is_over:
            if self._state == _DATA:
                parts.append(data[at : at + self._left])
                at += len(parts[-1])
                self._left -= len(parts[-1])
                self._state = _DATA if self._left else _DATA_END
            elif (end := data.find(b"\n", at) + 1) and end - at <= _LINE:
                self._line(data[at:end])
                at = end
            else:
                self._hold(data[at:])
                break
        else:
            self.rest = data[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        if not self.is_over:
            raise httpcore.RemoteProtocolError("the connection ended before the last chunk")

    def _line(self, line: bytes) -> None:
        """A whole line, which is not of the data."""
        if self._state == _SIZE_LINE:
            if (found := _SIZE.fullmatch(line)) is None:
                raise httpcore.RemoteProtocolError("not the size of a chunk")
            self._left = int(found[1], 16)
            self._state = _DATA if self._left else _TRAILERS
        elif self._state == _DATA_END:
            if line != b"\r\n":
                raise httpcore.RemoteProtocolError("a chunk is longer than its size")
            self._state = _SIZE_LINE
        else:
            self._left += len(line)
            if _TRAILER.fullmatch(line) is None or self._left > _LINE:
                raise httpcore.RemoteProtocolError("not a trailer")
            self.is_over = line == b"\r\n"

    def _hold(self, start: bytes) -> None:
        if len(start) > _LINE or (self._state == _DATA_END and start != b"\r"):
            raise httpcore.RemoteProtocolError("a line without an end")
        self._held = start


class Sized:
    """A body of `left` bytes, or up to the end of the connection."""

    can_follow = False

    def __init__(self, left: int | None) -> None:
        self._left = left
        self.is_over = left == 0

    def feed(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        part = data[: self._left]
        self._left -= len(part)
        self.is_over = not self._left
        return part

    def end(self) -> None:
        if self._left:
            raise httpcore.RemoteProtocolError("the connection ended before the body")
        self.is_over = True


def framing_of(response: httpcore.Response) -> Framing:
    """By the head, which h11 has checked: it refuses another coding than `chunked`, and two lengths.

    A coding and a length is what attacks have, and servers that are wrong (RFC 9112, 6.3): nothing follows it.
    """
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in (204, 304):
        return Sized(0)
    if b"transfer-encoding" in headers:
        return Chunked(is_last=b"content-length" in headers)
    length = headers.get(b"content-length")
    return Sized(None if length is None else int(length))
