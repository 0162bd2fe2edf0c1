"""Reads the metadata of a GGUF file in the terms of config.json, and compares it with the sizes of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.builder.architectures.family import GGUF_KEYS
from gateway.builder.architectures.find import GGUF_ARCHITECTURES, unsupported_architecture
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, HEAD, TransformerConfig, layer
from gateway.errors import BundleError

Metadata = Callable[..., Any]  # metadata(key, default=None)

TABLE = "token_embd.weight"
_LARGEST = 1 << 24
#: keys whose values some converters write once for each layer. These graphs have layers of one size.
_SIZES = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length"),
}
#: keys of steps that no graph has
_STEPS = ("attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv", "attention.max_alibi_bias")
#: the end of a key of the tokenizer -> its kind
_TOKENIZER_KINDS: dict[str, Any] = {
    **{".tokens": list[str], ".merges": list[str], ".scores": list[float], ".token_type": list[int]},
    **{"_token_id": int, "_token": bool, "_prefix": bool, ".chat_templates": list[str], "": str},
}
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def read_settings(file: str, architecture: str, metadata: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json. Raises BundleError for a model that cannot be built, TypeError or ValueError."""

    def own(key: str, default: Any = None) -> Any:
        return metadata(f"{architecture}.{key}", default)

    if own("expert_count", 0):
        raise unsupported_architecture(f"{architecture} with experts", GGUF_ARCHITECTURES)
    if steps := [key for key in _STEPS if own(key)]:
        raise BundleError(f"{file} has {architecture}.{steps[0]}, which is not supported. Use another model.")
    if TABLE not in tensors or len(tensors[TABLE].shape) != 2:
        raise BundleError(f"{file} has no matrix {TABLE}. Download it again, or use another file of the model.")
    found = {theirs: _constant(file, architecture, key, own(key)) for key, theirs in GGUF_KEYS.items()}
    found |= {
        "vocab_size": int(tensors[TABLE].shape[1]),
        "bos_token_id": metadata("tokenizer.ggml.bos_token_id"),
        "pad_token_id": metadata("tokenizer.ggml.padding_token_id"),
        "rope_scaling": _rope_scaling(own, tensors),
    }
    settings = {key: value for key, value in found.items() if value is not None}
    return settings | _head_settings(file, architecture, settings, own) | _window_settings(own)


def _constant(file: str, architecture: str, key: str, value: Any) -> Any:
    if key not in _SIZES or value is None:
        return value
    sizes = value if isinstance(value, list) else [value]
    if len(set(sizes)) != 1:
        raise BundleError(
            f"{file} has layers of different sizes ({architecture}.{key}), which are not supported. "
            "Use a model whose layers are equal."
        )
    if not 0 < int(sizes[0]) < _LARGEST:
        raise ValueError(f"{architecture}.{key} is {sizes[0]}")
    return int(sizes[0])


def _head_settings(file: str, architecture: str, settings: Mapping[str, Any], own: Metadata) -> dict[str, Any]:
    """The part of a head that is rotated."""
    if "num_attention_heads" not in settings or "hidden_size" not in settings:
        return {}
    size = int(settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"])
    values, rotated = int(own("attention.value_length", size)), int(own("rope.dimension_count", size))
    if values != size:
        raise BundleError(
            f"{file} has heads with keys of {size} numbers and values of {values} ({architecture}.attention). Only "
            "models with equal ones are supported."
        )
    return {"partial_rotary_factor": (rotated + 0.5) / size} if rotated != size else {}  # families round it down


def _window_settings(own: Metadata) -> dict[str, Any]:
    """Which layers have a window: each but the n-th, or as listed."""
    pattern = own("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern]}
    return {} if pattern is None else {"sliding_window_pattern": int(pattern)}


def _rope_scaling(own: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = own("rope.scaling.type", "none")
    if "rope_freqs.weight" in tensors:  # llama3 scaling, one factor for each frequency
        return {"rope_type": "factors", "factors": tensors["rope_freqs.weight"].data}
    if _LONG in tensors and _SHORT in tensors:
        factors = {"long_factor": tensors[_LONG].data.tolist(), "short_factor": tensors[_SHORT].data.tolist()}
        original = {"original_max_position_embeddings": own("rope.scaling.original_context_length")}
        return {"rope_type": "longrope", **factors, **original, "attention_factor": own("rope.scaling.attn_factor")}
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": own("rope.scaling.factor", 1.0)}


def checked_value(file: str, key: str, value: Any, words: int) -> Any:
    """A value of the tokenizer's metadata; None for the id of a token that does not exist, which llama.cpp ignores too.

    Args:
        words: the number of tokens.
    Raises BundleError if the value is of another kind than the key has.
    """
    kind = next(kind for end, kind in _TOKENIZER_KINDS.items() if key.endswith(end))
    try:
        value = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BundleError(f"{file} has a value of the wrong kind in its metadata ({key}: {error}).") from error
    return None if key.endswith("_token_id") and not 0 <= value < words else value


def check_graph(file: str, architecture: str, config: TransformerConfig, metadata: Metadata) -> None:
    """Raise BundleError if the graph rotates another part of a head than the file says, or has no windows."""
    rotated = int(metadata(f"{architecture}.rope.dimension_count", config.head_dim))
    if config.ropes[0].dim != rotated:
        raise BundleError(
            f"{file} rotates {rotated} of {config.head_dim} numbers of a head ({architecture}.rope.dimension_count), "
            "which is not supported for this architecture. Use another model."
        )
    window = int(metadata(f"{architecture}.attention.sliding_window", 0))
    if 0 < window < config.context_length and not any(config.windows):
        raise BundleError(
            f"{file} has layers that see only {window} tokens ({architecture}.attention.sliding_window), which is not "
            "supported for this architecture. Use another model."
        )


def check_tensors(file: str, config: TransformerConfig, shape: Callable[[str], tuple[int, ...] | None]) -> None:
    """Raise BundleError if a matrix, a bias or a norm does not have the size that the metadata says.

    Args:
        shape: (rows, columns), or (rows,), of a tensor by its canonical name; None: it does not exist.
    """
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    each_head = config.qk_norm == "head"
    parts = {
        "self_attn.q_proj": (queries, config.hidden),
        "self_attn.k_proj": (keys, config.hidden),
        "self_attn.v_proj": (keys, config.hidden),
        "self_attn.o_proj": (config.hidden, queries),
        "mlp.gate_proj": (config.ffn, config.hidden),
        "mlp.up_proj": (config.ffn, config.hidden),
        "mlp.down_proj": (config.hidden, config.ffn),
    }
    norms = {
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), config.hidden),
        **dict.fromkeys(("attention_output_norm", "mlp_output_norm"), config.hidden),
        "self_attn.q_norm": config.head_dim if each_head else queries,
        "self_attn.k_norm": config.head_dim if each_head else keys,
    }
    table = (config.vocab, config.hidden)
    wanted: dict[str, tuple[int, ...]] = {EMBEDDING: table, HEAD: table, FINAL_NORM: (config.hidden,)}
    for index in range(config.layers):
        wanted |= {layer(index, f"{part}.weight"): sizes for part, sizes in parts.items()}
        wanted |= {layer(index, f"{part}.bias"): sizes[:1] for part, sizes in parts.items()}
        wanted |= {layer(index, f"{part}.weight"): (size,) for part, size in norms.items()}
        if shape(layer(index, "mlp.down_proj.weight")) is None:
            break  # the tensor is named when it is read
    for name, sizes in wanted.items():
        found = shape(name)
        if found is not None and found != sizes:
            raise BundleError(
                f"{file}: {name} has {_sizes(found)} numbers, and its metadata says {_sizes(sizes)}. Use another file "
                "of the model."
            )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
