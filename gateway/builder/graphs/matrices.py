"""Reads a source's matrices in the number format in which a bundle for the CPU stores them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.builder.graphs import quantise
from gateway.builder.sources.source import EMBEDDING, HEAD, Blocks, ModelSource, layer
from gateway.bundles.stamp import Precision

_ROWS_AT_ONCE = 4096  # of an embedding, which is often the largest tensor

Matrix = Blocks | NDArray[np.float16] | NDArray[np.float32]
#: name of a matrix -> the mean square of each of its inputs over a text, float32 (columns,)
Importance = Mapping[str, NDArray[np.float32]]


class Matrices(Struct, frozen=True):
    """A quantised matrix keeps the numbers of the source. One in floating point gets `precision`.

    With "int4", embedding and head have 8 bits: they are read once for a token, and 4 bits change more answers there.
    """

    source: ModelSource
    precision: Precision | Literal["float32"] = "int4"  # "float32": for a reference
    importance: Importance = {}

    def matrix(self, name: str) -> Matrix:
        """A matrix of a layer."""
        if (own := self.source.blocks(name)) is not None:
            return own
        if self.precision == "int4":
            return quantise.four_bit(self.source.tensor(name), self.importance.get(name))
        return self._finer(name)

    def table(self) -> Matrix:
        """The embedding: 8-bit blocks, or floats."""
        own = self.source.blocks(EMBEDDING)
        return self._finer(EMBEDDING) if own is None else quantise.with_eight_bits(own)

    def head(self) -> Matrix:
        """A head that is not tied to the embedding."""
        return self.source.blocks(HEAD) or self._finer(HEAD)

    def stored_as(self) -> str:
        """The number format of the layers; "source": that of the quantised source."""
        own = self.source.blocks(layer(0, "mlp.down_proj.weight"))
        return self.precision if own is None else "source"

    def _finer(self, name: str) -> Matrix:
        groups = row_groups(self.source, name) if name in (EMBEDDING, HEAD) else iter((self.source.tensor(name),))
        match self.precision:
            case "float32":
                return np.concatenate(list(groups))
            case "float16":
                return np.concatenate([_half(rows) for rows in groups])
        return _eight_bit(groups)


def _eight_bit(groups: Iterable[NDArray[np.float32]]) -> Blocks:
    return quantise.join([quantise.eight_bit(rows) for rows in groups])


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """A value beyond the largest half float becomes the largest."""
    largest = np.finfo(np.float16).max
    return np.clip(values, -largest, largest).astype(np.float16)


def row_groups(source: ModelSource, name: str) -> Iterator[NDArray[np.float32]]:
    """The rows of the embedding or the head, some at a time, so that memory never holds all of them as float32."""
    for start in range(0, source.config.vocab, _ROWS_AT_ONCE):
        yield source.tensor(name, slice(start, start + _ROWS_AT_ONCE))
