"""Keys and values: where they are kept, and which sequence gets which.

`SlotBuffers` is the memory of a decoder that keeps whole sequences: one buffer per layer for K and one for V, all
slots in it. Slot i is a contiguous piece of it, a run of adjacent slots is a batch that needs no copy.

`SlotPool` hands slots out. A slot remembers the tokens whose rows it holds, also after its sequence has ended, so that
the next request with the same beginning computes only the rest. It works on any decoder's caches.

Decision: the buffers are anonymous memory maps, not `np.zeros`. Both commit memory only when it is written, but numpy
asks Linux for 2 MiB pages, and one short sequence in a context of 8192 would then occupy 264 MB instead of 5.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gateway.engines.base import KVCache


class SlotBuffers:
    """Room for `slots` sequences of at most `context` rows.

    Args:
        tensors: number of buffers, two per layer.
        row: elements of a row, per KV head: (kv_heads, head_dim).
    """

    def __init__(self, tensors: int, slots: int, row: tuple[int, int], context: int, dtype: DTypeLike) -> None:
        kv_heads, head_dim = row
        self.slots = slots
        self.context = context
        self.buffers = [_lazy_zeros((slots, kv_heads, context, head_dim), dtype) for _ in range(tensors)]

    def run(self, first: int, count: int) -> list[NDArray[np.generic]]:
        """The buffers of `count` adjacent slots, each a contiguous view (count, kv_heads, context, head_dim)."""
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
        assert isinstance(other, SlotCache) and length <= other.length
        for buffer in self._buffers.buffers:
            buffer[self.index, :, :length] = buffer[other.index, :, :length]
        self.length = length


@dataclass(eq=False)
class Slot:
    """One sequence's cache and the tokens of its rows: row i holds `ids[i]`; `ids` may run ahead of the cache."""

    cache: KVCache
    ids: Sequence[int] = ()
    owner: str = ""
    is_busy: bool = False
    used: int = field(default=0, repr=False)  # when it was last taken or given back, in the pool's own count

    def shared_rows(self, ids: Sequence[int], owner: str) -> int:
        """How many rows a sequence of this owner could take over. Its last two tokens are never among them: computing
        gives the first logits, and one token alone is computed in another way than several (see decoder.py)."""
        if owner != self.owner:
            return 0
        limit = max(0, min(self.cache.length, len(ids) - 2))
        return next((i for i in range(limit) if self.ids[i] != ids[i]), limit)


class SlotPool:
    """Hands out the slots of a decoder, the one with the longest common prefix first, else the least recently used."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.slots = [Slot(cache) for cache in caches]
        self._clock = 0

    @property
    def has_free(self) -> bool:
        return any(not slot.is_busy for slot in self.slots)

    def take(self, ids: Sequence[int], owner: str) -> Slot:
        """A slot whose cache holds a prefix of `ids`, truncated to it; the rest is for the caller to compute.

        A prefix in a slot that is busy, or whose own continuation is worth more than it, is copied out of it. Raises
        IndexError when no slot is free.
        """
        free = [slot for slot in self.slots if not slot.is_busy]
        if not free:
            raise IndexError("no slot is free")
        shared = {id(slot): slot.shared_rows(ids, owner) for slot in self.slots}
        donor = max(self.slots, key=lambda slot: (shared[id(slot)], not slot.is_busy, slot.used))
        rows = shared[id(donor)]
        in_place = not donor.is_busy and rows and rows * 2 >= donor.cache.length
        slot = donor if in_place else min(free, key=lambda slot: slot.used)
        if slot is donor or not rows:
            slot.cache.truncate(rows if slot is donor else 0)
        else:
            slot.cache.copy_from(donor.cache, rows)
        slot.ids, slot.owner, slot.is_busy = ids, owner, True
        self._touch(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """The sequence has ended; its rows stay for whoever begins the same way."""
        slot.is_busy = False
        self._touch(slot)

    def discard(self, slot: Slot) -> None:
        """The sequence has failed; its rows are not to be trusted."""
        slot.cache.truncate(0)
        slot.is_busy, slot.used = False, 0

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock
