"""The KV cache of one sequence for graphs of fixed shape, in buffers that the device reads in place.

A graph of fixed shape needs cache tensors of a fixed size. The size is the whole context if the graph writes the new
rows itself, or the context minus the graph's width if it returns them. `StaticCache` fills its tensors from the left.
`set_layout` converts them for the next graph. It copies the valid rows only if the shapes differ: between prompt and
steps, or when a sequence moves to a longer context.
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
    """A tensor that host and device share. `value` is the OrtValue, `array` a numpy view of the same memory.

    Args:
        memory: the device memory that the host can access (OrtMemoryInfo); None: ordinary memory.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, memory: Any = None) -> None:
        self.value, self.array = _device_tensor(shape, dtype, memory) or _host_tensor(shape, dtype)


class BatchRow(Buffer):
    """One sequence's row of a tensor whose first axis is the batch."""

    def __init__(self, whole: Buffer, row: int) -> None:
        self.array = whole.array[row : row + 1]
        self.value = ort.OrtValue.ortvalue_from_numpy(self.array)


def _device_tensor(shape: Sequence[int], dtype: DTypeLike, memory: Any) -> tuple[ort.OrtValue, Array] | None:
    """A tensor in device memory; None if the driver gives no memory that numpy can access."""
    if memory is None:
        return None
    try:
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=memory)
        array: Array = value.numpy()
    except Exception:  # ONNX Runtime's exceptions have no common base class, and ordinary memory always works
        return None
    return (value, array) if array.ctypes.data == value.data_ptr() else None


def _host_tensor(shape: Sequence[int], dtype: DTypeLike) -> tuple[ort.OrtValue, Array]:
    array: Array = np.zeros(shape, dtype)
    return ort.OrtValue.ortvalue_from_numpy(array), array


class TensorLayout(Struct, frozen=True, kw_only=True):
    """The shape of one cache tensor for one graph.

    Args:
        axis: the axis of the cache rows (tokens).
        empty: the value of rows that are not valid.
    """

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
    """See KVCache. Has no buffers until the first call of `set_layout`.

    Args:
        memory: see Buffer.
        index: the position among the caches of its decoder, from 0.
    """

    def __init__(self, memory: Any = None, index: int = 0) -> None:
        self._memory = memory
        self.index = index
        self._layout: Layout = {}
        self.buffers: dict[str, Buffer] = {}
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the valid rows, which is the size of a snapshot."""
        return sum(
            self.buffers[name].array[tensor.slice(0, self.length)].nbytes for name, tensor in self._layout.items()
        )

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length

    def copy_from(self, other: KVCache, length: int) -> None:
        assert isinstance(other, StaticCache) and length <= other.length
        self.length = 0
        self.set_layout(other._layout)
        for name, tensor in self._layout.items():
            rows = tensor.slice(0, length)
            self.buffers[name].array[rows] = other.buffers[name].array[rows]
        self.length = length

    def snapshot(self) -> StaticCache:
        copy = StaticCache()
        copy._layout, copy.length = self._layout, self.length
        copy.buffers = {name: self._valid_rows(name, tensor) for name, tensor in self._layout.items()}
        return copy

    def _valid_rows(self, name: str, tensor: TensorLayout) -> Buffer:
        rows = self.buffers[name].array[tensor.slice(0, self.length)]
        buffer = Buffer(rows.shape, tensor.dtype)
        buffer.array[...] = rows
        return buffer

    def has_layout(self, layout: Layout) -> bool:
        return layout is self._layout

    def set_layout(self, layout: Layout) -> None:
        """Convert the buffers to the shapes of `layout`. The valid rows keep their contents."""
        if self.has_layout(layout):
            return
        self.buffers = {name: self._converted(name, tensor) for name, tensor in layout.items()}
        self._layout = layout

    def move_to(self, layout: Layout, buffers: dict[str, Buffer]) -> None:
        """Copy the valid rows into `buffers`, which have the shapes of `layout`, and use those from now on."""
        for name, buffer in buffers.items():
            self._copy_rows(name, buffer)
        self.buffers, self._layout = buffers, layout

    def write(self, name: str, rows: Array, start: int) -> None:
        """Write rows into one tensor from row `start`. `rows` has the tensor's axis order."""
        tensor = self._layout[name]
        self.buffers[name].array[tensor.slice(start, start + rows.shape[tensor.axis])] = rows

    def _converted(self, name: str, target: TensorLayout) -> Buffer:
        current = self._layout.get(name)
        if current is not None and current.shape == target.shape:
            return self.buffers[name]
        buffer = Buffer(target.shape, target.dtype, self._memory)
        if target.empty:
            buffer.array.fill(target.empty)
        self._copy_rows(name, buffer)
        return buffer

    def _copy_rows(self, name: str, buffer: Buffer) -> None:
        if self.length:
            rows = self._layout[name].slice(0, self.length)
            buffer.array[rows] = self.buffers[name].array[rows]
