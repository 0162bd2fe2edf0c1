"""Writes genai_config.json, onnxruntime-genai's description of a model folder.

onnxruntime-genai refuses unknown keys, so data that only this gateway reads is in other files.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.builder.sources.source import GenerationDefaults, TransformerConfig


def genai_config(config: TransformerConfig, generation: GenerationDefaults, decoder: dict[str, Any]) -> dict[str, Any]:
    """The whole file. `decoder` depends on the target: file names, inputs, outputs, pipeline, windows."""
    stop = config.eos_ids
    model: dict[str, Any] = {
        "type": "decoder-pipeline" if "pipeline" in decoder else config.architecture,
        "vocab_size": config.vocab,
        "context_length": config.context_length,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(stop),
        "pad_token_id": config.pad_id if config.pad_id is not None else next(iter(stop), None),
        "decoder": _dimensions(config) | decoder,
    }
    return {"model": _present(model), "search": _search(config, generation)}


def _dimensions(config: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_size": config.head_dim,
    }


def _search(config: TransformerConfig, generation: GenerationDefaults) -> dict[str, Any]:
    return {"max_length": config.context_length, "past_present_share_buffer": True} | _present(
        msgspec.to_builtins(generation)
    )


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
