"""The two small CPU graphs around the NPU graphs of a Genie bundle, as ONNX models.

`input_graph`: a mask of ones and zeros and the positions, to the mask, the cosines and the sines in the codes of the
NPU graphs. `logits_graph`: logits in codes, or in float16, to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import BundleError
from gateway.qnn.binary_info import Tensor
from gateway.qnn.chains import COSINES, LOGITS, MASK, SINES
from gateway.worker.decoders.static.cache import Array

MASK_ONES, POSITIONS, LOGITS_FLOAT = "attention_mask_of_ones", "position_ids", "logits_float32"
#: The mask value of a hidden column in float16. exp(-1000) is 0, and sums with scores stay in the range of the type.
_HIDDEN = -1000.0
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint16": TensorProto.UINT16}
_TYPES["uint8"] = TensorProto.UINT8


def input_graph(mask: Tensor, cosines: Tensor, sines: Tensor, table: tuple[Array, Array]) -> onnx.ModelProto:
    """Inputs: mask int64 (1, context), positions int64 (1, rows).

    Outputs: mask (1, 1, rows, context), cosines and sines (1, 1, rows, half). Row r sees the marked columns up to
    context - rows + r.
    """
    constants = {
        "cosine_table": encode(cosines, table[0])[None, None],
        "sine_table": encode(sines, table[1])[None, None],
        "visible_code": encode(mask, np.array(0.0)).astype(np.float32),  # Where takes no uint16; float32 is exact
        "hidden_code": encode(mask, np.array(_lowest(mask))).astype(np.float32),
        "start": np.array(0, np.int64),
        "step": np.array(1, np.int64),
        "as_row": np.array([1, 1, 1, -1], np.int64),
        "as_column": np.array([1, 1, -1, 1], np.int64),
        "flat": np.array([-1], np.int64),
        "first": np.array([0], np.int64),
        "last_axis": np.array([3], np.int64),
        "one_row": np.array([1, 1], np.int64),
        "one_column": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", [POSITIONS, "flat"], ["row_positions"]),
        helper.make_node("Gather", ["cosine_table", "row_positions"], [COSINES], axis=2),
        helper.make_node("Gather", ["sine_table", "row_positions"], [SINES], axis=2),
        helper.make_node("Shape", [POSITIONS], ["rows"], start=1),
        helper.make_node("Shape", [MASK_ONES], ["columns"], start=1),
        helper.make_node("Sub", ["columns", "rows"], ["old_columns"]),
        helper.make_node("Cast", [MASK_ONES], ["marked_flat"], to=TensorProto.BOOL),
        helper.make_node("Reshape", ["marked_flat", "as_row"], ["marked"]),
        # columns before the window: one row of codes for all rows
        helper.make_node("Where", ["marked", "visible_code", "hidden_code"], ["marked_codes"]),
        helper.make_node("Cast", ["marked_codes"], ["row_codes"], to=_type(mask)),
        helper.make_node("Slice", ["row_codes", "first", "old_columns", "last_axis"], ["old_row"]),
        helper.make_node("Concat", ["one_row", "rows", "one_column"], ["old_shape"], axis=0),
        helper.make_node("Expand", ["old_row", "old_shape"], ["old_codes"]),
        # columns of the window
        helper.make_node("Squeeze", ["rows"], ["row_count"]),
        helper.make_node("Range", ["start", "row_count", "step"], ["index"]),
        helper.make_node("Reshape", ["index", "as_row"], ["column"]),
        helper.make_node("Reshape", ["index", "as_column"], ["limit"]),
        helper.make_node("LessOrEqual", ["column", "limit"], ["causal"]),
        helper.make_node("Slice", ["marked", "old_columns", "columns", "last_axis"], ["new_marked"]),
        helper.make_node("And", ["causal", "new_marked"], ["visible"]),
        helper.make_node("Where", ["visible", "visible_code", "hidden_code"], ["new_values"]),
        helper.make_node("Cast", ["new_values"], ["new_codes"], to=_type(mask)),
        helper.make_node("Concat", ["old_codes", "new_codes"], [MASK], axis=3),
    ]
    half = cosines.shape[-1]
    inputs = [
        helper.make_tensor_value_info(MASK_ONES, TensorProto.INT64, [1, "columns"]),
        helper.make_tensor_value_info(POSITIONS, TensorProto.INT64, [1, "rows"]),
    ]
    outputs = [
        helper.make_tensor_value_info(MASK, _type(mask), [1, 1, "rows", "columns"]),
        helper.make_tensor_value_info(COSINES, _type(cosines), [1, 1, "rows", half]),
        helper.make_tensor_value_info(SINES, _type(sines), [1, 1, "rows", half]),
    ]
    return _model(nodes, inputs, outputs, constants)


def logits_graph(logits: Tensor) -> onnx.ModelProto:
    """Input: logits (1, rows, vocab). Output: float32 of the same shape."""
    shape: list[int | str | None] = [1, "rows", logits.shape[-1]]
    constants: dict[str, Array] = {}
    if logits.scale is None:
        nodes = [helper.make_node("Cast", [LOGITS], [LOGITS_FLOAT], to=TensorProto.FLOAT)]
    else:
        constants = {"scale": np.array(logits.scale, np.float32), "zero": np.array(logits.zero_point, logits.dtype)}
        nodes = [helper.make_node("DequantizeLinear", [LOGITS, "scale", "zero"], [LOGITS_FLOAT])]
    inputs = [helper.make_tensor_value_info(LOGITS, _type(logits), shape)]
    return _model(nodes, inputs, [helper.make_tensor_value_info(LOGITS_FLOAT, TensorProto.FLOAT, shape)], constants)


def cast_graph(dtype: DTypeLike) -> bytes:
    """Input: halves (rows, columns) of a type. Output: floats, float32 of the same shape. Serialised."""
    shape: list[int | str | None] = ["rows", "columns"]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Cast", ["halves"], ["floats"], to=TensorProto.FLOAT)
    values = [helper.make_tensor_value_info(*each, shape) for each in (("halves", kind), ("floats", TensorProto.FLOAT))]
    return bytes(_model([node], values[:1], values[1:], {}).SerializeToString())


def encode(tensor: Tensor, values: Array) -> Array:
    """`values` in the type and the codes of `tensor`."""
    if tensor.scale is None:
        return np.asarray(values, tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    codes = np.round(values / tensor.scale) + tensor.zero_point
    return np.clip(codes, limits.min, limits.max).astype(tensor.dtype)


def _lowest(mask: Tensor) -> float:
    return _HIDDEN if mask.scale is None else -mask.zero_point * mask.scale


def _type(tensor: Tensor) -> int:
    if tensor.dtype not in _TYPES:
        raise BundleError(f"The tensor {tensor.name} is of type {tensor.dtype}, which our own engine cannot fill.")
    return _TYPES[tensor.dtype]


def _model(nodes: Any, inputs: Any, outputs: Any, constants: dict[str, Array]) -> onnx.ModelProto:
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "host", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
