"""Granite 3: a JSON array behind `<|tool_call|>`. The answer behind the reasoning is also between markers.

    <|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]
    <think>Hm.</think><response>Paris.</response>
    Here is my thought process: Hm. Here is my response: Paris.

Granite 4 writes as Hermes does.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import FamilyDialect
from gateway.dialects.parser import THINK_CLOSE, THINK_OPEN, Markup

OPEN = "<|tool_call|>"
_THOUGHTS = ((THINK_OPEN, THINK_CLOSE), ("Here is my thought process:", "Here is my response:"))


class GraniteDialect(FamilyDialect):
    def __init__(self, name: str) -> None:
        markup = Markup(
            opens=(OPEN, "<tool_call>"),
            closes=("</tool_call>",),
            thoughts=_THOUGHTS,
            wrapper=("<response>", "</response>"),
        )
        super().__init__(name, markup)

    def format_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        return f"{OPEN}[{', '.join(self.json_call(*call) for call in calls)}]"

    def section_rule(self, terminal: Terminal, *, single: bool) -> str:
        return lark.array_of_calls(single=single)
