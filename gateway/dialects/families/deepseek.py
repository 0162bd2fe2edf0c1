"""DeepSeek R1 and its distilled models: reasoning, then calls as Hermes writes them, or between these markers.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
```json
{"city": "Paris"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

The templates show no tools, so the prompt asks for Hermes' form, which is shorter.
"""

from __future__ import annotations

from gateway.dialects.families import hermes
from gateway.dialects.parser import Markup

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FIRST, _NEXT = f"{_CALLS}{_CALL}function{_SEPARATOR}", f"{_CALL}function{_SEPARATOR}"


class DeepSeekDialect(hermes.HermesDialect):
    inner_markers = (_CALLS, _CALLS_END, _CALL, _SEPARATOR, _CALL_END)

    def __init__(self, name: str) -> None:
        markup = Markup(
            opens=(hermes.OPEN, _FIRST, _NEXT),
            closes=(hermes.CLOSE, f"```{_CALL_END}", _CALL_END, _CALLS_END),
            named=(_FIRST, _NEXT),
        )
        super().__init__(name, markup)
