"""Which calls of an answer the client gets: each call once, and not more than it allows.

Small models repeat a call until `max_tokens`. A repeated call has the name of an earlier one and equal arguments,
however they are written. It ends the answer. So a call is held back as long as it can become equal to an earlier one:
until one of its members differs from all of them, or until its end.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from gateway.generation import ToolCallDelta


def openai_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class _Call(Struct):
    name: str
    text: str
    members: dict[str, str] | None  # canonical JSON by name; None: the arguments are not a JSON object


class DeliveredCalls:
    """The calls of one choice.

        calls = DeliveredCalls(choice=0)
        calls.begin("f")
        calls.add('{"a": 1}')
        calls.end()
        calls.take()  # [ToolCallDelta(index=0, id="call_…", name="f"), ToolCallDelta(index=0, arguments='{"a": 1}')]

    Args:
        choice: the choice's index, for the deltas.
        limit: the number of calls that the choice may have.
        new_id: makes a call's id.
    """

    def __init__(self, choice: int, *, limit: int | None = None, new_id: Callable[[], str] = openai_id) -> None:
        self._choice, self._limit, self._new_id = choice, limit, new_id
        self._earlier: list[_Call] = []
        self._similar: list[_Call] = []  # earlier calls that the current one can still become equal to
        self._name = ""
        self._text: list[str] = []
        self._sent = 0  # pieces of `_text` that are in `_deltas`
        self._is_open = False
        self._deltas: list[ToolCallDelta] = []
        #: The answer is over: a call was repeated, or one more began than the client allows.
        self.is_over = False

    @property
    def count(self) -> int:
        """The number of complete calls."""
        return len(self._earlier)

    def begin(self, name: str) -> None:
        """A call begins. Its arguments follow."""
        self.is_over = self.is_over or self.count == self._limit
        self._name, self._text, self._sent = name, [], 0
        self._similar = [call for call in self._earlier if call.name == name]
        self._is_open = not self.is_over
        if self._is_open and not self._similar:
            self._release()

    def add(self, text: str, *, ends_member: bool = False) -> None:
        """The next piece of the arguments. `ends_member`: it is the comma behind a member of the outer object."""
        if not self._is_open:
            return
        self._text.append(text)
        if ends_member and self._similar:
            self._compare("".join(self._text)[:-1] + "}")

    def end(self) -> None:
        """The call is over. Its arguments can be incomplete JSON."""
        if not self._is_open:
            return
        self._is_open, text = False, "".join(self._text)
        call = _Call(self._name, text, _members(text))
        if any(_is_equal(call, earlier) for earlier in self._similar):
            self.is_over = True
            return
        if self._similar:
            self._release()
        self._send()
        self._earlier.append(call)

    def cut(self) -> None:
        """The text is over, perhaps inside a call. What is the beginning of an earlier call is not delivered."""
        text = "".join(self._text)
        if any(call.text.startswith(text) for call in self._similar):
            self._is_open = False
        elif self._is_open and self._similar:
            self._release()

    def take(self) -> list[ToolCallDelta]:
        """The deltas that are certain now."""
        if self._is_open and not self._similar:
            self._send()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _compare(self, text: str) -> None:
        """Leave out the earlier calls that differ from the complete members of the current one."""
        members = _members(text)
        if members is not None:
            self._similar = [call for call in self._similar if call.members and members.items() <= call.members.items()]
            if not self._similar:
                self._release()

    def _release(self) -> None:
        self._similar = []
        self._deltas.append(ToolCallDelta(index=self.count, id=self._new_id(), name=self._name, choice=self._choice))

    def _send(self) -> None:
        if arguments := "".join(self._text[self._sent :]):
            self._deltas.append(ToolCallDelta(index=self.count, arguments=arguments, choice=self._choice))
        self._sent = len(self._text)


def _members(text: str) -> dict[str, str] | None:
    """The members of a JSON object, each as canonical JSON: equal values have equal texts."""
    try:
        found: Any = json.loads(text)
        return {name: json.dumps(value, sort_keys=True) for name, value in found.items()}
    except (ValueError, AttributeError, RecursionError):
        return None


def _is_equal(call: _Call, other: _Call) -> bool:
    return call.text == other.text if call.members is None else call.members == other.members
