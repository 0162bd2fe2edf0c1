"""Llama 3.x: the answer is a bare object, `;` between several; sometimes `<|python_tag|>` stands in front.

{"name": "get_weather", "parameters": {"city": "Paris"}}
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import Family, json_call, json_call_rule, many
from gateway.dialects.parser import Markup

TAG = "<|python_tag|>"


class LlamaDialect(Family):
    def __init__(self) -> None:
        super().__init__("llama", Markup(opens=(TAG,), bare=True))

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        return "; ".join(json_call(*call, key="parameters") for call in calls)

    def call_rule(self, name: str, arguments: str, terminal: Terminal) -> str:
        return json_call_rule(name, arguments, key="parameters")

    def calls_rule(self, terminal: Terminal, *, single: bool) -> str:
        return many("call", lark.text("; "), single=single)

    def free_grammar(self, rules: str, terminal: Terminal) -> str:
        return lark.may_be_call(self.calls_rule(terminal, single=False), rules)
