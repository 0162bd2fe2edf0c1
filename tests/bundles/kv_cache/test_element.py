"""The element size of a cache, read from graphs as the `onnx` package writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.bundles.kv_cache.element import element_bytes

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize(("element", "size"), [("FLOAT", 4), ("FLOAT16", 2), ("BFLOAT16", 2), ("INT8", 1)])
def test_element_size_is_that_of_the_graph(tmp_path: Path, element: str, size: int) -> None:
    make = onnx.helper.make_tensor_value_info
    other = make("ids", onnx.TensorProto.INT64, ["batch", 1])
    cache = make("past.0.key", onnx.TensorProto.DataType.Value(element), ["batch", 2, "rows", 16])
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [300], [0.5] * 300)
    node = onnx.helper.make_node("Identity", ["ids"], ["out"])
    graph = onnx.helper.make_graph([node], "g", [other, cache], [make("out", 7, None)], initializer=[weights])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    assert element_bytes(tmp_path / "g.onnx", "past.0.key") == size
    assert element_bytes(tmp_path / "g.onnx", "past.0") is None
    assert element_bytes(tmp_path / "none.onnx", "past.0.key") is None
