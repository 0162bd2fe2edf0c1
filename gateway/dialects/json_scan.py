"""Reads JSON one character at a time: where an object ends, and whether the text can still be JSON."""

from __future__ import annotations

_OUTSIDE_STRINGS = frozenset(
    '{}[]:,"+-.0123456789 \t\r\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'
)  # letters of true, false, null, and of NaN and Infinity, which some models write


class JsonScanner:
    """Follows brackets and strings. Commas and colons are not checked.

    `depth` is the number of open brackets. With `JsonScanner(1)`, reading `"a": {}}` ends with `depth == 0`.
    """

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.in_string = False
        self._escaped = False

    def read(self, character: str) -> bool:
        """Read one character. Return False, and read nothing, if JSON cannot continue with it."""
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
