"""Writes matrix products in graphs of fixed shape, in the number formats of the NPU.

    fp32, fp16  float weights and activations
    int4        blocks of 4 or 8 bits, float activations; blocks from a GGUF file do not change
    w8a16       8-bit weights with one scale for each output, 16-bit activations
    w4a16       blocks of 4 bits with scales on a coarse grid, 16-bit activations

The last two need the range of every activation (`Ranges`, from `builder/npu/calibration.py`).

1. Only products are quantised. Norms, attention, activation functions and the residual stream stay float. A fully
   quantised graph is inexact: 16-bit norms have errors up to 0.4. The compiler accepts float16 at every width. With
   float32, it runs out of memory from 32 tokens on.
2. The residual stream has a few very large values (SmolLM2: 2500, most are below 10). If they set the range of a
   product, the rounding error of all other tokens is too large, so that product keeps float activations.
3. Weights are symmetric, because the NPU computes blocks with a fractional zero point wrongly, without an error. The
   rest of a block's minimum is a small float product with the sums of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.builder.graphs import quantise
from gateway.builder.graphs.linear import LinearWriter
from gateway.builder.graphs.writer import GraphWriter
from gateway.builder.sources.source import Blocks, ModelSource

Precision = Literal["fp32", "fp16", "int4", "w8a16", "w4a16"]

_GRID = 16
#: Factor on the calibrated range. Other text has larger activations, and clipping costs more than one bit.
#: Top-1 agreement of SmolLM2 in w8a16 with 1.1, 1.5, 2 and 3: 96.1, 96.9, 97.7, 96.9 %.
_HEADROOM = 2.0
#: The largest rounding error of 16 bits, as a fraction of a typical token's size. Above it, activations stay float.
_TOLERATED = 0.02


class Range(Struct, frozen=True):
    """The calibrated range of an activation: its ends, and the size (root mean square) of the median token."""

    low: float
    high: float
    typical: float

    @property
    def scale(self) -> np.float16:
        """The scale of a 16-bit code for the range with headroom."""
        span = _HEADROOM * (max(self.high, 0.0) - min(self.low, 0.0))
        return np.float16(max(span / 65535, 1e-6))

    @property
    def zero(self) -> np.uint16:
        return np.uint16(np.clip(round(-_HEADROOM * min(self.low, 0.0) / float(self.scale)), 0, 65535))

    @property
    def resolves_typical_token(self) -> bool:
        """True if 16 bits for the whole range are fine enough for a typical token."""
        return float(self.scale) / 12**0.5 <= _TOLERATED * self.typical


Float = type[np.floating[Any]]
#: activation name -> its range
Ranges = Mapping[str, Range]
#: Provider options for the compilation of a precision. Without this option, the NPU computes products of 4-bit blocks
#: in float and ignores the 16-bit activations.
COMPILE_OPTIONS: dict[Precision, dict[str, str]] = {"w4a16": {"enable_block_quant_weight_optimization": "1"}}


class Products(Protocol):
    """Writes products with the source's weights, in one float type.

    `observed`: activations that must be outputs of the graph for calibration -> their columns.
    """

    @property
    def dtype(self) -> Float: ...

    @property
    def observed(self) -> dict[str, int]: ...

    def product(self, x: str, weight: str, y: str) -> str:
        """Write y = x · wᵀ for the source's tensor `weight`. Returns the name of the result."""


def make_products(source: ModelSource, graph: GraphWriter, precision: Precision, ranges: Ranges | None) -> Products:
    """The writer for a precision. Without ranges, quantised products are written in float32, for calibration."""
    match precision:
        case "fp32":
            return FloatProducts(source, graph, np.float32)
        case "fp16":
            return FloatProducts(source, graph, np.float16)
        case "int4":
            return BlockProducts(source, graph, np.float16)
        case "w8a16":
            return QuantisedProducts(source, graph, np.float16 if ranges else np.float32, 8, ranges)
        case "w4a16":
            return QuantisedProducts(source, graph, np.float16 if ranges else np.float32, 4, ranges)


class FloatProducts:
    """fp32, fp16: a matrix of floats."""

    def __init__(self, source: ModelSource, graph: GraphWriter, dtype: Float) -> None:
        self._source = source
        self._graph = graph
        self.dtype = dtype
        self.observed: dict[str, int] = {}

    def product(self, x: str, weight: str, y: str) -> str:
        matrix = self._graph.constant(weight, self._source.tensor(weight).T.astype(self.dtype))
        return self._graph.node("MatMul", [x, matrix], y)


class BlockProducts:
    """int4: blocks of small integers, float activations."""

    def __init__(self, source: ModelSource, graph: GraphWriter, dtype: Float) -> None:
        self._source = source
        self._linear = LinearWriter(graph, dtype)
        self.dtype = dtype
        self.observed: dict[str, int] = {}

    def product(self, x: str, weight: str, y: str) -> str:
        blocks = self._source.blocks(weight) or quantise.four_bit(self._source.tensor(weight))
        return self._linear.product(y, x, [blocks])


class QuantisedProducts:
    """w8a16, w4a16: integer weights, 16-bit activations.

    Without ranges, it computes the same products in float, for calibration.
    """

    def __init__(
        self, source: ModelSource, graph: GraphWriter, dtype: Float, bits: Literal[4, 8], ranges: Ranges | None
    ) -> None:
        self._source = source
        self._graph = graph
        self.dtype = dtype
        self._bits = bits
        self._ranges = ranges
        self._linear = LinearWriter(graph, dtype)
        self._coded: dict[str, str] = {}
        self.observed: dict[str, int] = {}

    def product(self, x: str, weight: str, y: str) -> str:
        matrix = self._matrix(weight)
        main = y if matrix.missing is None else f"{y}.main"
        columns, rows = matrix.codes.shape
        if self._ranges is None:
            self.observed |= {x: columns, main: rows}
            values = self._graph.constant(weight, matrix.values().astype(self.dtype))
            self._graph.node("MatMul", [x, values], main)
        elif self._ranges[x].resolves_typical_token and self._ranges[main].resolves_typical_token:
            product = self._graph.node("MatMul", [self._code(x), self._weight(weight, matrix)], f"{main}.exact")
            self._rounded(product, self._ranges[main], main)
        else:
            own = self._source.blocks(weight) or quantise.eight_bit(self._source.tensor(weight))
            return self._linear.product(y, x, [own])
        if matrix.missing is None:
            return y
        rest = self._graph.constant(f"{weight}.missing", matrix.missing.T.astype(self.dtype))
        sums = self._linear.sums(x, matrix.block_size)
        return self._graph.node("Add", [main, self._graph.node("MatMul", [sums, rest], f"{y}.rest")], y)

    def _matrix(self, weight: str) -> _Matrix:
        if self._bits == 8:
            return _by_output(self._source.tensor(weight))
        blocks = self._source.blocks(weight)
        if blocks is not None and blocks.bits == 8:
            return _by_output(self._source.tensor(weight))
        return _by_block(blocks or quantise.four_bit(self._source.tensor(weight)))

    def _weight(self, name: str, matrix: _Matrix) -> str:
        constant = self._graph.int4_constant if matrix.bits == 4 else self._graph.constant
        codes = constant(f"{name}.codes", matrix.codes)
        scales = self._graph.constant(f"{name}.scales", matrix.scales.astype(self.dtype))
        zeros = constant(f"{name}.zeros", np.zeros(matrix.scales.shape, np.int8))
        layout: dict[str, Any] = {"axis": 0, "block_size": matrix.block_size} if matrix.block_size else {"axis": 1}
        return self._graph.node("DequantizeLinear", [codes, scales, zeros], f"{name}.values", **layout)

    def _code(self, x: str) -> str:
        if x not in self._coded:
            assert self._ranges is not None
            self._coded[x] = self._rounded(x, self._ranges[x], f"{x}.rounded")
        return self._coded[x]

    def _rounded(self, x: str, covered: Range, y: str) -> str:
        """x, rounded to its 16-bit code."""
        scale = self._graph.constant(f"{y}.scale", np.array(covered.scale, self.dtype))
        zero = self._graph.constant(f"{y}.zero", np.array(covered.zero))
        code = self._graph.node("QuantizeLinear", [x, scale, zero], f"{y}.code")
        return self._graph.node("DequantizeLinear", [code, scale, zero], y)


class _Matrix(Struct, frozen=True, kw_only=True):
    """A transposed weight: codes times scales, plus a correction.

    Args:
        codes: int8 (columns, rows).
        scales: by output (rows,), or by block of inputs (blocks, rows).
        missing: (rows, blocks); its product with the blocks' sums is added to the result.
    """

    bits: int
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    block_size: int = 0
    missing: NDArray[np.float32] | None = None

    def values(self) -> NDArray[np.float32]:
        scales = np.repeat(self.scales, self.block_size, axis=0) if self.block_size else self.scales
        return (self.codes * scales).astype(np.float32)


def _by_output(weights: NDArray[np.float32]) -> _Matrix:
    scales = np.maximum(np.abs(weights).max(1), 1e-6) / np.float32(127)
    scales = scales.astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(weights / scales[:, None]), -127, 127).astype(np.int8)
    return _Matrix(bits=8, codes=codes.T, scales=scales)


def _by_block(blocks: Blocks) -> _Matrix:
    """Round the block scales to the NPU's grid for 16-bit activations: 1/16 to 16/16 of the output's largest scale.

    The NPU rounds other scales to that grid itself. It does not change these.
    """
    blocks = quantise.with_positive_scales(blocks)
    largest = np.maximum(blocks.scale.max(1, keepdims=True), 1e-6)
    unit = (largest / _GRID).astype(np.float16).astype(np.float32)
    scales = np.clip(np.rint(blocks.scale / unit), 1, _GRID) * unit
    codes = (blocks.quants.astype(np.int8) - np.int8(8)).reshape(len(blocks.quants), -1)
    missing = blocks.minimum + 8 * blocks.scale
    return _Matrix(
        bits=4,
        codes=codes.T,
        scales=scales.T,
        block_size=blocks.block_size,
        missing=missing if missing.any() else None,
    )
