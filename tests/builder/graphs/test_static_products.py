"""Products in the NPU's number formats: their error, and when activations stay float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from gateway.builder.graphs import quantise, static_products
from gateway.builder.graphs.static_products import Precision, Range, Ranges, make_products
from gateway.builder.graphs.writer import GraphWriter
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import ModelSource
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf

WEIGHT = "model.layers.0.mlp.gate_proj.weight"  # (128, 64)
CALM = Range(-5.0, 5.0, 1.0)
SPIKY = Range(-5.0, 5000.0, 1.0)  # a few tokens have outliers


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return open_source(write_tiny_folder(tmp_path_factory.mktemp("floats")))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return open_source(write_tiny_gguf(tmp_path_factory.mktemp("blocks") / "tiny.gguf", stored_as="Q4_1"))


def write(folder: Path, source: ModelSource, precision: Precision, ranges: Ranges | None) -> Path:
    """A graph of one product, x (1, 8, 64) to y (1, 8, 128)."""
    path = folder / "product.onnx"
    with GraphWriter(path) as graph:
        products = make_products(source, graph, precision, ranges)
        kind = TensorProto.FLOAT if products.dtype is np.float32 else TensorProto.FLOAT16
        graph.input("x", kind, [1, 8, 64])
        graph.output(products.product("x", WEIGHT, "y"), kind, [1, 8, 128])
        graph.save("product")
    return path


def run(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A random x and the graph's y, both float32 (8, columns)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    dtype = np.float32 if session.get_inputs()[0].type == "tensor(float)" else np.float16
    x = np.random.default_rng(0).standard_normal((1, 8, 64)).astype(dtype)
    (y,) = session.run(None, {"x": x})
    return x[0].astype(np.float32), y[0].astype(np.float32)


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def error(y: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("precision", "most"), [("fp32", 1e-6), ("fp16", 2e-3), ("int4", 0.12), ("w8a16", 0.012), ("w4a16", 0.12)]
)
def test_product_of_float_source_is_within_tolerance(
    floats: ModelSource, tmp_path: Path, precision: Precision, most: float
) -> None:
    x, y = run(write(tmp_path, floats, precision, {"x": CALM, "y": Range(-12, 12, 2), "y.main": Range(-12, 12, 2)}))
    assert error(y, x @ floats.tensor(WEIGHT).T) < most


@pytest.mark.parametrize(("precision", "most"), [("int4", 2e-3), ("w4a16", 0.04)])
def test_product_of_four_bit_source_is_within_tolerance(
    blocks: ModelSource, tmp_path: Path, precision: Precision, most: float
) -> None:
    """w4a16 rounds the scales to a grid, so its tolerance is larger."""
    x, y = run(write(tmp_path, blocks, precision, {"x": CALM, "y.main": Range(-12, 12, 2)}))
    assert error(y, x @ blocks.tensor(WEIGHT).T) < most


def test_w4a16_product_of_negative_scales_is_within_tolerance(tmp_path: Path) -> None:
    """Q4_0 has a negative scale wherever the number of largest magnitude in a block is positive."""
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", stored_as="Q4_0"))
    own = source.blocks(WEIGHT)
    assert own is not None and (own.scale < 0).mean() > 0.2
    x, y = run(write(tmp_path, source, "w4a16", {"x": CALM} | dict.fromkeys(("y", "y.main"), Range(-12, 12, 2))))
    assert error(y, x @ source.tensor(WEIGHT).T) < 0.04


def test_w4a16_scales_are_on_the_npu_grid(blocks: ModelSource) -> None:
    matrix = static_products._by_block(blocks.blocks(WEIGHT) or quantise.four_bit(blocks.tensor(WEIGHT)))
    sixteenths = matrix.scales / (matrix.scales.max(0, keepdims=True) / 16)  # (blocks, rows)
    assert np.allclose(sixteenths, np.rint(sixteenths), atol=0.02)
    assert sixteenths.min() > 0.9


@pytest.mark.parametrize("precision", ["w8a16", "w4a16"])
def test_product_without_ranges_is_float(floats: ModelSource, tmp_path: Path, precision: Precision) -> None:
    path = write(tmp_path, floats, precision, None)
    assert "QuantizeLinear" not in kinds(path)
    x, y = run(path)
    assert error(y, x @ floats.tensor(WEIGHT).T) < 0.12


@pytest.mark.parametrize("spiky", ["x", "y"])
def test_range_with_outliers_keeps_float_activations(floats: ModelSource, tmp_path: Path, spiky: str) -> None:
    calm = write(tmp_path, floats, "w8a16", {"x": CALM, "y": CALM})
    assert {"QuantizeLinear", "MatMul"} <= kinds(calm)
    path = write(tmp_path, floats, "w8a16", {"x": CALM, "y": CALM} | {spiky: SPIKY})
    assert kinds(path) == {"MatMulNBits"}
    x, y = run(path)
    assert error(y, x @ floats.tensor(WEIGHT).T) < 0.012


def test_code_covers_range_with_headroom() -> None:
    for covered in (CALM, SPIKY, Range(0.0, 3.0, 1.0), Range(-2.0, 0.0, 1.0), Range(2.0, 3.0, 1.0)):
        lowest = -int(covered.zero) * float(covered.scale)
        highest = (65535 - int(covered.zero)) * float(covered.scale)
        assert lowest <= min(covered.low, 0) and highest >= covered.high
        assert lowest <= 0 <= highest  # 0 has a code
    assert Range(0.0, 0.0, 0.0).scale > 0
