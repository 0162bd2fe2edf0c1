"""The base class of dialects with markup. A subclass says how its family writes calls; the rest is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from msgspec.structs import replace

from gateway.dialects import lark
from gateway.dialects.base import Terminal, allows_one_call, callable_tools
from gateway.dialects.parser import Markup, MarkupParser
from gateway.dialects.prompt import with_history_as_text, with_tools_as_text
from gateway.generation import Chat, Grammar
from gateway.text.template_traits import Traits


class FamilyDialect(ABC):
    """Implements Dialect for one model family.

    A model's calls are one or more sections. A section begins with the marker `markup.opens[0]`. For Hermes, a section
    is one call:

        <tool_call>
        {"name": "f", "arguments": {}}
        </tool_call>

    For Phi, all calls are in one section: `<|tool_call|>[{...}, {...}]<|/tool_call|>`.

    Grammar rules are written in llguidance's Lark. A subclass can use the rule `call`: one call of any tool, as
    `call_rule` describes it.

    Args:
        name: the value of the configuration key `dialect`.
        markup: how the parser finds calls in the text.
    """

    #: Markers that occur inside a call.
    inner_markers: tuple[str, ...] = ()
    #: The member of a call's JSON object that has the arguments.
    arguments_key = "arguments"
    #: The text between two sections. None: the answer has one section.
    section_separator: str | None = None
    #: The first character behind a call that begins the next one, whitespace left out. "": the calls are in an array,
    #: so the model ends them with `]`.
    before_next_call = ""

    def __init__(self, name: str, markup: Markup) -> None:
        self.name, self.markup = name, markup
        self.markers = markup.all.union(self.inner_markers)

    # --- what a subclass describes

    @abstractmethod
    def format_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        """Return calls, each (name, arguments as JSON), in the text that the model would write."""

    @abstractmethod
    def section_rule(self, terminal: Terminal, *, single: bool) -> str:
        """Return the right side of the Lark rule for the rest of a section, behind its opening marker.

        Args:
            terminal: returns a marker as a Lark terminal.
            single: the answer may have one call only.
        """

    def call_rule(self, name: str, arguments: str, terminal: Terminal) -> str:
        """Return the right side of the Lark rule for one call of the tool `name`. `arguments` is a rule's name."""
        return lark.json_call(name, arguments, self.arguments_key)

    def calls_rule(self, terminal: Terminal, *, single: bool) -> str:
        """Return the right side of the Lark rule for an answer that is one or more calls."""
        section = f"{terminal(self.markup.opens[0])} {self.section_rule(terminal, single=single)}"
        if self.section_separator is None:
            return section
        return lark.repeated(section, self.section_separator, single=single)

    def free_grammar(self, rules: str, terminal: Terminal) -> str:
        """Return a Lark grammar for free text that may contain calls. `rules` defines `call`."""
        return lark.text_with_calls(self.markup.opens[0], self.section_rule(terminal, single=False), rules, terminal)

    # --- the same for all families

    def prepare(self, chat: Chat, traits: Traits) -> Chat:
        if traits.tools is None:
            return with_tools_as_text(chat, self.format_calls)
        messages = with_history_as_text(
            chat.messages, self.format_calls, calls=not traits.calls, results=not traits.results
        )
        return replace(chat, messages=tuple(messages), tools=callable_tools(chat))

    def grammar(self, chat: Chat, rendered: str, terminal: Terminal, answer: Grammar | None) -> Grammar | None:
        tools, is_forced = callable_tools(chat), chat.tool_choice.mode == "required"
        thought = self.markup.open_thought(chat, rendered)
        rules = lark.call_rules(tools, lambda name, rule: self.call_rule(name, rule, terminal), all_strict=is_forced)
        calls = self.calls_rule(terminal, single=allows_one_call(chat))
        if is_forced:
            if self.before_next_call and not allows_one_call(chat):
                calls = lark.calls_or_end(calls, self.before_next_call)
            return Grammar(
                kind="lark", source=lark.whole_output(calls, rules, terminal, thought=thought), param="tools"
            )
        if answer is not None:
            if answer.kind == "lark" or not (tools or thought):
                return answer
            either = f"({calls} | answer)" if tools else "answer"
            rules = f"{rules if tools else ''}\n{lark.answer_rule(answer)}"
            return replace(answer, kind="lark", source=lark.whole_output(either, rules, terminal, thought=thought))
        if any(tool.strict for tool in tools):
            return Grammar(kind="lark", source=self.free_grammar(rules, terminal), param="tools")
        return None

    def parser(self, chat: Chat, rendered: str, choice: int) -> MarkupParser:
        return MarkupParser(self.markup, chat, rendered, choice)

    def json_call(self, name: str, arguments: str) -> str:
        """Return one call as a JSON object. `arguments` is JSON."""
        return f'{{"name": {lark.literal(name)}, "{self.arguments_key}": {arguments}}}'
