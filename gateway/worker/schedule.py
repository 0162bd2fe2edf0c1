"""Scheduling of sequences: which ones wait, which ones have a slot, and which one the next device call is for.

Clients take turns, then the requests of a client, then the choices of a request:

1. Device time. The next call is for the client that has had the least, and within it for the request, and then the
   choice, that have had the least. A client that was away starts with the time of the running client that has had the
   least, so it gets a fair share from now on. `charge` has the rules for calls that serve several.
2. Slots. A free slot goes to the client with the fewest slots, then to its request with the fewest, then in order of
   arrival. A sequence reuses the longest cached prefix.
3. Suspension. If no slot is free, the youngest sequence of the client or request with the most slots gives up its slot
   at once, if it still has as many afterwards as the waiting one gets. If it has only one more, the slot is given up
   after a time slice of the device. The slice is short for a sequence that has not begun: its first token comes soon,
   also if more clients stream than there are slots. A suspended sequence gets its rows back from its slot or a
   snapshot. If they were lost, it is not suspended again before it has used its slot for as long as the loss had cost.
4. Background sequences run only while there is no other, and give up their slots when another sequence needs one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection

from gateway.worker.frames import Submit
from gateway.worker.sequence import GeneratingSequence, SlotUse
from gateway.worker.slots import SlotPool

SLICE_S = 1.0  # device time; to save and restore the rows of a sequence takes up to 0.05 s (2,000 tokens, 90 MB)
#: For a sequence that has not begun, and for each row of the one that gives up its slot: so copies take an eighth.
_FIRST_SHARE, _ROW_SHARE = 1 / 20, 1 / 5000


class Schedule:
    """The sequences of all requests in progress.

    Args:
        prefix_cache: True if a sequence can reuse the rows of other requests with the same owner.
        slice_s: device time after which a sequence gives up its slot to another client or request.
    """

    def __init__(self, pool: SlotPool, *, prefix_cache: bool, slice_s: float = SLICE_S) -> None:
        self._pool, self._slice_s = pool, slice_s
        self._prefix_cache = prefix_cache
        self._waiting: dict[int, deque[GeneratingSequence]] = {}  # by request; the choices of a request in order
        self._running: list[GeneratingSequence] = []  # in the order in which they got their slots
        #: Device time in seconds of each client (str) and each request (int) in progress.
        self._served: dict[str | int, float] = {}
        self._chosen: GeneratingSequence | None = None  # of the last `choose`

    def add(self, sequence: GeneratingSequence) -> None:
        """Append to the waiting sequences of its request."""
        self._waiting.setdefault(sequence.request.id, deque()).append(sequence)

    def admit(self, failed: Callable[[GeneratingSequence, Exception], None]) -> list[GeneratingSequence]:
        """Give slots to waiting sequences. Returns those that got one.

        Args:
            failed: called for a sequence whose rows could not be prepared, for lack of memory. It waits no longer.
        """
        admitted = []
        while self._waiting and (sequence := next(filter(self._free_slot_for, self._candidates()), None)):
            try:
                self._start(sequence)
            except Exception as error:
                self._forget(sequence)
                failed(sequence, error)
            else:
                admitted.append(sequence)
        return admitted

    def ready(self) -> list[GeneratingSequence]:
        """The running sequences that can take part in the next call."""
        return self._in_foreground() or list(self._running)

    def choose(self) -> GeneratingSequence | None:
        """The ready sequence that the next call is for."""
        self._chosen = min(self.ready(), key=lambda s: (*self._served_s(s), s.served_s), default=None)
        return self._chosen

    def prompts_with(self, chosen: GeneratingSequence, most_rows: int) -> list[GeneratingSequence]:
        """The sequences whose missing tokens one call computes, `chosen` among them.

        The call has as many rows for each as the longest needs, so shorter ones compute some rows again. They are a
        fifth of the call at most. A call of some rows for four sequences costs less than four calls: with the shape of
        Llama 3.2 1B 0.67, 0.78 and 0.88 times as much for 5, 16 and 24 rows each (docs/log.md).

        Args:
            most_rows: of the call.
        """
        together = [chosen]
        candidates = [s for s in self.ready() if s.missing > 1 and not s.steps_alone and not s.request.prompt_logprobs]
        if chosen not in candidates:
            return together
        for other in sorted(candidates, key=lambda s: abs(s.missing - chosen.missing)):
            group = [*together, other]
            each = max(sequence.missing for sequence in group)
            rows, missing = each * len(group), sum(sequence.missing for sequence in group)
            has_rows = all(len(sequence.ids) >= each for sequence in group)
            if other is not chosen and has_rows and rows <= min(most_rows, missing * 5 // 4):
                together = group
        return together

    def charge(self, taking_part: Collection[GeneratingSequence], seconds: float) -> None:
        """Charge a device call that was made for the chosen sequence to those that took part.

        Their clients and requests pay only if all of their ready sequences took part. If they paid for a call that is
        not for them while another sequence of theirs waits, that one could wait for ever.
        """
        assert self._chosen is not None
        served = {node for sequence in taking_part for node in _nodes(sequence)}
        left_out = {node for sequence in self.ready() if sequence not in taking_part for node in _nodes(sequence)}
        for node in [*(served - left_out - {*_nodes(self._chosen)}), *_nodes(self._chosen)]:
            if node in self._served:  # the chosen one's draft can have failed
                self._served[node] += seconds
        for sequence in taking_part:
            sequence.served_s += seconds
            sequence.slot_use.held_s += seconds

    def is_running(self, sequence: GeneratingSequence) -> bool:
        return sequence in self._running

    def of(self, request: Submit) -> list[GeneratingSequence]:
        """The request's sequences, running ones first."""
        return [*(s for s in self._running if s.request is request), *self._waiting.get(request.id, ())]

    def remove(self, sequence: GeneratingSequence) -> None:
        """The sequence has ended. Later sequences can reuse its rows."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.release(sequence.held_slot)
        else:
            self._stop_waiting(sequence)
        self._forget(sequence)

    def discard(self, sequence: GeneratingSequence) -> None:
        """A device call for the sequence has failed. Its rows can be wrong, so no other sequence reuses them."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._pool.discard(sequence.held_slot)
            self._forget(sequence)

    # -- slots --------------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[GeneratingSequence]:
        """The next choice of each waiting request; the one with the best claim to a slot first."""
        slots = self._slots()

        def claim(sequence: GeneratingSequence) -> tuple[float, ...]:
            client, request = _nodes(sequence)
            client_s = self._served.get(client, 0.0)
            return sequence.request.background, slots[client], client_s, slots[request], sequence.request.id

        return sorted((choices[0] for choices in self._waiting.values()), key=claim)

    def _free_slot_for(self, sequence: GeneratingSequence) -> bool:
        """True if a slot is free, or was given up for the sequence."""
        if sequence.request.background and self._in_foreground():
            return False
        if self._pool.has_free:
            return True
        victim = self._victim(sequence)
        if victim is not None:
            self._suspend(victim)
        return victim is not None

    def _victim(self, waiting: GeneratingSequence) -> GeneratingSequence | None:
        """The sequence that gives up its slot for `waiting`."""
        if not waiting.request.background and (background := [s for s in self._running if s.request.background]):
            return background[-1]
        slots = self._slots()

        def more_slots(other: GeneratingSequence) -> int:
            same_client = other.request.client == waiting.request.client
            ours, theirs = _nodes(waiting)[same_client], _nodes(other)[same_client]
            return slots[theirs] - slots[ours]

        candidates = [s for s in reversed(self._running) if _can_be_suspended(s) and more_slots(s) > 0]
        if over := [s for s in candidates if more_slots(s) > 1]:
            return max(over, key=lambda s: [slots[node] for node in _nodes(s)])  # the youngest of several
        used_up = [s for s in candidates if s.slot_use.held_s >= self._slice_before(s, waiting)]
        return max(used_up, key=lambda s: s.slot_use.held_s, default=None)

    def _slice_before(self, running: GeneratingSequence, waiting: GeneratingSequence) -> float:
        """Device time in seconds that `running` may use its slot before it gives it up for `waiting`."""
        if waiting.has_begun:
            return self._slice_s
        return self._slice_s * min(1.0, _FIRST_SHARE + _ROW_SHARE * running.cache.length)

    def _start(self, sequence: GeneratingSequence) -> None:
        self._stop_waiting(sequence)
        sequence.slot = self._pool.take(sequence.ids, self._cache_owner(sequence.request))
        is_costly = sequence.slot.cache.length + 2 < sequence.computed  # at most one call computes the last two again
        sequence.slot_use = SlotUse(is_costly=is_costly)
        self._catch_up(sequence)
        self._running.append(sequence)

    def _suspend(self, sequence: GeneratingSequence) -> None:
        """Free the slot. The sequence can reuse its rows later, unless they are overwritten and no snapshot is left."""
        self._running.remove(sequence)
        sequence.computed = max(sequence.computed, sequence.cache.length)
        self._pool.release(sequence.held_slot)
        self._waiting.setdefault(sequence.request.id, deque()).appendleft(sequence)

    def _stop_waiting(self, sequence: GeneratingSequence) -> None:
        choices = self._waiting.get(sequence.request.id, deque())
        if sequence in choices:
            choices.remove(sequence)
            if not choices:
                del self._waiting[sequence.request.id]

    def _slots(self) -> Counter[str | int]:
        """The number of slots of each client and each request."""
        return Counter(node for sequence in self._running for node in _nodes(sequence))

    def _in_foreground(self) -> list[GeneratingSequence]:
        return [s for s in self._running if not s.request.background]

    def _cache_owner(self, request: Submit) -> str:
        """Sequences of the same owner share rows. Log-probabilities of a prompt need all of it computed: no sharing."""
        is_shared = self._prefix_cache and not request.prompt_logprobs
        return f"owner {request.owner}" if is_shared else f"request {request.id}"

    # -- device time --------------------------------------------------------------------------------------------------

    def _served_s(self, sequence: GeneratingSequence) -> tuple[float, float]:
        client, request = _nodes(sequence)
        return self._served[client], self._served[request]

    def _catch_up(self, sequence: GeneratingSequence) -> None:
        """Set the device time of what was not running to that of its running sibling that has had the least."""
        client, request = _nodes(sequence)
        clients = {s.request.client for s in self._running}
        requests = {s.request.id for s in self._running if s.request.client == client}
        for node, running in ((client, clients), (request, requests)):
            if node not in running:
                least = min((self._served[other] for other in running), default=0.0)
                self._served[node] = max(self._served.get(node, 0.0), least)
        choices = [s.served_s for s in self._running if s.request is sequence.request]
        sequence.served_s = max(sequence.served_s, min(choices, default=0.0))

    def _forget(self, sequence: GeneratingSequence) -> None:
        """Drop the device time of a client and a request that are no longer in progress."""
        others = [*self._running, *(choices[0] for choices in self._waiting.values())]
        known = {node for other in others for node in _nodes(other)}
        for node in _nodes(sequence):
            if node not in known:
                self._served.pop(node, None)


def chunk_size(sequence: GeneratingSequence, width: int) -> int:
    """The number of tokens of a prompt's next call: as many as fit, but never leave a single token for the next one.

    The kernel for one row differs in the last bits in some graphs (decoders/cpu.py), and then the answer would depend
    on the prefix cache. A sequence that steps alone computes lost rows of its answer one by one, as it did before.
    """
    missing = sequence.missing
    if sequence.steps_alone and sequence.generated:
        missing = max(1, missing - sequence.generated)
    return width - 1 if missing == width + 1 and width > 2 else min(missing, width)


def _nodes(sequence: GeneratingSequence) -> tuple[str, int]:
    """The client and the request of a sequence."""
    return sequence.request.client, sequence.request.id


def _can_be_suspended(sequence: GeneratingSequence) -> bool:
    use = sequence.slot_use
    return not use.is_costly or use.held_s >= 2 * use.prefill_s
