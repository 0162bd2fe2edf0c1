"""OLMo 2: norms after attention and MLP, and of all queries and all keys together.

llama.cpp's name is also that of OLMo 3, which has windows in three of four layers.
"""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.architectures.windows import read_windows


def _read(settings: Settings) -> dict[str, Any]:
    return {"norms": "post", "qk_norm": "all", "windows": read_windows(settings)}


OLMO2 = Family(
    name="olmo2",
    gguf="olmo2",
    read=_read,
    names={
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
)
