"""Products with int8 activations: their error is that of the rounded inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from gateway.builder.graphs.linear import INT8_ACTIVATIONS, LinearWriter
from gateway.builder.graphs.writer import GraphWriter
from gateway.builder.sources.source import Blocks
from tests.support.session import Array


def _product(blocks: Blocks, x: Array, folder: Path) -> Array:
    with GraphWriter(folder / "product.onnx") as graph:
        graph.input("x", TensorProto.FLOAT, ["rows", x.shape[1]])
        graph.output("y", TensorProto.FLOAT, ["rows", len(blocks.scale)])
        linear = LinearWriter(graph, accuracy_level=INT8_ACTIVATIONS, rank=2)
        linear.packed_product(linear.pack("weights", blocks), x="x", output="y")
        graph.save("product")
    (y,) = ort.InferenceSession(folder / "product.onnx").run(None, {"x": x})
    return np.asarray(y)


def _four_bit(columns: int, block: int) -> Blocks:
    """Blocks with minimums that are no whole steps."""
    weights = np.random.default_rng(1).standard_normal((64, columns // block, block)).astype(np.float32)
    low = weights.min(-1)
    scale = (weights.max(-1) - low) / np.float32(15)
    quants = np.clip(np.rint((weights - low[..., None]) / scale[..., None]), 0, 15).astype(np.uint8)
    return Blocks(bits=4, scale=scale, minimum=low, quants=quants)


@pytest.mark.parametrize(("columns", "block"), [(2048, 32), (576, 32), (256, 16)])
@pytest.mark.parametrize("outliers", [False, True])
def test_minimums_add_little_to_the_rounding_of_inputs(
    tmp_path: Path, columns: int, block: int, outliers: bool
) -> None:
    """With outliers, one sum of a block is much larger than the sums next to it."""
    random = np.random.default_rng(2)
    x = random.standard_normal((64, columns)).astype(np.float32)
    if outliers:
        x[random.random(x.shape) < 0.002] *= 50
    blocks = _four_bit(columns, block)
    weights, parts = blocks.values().T.astype(np.float64), x.reshape(64, -1, block)
    step = np.abs(parts).max(-1, keepdims=True) / 127
    rounded = (np.rint(parts / step) * step).reshape(x.shape)
    expected = x @ weights
    unavoidable = np.square(rounded @ weights - expected).mean()
    error = np.square(_product(blocks, x, tmp_path) - expected).mean()
    assert 0.9 * unavoidable < error < 1.1 * unavoidable
