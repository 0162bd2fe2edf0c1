"""Phi: an array between `<|tool_call|>` and `<|/tool_call|>`.

<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import Family, json_call, json_call_rule, many
from gateway.dialects.parser import Markup

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"


class PhiDialect(Family):
    def __init__(self) -> None:
        super().__init__("phi", Markup(opens=(OPEN,), closes=(CLOSE,)))

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        return f"{OPEN}[{', '.join(json_call(*call) for call in calls)}]{CLOSE}"

    def call_rule(self, name: str, arguments: str, terminal: Terminal) -> str:
        return json_call_rule(name, arguments)

    def calls_rule(self, terminal: Terminal, *, single: bool) -> str:
        return f"{terminal(OPEN)} {self._array(terminal, single=single)}"

    def free_grammar(self, rules: str, terminal: Terminal) -> str:
        return lark.may_call(OPEN, self._array(terminal, single=False), rules, terminal)

    def _array(self, terminal: Terminal, *, single: bool) -> str:
        return f'"[" {many("call", lark.text(", "), single=single)} "]" {terminal(CLOSE)}'
