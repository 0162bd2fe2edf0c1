"""Runs parts of a CPU graph one after the other, so that memory holds the weights of one part only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gateway.builder.graphs.cpu import Boundary
from gateway.builder.sources.source import TransformerConfig

Rows = NDArray[np.float32]  # (tokens, columns)
Ids = NDArray[np.int64]  # (tokens,)


class GraphParts:
    """A graph of `write_cpu_graph`, in parts that compute one sequence from its first token on."""

    def __init__(self, path: Path, config: TransformerConfig) -> None:
        self._path = path
        self._config = config
        self._model = onnx.load(path, load_external_data=False)
        self._constants = {constant.name: constant for constant in self._model.graph.initializer}
        self.nodes = list(self._model.graph.node)
        self._producers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}

    def layer(
        self, before: Boundary, after: Boundary, hidden: Rows, more: Sequence[str] = ()
    ) -> tuple[Rows, list[Rows]]:
        """The value behind a layer, and other values in it.

        Args:
            hidden: the layer's input, the sum of `before`.
        """
        compute = self.open([name for name in before if name], [*after, *more])
        residual, delta, *rest = compute(boundary_values(before, hidden), np.zeros(len(hidden), np.int64))
        return residual + delta, rest

    def open(self, given: Sequence[str], wanted: Sequence[str]) -> Callable[[Mapping[str, Rows], Ids], list[Any]]:
        """A function from the values `given`, and the ids of the tokens, to the values `wanted`."""
        nodes, needed = self._between(given, wanted)
        rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", None]) for name in given]
        inputs = [value for value in self._model.graph.input if value.name in needed]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted]
        constants = [self._constants[name] for name in needed if name in self._constants]
        graph = helper.make_graph(nodes, "part", [*inputs, *rows], outputs, initializer=constants)
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        path = self._path.with_name("part.onnx")
        onnx.save(model, path)
        session = ort.InferenceSession(path, _settings(), providers=["CPUExecutionProvider"])
        path.unlink()
        fed = [value for value in inputs if value.name not in self._constants]

        def compute(values: Mapping[str, Rows], ids: Ids) -> list[Any]:
            return list(session.run(list(wanted), {value.name: self._feed(value, ids) for value in fed} | dict(values)))

        return compute

    def _between(self, given: Sequence[str], wanted: Sequence[str]) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes that are necessary, in order, and the names of the constants and inputs that they read."""
        necessary: set[int] = set()
        read: set[str] = set()
        left = list(wanted)
        while left:
            name = left.pop()
            if name and name not in given and name not in read:
                read.add(name)
                if (index := self._producers.get(name)) is not None:
                    necessary.add(index)
                    left += _reads(self.nodes[index])
        return [self.nodes[index] for index in sorted(necessary)], read - self._producers.keys()

    def _feed(self, value: onnx.ValueInfoProto, ids: Ids) -> NDArray[Any]:
        if value.name == "input_ids":
            return ids[None]
        if value.name == "attention_mask":
            return np.ones((1, len(ids)), np.int64)
        element = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return np.zeros((1, self._config.kv_heads, 0, self._config.head_dim), element)


def _reads(node: onnx.NodeProto) -> list[str]:
    """The inputs of the node, and of the nodes in its branches."""
    return [*node.input, *(name for branch in node.attribute for inner in branch.g.node for name in inner.input)]


def boundary_values(boundary: Boundary, hidden: Rows) -> dict[str, Rows]:
    """Values at a boundary whose sum is `hidden`."""
    residual, delta = boundary
    return {residual: hidden} | ({delta: np.zeros_like(hidden)} if delta else {})


def _settings() -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.enable_cpu_mem_arena = False
    return settings
