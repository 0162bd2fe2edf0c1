"""Reads a source's matrices in the number format in which a bundle for the CPU stores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.builder.graphs import quantise
from gateway.builder.sources.source import EMBEDDING, HEAD, Blocks, ModelSource, layer
from gateway.bundles.stamp import Precision

_ROWS_AT_ONCE = 4096  # of an embedding, which is often the largest tensor
_TABLE_BLOCK = 128  # of the embedding and the head; their product has 15 bits of x, so large blocks cost little

Matrix = Blocks | NDArray[np.float16] | NDArray[np.float32]
#: name of a matrix -> the mean square of each of its inputs over a text, float32 (columns,)
Importance = Mapping[str, NDArray[np.float32]]


class Matrices(Struct, frozen=True):
    """A quantised matrix keeps the numbers of the source. One in floating point gets `precision`.

    With "int4", embedding and head have 8 bits: they are read once for a token, and 4 bits change more answers there.

    Args:
        larger_blocks: blocks of 8 bits that the kernel multiplies slowly are rounded: those of 16 (Q6_K) and those with
            minimums (Q5_K). The layers get blocks of 32, embedding and head of up to 128.
    """

    source: ModelSource
    precision: Precision | Literal["float32"] = "int4"  # "float32": for a reference
    importance: Importance = {}
    larger_blocks: bool = False

    def matrix(self, name: str) -> Matrix:
        """A matrix of a layer."""
        if (own := self.source.blocks(name)) is not None:
            return own if own.bits == 4 else self._rounded(own, quantise.BLOCK)
        if self.precision == "int4":
            return quantise.four_bit(self.source.tensor(name), self.importance.get(name))
        return self._finer(name)

    def table(self) -> Matrix:
        """The embedding: 8-bit blocks, or floats."""
        own = self.source.blocks(EMBEDDING)
        return self._finer(EMBEDDING) if own is None else self._rounded(quantise.with_eight_bits(own), _TABLE_BLOCK)

    def head(self) -> Matrix:
        """A head that is not tied to the embedding."""
        own = self.source.blocks(HEAD)
        if own is None:
            return self._finer(HEAD)
        return own if own.bits == 4 else self._rounded(own, _TABLE_BLOCK)

    def stored_as(self) -> str:
        """The number format of the layers; "source": that of the quantised source."""
        own = self.source.blocks(layer(0, "mlp.down_proj.weight"))
        return self.precision if own is None else "source"

    def _rounded(self, blocks: Blocks, largest: int) -> Blocks:
        return quantise.in_larger_blocks(blocks, largest) if self.larger_blocks else blocks

    def _finer(self, name: str) -> Matrix:
        is_table = name in (EMBEDDING, HEAD)
        groups = row_groups(self.source, name) if is_table else iter((self.source.tensor(name),))
        match self.precision:
            case "float32":
                return np.concatenate(list(groups))
            case "float16":
                return np.concatenate([_half(rows) for rows in groups])
        largest = _TABLE_BLOCK if is_table and self.larger_blocks else quantise.BLOCK
        return quantise.join(
            [quantise.eight_bit(rows, quantise.whole_block(rows.shape[1], largest)) for rows in groups]
        )


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """A value beyond the largest half float becomes the largest."""
    largest = np.finfo(np.float16).max
    return np.clip(values, -largest, largest).astype(np.float16)


def row_groups(source: ModelSource, name: str) -> Iterator[NDArray[np.float32]]:
    """The rows of the embedding or the head, some at a time, so that memory never holds all of them as float32."""
    for start in range(0, source.config.vocab, _ROWS_AT_ONCE):
        yield source.tensor(name, slice(start, start + _ROWS_AT_ONCE))
