"""Hermes, Qwen, and models that were not trained for tools: one JSON object in `<tool_call>` tags per call.

<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.dialects.base import Terminal
from gateway.dialects.family import FamilyDialect
from gateway.dialects.parser import Markup

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesDialect(FamilyDialect):
    section_separator = "\n"
    before_next_call = OPEN[0]

    def __init__(self, name: str, markup: Markup | None = None) -> None:
        super().__init__(name, markup or Markup(opens=(OPEN,), closes=(CLOSE,)))

    def format_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        return "\n".join(f"{OPEN}\n{self.json_call(*call)}\n{CLOSE}" for call in calls)

    def section_rule(self, terminal: Terminal, *, single: bool) -> str:
        return f'"\\n" call "\\n" {terminal(CLOSE)}'
