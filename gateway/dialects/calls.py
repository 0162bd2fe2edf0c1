"""Reads tool calls as models write them, one character at a time.

Between a family's markers, these spellings are accepted:

    {"name": "f", "arguments": {...}}                 one object, or an array of them
    {"name": "f", "parameters": {...}}                Llama
    {"function": {"name": "f", "arguments": "..."}}   also with the arguments first, or as a string
    f[ARGS]{...}   f{...}                             Mistral (`named`)
    f>{...}   f ```json {...}                         Llama behind `<function=`, DeepSeek (`named`)

1. A call begins when its name is known and the bracket of its arguments is open. From then on the arguments are
   delivered as they arrive, whatever follows. Before that nothing is delivered, because the text may not be a call.
2. A call names one of the tools that the model may call. Otherwise it is text.
3. A character that JSON cannot contain ends the arguments, because models forget brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from gateway.dialects.delivered import DeliveredCalls
from gateway.dialects.json_scan import JsonScanner

_HEAD = re.compile(
    r'\{\s*(?:"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*)*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*\{'
)
_FIRST_KEY = re.compile(r'\{\s*"(?:name|arguments|parameters|type|function|id)"\s*:')
_NAMED_HEAD = re.compile(r"(?P<name>[\w.:/-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?>?(?:\s*```json)?\s*\{")
_NAMED_CHARACTER = re.compile(r"[\w.:/\-\[\]\s>`]")


class CallReader:
    """Reads the calls behind one opening marker.

        reader = CallReader({"f"}, calls)
        reader.push('{"name": "f", "arguments": {"a": 1')
        calls.take()  # [ToolCallDelta(index=0, id="call_…", name="f"), ToolCallDelta(index=0, arguments='{"a": 1')]
        reader.push("}}</tool_call>")
        calls.take()  # [ToolCallDelta(index=0, arguments="}")]
        reader.is_done, reader.unread  # (True, "</tool_call>")

    Args:
        names: names of the tools that the model may call.
        calls: gets the calls.
        named: accept Mistral's spelling, with the name before the arguments.
    """

    def __init__(self, names: Collection[str], calls: DeliveredCalls, *, named: bool = False) -> None:
        self._names, self._calls, self._named = names, calls, named
        self._read: Callable[[str], None] = self._between_calls
        self._scanner = JsonScanner()
        self._in_array = False
        #: Text that was read and is not part of a call (yet).
        self.unread = ""
        #: At least one call has begun.
        self.has_called = False
        #: No further call can follow; `unread` has the text behind the calls.
        self.is_done = False

    def push(self, text: str) -> None:
        """Take the next text."""
        for index, character in enumerate(text):
            self._read(character)
            if self.is_done:
                self.unread += text[index + 1 :]
                break

    # Each of these methods reads one character in one state. `self._read` is the current state.

    def _between_calls(self, character: str) -> None:
        self.unread += character
        if character == "{":
            self._scanner, self._read = JsonScanner(1), self._in_head
            self.unread = "{" if self.has_called else self.unread
        elif self._named and (character.isalnum() or character == "_") and not self._in_array:
            self._read = self._in_named_head
        elif not self._is_separator(character):
            self._end_of_calls()

    def _is_separator(self, character: str) -> bool:
        if character == "[" and not self._in_array and not self.has_called:
            self._in_array = True
            return True
        return character.isspace() or (self.has_called and character in ",;") or (self._in_array and character == "]")

    def _end_of_calls(self) -> None:
        """The last character does not belong to a call. Separators before it belong to the last call."""
        if self.has_called:
            self.unread = self.unread[-1:]
        self.is_done = True

    def _in_head(self, character: str) -> None:
        """Between the first bracket of a call and the bracket that opens its arguments."""
        self.unread += character
        if not self._scanner.read(character):
            self.is_done = True
        elif self._scanner.in_string:
            return
        elif character == ":" and self._scanner.depth == 1 and not self._starts_like_a_call():
            self.is_done = True
        elif character == "{" and self._scanner.depth == 2:
            found = _HEAD.fullmatch(self._object())
            if found and found["name"] in self._names:
                self._begin(found["name"], self._in_arguments)
        elif self._scanner.depth == 0:
            self._complete_object()

    def _object(self) -> str:
        return self.unread[self.unread.index("{") :]

    def _starts_like_a_call(self) -> bool:
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
        """The call's name is known, and its arguments begin."""
        self._start_call(name)
        self._calls.add("{")
        self._scanner, self._read = JsonScanner(1), read

    def _in_arguments(self, character: str) -> None:
        if self._read_argument(character):
            self._scanner, self._read = JsonScanner(1), self._in_tail

    def _in_named_arguments(self, character: str) -> None:
        if self._read_argument(character):
            self._end_call()

    def _read_argument(self, character: str) -> bool:
        """Read one character of the arguments. Return True if it was the last one."""
        if not self._scanner.read(character):
            self._break_off(character)
            return False
        ends_member = character == "," and self._scanner.depth == 1 and not self._scanner.in_string
        self._calls.add(character, ends_member=ends_member)
        return self._scanner.depth == 0

    def _in_tail(self, character: str) -> None:
        """Behind the arguments: further members, and the bracket that closes the call."""
        self.unread += character
        if not self._scanner.read(character):
            self._break_off(self.unread.lstrip())
        elif self._scanner.depth == 0:
            self._end_call()

    def _complete_object(self) -> None:
        """An object whose head `_HEAD` did not match. It is a call in another spelling, or text."""
        found = _parse_call(self._object())
        if found is None or found[0] not in self._names:
            self.is_done = True
            return
        self._start_call(found[0])
        self._calls.add(found[1])
        self._end_call()

    def _start_call(self, name: str) -> None:
        self.unread, self.has_called = "", True
        self._calls.begin(name)

    def _end_call(self) -> None:
        self._calls.end()
        self.unread, self._read = "", self._between_calls

    def _break_off(self, unread: str) -> None:
        """End a call that is not complete JSON. A call behind it gets the next index."""
        self._end_call()
        self.unread, self.is_done = unread, True


def _parse_call(text: str) -> tuple[str, str] | None:
    """Return the name and the arguments' JSON if `text` is one call as a complete JSON object."""
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
        raise ValueError("arguments must be an object")
    return arguments if isinstance(arguments, str) else json.dumps(value, ensure_ascii=False)
