"""The small random models of the architecture tests: name -> config.json. Odd sizes, so that no two are equal."""

from __future__ import annotations

from typing import Any

_SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _longrope(rotated: int, original: int) -> dict[str, Any]:
    pairs = rotated // 2
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": original,
        "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
        "long_factor": [1.0 + 1.5 * pair for pair in range(pairs)],
    }


_PHI = _SHAPE | {"model_type": "phi3", "num_key_value_heads": 3, "sliding_window": None}
_SMALL_PHI = {"hidden_size": 192, "head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1}

CASES: dict[str, dict[str, Any]] = {
    "llama": _SHAPE | {"model_type": "llama", "rope_parameters": _LLAMA3},
    "mistral-window": _SHAPE | {"model_type": "mistral", "sliding_window": 24},
    "qwen2-window": _SHAPE
    | {
        "model_type": "qwen2",
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 2,
    },
    "qwen3": _SHAPE | {"model_type": "qwen3", "head_dim": 32, "rms_norm_eps": 1e-6},
    "qwen3-tied": _SHAPE | {"model_type": "qwen3", "tie_word_embeddings": True, "num_hidden_layers": 2},
    "gemma3": _SHAPE
    | {
        "model_type": "gemma3_text",
        "vocab_size": 384,  # of the tests' tokenizer
        "num_hidden_layers": 4,
        "rms_norm_eps": 1e-6,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "smollm3": _SHAPE
    | {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "granite": _SHAPE
    | {
        "model_type": "granite",
        "tie_word_embeddings": True,
        "embedding_multiplier": 1.5,
        "residual_multiplier": 0.9,
        "attention_multiplier": 0.11,
        "logits_scaling": 8.0,
    },
    "granite-biases": _SHAPE
    | {
        "model_type": "granite",
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.3,
        "logits_scaling": 3.0,
    },
    "olmo2": _SHAPE | {"model_type": "olmo2", "rms_norm_eps": 1e-6},
    "phi3-window": _PHI | {"sliding_window": 20},
    "phi3.5-long": _PHI | {"rope_parameters": _longrope(16, 32), "original_max_position_embeddings": 32},
    "phi3.5-short": _PHI
    | {
        "rope_parameters": _longrope(16, 512),
        "original_max_position_embeddings": 512,
    },
    "phi4-mini": _PHI
    | _SMALL_PHI
    | {
        "tie_word_embeddings": True,
        "rope_parameters": _longrope(48, 40) | {"partial_rotary_factor": 0.75},
        "original_max_position_embeddings": 40,
        "partial_rotary_factor": 0.75,
    },
    # What a GGUF file cannot say is as in the published models: which layers have a window or no rotary positions.
    "gemma3-six": _SHAPE
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "sliding_window": 20,
        "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "smollm3-four": _SHAPE
    | {"model_type": "smollm3", "num_hidden_layers": 5, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
}
