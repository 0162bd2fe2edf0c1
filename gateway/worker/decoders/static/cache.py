"""The KV cache of one sequence for graphs of fixed shape, in buffers that the device reads in place.

A graph of fixed shape needs cache tensors of a fixed size. The size is the whole context if the graph writes the new
rows itself, or the context minus the graph's width if it returns them. `StaticCache` fills its tensors from the left.
`set_layout` exchanges them for the next graph if its shapes differ: between prompt and steps, or when a sequence moves
to a longer context. The tensors for prompts and for steps both stay in memory, and only new rows are copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from msgspec import Struct
from numpy.typing import DTypeLike, NDArray

from gateway.worker.decoders.base import KVCache

Array = NDArray[Any]
_MOST_FREE = 2  # sets of tensors that no cache uses: those for prompts and for drafts, while one sequence steps


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

    def by_row(self, array: Array) -> Array:
        """A view (everything before the axis of rows, rows, everything after it) without dimensions of one element."""
        outer, inner = math.prod(self.shape[: self.axis]), math.prod(self.shape[self.axis + 1 :])
        rows = array.shape[self.axis]
        return array.reshape((outer, rows, inner) if inner > 1 else (outer, rows), copy=False)


#: tensor name -> its layout, for all layers
Layout = Mapping[str, TensorLayout]


class StaticCache:
    """See KVCache. Has no buffers until the first call of `set_layout`.

    Args:
        memory: the tensors of all caches of the decoder; None: those of this cache only, in ordinary memory.
        index: the position among the caches of its decoder, from 0.
    """

    def __init__(self, memory: CacheMemory | None = None, index: int = 0) -> None:
        self._memory = memory or CacheMemory()
        self.index = index
        self._layout: Layout = {}
        self._set: BufferSet | None = None  # None: the buffers belong to a batch, or to this snapshot only
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
        self._memory.truncate(self, length)

    def copy_from(self, other: KVCache, length: int) -> None:
        assert isinstance(other, StaticCache) and length <= other.length
        self.length = 0
        self._memory.truncate(self, 0)
        self.set_layout(other._layout)
        _copy_rows(other._layout, other.buffers, self.buffers, 0, length)
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
        """Use tensors with the shapes of `layout`. The valid rows keep their contents.

        Copies the rows that the new tensors do not have yet: those since this cache last used them.
        """
        if self.has_layout(layout):
            return
        if not _same_shapes(layout, self._layout):
            taken = self._memory.take(layout, self)
            _copy_rows(self._layout, self.buffers, taken.buffers, taken.rows, self.length)
            self._leave(taken)
            self.buffers = taken.buffers
        self._layout = layout

    def move_to(self, layout: Layout, buffers: dict[str, Buffer]) -> None:
        """Copy the valid rows into `buffers`, which have the shapes of `layout`, and use those from now on."""
        _copy_rows(self._layout, self.buffers, buffers, 0, self.length)
        self._leave(None)
        self.buffers, self._layout = buffers, layout

    def _leave(self, taken: BufferSet | None) -> None:
        if self._set is not None:
            self._memory.give_back(self._set, self.length)
        self._set = taken


class BufferSet:
    """Tensors of one layout. The first `rows` rows are those of the cache `owner`."""

    def __init__(self, layout: Layout, memory: Any) -> None:
        self.layout = layout
        self.buffers = {name: _empty(tensor, memory) for name, tensor in layout.items()}
        self.owner: StaticCache | None = None
        self.rows = 0


class CacheMemory:
    """The tensors of all caches of a decoder.

    A prompt and a step need other shapes. A cache that changes its shapes gives its tensors back here, and gets them
    again for the next prompt, with the rows that it had. Other caches use them in the meantime, if they need some.

    Args:
        memory: see Buffer.
    """

    def __init__(self, memory: Any = None) -> None:
        self._memory = memory
        self._free: list[BufferSet] = []  # the last one was given back last
        self.has_dropped = False  # True: stages that used the tensors must release them

    def take(self, layout: Layout, owner: StaticCache) -> BufferSet:
        """Tensors of a layout: the owner's own, else others that are free, else new ones."""
        fitting = [each for each in self._free if _same_shapes(each.layout, layout)]
        found = next((each for each in fitting if each.owner is owner), fitting[0] if fitting else None)
        if found is None:
            found = BufferSet(layout, self._memory)
        else:
            self._free.remove(found)
        if found.owner is not owner:
            found.owner, found.rows = owner, 0
        return found

    def give_back(self, given: BufferSet, rows: int) -> None:
        """Keep the tensors for a later `take`. The oldest ones are freed."""
        given.rows = rows
        self._free.append(given)
        if len(self._free) > _MOST_FREE:
            del self._free[0]
            self.has_dropped = True

    def clear(self) -> None:
        """Free the tensors that no cache uses."""
        self._free.clear()
        self.has_dropped = True

    def truncate(self, owner: StaticCache, length: int) -> None:
        """The owner has only `length` rows now."""
        for each in self._free:
            if each.owner is owner:
                each.rows = min(each.rows, length)


def _same_shapes(layout: Layout, other: Layout) -> bool:
    return layout.keys() == other.keys() and all(layout[name].shape == other[name].shape for name in layout)


def _empty(tensor: TensorLayout, memory: Any) -> Buffer:
    buffer = Buffer(tensor.shape, tensor.dtype, memory)
    if tensor.empty:
        buffer.array.fill(tensor.empty)
    return buffer


def _copy_rows(
    layout: Layout, source: Mapping[str, Buffer], target: Mapping[str, Buffer], start: int, stop: int
) -> None:
    if start < stop:
        for name, tensor in layout.items():
            rows = tensor.slice(start, stop)
            target[name].array[rows] = source[name].array[rows]
