"""Phi-3, Phi-3.5 and Phi-4-mini: fused matrices, rotary positions of a part of each head, longrope."""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.architectures.windows import read_windows


def _read(settings: Settings) -> dict[str, Any]:
    return {"windows": read_windows(settings)}


PHI3 = Family(
    name="phi3",
    gguf="phi3",
    read=_read,
    partly_rotated=True,
    fused={
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    },
)
