"""The parser of all dialects with markup: splits the output text into reasoning, content and tool calls.

The input `<think>Hm.</think>Let me see. <tool_call>{"name": "f", "arguments": {}}</tool_call>` gives these deltas:

    ReasoningDelta("Hm.")
    TextDelta("Let me see. ")
    ToolCallDelta(index=0, id="call_…", name="f"), ToolCallDelta(index=0, arguments="{}")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto

from msgspec import Struct

from gateway.dialects.base import Delta, allows_one_call, callable_tools
from gateway.dialects.calls import CallReader
from gateway.dialects.delivered import DeliveredCalls, openai_id
from gateway.generation import Chat, ReasoningDelta, TextDelta
from gateway.text.textstream import TextStream

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


class Markup(Struct, frozen=True, kw_only=True):
    """How a family marks calls. For Hermes: `Markup(opens=("<tool_call>",), closes=("</tool_call>",))`.

    Args:
        opens: markers that begin calls. The first one is the marker that the grammar uses.
        closes: markers that may follow calls. They are removed from the text.
        bare: an answer that begins with `{` or `[` is a call, without a marker (Llama).
        named: markers of `opens` behind which a call may be written `name[ARGS]{...}` (Mistral).
        thoughts: pairs of markers around the reasoning.
        wrapper: markers around the answer behind the reasoning. They are removed.
        new_id: makes the id of a call.
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    bare: bool = False
    named: tuple[str, ...] = ()
    thoughts: tuple[tuple[str, str], ...] = ((THINK_OPEN, THINK_CLOSE),)
    wrapper: tuple[str, str] | None = None
    new_id: Callable[[], str] = openai_id

    @property
    def all(self) -> frozenset[str]:
        """Every marker."""
        pairs = (*self.thoughts, self.wrapper) if self.wrapper else self.thoughts
        return frozenset((*self.opens, *self.closes, *(marker for pair in pairs for marker in pair)))

    def open_thought(self, chat: Chat, rendered: str) -> str | None:
        """The marker that ends the reasoning in which the prompt ends. None: the prompt ends outside of it.

        The template opens the reasoning, or the client does, in the beginning of the answer that the model continues.
        """
        begun = beginning(chat)
        for opens, closes in self.thoughts:
            if rendered.rstrip().endswith(opens) or (opens in begun and closes not in begun.rpartition(opens)[2]):
                return closes
        return None


class _State(Enum):
    START = auto()  # only whitespace so far, or whitespace behind the reasoning
    REASONING = auto()
    TEXT = auto()
    CALLS = auto()


class MarkupParser:
    """Implements Parser. Reasoning comes first, if at all. Some templates open it in the prompt (`rendered`)."""

    def __init__(self, markup: Markup, chat: Chat, rendered: str, choice: int) -> None:
        self._markup, self._choice = markup, choice
        self._names: Collection[str] = frozenset(tool.name for tool in callable_tools(chat))
        self._delivered = DeliveredCalls(choice, limit=1 if allows_one_call(chat) else None, new_id=markup.new_id)
        self._is_forced = chat.tool_choice.mode == "required"
        self._stream = TextStream()
        self._unread = ""  # text for the next state
        self._blank: str | None = ""  # whitespace that may belong to markup; None: whitespace is content
        self._keeps_blank = True  # deliver `_blank` if content follows
        self._marker = ""  # the marker that began the current calls
        self._calls = self._reader()
        self._state = _State.START
        self._closes: tuple[str, ...] = ()  # markers that are removed from the text
        self._begun = bool(beginning(chat).strip())
        self._may_think = not self._begun
        if thought := markup.open_thought(chat, rendered):
            self._enter_reasoning(thought)

    @property
    def is_reasoning(self) -> bool:
        return self._state is _State.REASONING

    @property
    def is_over(self) -> bool:
        return self._delivered.is_over

    def push(self, text: str) -> list[Delta]:
        deltas: list[Delta] = []
        self._unread += text
        while not self.is_over and self._advance(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        while not self.is_over and self._finish_state(deltas):
            while not self.is_over and self._advance(deltas):
                pass
        if self._blank and self._keeps_blank and not self.is_over:
            deltas += self._text(self._blank)
        return deltas

    def _advance(self, deltas: list[Delta]) -> bool:
        """Read `_unread` in the current state. Return True if the state changed and there may be more to read."""
        match self._state:
            case _State.START:
                return self._begin()
            case _State.CALLS:
                text, self._unread = self._unread, ""
                self._calls.push(text)
                deltas += self._delivered.take()
                return self._calls.is_done and self._leave_calls(deltas)
            case _:
                text, self._unread = self._unread, ""
                return self._deliver(*self._stream.push(text), deltas)

    def _begin(self) -> bool:
        """Decide what the answer begins with: reasoning, a call without a marker, or text."""
        start = self._unread.lstrip()
        if not start or any(marker != start and marker.startswith(start) for marker in self._first_markers()):
            return False
        found = next((marker for marker in self._first_markers() if start.startswith(marker)), "")
        self._unread = start[len(found) :] if found else self._unread
        if found in dict(self._markup.thoughts):
            self._enter_reasoning(dict(self._markup.thoughts)[found])
        elif found and self._markup.wrapper:
            self._closes = (self._markup.wrapper[1],)
        elif self._markup.bare and self._names and start[0] in "{[" and (self._is_forced or not self._begun):
            self._enter_calls("")
        else:
            self._state = _State.TEXT
            self._stream.set_patterns(self._patterns)
        return True

    def _first_markers(self) -> Iterable[str]:
        """The markers that may come now. The state is START."""
        if self._may_think:
            return dict(self._markup.thoughts)
        return self._markup.wrapper[:1] if self._markup.wrapper and not self._begun and not self._closes else ()

    def _enter_reasoning(self, closes: str) -> None:
        self._state, self._may_think, self._keeps_blank = _State.REASONING, False, False
        self._blank = ""
        self._stream.set_patterns((closes,))

    @property
    def _patterns(self) -> tuple[str, ...]:
        return (*self._opens, *self._closes)

    @property
    def _opens(self) -> tuple[str, ...]:
        return self._markup.opens if self._names else ()

    def _deliver(self, text: str, marker: str | None, deltas: list[Delta]) -> bool:
        """Deliver `text`, then change the state for the marker behind it. Return True if there is a marker."""
        if self._state is _State.REASONING:
            deltas += self._reasoning(text)
        else:
            deltas += self._content(text)
        if marker is None:
            return False
        self._stream.set_patterns(())
        self._unread = self._stream.push("")[0]
        if self._state is _State.REASONING:
            self._state, self._blank = _State.START, ""
        elif marker in self._markup.opens:
            self._enter_calls(marker)
        else:  # a closing marker
            self._closes = tuple(closes for closes in self._closes if closes != marker)
            self._blank, self._keeps_blank = "", False
            self._stream.set_patterns(self._patterns)
        return True

    def _enter_calls(self, marker: str) -> None:
        self._marker, self._state = marker, _State.CALLS
        self._calls = self._reader()

    def _leave_calls(self, deltas: list[Delta]) -> bool:
        """Continue as text behind the calls. If there was no call, the marker is content."""
        calls = self._calls
        self._unread, self._state = calls.unread, _State.TEXT
        if calls.has_called:
            self._blank, self._keeps_blank = "", False
            self._closes = tuple(dict.fromkeys((*self._closes, *self._markup.closes)))
        else:
            deltas += self._content(self._marker)
        self._stream.set_patterns(self._patterns)
        return True

    def _finish_state(self, deltas: list[Delta]) -> bool:
        """Deliver what the current state holds back at the end. Return True if text must be read again."""
        match self._state:
            case _State.START:
                held, self._unread = self._unread, ""
                deltas += self._content(held)
                return False
            case _State.CALLS if self._calls.has_called:
                self._delivered.cut()
                deltas += self._delivered.take()
                deltas += self._text(self._calls.unread.strip(" \t\r\n]"))
                self._blank, self._keeps_blank = "", False
                return False
            case _State.CALLS:
                return self._leave_calls(deltas)
            case _:
                return self._deliver(*self._stream.finish(), deltas)

    def _reader(self) -> CallReader:
        return CallReader(self._names, self._delivered, named=self._marker in self._markup.named)

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
        if self._is_forced:  # before the calls it is no answer, and behind them the model has begun something else
            self._delivered.is_over |= bool(self._delivered.count and text.strip())
            return []
        return [TextDelta(text, self._choice)] if text else []


def beginning(chat: Chat) -> str:
    """The beginning of the answer, if the conversation ends with one that the model continues."""
    last = chat.messages[-1] if chat.messages else None
    return last.content or "" if last and last.role == "assistant" and not last.tool_calls else ""
