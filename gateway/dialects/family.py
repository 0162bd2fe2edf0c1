"""What the families have in common: one class, told by its subclasses how calls are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from msgspec.structs import replace

from gateway.dialects import lark
from gateway.dialects.base import Terminal, is_single, offered
from gateway.dialects.parser import THINK, THOUGHT, Markup, MarkupParser, opens_reasoning
from gateway.dialects.prompt import explained, knows_tools
from gateway.generation import Chat, Grammar


class Family(ABC):
    """A dialect with markup. Implements Dialect.

    Args:
        name: in the configuration.
        markup: how calls are found.
    """

    def __init__(self, name: str, markup: Markup) -> None:
        self.name, self.markup = name, markup
        self.markers = frozenset((THINK, THOUGHT, *markup.opens, *markup.closes, *self.inner_markers))

    #: Markers that stand inside a call.
    inner_markers: tuple[str, ...] = ()

    def prepare(self, chat: Chat, template: str) -> Chat:
        if knows_tools(template):
            return replace(chat, tools=offered(chat))
        return explained(chat, self.write)

    def grammar(self, chat: Chat, rendered: str, terminal: Terminal, answer: Grammar | None) -> Grammar | None:
        tools, is_forced = offered(chat), chat.tool_choice.mode == "required"
        thinks = opens_reasoning(rendered)
        rules = lark.call_rules(tools, lambda name, rule: self.call_rule(name, rule, terminal), all_strict=is_forced)
        calls = self.calls_rule(terminal, single=is_single(chat))
        if is_forced:
            return Grammar(kind="lark", source=lark.exactly(calls, rules, terminal, thinks=thinks), param="tools")
        if answer is not None:
            if answer.kind == "lark" or not (tools or thinks):
                return answer
            either = f"({calls} | answer)" if tools else "answer"
            rules = f"{rules if tools else ''}\n{lark.answer_rule(answer)}"
            return replace(answer, kind="lark", source=lark.exactly(either, rules, terminal, thinks=thinks))
        if any(tool.strict for tool in tools):
            return Grammar(kind="lark", source=self.free_grammar(rules, terminal), param="tools")
        return None

    def parser(self, chat: Chat, rendered: str, choice: int) -> MarkupParser:
        return MarkupParser(self.markup, chat, rendered, choice)

    @abstractmethod
    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls (name, arguments as JSON) as the model would have written them."""

    @abstractmethod
    def call_rule(self, name: str, arguments: str, terminal: Terminal) -> str:
        """In Lark: one call of `name`, without the markers around it; `arguments` is a rule."""

    @abstractmethod
    def calls_rule(self, terminal: Terminal, *, single: bool) -> str:
        """In Lark: an answer that is one `call` or several, with all markers."""

    @abstractmethod
    def free_grammar(self, rules: str, terminal: Terminal) -> str:
        """In Lark: free text with calls in it, if the model makes any; `rules` say what a `call` is."""


def json_call(name: str, arguments: str, key: str = "arguments") -> str:
    """A call as one JSON object, as text."""
    return f'{{"name": {lark.text(name)}, "{key}": {arguments}}}'


def json_call_rule(name: str, arguments: str, key: str = "arguments") -> str:
    """The same in Lark, `arguments` being a rule. Cut as JSON is, so that an answer in JSON may begin like a call."""
    before = ("{", '"name"', ": ", lark.text(name), ", ", lark.text(key), ": ")
    return f'{" ".join(map(lark.text, before))} {arguments} "}}"'


def many(one: str, separator: str, *, single: bool) -> str:
    """In Lark: `one`, or several with `separator` between them."""
    return one if single else f"{one} ({separator} {one})*"
