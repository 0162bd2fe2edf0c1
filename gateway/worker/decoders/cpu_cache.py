"""The KV cache of the CPU decoder: one buffer for each layer's keys and one for its values, with all slots in it.

Slot i is a contiguous part of each buffer, so a range of adjacent slots is a batch without a copy.

The buffers are anonymous memory maps and not `np.zeros`. Both commit memory only when it is written, but numpy asks
Linux for pages of 2 MiB: one short sequence in a context of 8192 then occupied 264 MB instead of 5 MB (measured with
SmolLM2-135M).
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gateway.worker.decoders.base import KVCache

PADDING_ROWS = 7  # the most that our own graphs write behind a sequence (builder/graphs/rows.py)


class SlotBuffers:
    """Memory for `slots` sequences of at most `context` rows, each with padding rows behind it.

    Args:
        tensors: number of buffers, two for each layer.
        slots: number of sequences.
        row: shape of a row, (kv_heads, head_dim).
        context: rows of a sequence.
        dtype: element type of the graph's cache tensors.
    """

    def __init__(self, tensors: int, slots: int, row: tuple[int, int], context: int, dtype: DTypeLike) -> None:
        kv_heads, head_dim = row
        self.slots = slots
        self.context = context
        self._tensors, self._dtype = tensors, dtype
        self._shape = slots, kv_heads, context + PADDING_ROWS, head_dim
        self.renew()

    def renew(self) -> None:
        """Replace the buffers by empty ones. The system has the memory of the old ones when no view of them is left."""
        self.buffers = [_lazy_zeros(self._shape, self._dtype) for _ in range(self._tensors)]

    def run(self, first: int, count: int) -> list[NDArray[np.generic]]:
        """The buffers of `count` adjacent slots, each a contiguous view (count, kv_heads, rows, head_dim)."""
        return [buffer[first : first + count] for buffer in self.buffers]

    def bytes_per_row(self) -> int:
        return sum(buffer[0, :, 0].nbytes for buffer in self.buffers)


def _lazy_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


class SlotCache:
    """The KVCache of one slot."""

    def __init__(self, buffers: SlotBuffers, index: int) -> None:
        self._buffers = buffers
        self.index = index
        self.length = 0

    @property
    def nbytes(self) -> int:
        return self.length * self._buffers.bytes_per_row()

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length

    def copy_from(self, other: KVCache, length: int) -> None:
        assert isinstance(other, SlotCache | CacheSnapshot) and length <= other.length
        for buffer, rows in zip(self._buffers.buffers, other.rows(), strict=True):
            buffer[self.index, :, :length] = rows[:, :length]
        self.length = length

    def snapshot(self) -> CacheSnapshot:
        return CacheSnapshot([rows.copy() for rows in self.rows()])

    def rows(self) -> list[NDArray[np.generic]]:
        """The valid rows in each buffer, views (kv_heads, length, head_dim)."""
        return [buffer[self.index, :, : self.length] for buffer in self._buffers.buffers]


class CacheSnapshot:
    """The KVCache of saved rows. It is only a source for `copy_from`."""

    def __init__(self, rows: list[NDArray[np.generic]]) -> None:
        self._rows = rows
        self.length = rows[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self._rows)

    def rows(self) -> list[NDArray[np.generic]]:
        """The rows in each buffer, (kv_heads, length, head_dim)."""
        return self._rows

    def truncate(self, length: int) -> None:
        raise AssertionError("a snapshot does not change")

    def copy_from(self, other: KVCache, length: int) -> None:
        raise AssertionError("a snapshot does not change")

    def snapshot(self) -> CacheSnapshot:
        return self
