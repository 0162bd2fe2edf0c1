"""Qwen3: Qwen2 without biases, and with norms of each head's queries and keys."""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.architectures.qwen2 import QWEN_DEFAULTS, read_qwen


def _read(settings: Settings) -> dict[str, Any]:
    return {"qk_norm": "head"} | read_qwen(settings)


QWEN3 = Family(name="qwen3", gguf="qwen3", read=_read, defaults=QWEN_DEFAULTS | {"head_dim": 128})
