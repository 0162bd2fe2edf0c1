"""The text of a model with markup as deltas: reasoning in front, calls behind their markers, the rest content."""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum, auto

from msgspec import Struct

from gateway.dialects.base import Delta, is_single, offered
from gateway.dialects.calls import CallReader, openai_id
from gateway.generation import Chat, ReasoningDelta, TextDelta
from gateway.text.textstream import TextStream

THINK, THOUGHT = "<think>", "</think>"


class Markup(Struct, frozen=True, kw_only=True):
    """How a family marks its calls.

    Args:
        opens: each of these begins calls.
        closes: what may stand behind calls.
        bare: an answer that begins with a bracket is a call, without a marker.
        named: calls may be written `name[ARGS]{...}`.
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    bare: bool = False
    named: bool = False
    new_id: Callable[[], str] = openai_id


class _State(Enum):
    START = auto()  # nothing but white space so far, or only reasoning
    REASONING = auto()
    TEXT = auto()
    CALLS = auto()


class MarkupParser:
    """See `base.Parser`. Reasoning stands at the beginning; some templates open it in the prompt (`rendered`)."""

    def __init__(self, markup: Markup, chat: Chat, rendered: str, choice: int) -> None:
        self._markup, self._choice = markup, choice
        self._names: Collection[str] = frozenset(tool.name for tool in offered(chat))
        self._limit = 1 if is_single(chat) else None
        self._is_forced = chat.tool_choice.mode == "required"
        self._stream = TextStream()
        self._unread = ""  # in START, and between two states
        self._blank: str | None = ""  # white space that may belong to markup; None: it does not
        self._keeps_blank = True  # whether it is content if content follows
        self._marker = ""  # which began the calls that are read
        self._calls = self._reader(0)
        self._state = _State.START
        self._may_think = True
        if opens_reasoning(rendered):
            self._think()

    @property
    def is_reasoning(self) -> bool:
        return self._state is _State.REASONING

    def push(self, text: str) -> list[Delta]:
        deltas: list[Delta] = []
        self._unread += text
        while self._advance(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        while self._conclude(deltas):
            while self._advance(deltas):
                pass
        if self._blank and self._keeps_blank:
            deltas += self._text(self._blank)
        return [delta for delta in deltas if not (self._is_forced and isinstance(delta, TextDelta))]

    def _advance(self, deltas: list[Delta]) -> bool:
        """Read what there is in the present state; True when another state is to read on."""
        match self._state:
            case _State.START:
                return self._begin()
            case _State.CALLS:
                text, self._unread = self._unread, ""
                deltas += self._calls.push(text)
                return self._calls.is_done and self._leave_calls(deltas)
            case _:
                text, self._unread = self._unread, ""
                return self._found(*self._stream.push(text), deltas)

    def _begin(self) -> bool:
        """Look at how the answer begins: with reasoning, a bare call, or text."""
        said = self._unread.lstrip()
        if not said or (self._may_think and said != THINK and THINK.startswith(said)):
            return False
        if self._may_think and said.startswith(THINK):
            self._unread = said[len(THINK) :]
            self._think()
        elif self._markup.bare and self._names and said[0] in "{[":
            self._enter_calls("")
        else:
            self._state = _State.TEXT
            self._stream.set_patterns(self._opens)
        return True

    def _think(self) -> None:
        self._state, self._may_think, self._keeps_blank = _State.REASONING, False, False
        self._blank = ""
        self._stream.set_patterns((THOUGHT,))

    @property
    def _opens(self) -> tuple[str, ...]:
        return self._markup.opens if self._names else ()

    def _found(self, text: str, marker: str | None, deltas: list[Delta]) -> bool:
        """Deliver `text`, and do what the marker behind it says; True when there was one."""
        if self._state is _State.REASONING:
            deltas += self._reasoning(text)
        else:
            deltas += self._content(text)
        if marker is None:
            return False
        self._stream.set_patterns(())
        self._unread = self._stream.push("")[0]
        if marker == THOUGHT and self._state is _State.REASONING:
            self._state, self._blank = _State.START, ""
        elif marker in self._markup.opens:
            self._enter_calls(marker)
        else:  # a marker behind calls
            self._stream.set_patterns(self._opens)
        return True

    def _enter_calls(self, marker: str) -> None:
        self._marker, self._state = marker, _State.CALLS
        self._calls = self._reader(self._calls.index)

    def _leave_calls(self, deltas: list[Delta]) -> bool:
        """Calls are over, or they were none: then the marker was text."""
        calls = self._calls
        self._unread, self._state = calls.unread, _State.TEXT
        if calls.has_called:
            self._blank, self._keeps_blank = "", False
            self._stream.set_patterns((*self._opens, *self._markup.closes))
        else:
            deltas += self._content(self._marker)
            self._stream.set_patterns(self._opens)
        return True

    def _conclude(self, deltas: list[Delta]) -> bool:
        """The text is over: what the present state held back. True when that has to be read again."""
        match self._state:
            case _State.START:
                held, self._unread = self._unread, ""
                deltas += self._content(held)
                return False
            case _State.CALLS if self._calls.has_called:
                deltas += self._text(self._calls.unread.strip(" \t\r\n]"))
                self._blank, self._keeps_blank = "", False
                return False
            case _State.CALLS:
                return self._leave_calls(deltas)
            case _:
                return self._found(*self._stream.finish(), deltas)

    def _reader(self, index: int) -> CallReader:
        return CallReader(
            self._names,
            self._choice,
            index,
            limit=self._limit,
            named=self._markup.named,
            new_id=self._markup.new_id,
        )

    def _reasoning(self, text: str) -> list[Delta]:
        if self._blank is not None:
            text = text.lstrip()
            self._blank = None if text else ""
        return [ReasoningDelta(text, self._choice)] if text else []

    def _content(self, text: str) -> list[Delta]:
        if self._blank is None:
            return self._text(text)
        blank = self._blank + text
        if not blank.strip():
            self._blank = blank
            return []
        self._blank = None
        return self._text(blank if self._keeps_blank else blank.lstrip())

    def _text(self, text: str) -> list[Delta]:
        return [TextDelta(text, self._choice)] if text else []


def opens_reasoning(rendered: str) -> bool:
    """Whether the prompt ends inside the reasoning."""
    return rendered.rstrip().endswith(THINK)
