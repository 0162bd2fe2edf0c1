"""What a model family's markup means: how it is told about tools, and what in its text is reasoning or a call.

An engine asks a dialect four things, in this order: `prepare` before the chat template is rendered, `grammar` for what
the output is forced to, `markers` for the special tokens that must stay readable in the text, and one `parser` for
each choice, which turns the text into deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.generation import Chat, Grammar, ReasoningDelta, TextDelta, Tool, ToolCallDelta

Delta = TextDelta | ReasoningDelta | ToolCallDelta

#: A text as a Lark grammar names it: a string, or the special token that is written so.
Terminal = Callable[[str], str]


class Parser(Protocol):
    """One choice's text, piece by piece. Malformed markup is text: a parser never raises and never loses a character.

    Pieces are whole characters cut anywhere; the deltas, joined, must not depend on where. Deltas carry the choice's
    index and no log-probabilities (the engine adds those), and none of them is empty. White space around markup
    belongs to the markup. Where the chat demands a call, what is cut off before a call has its name is not text: it
    is dropped.
    """

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends inside the reasoning."""

    def push(self, text: str) -> Iterable[Delta]:
        """The deltas that are certain now; text that may begin a marker is held back (see `textstream`)."""

    def finish(self) -> Iterable[Delta]:
        """The text is over (also when it was cut): what was held back."""


class Dialect(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def markers(self) -> frozenset[str]:
        """Special tokens of the vocabulary that the parser has to see; all others never become text."""

    def prepare(self, chat: Chat, template: str) -> Chat:
        """The conversation as `template` (its source) can render it, its tools those that may be called.

        A template that knows tools gets them as they are; for one that does not, the tools, earlier calls and their
        results are written into the messages. With `tool_choice.mode` "none" the tools are taken out.
        """

    def grammar(self, chat: Chat, rendered: str, terminal: Terminal, answer: Grammar | None) -> Grammar | None:
        """What the whole output must match so that `chat.tool_choice` and strict tools are honoured, and so that what
        is neither a call nor reasoning matches `answer`; None: the model writes freely.

        A call that is demanded goes before an answer. `rendered` is the prompt's text: some templates open the
        reasoning in it. Raises UnsupportedParameter where the demand cannot be met.
        """

    def parser(self, chat: Chat, rendered: str, choice: int) -> Parser:
        """A parser for one choice."""


def offered(chat: Chat) -> tuple[Tool, ...]:
    """The tools that may be called."""
    choice = chat.tool_choice
    if choice.mode == "none":
        return ()
    return tuple(tool for tool in chat.tools if not choice.names or tool.name in choice.names)


def is_single(chat: Chat) -> bool:
    """Whether at most one call is wanted; a function that is named is called once."""
    choice = chat.tool_choice
    return not choice.parallel or (choice.mode == "required" and len(choice.names) == 1)
