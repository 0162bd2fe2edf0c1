"""What a model family's markup means: how it is told about tools, and what in its text is reasoning or a call.

An engine asks a dialect four things, in this order: `prepare` before the chat template is rendered, `grammar` for what
the output is forced to, `markers` for the special tokens that must stay readable in the text, and one `parser` for
each choice, which turns the text into deltas.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gateway.generation import Chat, Grammar, ReasoningDelta, TextDelta, ToolCallDelta

Delta = TextDelta | ReasoningDelta | ToolCallDelta


class Parser(Protocol):
    """One choice's text, piece by piece. Malformed markup is text: a parser never raises and never loses a character.

    Pieces are whole characters cut anywhere; the deltas must not depend on where. Deltas carry the choice's index and
    no log-probabilities (the engine adds those), and none of them is empty.
    """

    def push(self, text: str) -> Iterable[Delta]:
        """The deltas that are certain now; text that may begin a marker is held back (see `textstream`)."""

    def finish(self) -> Iterable[Delta]:
        """The text is over (also when it was cut): what was held back."""


class Dialect(Protocol):
    name: str
    #: Special tokens of the vocabulary that the parser has to see; all others never become text.
    markers: frozenset[str]

    def prepare(self, chat: Chat, template: str) -> Chat:
        """The conversation as `template` (its source) can render it.

        A template that knows tools gets the chat unchanged; for one that does not, the tools, earlier calls and their
        results are written into the messages. With `tool_choice.mode` "none" the tools are taken out.
        """

    def grammar(self, chat: Chat) -> Grammar | None:
        """What the whole output must match so that `chat.tool_choice` is honoured; None: the model writes freely."""

    def parser(self, chat: Chat, rendered: str, choice: int) -> Parser:
        """A parser for one choice. `rendered` is the prompt's text: some templates open the reasoning in it."""
