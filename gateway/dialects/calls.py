"""Tool calls as models write them, read a character at a time.

What is understood between a family's markers: one object or an array of them, `{"name": ..., "arguments": {...}}`
(Llama says `parameters`; some wrap it as `{"function": {...}}`, some write the arguments first, or as a string), and
Mistral's `name[ARGS]{...}` and `name{...}`.

1. As soon as a call has its name and the bracket that opens its arguments, it is a call: its arguments leave as they
   are written, whatever comes of them. Before that it can still turn out to be text, and nothing leaves.
2. A call names one of the tools that are offered. Anything else is text.
3. What JSON cannot contain ends the arguments: models forget brackets.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection
from typing import Any

from gateway.dialects.json_scan import JsonScanner
from gateway.generation import ToolCallDelta

_HEAD = re.compile(
    r'\{\s*(?:"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*)*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*\{'
)
_FIRST_KEY = re.compile(r'\{\s*"(?:name|arguments|parameters|type|function|id)"\s*:')
_NAMED_HEAD = re.compile(r"(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*\{")
_NAMED_CHARACTER = re.compile(r"[\w.\-\[\]\s]")


def openai_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class CallReader:
    """Reads the calls behind one opening marker.

    Args:
        names: of the tools that are offered.
        index: of the first call.
        limit: how many calls the choice may have; those beyond it are read and not reported.
        named: whether calls may be written Mistral's way, the name before the arguments.
        new_id: makes a call's id.
    """

    def __init__(
        self,
        names: Collection[str],
        choice: int,
        index: int = 0,
        *,
        limit: int | None = None,
        named: bool = False,
        new_id: Callable[[], str] = openai_id,
    ) -> None:
        self._names, self._choice, self.index = names, choice, index
        self._limit, self._named, self._new_id = limit, named, new_id
        self._read: Callable[[str], None] = self._between
        self._scanner = JsonScanner()
        self._in_array = False
        self._arguments: list[str] = []  # pieces that wait for the end of the push
        self._deltas: list[ToolCallDelta] = []
        #: What was read and is no part of a call so far.
        self.unread = ""
        self.has_called = False
        self.is_done = False

    def push(self, text: str) -> list[ToolCallDelta]:
        """The deltas that are certain. Once `is_done`, what is behind the calls is in `unread`."""
        for place, character in enumerate(text):
            self._read(character)
            if self.is_done:
                self.unread += text[place + 1 :]
                break
        self._flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    # Each of these reads one character in one situation. `_give_up` leaves it to whoever reads on.

    def _between(self, character: str) -> None:
        self.unread += character
        if character == "{":
            self._scanner, self._read = JsonScanner(1), self._in_head
            self.unread = "{" if self.has_called else self.unread
        elif self._named and (character.isalnum() or character == "_") and not self._in_array:
            self._read = self._in_named_head
        elif not self._is_separator(character):
            self._done_behind()

    def _is_separator(self, character: str) -> bool:
        if character == "[" and not self._in_array and not self.has_called:
            self._in_array = True
            return True
        return character.isspace() or (self.has_called and character in ",;") or (self._in_array and character == "]")

    def _done_behind(self) -> None:
        """What comes now is no call; separators behind the last one belong to it."""
        if self.has_called:
            self.unread = self.unread[-1:]
        self.is_done = True

    def _in_head(self, character: str) -> None:
        self.unread += character
        if not self._scanner.read(character):
            self.is_done = True
        elif self._scanner.in_string:
            return
        elif character == ":" and self._scanner.depth == 1 and not self._begins_like_a_call():
            self.is_done = True
        elif character == "{" and self._scanner.depth == 2:
            found = _HEAD.fullmatch(self._object())
            if found and found["name"] in self._names:
                self._begin(found["name"], self._in_arguments)
        elif self._scanner.depth == 0:
            self._whole()

    def _object(self) -> str:
        return self.unread[self.unread.index("{") :]

    def _begins_like_a_call(self) -> bool:
        return _FIRST_KEY.match(self._object()) is not None

    def _in_named_head(self, character: str) -> None:
        self.unread += character
        if character == "{":
            found = _NAMED_HEAD.fullmatch(self.unread.lstrip(" \t\r\n[,;"))
            if found and found["name"] in self._names:
                self._begin(found["name"], self._in_named_arguments)
            else:
                self.is_done = True
        elif not _NAMED_CHARACTER.fullmatch(character):
            self.is_done = True

    def _begin(self, name: str, read: Callable[[str], None]) -> None:
        self._start(name)
        self._arguments.append("{")
        self._scanner, self._read = JsonScanner(1), read

    def _in_arguments(self, character: str) -> None:
        if self._argue(character):
            self._scanner, self._read = JsonScanner(1), self._in_tail

    def _in_named_arguments(self, character: str) -> None:
        if self._argue(character):
            self._end()

    def _argue(self, character: str) -> bool:
        """Take one character of the arguments; True when it was their last."""
        if not self._scanner.read(character):
            self._break_off(character)
            return False
        self._arguments.append(character)
        return self._scanner.depth == 0

    def _in_tail(self, character: str) -> None:
        """Behind the arguments: more members, and the bracket that closes the call."""
        self.unread += character
        if not self._scanner.read(character):
            self._break_off(self.unread.lstrip())
        elif self._scanner.depth == 0:
            self._end()

    def _whole(self) -> None:
        """An object that was no call up to its first inner bracket is one as a whole, or it is text."""
        found = _call_of(self._object())
        if found is None or found[0] not in self._names:
            self.is_done = True
            return
        self._start(found[0])
        self._arguments.append(found[1])
        self._end()

    def _start(self, name: str) -> None:
        self.unread, self.has_called = "", True
        if self._is_wanted:
            self._deltas.append(ToolCallDelta(index=self.index, id=self._new_id(), name=name, choice=self._choice))

    def _end(self) -> None:
        self._flush()
        self.index += 1
        self.unread, self._read = "", self._between

    def _break_off(self, unread: str) -> None:
        """A call ends where JSON does; another one behind it is the next."""
        self._end()
        self.unread, self.is_done = unread, True

    def _flush(self) -> None:
        if self._arguments and self._is_wanted:
            arguments = "".join(self._arguments)
            self._deltas.append(ToolCallDelta(index=self.index, arguments=arguments, choice=self._choice))
        self._arguments = []

    @property
    def _is_wanted(self) -> bool:
        return self._limit is None or self.index < self._limit


def _call_of(text: str) -> tuple[str, str] | None:
    """The name and the arguments' JSON of one call, if it is one."""
    try:
        call = json.loads(text)
        call = call.get("function", call)
        return (call["name"], _arguments_of(call)) if isinstance(call["name"], str) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _arguments_of(call: dict[str, Any]) -> str:
    arguments = call.get("arguments", call.get("parameters"))
    value = json.loads(arguments) if isinstance(arguments, str) else arguments or {}
    if not isinstance(value, dict):
        raise ValueError("arguments are an object")
    return arguments if isinstance(arguments, str) else json.dumps(value, ensure_ascii=False)
