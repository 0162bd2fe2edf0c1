"""nomic-bert: BERT with rotary positions and a gated MLP, without most biases."""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.rope import read_rope
from gateway.builder.encoders.config import EncoderConfig, Family, Part, activation_of
from gateway.errors import BundleError

_LAYER = "encoder.layers.{i}."


def _read(content: dict[str, Any]) -> EncoderConfig:
    if content.get("prenorm") or float(content.get("rotary_emb_fraction", 1.0)) != 1.0:
        raise BundleError("This variant of nomic-bert is not supported: it has pre-norm or partial rotary positions.")
    if content.get("rotary_emb_interleaved") or content.get("num_experts"):
        raise BundleError("This variant of nomic-bert is not supported: interleaved rotary positions or experts.")
    if not str(content.get("activation_function", "swiglu")).endswith("glu"):
        raise BundleError("This variant of nomic-bert is not supported: its feed-forward layer is not gated.")
    theta = content.get("rotary_emb_base") or 1000.0

    def first(*names: str) -> int:
        found = [content[name] for name in names if content.get(name)]
        if not found:
            raise KeyError(names[-1])
        return int(found[0])

    layers, hidden = first("n_layer", "num_hidden_layers"), first("n_embd", "hidden_size")
    heads = first("n_head", "num_attention_heads")
    activation = str(content.get("activation_function") or content.get("hidden_act", "silu"))
    return EncoderConfig(
        architecture="nomic_bert",
        layers=layers,
        hidden=hidden,
        heads=heads,
        ffn=first("n_inner", "intermediate_size"),
        vocab=int(content["vocab_size"]),
        longest=first("max_trained_positions", "n_positions", "max_position_embeddings"),
        eps=float(content.get("layer_norm_epsilon") or content.get("layer_norm_eps") or 1e-12),
        activation=activation_of(activation),
        gated=True,
        ropes=(read_rope({**content, "rope_theta": theta}, hidden // heads),) * layers,
    )


NOMIC = Family(
    model_types=("nomic_bert",),
    read=_read,
    names={
        "words": Part("embeddings.word_embeddings"),
        "types": Part("embeddings.token_type_embeddings"),
        "norm": Part("emb_ln"),
        "{i}.q": Part(f"{_LAYER}attn.Wqkv", 0, 1, 3),
        "{i}.k": Part(f"{_LAYER}attn.Wqkv", 1, 2, 3),
        "{i}.v": Part(f"{_LAYER}attn.Wqkv", 2, 3, 3),
        "{i}.out": Part(f"{_LAYER}attn.out_proj"),
        "{i}.attention_norm": Part(f"{_LAYER}norm1"),
        "{i}.gate": Part(f"{_LAYER}mlp.fc12"),
        "{i}.up": Part(f"{_LAYER}mlp.fc11"),
        "{i}.down": Part(f"{_LAYER}mlp.fc2"),
        "{i}.mlp_norm": Part(f"{_LAYER}norm2"),
    },
)
