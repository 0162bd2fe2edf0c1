"""Phi: a JSON array between `<|tool_call|>` and `<|/tool_call|>`.

<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>

Phi-4-mini also writes `functools[...]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import FamilyDialect
from gateway.dialects.parser import Markup

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"


class PhiDialect(FamilyDialect):
    def __init__(self, name: str) -> None:
        super().__init__(name, Markup(opens=(OPEN, "functools"), closes=(CLOSE,)))

    def format_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        return f"{OPEN}[{', '.join(self.json_call(*call) for call in calls)}]{CLOSE}"

    def section_rule(self, terminal: Terminal, *, single: bool) -> str:
        return f"{lark.array_of_calls(single=single)} {terminal(CLOSE)}"
