"""Buffers that a device reads in place, and the key/value cache of one sequence made of them.

A graph of fixed shape wants its cache in tensors of fixed size: the whole context where it writes the new rows itself,
the context less its own width where it hands them back. `StaticCache` keeps the rows from the left and lays the
buffers out for whichever graph comes next; that copies the valid rows only when the shapes differ, which is when a
sequence passes from prompt to steps, or to a longer context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from msgspec import Struct
from numpy.typing import DTypeLike, NDArray

from gateway.worker.decoders.base import KVCache

Array = NDArray[Any]


class Buffer:
    """A tensor in memory that host and device share. `array` is a view of it."""

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, memory: Any = None) -> None:
        """`memory`: the device's own host-accessible memory (OrtMemoryInfo), if it has any."""
        self.value, self.array = _shared(shape, dtype, memory) or _plain(shape, dtype)


class Part(Buffer):
    """One sequence's place in a tensor whose first axis counts sequences."""

    def __init__(self, whole: Buffer, place: int) -> None:
        self.array = whole.array[place : place + 1]
        self.value = ort.OrtValue.ortvalue_from_numpy(self.array)


def _shared(shape: Sequence[int], dtype: DTypeLike, memory: Any) -> tuple[ort.OrtValue, Array] | None:
    """A tensor in the device's memory; None where the driver gives none, or none that numpy can see."""
    if memory is None:
        return None
    try:
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=memory)
        array: Array = value.numpy()
    except Exception:  # onnxruntime's exceptions have no common base; the plain memory works everywhere
        return None
    return (value, array) if array.ctypes.data == value.data_ptr() else None


def _plain(shape: Sequence[int], dtype: DTypeLike) -> tuple[ort.OrtValue, Array]:
    array: Array = np.zeros(shape, dtype)
    return ort.OrtValue.ortvalue_from_numpy(array), array


class TensorLayout(Struct, frozen=True, kw_only=True):
    """How one graph wants one tensor of the cache: `axis` counts rows, `empty` fills those that are not valid."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int
    empty: int

    @property
    def rows(self) -> int:
        return self.shape[self.axis]

    def slice(self, start: int, stop: int) -> tuple[slice, ...]:
        return (slice(None),) * self.axis + (slice(start, stop),)


#: tensor name -> its layout, for all layers
Layout = Mapping[str, TensorLayout]


class StaticCache:
    """See KVCache. Holds no buffer until a graph asks for one. `number`: of its decoder's caches, from 0 on."""

    def __init__(self, memory: Any = None, number: int = 0) -> None:
        self._memory = memory
        self.number = number
        self._layout: Layout = {}
        self.buffers: dict[str, Buffer] = {}
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Of the valid rows, which is what `keep` takes."""
        return sum(
            self.buffers[name].array[tensor.slice(0, self.length)].nbytes for name, tensor in self._layout.items()
        )

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length

    def copy_from(self, other: KVCache, length: int) -> None:
        assert isinstance(other, StaticCache) and length <= other.length
        self.length = 0
        self.lay_out(other._layout)
        for name, tensor in self._layout.items():
            rows = tensor.slice(0, length)
            self.buffers[name].array[rows] = other.buffers[name].array[rows]
        self.length = length

    def snapshot(self) -> StaticCache:
        kept = StaticCache()
        kept._layout, kept.length = self._layout, self.length
        kept.buffers = {name: self._valid(name, tensor) for name, tensor in self._layout.items()}
        return kept

    def _valid(self, name: str, tensor: TensorLayout) -> Buffer:
        rows = self.buffers[name].array[tensor.slice(0, self.length)]
        buffer = Buffer(rows.shape, tensor.dtype)
        buffer.array[...] = rows
        return buffer

    def lay_out(self, layout: Layout) -> None:
        """Bring the buffers into the shapes of `layout`; the valid rows keep their contents."""
        if layout is self._layout:
            return
        self.buffers = {name: self._converted(name, tensor) for name, tensor in layout.items()}
        self._layout = layout

    def move(self, layout: Layout, buffers: dict[str, Buffer]) -> None:
        """Take `buffers`, which have the shapes of `layout`, for its own; the valid rows come along."""
        for name, buffer in buffers.items():
            self._copy_rows(name, buffer)
        self.buffers, self._layout = buffers, layout

    def write(self, name: str, rows: Array, start: int) -> None:
        """Put rows into a tensor from row `start` on; the axis is the tensor's own."""
        tensor = self._layout[name]
        self.buffers[name].array[tensor.slice(start, start + rows.shape[tensor.axis])] = rows

    def _converted(self, name: str, wanted: TensorLayout) -> Buffer:
        held = self._layout.get(name)
        if held is not None and held.shape == wanted.shape:
            return self.buffers[name]
        buffer = Buffer(wanted.shape, wanted.dtype, self._memory)
        if wanted.empty:
            buffer.array.fill(wanted.empty)
        self._copy_rows(name, buffer)
        return buffer

    def _copy_rows(self, name: str, buffer: Buffer) -> None:
        if self.length:
            rows = self._layout[name].slice(0, self.length)
            buffer.array[rows] = self.buffers[name].array[rows]
