"""Qwen3-Embedding: a decoder without its head. The vector of a text is that of its last token."""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.rope import read_rope
from gateway.builder.encoders.config import EncoderConfig, Family, Part, activation_of

_LAYER = "layers.{i}."


def _read(content: dict[str, Any]) -> EncoderConfig:
    layers = int(content["num_hidden_layers"])
    hidden, heads = int(content["hidden_size"]), int(content["num_attention_heads"])
    head_dim = int(content.get("head_dim") or hidden // heads)
    return EncoderConfig(
        architecture="qwen3",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(content.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        ffn=int(content["intermediate_size"]),
        vocab=int(content["vocab_size"]),
        longest=int(content["max_position_embeddings"]),
        norm_kind="rms",
        norm_order="pre",
        eps=float(content["rms_norm_eps"]),
        activation=activation_of(content.get("hidden_act", "silu")),
        gated=True,
        causal=True,
        ropes=(read_rope({"rope_theta": 1e6, **content}, head_dim),) * layers,
    )


QWEN3 = Family(
    model_types=("qwen3",),
    prefixes=("", "model."),
    read=_read,
    names={
        "words": Part("embed_tokens"),
        "{i}.attention_norm": Part(f"{_LAYER}input_layernorm"),
        "{i}.q": Part(f"{_LAYER}self_attn.q_proj"),
        "{i}.k": Part(f"{_LAYER}self_attn.k_proj"),
        "{i}.v": Part(f"{_LAYER}self_attn.v_proj"),
        "{i}.q_norm": Part(f"{_LAYER}self_attn.q_norm"),
        "{i}.k_norm": Part(f"{_LAYER}self_attn.k_norm"),
        "{i}.out": Part(f"{_LAYER}self_attn.o_proj"),
        "{i}.mlp_norm": Part(f"{_LAYER}post_attention_layernorm"),
        "{i}.gate": Part(f"{_LAYER}mlp.gate_proj"),
        "{i}.up": Part(f"{_LAYER}mlp.up_proj"),
        "{i}.down": Part(f"{_LAYER}mlp.down_proj"),
        "final_norm": Part("norm"),
    },
)
