"""The contract of a dialect: how one model family writes tool calls and reasoning.

An engine uses a dialect in this order:

1. `prepare`, before the chat template is rendered.
2. `grammar`, for constrained decoding, if the request needs it.
3. `markers`, the special tokens that stay visible in the output text.
4. `parser`, one per choice. It turns the output text into deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.generation import Chat, Grammar, ReasoningDelta, TextDelta, Tool, ToolCallDelta
from gateway.text.template_traits import Traits

Delta = TextDelta | ReasoningDelta | ToolCallDelta

#: Returns a marker as a Lark grammar refers to it: a string literal, or the id of its special token.
Terminal = Callable[[str], str]


class Parser(Protocol):
    """Turns the text of one choice into deltas, piece by piece.

    A parser never raises and never loses a character: malformed markup becomes text. The joined deltas do not depend on
    how the text is cut. Whitespace around markup belongs to the markup. If the chat requires a call
    (`tool_choice.mode` is "required"), what is no call and no reasoning is dropped. See delivered.py for the calls that
    are dropped.

        parser = choose_dialect("hermes", "").parser(chat, rendered="", choice=0)
        parser.push('<tool_call>{"name": "f", "arguments": {"a"')
        # ToolCallDelta(index=0, id="call_…", name="f"), ToolCallDelta(index=0, arguments='{"a"')
    """

    @property
    def is_reasoning(self) -> bool:
        """True if the text so far ends inside the reasoning."""

    @property
    def is_over(self) -> bool:
        """True if nothing that follows is delivered: the engine ends the choice.

        A call was repeated, a call began that the client does not allow, or text began behind required calls.
        """

    def push(self, text: str) -> Iterable[Delta]:
        """Take the next text and return the deltas that are certain.

        Text that may be the beginning of a marker is held back (see `TextStream`). Deltas are not empty, have the
        choice's index, and have no log-probabilities (the engine adds those).
        """

    def finish(self) -> Iterable[Delta]:
        """End the text, complete or cut. Return the deltas of the text that was held back."""


class Dialect(Protocol):
    @property
    def name(self) -> str:
        """The value of the configuration key `dialect`."""

    @property
    def markers(self) -> frozenset[str]:
        """Special tokens that the parser must see in the text. All other special tokens have no text."""

    def prepare(self, chat: Chat, traits: Traits) -> Chat:
        """Return the conversation in the form that the chat template can render.

        The tools of the result are those that the model may call (see `callable_tools`). What the template does not
        render of tools, calls and results is written into the messages.

        Args:
            chat: the conversation.
            traits: what the chat template renders.
        """

    def grammar(self, chat: Chat, rendered: str, terminal: Terminal, answer: Grammar | None) -> Grammar | None:
        """Return the grammar for the whole output, or None for unconstrained output.

        The grammar enforces `chat.tool_choice`, the schemas of strict tools, and `answer` for output that is neither a
        call nor reasoning. If a call is required, `answer` is ignored.

        Args:
            chat: the conversation that `prepare` returned.
            rendered: the prompt's text. Some templates open the reasoning in it.
            terminal: returns a marker as a Lark terminal.
            answer: the response format of the request.

        Raises:
            UnsupportedParameter: the dialect cannot enforce the request.
        """

    def parser(self, chat: Chat, rendered: str, choice: int) -> Parser:
        """Return a new parser for choice number `choice`."""


def callable_tools(chat: Chat) -> tuple[Tool, ...]:
    """The tools that `chat.tool_choice` lets the model call."""
    choice = chat.tool_choice
    if choice.mode == "none":
        return ()
    return tuple(tool for tool in chat.tools if not choice.names or tool.name in choice.names)


def uses_tools(chat: Chat) -> bool:
    """True if the model may call a tool, or the conversation has calls or results."""
    return bool(callable_tools(chat)) or any(message.tool_calls or message.role == "tool" for message in chat.messages)


def allows_one_call(chat: Chat) -> bool:
    """True if the answer may have one call only: calls are not parallel, or one named function is required."""
    choice = chat.tool_choice
    return not choice.parallel or (choice.mode == "required" and len(choice.names) == 1)
