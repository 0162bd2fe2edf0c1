"""JSON read a character at a time: where an object ends, and whether it still is one."""

from __future__ import annotations

_OUTSIDE_STRINGS = frozenset(
    '{}[]:,"+-.0123456789 \t\r\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'
)  # letters: of true, false, null, and of the NaN and Infinity that some models write


class JsonScanner:
    """Follows brackets and strings; it does not judge commas and colons.

    `depth`: brackets open after what was read so far.
    """

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.in_string = False
        self._escaped = False

    def read(self, character: str) -> bool:
        """Read on; False when JSON cannot go on with this character, which is then not read."""
        if self.in_string:
            self._read_in_string(character)
            return True
        if character not in _OUTSIDE_STRINGS:
            return False
        if character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
        elif character == '"':
            self.in_string = True
        return True

    def _read_in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self.in_string = False
