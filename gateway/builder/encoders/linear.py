"""Matrix products of an encoder, in float or with int8.

int8, for ONNX Runtime's fastest integer product:

1. Each row of the input has its own scale, and each column of the matrix. So the numbers of a text do not depend on the
   other texts of the batch.
2. A few channels of the input are much larger than all others, in every text. With them the scale of a row would be too
   coarse: MiniLM's vectors would have a cosine of 0.989 with those of float. These channels are multiplied in float.
   The calibration finds them (`calibration.py`).
3. An input that is hardly negative, as after GELU, uses the whole range of 0 to 255: the zero point is different for
   each row. What it adds to the product is taken off in the float product of 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gateway.builder.graphs.writer import MICROSOFT, GraphWriter

Array = NDArray[np.float32]

_FLOAT_SHARE = 48  # one of 48 channels is multiplied in float
_HARDLY_NEGATIVE = 0.5  # the largest negative number of the rest, relative to the largest positive one


class Channels(Struct, frozen=True, kw_only=True):
    """The largest and the smallest number of each channel of an input, in the calibration."""

    highest: Array
    lowest: Array


class Linear(Protocol):
    """Writes products of rows (rows, in) with matrices (out, in)."""

    def product(self, name: str, rows: str, weight: Array) -> str:
        """The name of the float32 result (rows, out), without a bias."""

    def table(self, name: str, weight: Array, ids: str) -> str:
        """The name of the rows `ids` int64 of a table, as float32."""


class FloatLinear:
    """Implements Linear. `inputs`: the names of the inputs of products."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph
        self.inputs: dict[str, int] = {}  # and their columns

    def product(self, name: str, rows: str, weight: Array) -> str:
        self.inputs[rows] = weight.shape[1]
        return self._graph.node("MatMul", [rows, self._graph.constant(f"{name}.weight", weight.T)], name)

    def table(self, name: str, weight: Array, ids: str) -> str:
        return self._graph.node("Gather", [self._graph.constant(f"{name}.weight", weight), ids], name)


class _Rows(Struct, frozen=True, kw_only=True):
    """The names of the parts of one input: uint8 and its scales (rows, 1); float channels, and which they are."""

    quants: str
    steps: str
    large: str
    channels: NDArray[np.int64]
    zero: int  # the zero point of all rows
    has_offset: bool  # the last column of `large` is minus the scale times the zero point


class Int8Linear:
    """Implements Linear.

    Args:
        channels: by the name of an input of products.
    """

    def __init__(self, graph: GraphWriter, channels: Mapping[str, Channels]) -> None:
        self._graph, self._channels = graph, channels
        self._made: dict[str, _Rows] = {}

    def product(self, name: str, rows: str, weight: Array) -> str:
        graph = self._graph
        made = self._rows(rows)
        rest = weight.copy()
        rest[:, made.channels] = 0
        codes, steps = _by_row(rest)
        inputs = [
            made.quants,
            graph.constant(f"{name}.weight", codes.T),
            self._number("one", 1),
            graph.constant(f"{name}.steps", steps),
            graph.constant(f"zero_{made.zero}", np.array(made.zero, np.uint8)),
        ]
        product = graph.node("MatMulIntegerToFloat", inputs, f"{name}.integers", domain=MICROSOFT)
        scaled = graph.node("Mul", [product, made.steps], f"{name}.scaled")
        large = weight[:, made.channels]
        if made.has_offset:
            large = np.concatenate([large, (codes.astype(np.float32) * steps[:, None]).sum(1, keepdims=True)], axis=1)
        return graph.node("Gemm", [made.large, graph.constant(f"{name}.large", large.T), scaled], name)

    def table(self, name: str, weight: Array, ids: str) -> str:
        graph = self._graph  # int8 codes would cost a fifth of the error
        rows = graph.node("Gather", [graph.constant(f"{name}.weight", weight.astype(np.float16)), ids], f"{name}.half")
        return graph.node("Cast", [rows], name, to=TensorProto.FLOAT)

    def _rows(self, rows: str) -> _Rows:
        if rows not in self._made:
            seen = self._channels[rows]
            size = np.maximum(seen.highest, -seen.lowest)
            channels = np.sort(np.argsort(-size, kind="stable")[: max(1, len(size) // _FLOAT_SHARE)])
            rest = np.delete(np.arange(len(size)), channels)
            is_positive = -seen.lowest[rest].min() < _HARDLY_NEGATIVE * seen.highest[rest].max()
            self._made[rows] = self._split(rows, channels, len(size), is_positive=bool(is_positive))
        return self._made[rows]

    def _split(self, rows: str, channels: NDArray[np.int64], count: int, *, is_positive: bool) -> _Rows:
        graph = self._graph
        large = graph.node("Gather", [rows, graph.constant(f"{rows}.channels", channels)], f"{rows}.large", axis=1)
        mask = np.ones(count, np.float32)
        mask[channels] = 0
        rest = graph.node("Mul", [rows, graph.constant(f"{rows}.mask", mask)], f"{rows}.rest")
        if is_positive:
            steps, zeros, offset = self._unsigned(rest)
            large = graph.node("Concat", [large, offset], f"{rows}.large_and_offset", axis=1)
        else:
            steps, zeros = self._signed(rest)
        flat = graph.node("Reshape", [steps, graph.constant("flat", np.array([-1]))], f"{rows}.flat_steps")
        quants = graph.node("QuantizeLinear", [rest, flat, zeros], f"{rows}.uint8", axis=0)
        zero = 0 if is_positive else 128
        return _Rows(quants=quants, steps=steps, large=large, channels=channels, zero=zero, has_offset=is_positive)

    def _signed(self, rows: str) -> tuple[str, str]:
        """The scales (rows, 1), and the zero points (rows,), all 128."""
        graph = self._graph
        largest = self._reduced("ReduceMax", graph.node("Abs", [rows], f"{rows}.size"))
        steps = self._steps(largest, 127)
        middle = helper.make_tensor("middle", TensorProto.UINT8, [1], [128])
        count = graph.node("Shape", [rows], f"{rows}.count", start=0, end=1)
        return steps, graph.node("ConstantOfShape", [count], f"{rows}.zeros", value=middle)

    def _unsigned(self, rows: str) -> tuple[str, str, str]:
        """The scales (rows, 1), the zero points (rows,), and minus their products (rows, 1)."""
        graph = self._graph
        lowest = self._reduced("ReduceMin", rows)  # at most 0: the mask makes zeros
        span = graph.node("Sub", [self._reduced("ReduceMax", rows), lowest], f"{rows}.span")
        steps = self._steps(span, 255)
        zeros = graph.node("Round", [graph.node("Div", [lowest, steps], f"{rows}.lowest_step")], f"{rows}.minus_zero")
        offset = graph.node("Mul", [zeros, steps], f"{rows}.offset")
        flat = graph.node("Reshape", [zeros, graph.constant("flat", np.array([-1]))], f"{rows}.flat_zeros")
        positive = graph.node("Neg", [flat], f"{rows}.zero")
        return steps, graph.node("Cast", [positive], f"{rows}.zeros", to=TensorProto.UINT8), offset

    def _reduced(self, kind: str, rows: str) -> str:
        axis = self._graph.constant("last_axis", np.array([-1]))
        return self._graph.node(kind, [rows, axis], f"{rows}.{kind}", keepdims=1)

    def _steps(self, span: str, count: int) -> str:
        graph = self._graph
        steps = graph.node("Mul", [span, self._number(f"1/{count}", 1 / count)], f"{span}.unit")
        return graph.node("Max", [steps, self._number("tiny", 1e-20)], f"{span}.steps")

    def _number(self, name: str, value: float) -> str:
        return self._graph.constant(name, np.array(value, np.float32))


def _by_row(weight: Array) -> tuple[NDArray[np.int8], Array]:
    steps = np.maximum(np.abs(weight).max(1), np.float32(1e-20)) / np.float32(127)
    return np.rint(weight / steps[:, None]).astype(np.int8), steps
