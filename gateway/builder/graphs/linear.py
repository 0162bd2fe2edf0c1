"""Writes quantised matrix products as graph nodes. Selects the kernel for each kind of blocks, without loss."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto

from gateway.builder.graphs import quantise
from gateway.builder.graphs.matrices import Matrix
from gateway.builder.graphs.writer import MICROSOFT, GraphWriter
from gateway.builder.sources.source import Blocks

FLOAT_ACTIVATIONS, INT8_ACTIVATIONS = 0, 4  # MatMulNBits' accuracy levels


class Packed(Struct, frozen=True, kw_only=True):
    """A matrix that was written as constants: their names, and the attributes for the kernel.

    `missing`: (blocks, rows), what the kernel omits from every weight of a block. None: it omits nothing.
    `sums`: how many sums of blocks of x follow x, two times. 0: none (quantise.with_sums_as_inputs).
    """

    quants: str
    scales: str
    zeros: str | None
    missing: str | None = None
    sums: int = 0
    rows: int
    columns: int
    bits: int
    block_size: int


class LinearWriter:
    """Writes products to `graph`, in one float type.

    Args:
        finer: bits of the matrices whose products use 15 bits of x (`_finer_halves`). Others use the kernel directly.
        accuracy_level: of the kernel. 0: float activations, which are fast on the CPU only for 4 bits. 4: activations
            are rounded to int8, as in llama.cpp and onnxruntime-genai. That is less work, and SmolLM2's logits change
            by 0.2 (root mean square).
        rank: number of dimensions of x and y. Rows are the second last. With rank 2, one node multiplies a row's rest
            and adds it.
    """

    def __init__(
        self,
        graph: GraphWriter,
        dtype: type[np.floating[Any]] = np.float32,
        *,
        finer: Collection[int] = (),
        accuracy_level: int = FLOAT_ACTIVATIONS,
        rank: Literal[2, 3] = 3,
    ) -> None:
        self._graph = graph
        self._dtype = dtype
        self._finer = finer
        self._accuracy_level = accuracy_level
        self._rank = rank
        self._block_sums: dict[tuple[str, int], str] = {}
        self._with_sums: dict[tuple[str, int], str] = {}
        self._two_rows: dict[tuple[str, int], str] = {}
        self._in_blocks: dict[tuple[str, int], str] = {}

    def product(self, name: str, x: str, parts: Sequence[Matrix], bias: NDArray[np.float32] | None = None) -> str:
        """y = x · wᵀ + bias. y contains the rows of all parts in order. Parts of one kind are one product."""
        groups = [_join(list(group)) for _, group in groupby(parts, _kind)]
        packed = [self.pack(f"{name}.{index}", matrix) for index, matrix in enumerate(groups)]
        outputs = [self.packed_product(matrix, x, f"{name}.{index}.y") for index, matrix in enumerate(packed)]
        y = outputs[0] if len(outputs) == 1 else self._graph.node("Concat", outputs, f"{name}.joined", axis=-1)
        if bias is None:
            return y
        return self._graph.node(
            "Add", [y, self._graph.constant(f"{name}.bias", bias.astype(self._dtype))], f"{name}.biased"
        )

    def pack(self, name: str, blocks: Matrix) -> Packed:
        """Write the constants of a matrix."""
        graph = self._graph
        if not isinstance(blocks, Blocks):
            rows, columns = blocks.shape
            floats = graph.constant(f"{name}.floats", blocks)
            return Packed(quants=floats, scales="", zeros=None, rows=rows, columns=columns, bits=16, block_size=0)
        blocks = quantise.centred(blocks)
        sums = 0
        if self._accuracy_level == INT8_ACTIVATIONS and blocks.bits == 4 and _missing(blocks) is not None:
            sums = blocks.scale.shape[1]
            blocks = quantise.with_sums_as_inputs(blocks)
        zeros, missing = _zero_points(blocks), _missing(blocks)
        rows, count = blocks.scale.shape
        quants = _pairs(blocks.quants) if blocks.bits == 4 else blocks.quants.view(np.uint8) ^ np.uint8(128)
        return Packed(
            quants=graph.constant(f"{name}.quants", quants),
            scales=graph.constant(f"{name}.scales", blocks.scale.astype(self._dtype)),
            zeros=None if zeros is None else graph.constant(f"{name}.zeros", zeros),
            missing=None if missing is None else graph.constant(f"{name}.missing", missing.T.astype(self._dtype)),
            rows=rows,
            sums=sums,
            columns=count * blocks.block_size,
            bits=blocks.bits,
            block_size=blocks.block_size,
        )

    def packed_product(self, matrix: Packed, x: str, output: str) -> str:
        """x · wᵀ. Without zero points, the kernel uses 8 for 4 bits and 128 for 8 bits.

        A matrix of half floats becomes one of floats when the graph is loaded: the CPU has no faster product.
        """
        if matrix.bits == 16:
            floats = self._graph.node("Cast", [matrix.quants], f"{output}.floats", to=TensorProto.FLOAT)
            if self._rank == 2:
                return self._graph.node("Gemm", [x, floats], output, transB=1)
            weights = self._graph.node("Transpose", [floats], f"{output}.transposed", perm=[1, 0])
            return self._graph.node("MatMul", [x, weights], output)
        if matrix.sums:
            x = self._followed_by_sums(x, matrix.block_size, -matrix.sums % matrix.block_size)
        if matrix.missing is not None:
            return self._corrected(matrix, matrix.missing, x, output)
        if matrix.bits in self._finer:
            return self._graph.node("Add", self._finer_halves(matrix, x, output), output)
        return self._kernel(matrix, x, output, self._accuracy_level)

    def _corrected(self, matrix: Packed, missing: str, x: str, output: str) -> str:
        """The kernel's product and the product of the blocks' sums with what the kernel omits."""
        sums = self.sums(x, matrix.block_size)
        if matrix.bits not in self._finer and self._rank == 2:
            y = self._kernel(matrix, x, f"{output}.kernel", self._accuracy_level)
            return self._graph.node("Gemm", [sums, missing, y], output)
        rest = self._graph.node("MatMul", [sums, missing], f"{output}.rest")
        if matrix.bits in self._finer:
            return self._graph.node("Sum", [*self._finer_halves(matrix, x, output), rest], output)
        return self._graph.node(
            "Add", [self._kernel(matrix, x, f"{output}.kernel", self._accuracy_level), rest], output
        )

    def _kernel(self, matrix: Packed, x: str, output: str, accuracy_level: int) -> str:
        return self._graph.node(
            "MatMulNBits",
            [x, matrix.quants, matrix.scales, *([matrix.zeros] if matrix.zeros else [])],
            output,
            domain=MICROSOFT,
            K=matrix.columns,
            N=matrix.rows,
            bits=matrix.bits,
            block_size=matrix.block_size,
            accuracy_level=accuracy_level,
        )

    def _finer_halves(self, matrix: Packed, x: str, output: str) -> Sequence[str]:
        """Two values whose sum is x · wᵀ with about 15 bits of x, from a kernel with 7 bits (accuracy level 4).

        The rounding error of x is multiplied as additional rows, so the kernel reads the weights only once.
        Measured on a head of 49,152 rows: error 4e-5 instead of 7e-3, 9.5 ms instead of 4.7, and 475 ms at level 0.
        """
        rows = self._coarse_and_rest(x, matrix.block_size, matrix.columns)
        products = self._kernel(matrix, rows, f"{output}.parts", INT8_ACTIVATIONS)
        halves = [f"{output}.of_coarse", f"{output}.of_rest"]
        return self._graph.nodes("Split", [products], halves, axis=self._rank - 2, num_outputs=2)

    def _coarse_and_rest(self, x: str, size: int, columns: int) -> str:
        """(..., rows, columns) -> (..., 2 * rows, columns): x rounded to the int8 grid, then the rounding error."""
        key = x, size
        if key in self._two_rows:
            return self._two_rows[key]
        graph = self._graph
        blocks = self._blocks(x, size)
        magnitude = graph.node("Abs", [blocks], f"{x}.magnitude")
        last = graph.constant("last_axis", np.array([-1]))
        largest = graph.node("ReduceMax", [magnitude, last], f"{x}.largest")
        scale = graph.node("Div", [largest, graph.constant("127", np.array(127, np.float32))], f"{x}.scale")
        step = graph.node("Add", [scale, graph.constant("not_zero", np.array(1e-20, np.float32))], f"{x}.step")
        steps = graph.node("Round", [graph.node("Div", [blocks, step], f"{x}.exact_steps")], f"{x}.steps")
        coarse = graph.node("Mul", [steps, step], f"{x}.coarse")
        rest = graph.node("Sub", [blocks, coarse], f"{x}.rest")
        both = graph.node("Concat", [coarse, rest], f"{x}.both", axis=self._rank - 2)
        self._two_rows[key] = graph.node("Reshape", [both, self._shape(columns)], f"{x}.two_rows")
        return self._two_rows[key]

    def lookup(self, matrix: Packed, ids: str, output: str) -> str:
        """Look up rows of an 8-bit matrix, or of half floats: (..., ids) -> (..., ids, columns).

        One with minimums needs a list of ids.
        """
        if matrix.bits == 16:
            halves = self._graph.node("Gather", [matrix.quants, ids], f"{output}.halves", axis=0)
            return self._graph.node("Cast", [halves], output, to=TensorProto.FLOAT)
        count = matrix.columns // matrix.block_size
        scales = self._graph.reshaped_constant(f"{matrix.scales}_by_row", matrix.scales, [matrix.rows, count, 1])
        blocks = self._graph.node(
            "GatherBlockQuantized",
            [matrix.quants, ids, scales],
            f"{output}.blocks",
            domain=MICROSOFT,
            bits=8,
            block_size=matrix.block_size,
            gather_axis=0,
            quantize_axis=2,
        )
        if matrix.missing is not None:
            rows = self._graph.node("Gather", [matrix.missing, ids], f"{output}.missing_by_block", axis=1)
            missing = self._graph.node("Transpose", [rows], f"{output}.missing", perm=[1, 0])
            last = self._graph.constant("last_axis", np.array([-1]))
            missing = self._graph.node("Unsqueeze", [missing, last], f"{output}.missing_of_each")
            blocks = self._graph.node("Add", [blocks, missing], f"{output}.exact_blocks")
        return self._graph.node("Reshape", [blocks, self._shape(matrix.columns)], output)

    def sums(self, x: str, size: int) -> str:
        """The sum of each block of inputs: (..., columns) -> (..., columns / size)."""
        key = (x, size)
        if key not in self._block_sums:
            last = self._graph.constant("last_axis", np.array([-1]))
            self._block_sums[key] = self._graph.node(
                "ReduceSum", [self._blocks(x, size), last], f"{x}.sums_of_{size}", keepdims=0
            )
        return self._block_sums[key]

    def _followed_by_sums(self, x: str, size: int, padding: int) -> str:
        """x, and two times the sums of its blocks of `size` and `padding` zeros: see `quantise.with_sums_as_inputs`."""
        key = (x, size)
        if key not in self._with_sums:
            sums, graph = self.sums(x, size), self._graph
            if padding:
                pads = np.array([0] * (2 * self._rank - 1) + [padding])
                sums = graph.node("Pad", [sums, graph.constant(f"padding_{padding}", pads)], f"{sums}.padded")
            self._with_sums[key] = graph.node("Concat", [x, sums, sums], f"{x}.and_sums_of_{size}", axis=-1)
        return self._with_sums[key]

    def _blocks(self, x: str, size: int) -> str:
        """(..., columns) -> (..., blocks, size)"""
        key = (x, size)
        if key not in self._in_blocks:
            self._in_blocks[key] = self._graph.node("Reshape", [x, self._shape(-1, size)], f"{x}.blocks_of_{size}")
        return self._in_blocks[key]

    def _shape(self, *last: int) -> str:
        """A shape that keeps the first dimensions."""
        name = "_".join(["shape", str(self._rank), *map(str, last)])
        return self._graph.constant(name, np.array([0] * (self._rank - 1) + list(last)))


def _kind(part: Matrix) -> tuple[int, int]:
    return (part.bits, part.block_size) if isinstance(part, Blocks) else (16, 0)


def _join(parts: list[Matrix]) -> Matrix:
    blocks = [part for part in parts if isinstance(part, Blocks)]
    floats: list[NDArray[Any]] = [part for part in parts if not isinstance(part, Blocks)]
    return quantise.join(blocks) if blocks else np.concatenate(floats)


def _zero_points(blocks: Blocks) -> NDArray[np.uint8] | None:
    """Packed zero points (rows, bytes). None if the minimums are not whole steps, or if all have the default value."""
    if blocks.bits != 4:
        return None
    zeros = np.rint(-blocks.minimum / np.where(blocks.scale == 0, 1, blocks.scale))
    exact = np.array_equal(-zeros * blocks.scale, blocks.minimum) and zeros.min() >= 0 and zeros.max() <= 15
    if not exact or (zeros == 8).all():
        return None
    return _pairs(np.pad(zeros.astype(np.uint8), ((0, 0), (0, zeros.shape[1] % 2))))


def _missing(blocks: Blocks) -> NDArray[np.float32] | None:
    """(rows, blocks): the value that the kernel omits from every weight of a block. None: it omits nothing."""
    if _zero_points(blocks) is not None:
        return None
    missing = blocks.minimum + (8 if blocks.bits == 4 else 0) * blocks.scale
    return missing if missing.any() else None


def _pairs(quants: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack 4-bit numbers along the last axis, two in a byte, the first one in the low nibble."""
    packed: NDArray[np.uint8] = quants[..., 0::2] | (quants[..., 1::2] << 4)
    return packed
