"""Llama and Mistral: norms before attention and MLP, rotary grouped-query attention, SwiGLU. Mistral can have a window.

llama.cpp's converter names both "llama", and reorders the rows of q and k.
"""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.architectures.windows import read_windows


def _read(settings: Settings) -> dict[str, Any]:
    return {"windows": read_windows(settings)}


LLAMA = Family(name="llama", gguf="llama", read=_read, interleaved=True)
MISTRAL = Family(name="mistral", gguf="mistral", read=_read)
