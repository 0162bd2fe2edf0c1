"""Ollama's `keep_alive`: how long a model stays loaded after a request."""

from __future__ import annotations

import math
import re

from gateway.errors import InvalidRequest, quote

_UNITS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 100  # characters: the search in a text of megabytes would take seconds
_PART = re.compile(r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(ns|us|\u00b5s|\u03bcs|ms|s|m|h)", re.ASCII)
FOREVER_S = -1.0


def keep_alive_s(value: float | str | None) -> float | None:
    """Seconds; -1: for ever; None: the request has none. Raises InvalidRequest.

    Args:
        value: a number of seconds, or a duration as Go writes it: "5m", "1h30m", "-1s". Negative: for ever.
    """
    if value is None:
        return None
    seconds = _duration(value) if isinstance(value, str) else float(value)
    if seconds is None or math.isnan(seconds):
        raise InvalidRequest(
            f"'keep_alive' must be a number of seconds or a duration like \"5m\", not {quote(str(value))}.",
            param="keep_alive",
        )
    return FOREVER_S if seconds < 0 or seconds > 1e9 else seconds


def _duration(text: str) -> float | None:
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    parts = _PART.findall(rest) if len(rest) <= _LONGEST else []
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
