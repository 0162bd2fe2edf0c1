"""Gemma has no markup for calls. The prompt asks for Hermes' form, and Gemma writes it, or a fenced block of JSON.

```json
{"name": "get_weather", "arguments": {"city": "Paris"}}
```

A fenced block that is no call of a known tool is text.
"""

from __future__ import annotations

from gateway.dialects.families import hermes
from gateway.dialects.parser import Markup

_FENCE = "```"


class GemmaDialect(hermes.HermesDialect):
    def __init__(self, name: str) -> None:
        fences = tuple(f"{_FENCE}{language}" for language in ("tool_call", "tool_code", "json"))
        super().__init__(name, Markup(opens=(hermes.OPEN, *fences), closes=(hermes.CLOSE, _FENCE)))
