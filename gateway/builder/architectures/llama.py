"""Llama and Mistral: norms before attention and MLP, rotary grouped-query attention, SwiGLU.

llama.cpp's converter names both "llama", and reorders the rows of q and k.
"""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings


def context_of(settings: Settings) -> dict[str, Any]:
    """The context without a sliding window, whose size limits it."""
    length = int(settings["max_position_embeddings"])
    windowed = settings.get("sliding_window") and settings.get("use_sliding_window", True)
    return {"context_length": min(length, int(settings["sliding_window"])) if windowed else length}


LLAMA = Family(name="llama", gguf="llama", read=context_of, interleaved=True)
MISTRAL = Family(name="mistral", gguf="mistral", read=context_of)
