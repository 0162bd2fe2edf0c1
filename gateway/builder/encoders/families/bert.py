"""BERT and RoBERTa: MiniLM, bge, e5, gte; XLM-R: bge-m3, multilingual e5. Learned positions, norm after each block."""

from __future__ import annotations

from typing import Any

from gateway.builder.encoders.config import EncoderConfig, Family, Part, activation_of, is_classifier
from gateway.errors import BundleError

_LAYER = "encoder.layer.{i}."


def _read(content: dict[str, Any]) -> EncoderConfig:
    if content.get("position_embedding_type", "absolute") != "absolute":
        raise BundleError(f"Positions of type {content['position_embedding_type']!r} are not supported.")
    is_roberta = content["model_type"] != "bert"
    first = int(content.get("pad_token_id", 1)) + 1 if is_roberta else 0
    return EncoderConfig(
        architecture=content["model_type"],
        layers=int(content["num_hidden_layers"]),
        hidden=int(content["hidden_size"]),
        heads=int(content["num_attention_heads"]),
        ffn=int(content["intermediate_size"]),
        vocab=int(content["vocab_size"]),
        longest=int(content["max_position_embeddings"]) - first,
        first_position=first,
        eps=float(content.get("layer_norm_eps", 1e-12)),
        activation=activation_of(content.get("hidden_act", "gelu")),
        is_cross_encoder=is_classifier(content),
    )


_NAMES = {
    "words": Part("embeddings.word_embeddings"),
    "positions": Part("embeddings.position_embeddings"),
    "types": Part("embeddings.token_type_embeddings"),
    "norm": Part("embeddings.LayerNorm"),
    "{i}.q": Part(f"{_LAYER}attention.self.query"),
    "{i}.k": Part(f"{_LAYER}attention.self.key"),
    "{i}.v": Part(f"{_LAYER}attention.self.value"),
    "{i}.out": Part(f"{_LAYER}attention.output.dense"),
    "{i}.attention_norm": Part(f"{_LAYER}attention.output.LayerNorm"),
    "{i}.up": Part(f"{_LAYER}intermediate.dense"),
    "{i}.down": Part(f"{_LAYER}output.dense"),
    "{i}.mlp_norm": Part(f"{_LAYER}output.LayerNorm"),
}

BERT = Family(
    model_types=("bert",),
    prefixes=("", "bert."),
    read=_read,
    names=_NAMES | {"head.dense": Part("pooler.dense"), "head.out": Part("classifier")},
)
ROBERTA = Family(
    model_types=("roberta", "xlm-roberta", "camembert"),
    prefixes=("", "roberta."),
    read=_read,
    names=_NAMES | {"head.dense": Part("classifier.dense"), "head.out": Part("classifier.out_proj")},
)
