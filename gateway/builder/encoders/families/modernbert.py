"""ModernBERT: norm before each block, rotary positions, gated MLP, and local attention in most layers."""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.rope import read_rope
from gateway.builder.encoders.config import EncoderConfig, Family, Part, activation_of, is_classifier

_LAYER = "layers.{i}."


def _read(content: dict[str, Any]) -> EncoderConfig:
    layers = int(content["num_hidden_layers"])
    every = int(content.get("global_attn_every_n_layers", 3))
    kinds = content.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(layers)
    ]
    is_global = [kind == "full_attention" for kind in kinds]
    rope = content.get("rope_parameters") or {}
    hidden, heads = int(content["hidden_size"]), int(content["num_attention_heads"])
    theta = content.get("global_rope_theta", 160000.0)
    wide = read_rope({"rope_theta": theta, "rope_parameters": rope.get("full_attention")}, hidden // heads)
    theta = content.get("local_rope_theta", 10000.0) or wide.theta
    near = read_rope({"rope_theta": theta, "rope_parameters": rope.get("sliding_attention")}, hidden // heads)
    window = int(content.get("local_attention", 128)) // 2
    return EncoderConfig(
        architecture="modernbert",
        layers=layers,
        hidden=hidden,
        heads=heads,
        ffn=int(content["intermediate_size"]),
        vocab=int(content["vocab_size"]),
        longest=int(content["max_position_embeddings"]),
        norm_order="pre",
        eps=float(content.get("norm_eps", 1e-5)),
        activation=activation_of(content.get("hidden_activation", "gelu")),
        gated=True,
        ropes=tuple(wide if each else near for each in is_global),
        windows=tuple(0 if each else window for each in is_global),
        head_activation=activation_of(content.get("classifier_activation", "gelu")),
        head_pooling="mean" if content.get("classifier_pooling") == "mean" else "cls",
        is_cross_encoder=is_classifier(content),
    )


MODERNBERT = Family(
    model_types=("modernbert",),
    prefixes=("", "model."),
    read=_read,
    names={
        "words": Part("embeddings.tok_embeddings"),
        "norm": Part("embeddings.norm"),
        "{i}.attention_norm": Part(f"{_LAYER}attn_norm"),
        "{i}.q": Part(f"{_LAYER}attn.Wqkv", 0, 1, 3),
        "{i}.k": Part(f"{_LAYER}attn.Wqkv", 1, 2, 3),
        "{i}.v": Part(f"{_LAYER}attn.Wqkv", 2, 3, 3),
        "{i}.out": Part(f"{_LAYER}attn.Wo"),
        "{i}.mlp_norm": Part(f"{_LAYER}mlp_norm"),
        "{i}.gate": Part(f"{_LAYER}mlp.Wi", 0, 1, 2),
        "{i}.up": Part(f"{_LAYER}mlp.Wi", 1, 2, 2),
        "{i}.down": Part(f"{_LAYER}mlp.Wo"),
        "final_norm": Part("final_norm"),
        "head.dense": Part("head.dense"),
        "head.norm": Part("head.norm"),
        "head.out": Part("classifier"),
    },
)
