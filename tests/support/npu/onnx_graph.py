"""Writes ONNX graphs of one node."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_graph(path: Path, kind: str, inputs: int, shape: list[int | str], **attributes: object) -> Path:
    """One node of type `kind` over `inputs` float32 tensors of one shape, named x0, x1, ..."""
    names = [f"x{index}" for index in range(inputs)]
    node = helper.make_node(kind, names, ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path
