"""Llama 3.x: the answer is a JSON object without a marker, several with `; ` between them.

{"name": "get_weather", "parameters": {"city": "Paris"}}

Some models write `<|python_tag|>` before it, or `<function=get_weather>{"city": "Paris"}</function>`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import FamilyDialect
from gateway.dialects.parser import Markup

PYTHON, FUNCTION = "<|python_tag|>", "<function="


class LlamaDialect(FamilyDialect):
    arguments_key = "parameters"
    before_next_call = ";"

    def __init__(self, name: str) -> None:
        super().__init__(name, Markup(opens=(PYTHON, FUNCTION), closes=("</function>",), named=(FUNCTION,), bare=True))

    def format_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        return "; ".join(self.json_call(*call) for call in calls)

    def section_rule(self, terminal: Terminal, *, single: bool) -> str:
        return lark.repeated("call", "; ", single=single)

    def calls_rule(self, terminal: Terminal, *, single: bool) -> str:
        return self.section_rule(terminal, single=single)  # the grammar lets the model write no marker

    def free_grammar(self, rules: str, terminal: Terminal) -> str:
        return lark.calls_or_text(self.section_rule(terminal, single=False), rules)
