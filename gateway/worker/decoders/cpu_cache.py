"""Keys and values: where they are kept, and which sequence gets which.

`SlotBuffers` is the memory of a decoder that keeps whole sequences: one buffer per layer for K and one for V, all
slots in it. Slot i is a contiguous piece of it, a run of adjacent slots is a batch that needs no copy.

`SlotPool` hands slots out. A slot remembers the tokens whose rows it holds, also after its sequence has ended, so that
the next request with the same beginning computes only the rest. Rows that a new sequence pushes out of their slot are
kept beside the slots as long as there is room. It works on any decoder's caches.

Decision: the buffers are anonymous memory maps, not `np.zeros`. Both commit memory only when it is written, but numpy
asks Linux for 2 MiB pages, and one short sequence in a context of 8192 would then occupy 264 MB instead of 5.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gateway.common_prefix import common_prefix
from gateway.worker.decoders.base import KVCache

_MIN_SNAPSHOT_ROWS = 16  # fewer rows are computed again in one call


class SlotBuffers:
    """Room for `slots` sequences of at most `context` rows, and in each for one that no sequence owns: see cpu_graph.

    Args:
        tensors: number of buffers, two per layer.
        row: elements of a row, per KV head: (kv_heads, head_dim).
    """

    def __init__(self, tensors: int, slots: int, row: tuple[int, int], context: int, dtype: DTypeLike) -> None:
        kv_heads, head_dim = row
        self.slots = slots
        self.context = context
        self.buffers = [_lazy_zeros((slots, kv_heads, context + 1, head_dim), dtype) for _ in range(tensors)]

    def run(self, first: int, count: int) -> list[NDArray[np.generic]]:
        """The buffers of `count` adjacent slots, each a contiguous view (count, kv_heads, context + 1, head_dim)."""
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
    """The KVCache of rows that are only there to be copied from."""

    def __init__(self, rows: list[NDArray[np.generic]]) -> None:
        self._rows = rows
        self.length = rows[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self._rows)

    def rows(self) -> list[NDArray[np.generic]]:
        return self._rows

    def truncate(self, length: int) -> None:
        raise AssertionError("a snapshot does not change")

    def copy_from(self, other: KVCache, length: int) -> None:
        raise AssertionError("a snapshot does not change")

    def snapshot(self) -> CacheSnapshot:
        return self


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
        return min(limit, common_prefix(self.ids, ids))


class SlotPool:
    """Hands out the slots of a decoder, the one with the longest common prefix first, else one beside those that are
    busy, because sequences share a call with what lies between them; of several the least recently used. Rows that are
    too many to be kept come last.

    Args:
        snapshot_bytes: memory limit of the snapshots; the least recently used snapshot is evicted first.
    """

    def __init__(self, caches: Sequence[KVCache], snapshot_bytes: int = 0) -> None:
        self.slots = [Slot(cache) for cache in caches]
        self._snapshots: list[Slot] = []  # none of them is ever handed out
        self._snapshot_bytes = snapshot_bytes
        self._clock = 0

    @property
    def has_free(self) -> bool:
        return any(not slot.is_busy for slot in self.slots)

    def take(self, ids: Sequence[int], owner: str) -> Slot:
        """A slot whose cache holds a prefix of `ids`, truncated to it; the rest is for the caller to compute.

        A prefix in a slot that is busy, or whose own continuation is worth more than it, is copied out of it, and so
        is one that is kept. Raises IndexError when no slot is free.
        """
        free = [slot for slot in self.slots if not slot.is_busy]
        if not free:
            raise IndexError("no slot is free")
        holders = [*self.slots, *self._snapshots]
        shared = {id(slot): slot.shared_rows(ids, owner) for slot in holders}
        donor = max(holders, key=lambda slot: (shared[id(slot)], slot in free, slot.used))
        rows = shared[id(donor)]
        in_place = donor in free and rows and rows * 2 >= donor.cache.length
        slot = (
            donor if in_place else min(free, key=lambda slot: (self._would_be_lost(slot), self._span(slot), slot.used))
        )
        if not in_place:
            self._save_snapshot(slot)
        if slot is donor or not rows:
            slot.cache.truncate(rows)
        else:
            slot.cache.copy_from(donor.cache, rows)
            self._touch(donor)
        slot.ids, slot.owner, slot.is_busy = ids, owner, True
        self._touch(slot)
        return slot

    def _span(self, slot: Slot) -> int:
        """How many slots there are from the first busy one to the last, with this one among them."""
        places = [place for place, other in enumerate(self.slots) if other.is_busy or other is slot]
        return places[-1] - places[0] + 1

    def _would_be_lost(self, slot: Slot) -> bool:
        """Whether its rows find no room beside the slots; without any, nobody asks for rows again."""
        return 0 < self._snapshot_bytes < slot.cache.nbytes

    def _save_snapshot(self, slot: Slot) -> None:
        """Rows that are about to be written over are put aside; what they continue need not be there twice."""
        length = slot.cache.length
        if length < _MIN_SNAPSHOT_ROWS or slot.cache.nbytes > self._snapshot_bytes:
            return
        snapshot = Slot(slot.cache.snapshot(), slot.ids[:length], slot.owner, used=slot.used)
        others = [other for other in self._snapshots if not _continues(snapshot, other)]
        self._snapshots = sorted([*others, snapshot], key=lambda slot: slot.used)
        while sum(slot.cache.nbytes for slot in self._snapshots) > self._snapshot_bytes:
            del self._snapshots[0]

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


def _continues(slot: Slot, other: Slot) -> bool:
    """Whether `slot` holds all rows of `other`."""
    return slot.owner == other.owner and slot.ids[: len(other.ids)] == other.ids
