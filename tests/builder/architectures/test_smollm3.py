"""SmolLM3: which layers have rotary positions and windows."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.builder.architectures.smollm3 import SMOLLM3

_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "vocab_size": 384,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("settings", "kinds", "windows"),
    [
        ({}, (0, 0, 0, None, 0), ()),  # a GGUF file has no list
        ({"no_rope_layers": [1, 0, 1, 1, 0, 1]}, (0, None, 0, 0, None), ()),
        ({"no_rope_layer_interval": 2, "sliding_window": 9}, (0, None, 0, None, 0), ()),
        (
            {"no_rope_layer_interval": 2, "sliding_window": 9, "use_sliding_window": True},
            (0, None, 0, None, 0),
            (0, 9, 0, 9, 0),
        ),
    ],
)
def test_layers_without_rotation(
    settings: dict[str, Any], kinds: tuple[int | None, ...], windows: tuple[int, ...]
) -> None:
    config = SMOLLM3.config(_SHAPE | settings, tied=True, eos_ids=())
    assert (config.rope_kinds, config.windows) == (kinds, windows)
    assert config.ropes[0].theta == 2_000_000.0
