"""Granite 3: Llama with multipliers. llama.cpp's converter reorders the rows of q and k.

The multiplier of residuals is folded into the last matrix of each block, the divisor of logits into the final norm.
"""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.sources.source import FINAL_NORM


def _read(settings: Settings) -> dict[str, Any]:
    return {
        "embedding_scale": float(settings.get("embedding_multiplier", 1.0)),
        "attention_scale": float(settings.get("attention_multiplier", 1.0)),
    }


def _scales(settings: Settings) -> dict[str, float]:
    residual = float(settings.get("residual_multiplier", 1.0))
    logits = 1 / float(settings.get("logits_scaling", 1.0))
    return {"self_attn.o_proj": residual, "mlp.down_proj": residual, FINAL_NORM: logits}


GRANITE = Family(name="granite", gguf="granite", read=_read, scales=_scales, interleaved=True)
