"""Makes the ONNX file through which ONNX Runtime runs one graph of a context binary.

The file has one EPContext node. Its `name` is the name of the graph in the binary. The provider takes an input or
output with an unknown name by its position, without an error, so every name comes from the binary itself.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from gateway.errors import BundleError
from gateway.qnn.binary_info import Graph, Tensor

_TYPES = {
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
}


def wrapper(graph: Graph, binary: str) -> onnx.ModelProto:
    """The ONNX model for `graph`. Raises BundleError for a tensor type that ONNX does not have.

    Args:
        binary: the file name of the context binary.
    """
    node = helper.make_node(
        "EPContext",
        [tensor.name for tensor in graph.inputs],
        [tensor.name for tensor in graph.outputs],
        name=graph.name,
        domain="com.microsoft",
        main_context=1,
        embed_mode=0,
        ep_cache_context=binary,
        source="Qnn",
    )
    inputs, outputs = ([_value(tensor) for tensor in tensors] for tensors in (graph.inputs, graph.outputs))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph([node], graph.name, inputs, outputs), opset_imports=opsets, ir_version=10
    )


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    if tensor.dtype not in _TYPES:
        raise BundleError(f"The tensor {tensor.name} is of type {tensor.dtype}, which is not supported.")
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], tensor.shape)
