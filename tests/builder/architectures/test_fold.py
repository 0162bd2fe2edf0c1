"""Constants in weights: blocks keep whole zeros, which the kernel multiplies faster."""

from __future__ import annotations

import numpy as np

from gateway.builder.architectures.fold import Folding
from gateway.builder.graphs.linear import _zero_points
from gateway.builder.sources.source import FINAL_NORM, Blocks


def test_scaled_blocks_keep_whole_zeros() -> None:
    random = np.random.default_rng(0)
    scale = random.uniform(0.001, 0.1, (64, 8)).astype(np.float32)
    zeros = random.integers(0, 16, (64, 8))
    blocks = Blocks(
        bits=4,
        scale=scale,
        minimum=(-zeros * scale).astype(np.float32),
        quants=random.integers(0, 16, (64, 8, 32), dtype=np.uint8),
    )
    scaled = Folding(scales={"self_attn.o_proj": 0.22}).blocks("model.layers.3.self_attn.o_proj.weight", blocks)
    assert _zero_points(scaled) is not None
    np.testing.assert_allclose(scaled.scale, scale * np.float32(0.22), rtol=1e-6)


def test_factor_and_offset_count_only_for_their_tensors() -> None:
    folding = Folding(scales={"mlp.down_proj": 2.0, FINAL_NORM: 0.5}, norm_offset=1.0)
    ones = np.ones(4, np.float32)
    for name, value in {
        "model.layers.0.mlp.down_proj.weight": 2,
        "model.layers.0.mlp.down_proj.bias": 2,
        "model.layers.0.mlp.up_proj.weight": 1,
        "model.layers.10.input_layernorm.weight": 2,
        "model.layers.10.self_attn.q_norm.weight": 2,
        FINAL_NORM: 1,  # (1 + 1) / 2
    }.items():
        assert folding.tensor(name, ones).tolist() == [value] * 4, name
