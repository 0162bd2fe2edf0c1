"""Gemma 3: its configuration as the publisher, transformers 5 and llama.cpp write it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gateway.builder.architectures.gemma3 import GEMMA3
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import TransformerConfig
from gateway.errors import BundleError
from tests.support.tiny import write_tiny_folder

#: `text_config` of the published folder of 4B. What it leaves out is in `defaults`.
_PUBLISHED = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
#: the same, saved again by transformers 5
_SAVED_AGAIN = {
    **{key: value for key, value in _PUBLISHED.items() if key != "rope_scaling"},
    "layer_types": ["full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(34)],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def config(settings: dict[str, Any]) -> TransformerConfig:
    return GEMMA3.config(settings, tied=True, eos_ids=(1, 106))


def test_published_configuration_is_read() -> None:
    found = config(_PUBLISHED)
    assert (found.heads, found.kv_heads, found.head_dim, found.vocab, found.rms_eps) == (8, 4, 256, 262_208, 1e-6)
    assert (found.context_length, found.windows[:6]) == (131_072, (1024, 1024, 1024, 1024, 1024, 0))
    assert (found.qk_norm, found.norms, found.activation) == ("head", "both", "gelu_tanh")
    assert (found.embedding_scale, found.attention_scale) == (2560**0.5, 1 / 16)
    slowest = [found.ropes[kind or 0].inverse_frequencies(131_072)[-1] for kind in found.rope_kinds[4:6]]
    np.testing.assert_allclose(slowest, [1e4 ** (-254 / 256), 1e6 ** (-254 / 256) / 8])


def test_configuration_of_transformers_5_is_the_same() -> None:
    assert config(_SAVED_AGAIN) == config(_PUBLISHED)


def test_largest_model_scales_queries_by_its_own_number_without_the_key() -> None:
    """A GGUF file does not have it."""
    largest = {"hidden_size": 5376, "num_attention_heads": 32, "num_hidden_layers": 62, "head_dim": 128}
    assert config(_PUBLISHED | largest).attention_scale == 168**-0.5


@pytest.mark.parametrize("key", ["final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"])
def test_model_with_other_attention_or_logits_is_refused(key: str) -> None:
    with pytest.raises(BundleError, match=f"{key} are not supported"):
        config(_PUBLISHED | {key: 1})


@pytest.mark.parametrize("begin", ["language_model.model.", "model.language_model."])
def test_text_part_of_a_multimodal_folder_is_read(tmp_path: Path, begin: str) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    renamed = {begin + name.removeprefix("model."): values for name, values in weights.items()}
    save_file(renamed | {"vision_tower.weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    outer = {"model_type": "gemma3", "vision_config": {}, "text_config": content, "eos_token_id": [5, 6]}
    plain = open_source(write_tiny_folder(tmp_path / "plain"))
    content.pop("eos_token_id")
    (folder / "config.json").write_text(json.dumps(outer), encoding="utf-8")
    source = open_source(folder)
    assert {5, 6} <= set(source.config.eos_ids)
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
        np.testing.assert_array_equal(source.tensor(name), plain.tensor(name))
