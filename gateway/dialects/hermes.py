"""Hermes, Qwen, and models that were trained for no tools: an object in `<tool_call>` tags, one for each call.

<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import Family, json_call, json_call_rule, many
from gateway.dialects.parser import Markup

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesDialect(Family):
    def __init__(self, name: str = "hermes") -> None:
        super().__init__(name, Markup(opens=(OPEN,), closes=(CLOSE,)))

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        return "\n".join(f"{OPEN}\n{json_call(*call)}\n{CLOSE}" for call in calls)

    def call_rule(self, name: str, arguments: str, terminal: Terminal) -> str:
        return json_call_rule(name, arguments)

    def calls_rule(self, terminal: Terminal, *, single: bool) -> str:
        return many(f'{terminal(OPEN)} "\\n" call "\\n" {terminal(CLOSE)}', lark.text("\n"), single=single)

    def free_grammar(self, rules: str, terminal: Terminal) -> str:
        return lark.may_call(OPEN, f'"\\n" call "\\n" {terminal(CLOSE)}', rules, terminal)
