"""Matrix products of an encoder, in float or with int8.

int8: each row of the input has its own scale, the largest number of the row is 127. Each column of the matrix has its
own scale too. So the numbers of a text do not depend on the other texts of the batch.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gateway.builder.graphs.writer import MICROSOFT, GraphWriter

Array = NDArray[np.float32]


class Linear(Protocol):
    """Writes products of rows (rows, in) with matrices (out, in)."""

    def product(self, name: str, rows: str, weight: Array) -> str:
        """The name of the float32 result (rows, out), without a bias."""

    def table(self, name: str, weight: Array, ids: str) -> str:
        """The name of the rows `ids` int64 of a table, as float32."""


class FloatLinear:
    """Implements Linear."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph

    def product(self, name: str, rows: str, weight: Array) -> str:
        return self._graph.node("MatMul", [rows, self._graph.constant(f"{name}.weight", weight.T)], name)

    def table(self, name: str, weight: Array, ids: str) -> str:
        return self._graph.node("Gather", [self._graph.constant(f"{name}.weight", weight), ids], name)


class Int8Linear:
    """Implements Linear."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph
        self._quantised: dict[str, tuple[str, str]] = {}  # rows -> int8 rows, scales (rows, 1)

    def product(self, name: str, rows: str, weight: Array) -> str:
        graph = self._graph
        quants, scales = self._rows(rows)
        codes, steps = _by_row(weight)
        inputs = [
            quants,
            graph.constant(f"{name}.weight", codes.T),
            graph.constant("one", np.array(1, np.float32)),
            graph.constant(f"{name}.steps", steps),
            graph.constant("middle", np.array(128, np.uint8)),
        ]
        product = graph.node("MatMulIntegerToFloat", inputs, f"{name}.scaled", domain=MICROSOFT)
        return graph.node("Mul", [product, scales], name)

    def table(self, name: str, weight: Array, ids: str) -> str:
        graph = self._graph
        codes, steps = _by_row(weight)
        rows = graph.node("Gather", [graph.constant(f"{name}.weight", codes), ids], f"{name}.codes")
        scales = graph.node("Gather", [graph.constant(f"{name}.steps", steps[:, None]), ids], f"{name}.scales")
        return graph.node("Mul", [graph.node("Cast", [rows], f"{name}.float", to=TensorProto.FLOAT), scales], name)

    def _rows(self, rows: str) -> tuple[str, str]:
        if rows not in self._quantised:
            graph = self._graph
            size = graph.node("Abs", [rows], f"{rows}.size")
            axes = graph.constant("last_axis", np.array([-1]))
            largest = graph.node("ReduceMax", [size, axes], f"{rows}.largest", keepdims=1)
            scales = graph.node(
                "Mul", [largest, graph.constant("1/127", np.array(1 / 127, np.float32))], f"{rows}.scales"
            )
            scales = graph.node("Max", [scales, graph.constant("tiny", np.array(1e-20, np.float32))], f"{rows}.steps")
            flat = graph.node("Reshape", [scales, graph.constant("flat", np.array([-1]))], f"{rows}.flat_steps")
            count = graph.node("Shape", [flat], f"{rows}.count")
            middle = helper.make_tensor("middle", TensorProto.UINT8, [1], [128])
            zeros = graph.node("ConstantOfShape", [count], f"{rows}.zeros", value=middle)
            quants = graph.node("QuantizeLinear", [rows, flat, zeros], f"{rows}.uint8", axis=0)
            self._quantised[rows] = quants, scales
        return self._quantised[rows]


def _by_row(weight: Array) -> tuple[NDArray[np.int8], Array]:
    steps = np.maximum(np.abs(weight).max(1), np.float32(1e-20)) / np.float32(127)
    return np.rint(weight / steps[:, None]).astype(np.int8), steps
