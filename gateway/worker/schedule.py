"""Scheduling of sequences: which ones wait, which ones have a slot, and which ones can take part in the next call.

1. Waiting sequences get free slots in order of arrival, and reuse the longest cached prefix.
2. Background sequences run only while there is no other, and give up their slots when another sequence needs one.
3. A new sequence starts with the device time of the running sequence that has had the least, so that it gets a fair
   share from now on.
"""

from __future__ import annotations

from gateway.worker.frames import Submit
from gateway.worker.sequence import GeneratingSequence
from gateway.worker.slots import SlotPool


class Schedule:
    """The sequences of all requests in progress.

    Args:
        prefix_cache: True if a sequence can reuse the rows of other requests with the same owner.
    """

    def __init__(self, pool: SlotPool, *, prefix_cache: bool) -> None:
        self._pool = pool
        self._prefix_cache = prefix_cache
        self._waiting: list[GeneratingSequence] = []
        self._running: list[GeneratingSequence] = []

    def add(self, sequence: GeneratingSequence) -> None:
        """Append to the waiting sequences."""
        self._waiting.append(sequence)

    def add_first(self, sequences: list[GeneratingSequence]) -> None:
        """Insert before all waiting sequences."""
        self._waiting[:0] = sequences

    def admit(self) -> list[GeneratingSequence]:
        """Give slots to waiting sequences. Returns the running ones that can take part in the next call."""
        while self._waiting:
            sequence = next((s for s in self._waiting if not s.request.background), self._waiting[0])
            if sequence.request.background and self._in_foreground():
                break
            if not self._pool.has_free and not self._suspend_background(sequence):
                break
            self._waiting.remove(sequence)
            sequence.slot = self._pool.take(sequence.ids, self._cache_owner(sequence.request))
            sequence.served_s = min((s.served_s for s in self._running), default=0.0)
            self._running.append(sequence)
        return self._in_foreground() or list(self._running)

    def is_running(self, sequence: GeneratingSequence) -> bool:
        return sequence in self._running

    def of(self, request: Submit) -> list[GeneratingSequence]:
        """The request's sequences, running ones first."""
        return [s for s in (*self._running, *self._waiting) if s.request is request]

    def remove(self, sequence: GeneratingSequence) -> None:
        """The sequence has ended. Later sequences can reuse its rows."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.release(sequence.held_slot)

    def discard(self, sequence: GeneratingSequence) -> None:
        """A device call for the sequence has failed. Its rows can be wrong, so no other sequence reuses them."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.discard(sequence.held_slot)

    def _in_foreground(self) -> list[GeneratingSequence]:
        return [s for s in self._running if not s.request.background]

    def _suspend_background(self, sequence: GeneratingSequence) -> bool:
        """Free a slot for `sequence`. The suspended one can reuse its rows later, unless they are overwritten."""
        victim = next((s for s in reversed(self._running) if s.request.background), None)
        if victim is None or sequence.request.background:
            return False
        self._running.remove(victim)
        self._pool.release(victim.held_slot)
        self._waiting.insert(0, victim)
        return True

    def _cache_owner(self, request: Submit) -> str:
        """Sequences of the same owner share rows. Log-probabilities of a prompt need all of it computed: no sharing."""
        is_shared = self._prefix_cache and not request.prompt_logprobs
        return f"owner {request.owner}" if is_shared else f"request {request.id}"
