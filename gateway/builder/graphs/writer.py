"""Writes an ONNX graph node by node. Large constants go directly to a second file, so memory never holds them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
_INLINE_BYTES = 1024  # smaller constants stay in the graph, where shape inference and constant folding use them
_ALIGNMENT = 4096  # a memory page, so that the runtime maps each constant and does not read it

Dimension = int | str  # a str names a dynamic dimension


class GraphWriter:
    """Writes the graph to `path` and the constants to `path` + ".data". Use it as a context manager; call `save`."""

    def __init__(self, path: Path, *, opset: int = 21) -> None:
        self._path = path
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._sized: dict[str, Callable[[Mapping[str, int]], NDArray[Any]]] = {}
        self._notes: dict[str, str] = {}
        self._data = self._data_path.open("wb")
        self._data_bytes = 0

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    @property
    def _data_path(self) -> Path:
        return self._path.with_name(self._path.name + ".data")

    def note(self, key: str, value: str) -> None:
        """Add a metadata entry to the saved graph."""
        self._notes[key] = value

    def input(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant. A second call with the same name only returns the name."""
        if name not in self._constants:
            array = np.ascontiguousarray(array)
            self._constants[name] = (
                numpy_helper.from_array(array, name) if array.nbytes <= _INLINE_BYTES else self._external(name, array)
            )
        return name

    def sized_constant(self, name: str, make: Callable[[Mapping[str, int]], NDArray[Any]]) -> str:
        """Add a small constant that each copy of `save_fixed` makes from its sizes."""
        self._sized[name] = make
        return name

    def int4_constant(self, name: str, codes: NDArray[np.int8]) -> str:
        """Add a constant of integers -8..7, two in a byte. Their count is even."""
        if name not in self._constants:
            flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8) & 15
            tensor = self._external(name, flat[0::2] | flat[1::2] << 4)
            tensor.data_type = TensorProto.INT4
            tensor.dims[:] = codes.shape
            self._constants[name] = tensor
        return name

    def reshaped_constant(self, name: str, other: str, shape: Sequence[int]) -> str:
        """Add a constant that shares the bytes of constant `other`, with another name and shape."""
        tensor = TensorProto()
        tensor.CopyFrom(self._constants[other])
        tensor.name = name
        del tensor.dims[:]
        tensor.dims.extend(shape)
        self._constants[name] = tensor
        return name

    def borrow(self, other: GraphWriter, *names: str) -> None:
        """Use constants of another graph in the same folder. Their bytes stay in that graph's file."""
        for name in names:
            self._constants[name] = other._constants[name]

    def node(self, kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output. Returns the name of the output."""
        self.nodes(kind, inputs, [output], domain=domain, **attributes)
        return output

    def nodes(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Add a node with several outputs. An empty name omits an output. Returns the names."""
        name = f"{outputs[-1]}/{kind}"
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def branch(self, outputs: Sequence[str], dtype: int, write: Callable[[], None]) -> onnx.GraphProto:
        """The nodes that `write` adds, as a branch of an `If` with these outputs. Constants are those of the graph."""
        outer, self._nodes = self._nodes, []
        write()
        values = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
        made = helper.make_graph(self._nodes, f"{outputs[0]}/branch", [], values)
        self._nodes = outer
        return made

    def restart(self) -> None:
        """Start another graph with the same constants."""
        self._nodes, self._inputs, self._outputs, self._sized = [], [], [], {}

    def save(self, graph_name: str) -> None:
        self._save(self._path, graph_name, self._inputs, self._outputs)

    def save_fixed(self, path: Path, graph_name: str, **sizes: int) -> None:
        """Save a copy with the same constants, in which each named dimension has the given size."""
        inputs, outputs = ([_fixed(value, sizes) for value in values] for values in (self._inputs, self._outputs))
        made = [numpy_helper.from_array(make(sizes), name) for name, make in self._sized.items()]
        self._save(path, graph_name, inputs, outputs, made)

    def _save(
        self,
        path: Path,
        graph_name: str,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        sized: Sequence[onnx.TensorProto] = (),
    ) -> None:
        constants = [*self._constants.values(), *sized]
        graph = helper.make_graph(self._nodes, graph_name, inputs, outputs, initializer=constants)
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        helper.set_model_props(model, self._notes)
        onnx.save(model, path)

    def _external(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        offset = self._append(array)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self._data_path.name),
            ("offset", offset),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _append(self, array: NDArray[Any]) -> int:
        """Append the array to the file of constants. Returns its offset."""
        offset = self._data_bytes + -self._data_bytes % _ALIGNMENT
        self._data.write(b"\0" * (offset - self._data_bytes))
        self._data.write(array.data)
        self._data_bytes = offset + array.nbytes
        return offset


def _fixed(value: onnx.ValueInfoProto, sizes: dict[str, int]) -> onnx.ValueInfoProto:
    tensor = value.type.tensor_type
    shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]
    return helper.make_tensor_value_info(value.name, tensor.elem_type, shape)
