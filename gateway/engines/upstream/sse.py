"""Server-sent events from a server that is not trusted: the data of each event, within bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator

EVENT_BYTES = 1024 * 1024  # the longest event: a whole answer of a server that does not stream tokens
_LINE_END = re.compile(rb"\r\n|\r|\n")


class EventTooLarge(ValueError):
    """One event, or the number of lines, is over its bound."""


class EventParser:
    """Args:
    max_lines: of the whole stream, with empty lines and comments.
    """

    def __init__(self, max_lines: int) -> None:
        self.lines = 0  # that are complete
        self._max_lines = max_lines
        self._is_after_cr = False
        self._line = bytearray()  # that is not complete
        self._data: list[bytes] = []  # the data lines of the event that is not complete
        self._size = 0  # bytes of both

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of every event that `piece` completes. Raises EventTooLarge."""
        if not piece:
            return
        if self._is_after_cr:
            piece = piece.removeprefix(b"\n")
        self._is_after_cr = piece.endswith(b"\r")
        *ended, rest = _LINE_END.split(piece)
        for part in ended:
            yield from self._end_line(part)
        self._line += rest
        self._grow(len(rest))

    def end(self) -> Iterator[bytes]:
        """The last event, when the stream ends without an empty line."""
        yield from self._end_line(b"")
        yield from self._end_line(b"")

    def _end_line(self, part: bytes) -> Iterator[bytes]:
        self._grow(len(part))
        line = bytes(self._line) + part
        self._line.clear()
        if self.lines == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        self.lines += 1
        if self.lines > self._max_lines:
            raise EventTooLarge("too many lines")
        if line:
            self._field(line)
            return
        data = b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        if data:
            yield data

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        else:
            self._size -= len(line)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > EVENT_BYTES:
            raise EventTooLarge("an event is too long")
