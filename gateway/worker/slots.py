"""KV cache slots: which sequence gets which slot, and which cached prefix it reuses.

A slot keeps the tokens of its rows after its sequence has ended, so a request with the same prefix computes only the
rest. Before a slot with other rows is overwritten, its rows are saved as a snapshot, within a memory limit. The pool
works with the caches of any decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.bundles.kv_cache.common_prefix import common_prefix
from gateway.worker.decoders.base import KVCache

_MIN_SNAPSHOT_ROWS = 16  # one device call computes fewer rows again


@dataclass(eq=False)
class Slot:
    """A cache and the tokens of its rows: row i holds `ids[i]`. `ids` may be longer than the cache."""

    cache: KVCache
    ids: Sequence[int] = ()
    source: Sequence[int] = ()  # the list of the sequence that computed the rows; a snapshot's `ids` are a copy of it
    owner: str = ""
    is_busy: bool = False
    used: int = field(default=0, repr=False)  # the pool's counter when the slot was last taken or released

    def reusable_rows(self, ids: Sequence[int], owner: str) -> int:
        """The number of rows that a sequence of this owner can reuse, never those of its last two tokens.

        The last token must be computed to get logits. It is not computed alone, because the kernels for one row and for
        several rows differ in the last bits in some graphs (see decoders/cpu.py). A suspended sequence gets back all of
        its own rows: it continues as if it had never stopped.
        """
        if owner != self.owner:
            return 0
        limit = max(0, min(self.cache.length, len(ids) - (1 if self.source is ids else 2)))
        return min(limit, common_prefix(self.ids, ids))


class SlotPool:
    """The slots of a decoder.

    The choice of a slot, in this order: the slot with the longest common prefix; else a slot whose rows can be saved as
    a snapshot; of those, one adjacent to the busy slots, because a batched step runs over a range of slots; of those,
    the least recently used.

    Args:
        caches: one cache for each slot.
        snapshot_bytes: memory limit of the snapshots; the least recently used snapshot is evicted first. 0: none.
    """

    def __init__(self, caches: Sequence[KVCache], snapshot_bytes: int = 0) -> None:
        self.slots = [Slot(cache) for cache in caches]
        self._snapshots: list[Slot] = []  # least recently used first; never returned by `take`
        self._snapshot_bytes = snapshot_bytes
        self._clock = 0

    @property
    def has_free(self) -> bool:
        return any(not slot.is_busy for slot in self.slots)

    def take(self, ids: Sequence[int], owner: str) -> Slot:
        """A busy slot whose cache holds a prefix of `ids`; the caller computes the rest.

        The prefix is copied if its slot is busy, if its slot holds a continuation worth keeping, or if it is in a
        snapshot. Raises IndexError if no slot is free.
        """
        free = [slot for slot in self.slots if not slot.is_busy]
        if not free:
            raise IndexError("no slot is free")
        donor, rows = self._best_prefix(ids, owner)
        if donor in free and rows and rows * 2 >= donor.cache.length:
            slot = donor
        else:
            slot = min(free, key=lambda slot: (self._is_too_large_to_save(slot), self._span(slot), slot.used))
            self._save_snapshot(slot)
        try:
            if slot is donor or not rows:
                slot.cache.truncate(rows)
            else:
                slot.cache.copy_from(donor.cache, rows)
                self._touch(donor)
        except BaseException:
            self.discard(slot)  # its rows are no longer those of its tokens
            raise
        slot.ids, slot.source, slot.owner, slot.is_busy = ids, ids, owner, True
        self._touch(slot)
        return slot

    def release(self, slot: Slot) -> None:
        """The sequence has ended; later sequences can reuse its rows."""
        slot.is_busy = False
        self._touch(slot)

    def discard(self, slot: Slot) -> None:
        """The sequence has failed; its rows may be wrong, so no other sequence reuses them."""
        slot.cache.truncate(0)
        slot.is_busy, slot.used = False, 0

    def clear(self) -> None:
        """Drop all rows and snapshots. No slot is busy."""
        for slot in self.slots:
            self.discard(slot)
            slot.ids = slot.source = ()
        self._snapshots.clear()

    def _best_prefix(self, ids: Sequence[int], owner: str) -> tuple[Slot, int]:
        """The slot or snapshot with the most reusable rows, and their number."""
        candidates = [(slot.reusable_rows(ids, owner), slot) for slot in (*self.slots, *self._snapshots)]
        rows, donor = max(candidates, key=lambda each: (each[0], self._is_free(each[1]), each[1].used))
        return donor, rows

    def _is_free(self, slot: Slot) -> bool:
        return slot in self.slots and not slot.is_busy

    def _span(self, slot: Slot) -> int:
        """The number of slots from the first busy one to the last, if this one were busy."""
        indices = [index for index, other in enumerate(self.slots) if other.is_busy or other is slot]
        return indices[-1] - indices[0] + 1

    def _is_too_large_to_save(self, slot: Slot) -> bool:
        """False without snapshots: then the order of use decides."""
        return 0 < self._snapshot_bytes < slot.cache.nbytes

    def _save_snapshot(self, slot: Slot) -> None:
        """Save the slot's rows before they are overwritten. The snapshot replaces those that are a prefix of it."""
        length = slot.cache.length
        if length < _MIN_SNAPSHOT_ROWS or slot.cache.nbytes > self._snapshot_bytes:
            return
        try:
            rows = slot.cache.snapshot()
        except MemoryError:
            return  # they are computed again if they are needed
        snapshot = Slot(rows, slot.ids[:length], slot.source, slot.owner, used=slot.used)
        others = [other for other in self._snapshots if not _contains(snapshot, other)]
        self._snapshots = sorted([*others, snapshot], key=lambda slot: slot.used)
        while sum(slot.cache.nbytes for slot in self._snapshots) > self._snapshot_bytes:
            del self._snapshots[0]

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock


def _contains(slot: Slot, other: Slot) -> bool:
    """True if `slot` holds all rows of `other`."""
    return slot.owner == other.owner and slot.ids[: len(other.ids)] == other.ids
