"""The small random models as GGUF files, with the names, the order of rows and the metadata of llama.cpp's converter.

Names of tensors come from the `gguf` package. tests/support/llama_cpp_answers.py runs the files with llama.cpp itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.support.architectures.models import Reference

#: `model_type` -> the architecture of the GGUF file
_ARCHITECTURES = {
    **{"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "granite": "granite"},
    **{"olmo2": "olmo2", "phi3": "phi3", "gemma3_text": "gemma3", "smollm3": "smollm3"},
}
_INTERLEAVED = ("llama", "granite", "smollm3")  # architectures whose q and k have other rows


def write_gguf(model: Reference, path: Path, kind: str = "F32") -> Path:
    """`kind`: the format of the matrices."""
    config, weights = model.config, model.weights()
    name = _ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, name)
    _add_sizes(writer, name, config)
    _add_rope(writer, name, config)
    _add_tokenizer(writer, config)
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for theirs, values in weights.items():
        stem, _, end = theirs.rpartition(".")
        ours = f"{names.get_name(stem)}.{end}"
        values = _rows(name, stem, values, config)
        if values.ndim == 1 or kind == "F32":
            writer.add_tensor(ours, values)
        else:
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(ours, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: gguf.GGUFWriter, name: str, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if name not in ("granite", "phi3"):  # their converters write no size of a head
        writer.add_key_length(_head(config))
        writer.add_value_length(_head(config))
    if name == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if name == "gemma3" or config["model_type"] == "mistral":
        writer.add_sliding_window(config["sliding_window"])
    if name == "phi3":
        writer.add_sliding_window(config["sliding_window"] or 0)


def _add_rope(writer: gguf.GGUFWriter, name: str, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    part = rope.get("partial_rotary_factor", 1.0)
    if name != "gemma3":
        writer.add_rope_dimension_count(int(part * _head(config)))
    match rope.get("rope_type"):
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "llama3":
            writer.add_tensor("rope_freqs.weight", _llama3(rope, _head(config)))
        case "longrope":
            original = rope["original_max_position_embeddings"]
            scale = config["max_position_embeddings"] / original
            factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(factor)
            for length in ("long", "short"):
                factors = np.array(rope[f"{length}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{length}.weight", factors)
        case _ if name == "phi3":
            writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])


def _add_tokenizer(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """A vocabulary of single characters."""
    tokens = [chr(256 + index) for index in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([f"{tokens[3]} {tokens[4]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def _rows(name: str, stem: str, values: NDArray[np.float32], config: dict[str, Any]) -> NDArray[np.float32]:
    if name == "gemma3" and stem.endswith("norm"):
        return values + 1
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = stem.rpartition(".")[2]
    if name not in _INTERLEAVED or part not in heads:
        return values
    halves = values.reshape(heads[part], 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _llama3(rope: dict[str, Any], dim: int) -> NDArray[np.float32]:
    """The divisors of the frequencies: 1 for short waves, `factor` for long ones, a blend between."""
    turns = rope["original_max_position_embeddings"] / (
        2 * math.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    )
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / rope["factor"] + blend)).astype(np.float32)


def _head(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
