"""Gemma 3, text only: norms before and after each block, GeGLU, layers with a window and their own rotary positions.

Of six layers, five have a window. A Hugging Face folder stores norm weights minus one, a GGUF file the complete ones.
The embedding is multiplied by the root of its size, in float: transformers rounds that factor in bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.architectures.rope import read_rope
from gateway.builder.architectures.windows import read_windows, sliding_layers
from gateway.builder.sources.source import Rope
from gateway.errors import BundleError

_LAYERS_OF_27B = 62  # its queries are scaled by another number, which a GGUF file does not have


def _read(settings: Settings) -> dict[str, Any]:
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if settings.get(key):
            raise BundleError(f"Gemma models with {key} are not supported. Only Gemma 3 text models for chat are.")
    hidden, heads, head_dim = (int(settings[key]) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    slides = sliding_layers(settings, int(settings["sliding_window_pattern"]))
    usual = hidden // heads if int(settings["num_hidden_layers"]) == _LAYERS_OF_27B else head_dim
    return {
        "qk_norm": "head",
        "norms": "both",
        "activation": "gelu_tanh",
        "ropes": (_global_rope(settings, head_dim), _local_rope(settings, head_dim)),
        "rope_kinds": tuple(int(is_sliding) for is_sliding in slides),
        "windows": read_windows(settings, slides),
        "embedding_scale": hidden**0.5,
        "attention_scale": float(settings.get("query_pre_attn_scalar") or usual) ** -0.5,
    }


def _global_rope(settings: Settings, dim: int) -> Rope:
    parameters = _parameters(settings, "full_attention") or settings.get("rope_scaling")
    return read_rope({"rope_theta": settings["rope_theta"], "rope_parameters": parameters}, dim)


def _local_rope(settings: Settings, dim: int) -> Rope:
    parameters = _parameters(settings, "sliding_attention")
    return read_rope({"rope_theta": settings["rope_local_base_freq"], "rope_parameters": parameters}, dim)


def _parameters(settings: Settings, kind: str) -> Mapping[str, Any]:
    """The parameters of one kind of layers, as transformers writes them since version 5."""
    found: Mapping[str, Any] = (settings.get("rope_parameters") or {}).get(kind) or {}
    return found


GEMMA3 = Family(
    name="gemma3_text",
    gguf="gemma3",
    read=_read,
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
    names={
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
    norm_offset=1.0,
)
