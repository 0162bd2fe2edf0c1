"""The dialect of a model without markup: all output is content."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.dialects.base import Delta, Terminal
from gateway.errors import UnsupportedParameter
from gateway.generation import Chat, Grammar, TextDelta
from gateway.text.template_traits import Traits


class PlainParser:
    """Returns all text as content. Implements Parser."""

    is_reasoning = False
    is_over = False

    def __init__(self, choice: int = 0) -> None:
        self._choice = choice

    def push(self, text: str) -> Iterable[Delta]:
        return (TextDelta(text, self._choice),) if text else ()

    def finish(self) -> Iterable[Delta]:
        return ()


class PlainDialect:
    """Has no tools and no reasoning. Implements Dialect."""

    name = "plain"
    markers: frozenset[str] = frozenset()

    def prepare(self, chat: Chat, traits: Traits) -> Chat:
        return chat

    def grammar(self, chat: Chat, rendered: str, terminal: Terminal, answer: Grammar | None) -> Grammar | None:
        if chat.tool_choice.mode == "required":
            raise UnsupportedParameter("This model's dialect is plain: it cannot call tools.", param="tool_choice")
        return answer

    def parser(self, chat: Chat, rendered: str, choice: int) -> PlainParser:
        return PlainParser(choice)
