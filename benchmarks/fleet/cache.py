"""The rules of `gateway/worker/slots.py` for conversations instead of tokens, which is much faster."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fleet.conversations import Conversation

SLOTS = 4  # max_sequences
SNAPSHOT_TOKENS = (256 << 20) // 57_344  # the worker's snapshots: 256 MiB, 57,344 bytes for each token at 8 bits


@dataclass(eq=False, slots=True)
class Rows:
    """The rows of a slot or a snapshot."""

    conversation: Conversation | None = None
    length: int = 0
    is_busy: bool = False
    used: int = 0

    def common(self, other: Conversation) -> int:
        if self.conversation is other:
            return self.length
        same = self.conversation is not None and self.conversation.app == other.app
        return min(self.length, other.shared) if same else 0


class Cache:
    """The slots of a device and its snapshots."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.slots = [Rows() for _ in range(slots)]
        self.snapshots: list[Rows] = []
        self._clock = itertools.count(1)

    def take(self, conversation: Conversation, tokens: int) -> tuple[Rows, int]:
        """A slot, and the tokens of the prompt that it has."""
        most = max(0, tokens - 2)
        found = [(min(most, rows.common(conversation)), rows) for rows in (*self.slots, *self.snapshots)]
        cached, donor = max(found, key=lambda each: (each[0], self._is_free(each[1]), each[1].used))
        if self._is_free(donor) and cached and cached * 2 >= donor.length:
            slot = donor
        else:
            slot = self._next_to_busy()
            self._save(slot)
            if cached:
                donor.used = next(self._clock)
        slot.conversation, slot.length, slot.is_busy, slot.used = conversation, tokens, True, next(self._clock)
        return slot, cached

    def release(self, slot: Rows, tokens: int) -> None:
        slot.length, slot.is_busy, slot.used = tokens, False, next(self._clock)

    def _is_free(self, rows: Rows) -> bool:
        return not rows.is_busy and rows not in self.snapshots

    def _next_to_busy(self) -> Rows:
        busy = [index for index, rows in enumerate(self.slots) if rows.is_busy]
        low, high = (busy[0], busy[-1]) if busy else (0, -1)
        free = [
            (max(high, i) - min(low, i) if busy else 0, rows) for i, rows in enumerate(self.slots) if not rows.is_busy
        ]
        return min(free, key=lambda each: (each[0], each[1].used))[1]

    def _save(self, slot: Rows) -> None:
        if slot.length < 16 or slot.conversation is None:
            return
        kept = [old for old in self.snapshots if old.length > min(slot.length, slot.common(_of(old)))]
        kept.append(Rows(slot.conversation, slot.length, used=slot.used))
        kept.sort(key=lambda rows: rows.used)
        while sum(rows.length for rows in kept) > SNAPSHOT_TOKENS:
            del kept[0]
        self.snapshots = kept


def _of(rows: Rows) -> Conversation:
    assert rows.conversation is not None
    return rows.conversation
