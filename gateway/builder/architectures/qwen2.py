"""Qwen2 and Qwen2.5: Llama with biases of q, k and v. The upper layers can have a window, which is off by default."""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.architectures.windows import read_windows


def read_qwen(settings: Settings) -> dict[str, Any]:
    return {"windows": read_windows(settings)}


#: config.json can omit these.
QWEN_DEFAULTS = {"use_sliding_window": False, "max_window_layers": 28}

QWEN2 = Family(name="qwen2", gguf="qwen2", read=read_qwen, defaults=QWEN_DEFAULTS)
