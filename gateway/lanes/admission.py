"""The admission queue of a lane: a number of slots for running requests, and bounded queues in front of them.

Interactive requests are admitted first, background requests only while no interactive request waits. Each kind has its
own queue, first in, first out, so a batch job cannot fill the queue of the chats. If there is more than one slot,
background requests leave one free, so a chat does not wait for the end of a batch job.

The expected wait is simulated: each running request frees its slot after its `remaining_s`, and the next request in
the queue takes the slot that is free first.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable

_SMOOTHING = 0.2  # weight of the newest service time in the average


class Ticket:
    """A request's ticket: queued, then running. `leave()` is idempotent."""

    __slots__ = ("_decided", "_queue", "_remaining_s", "admitted_at", "background", "has_left")

    def __init__(self, queue: AdmissionQueue, background: bool, remaining_s: Callable[[], float | None]) -> None:
        self.background = background
        self.admitted_at: float | None = None  # None: still queued
        self.has_left = False
        self._remaining_s = remaining_s
        self._queue = queue
        self._decided = asyncio.get_running_loop().create_future()

    async def wait(self) -> bool:
        """True when the request has a slot, False when it was refused."""
        await self._decided
        return not self.has_left

    @property
    def remaining_s(self) -> float:
        """Seconds that the request will still hold its slot: its own forecast, else the average of past requests."""
        seconds = self._remaining_s()
        return self._queue.average_remaining_s(self) if seconds is None else seconds

    def leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            self._queue._leave(self)

    def _decide(self) -> None:
        if not self._decided.done():
            self._decided.set_result(None)


class AdmissionQueue:
    """Args:
    slots: the number of requests that may run at the same time.
    max_waiting: the number of requests of each kind that may wait.
    clock: seconds, monotonic.
    """

    def __init__(self, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.mean_service_s: float | None = None  # smoothed time that a slot is held; None: not measured yet
        self._clock = clock
        self._running: list[Ticket] = []
        self._interactive: deque[Ticket] = deque()
        self._background: deque[Ticket] = deque()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._interactive) + len(self._background)

    def is_full(self, background: bool = False) -> bool:
        return len(self._queue(background)) >= self.max_waiting and self.running >= self._limit(background)

    def expected_wait_s(self, background: bool = False) -> float:
        """Seconds until a request that comes now gets a slot; 0 before the first measurement."""
        ahead = [*self._interactive, *self._background] if background else self._interactive
        return self._wait_s(background, ahead)

    def wait_s(self, ticket: Ticket) -> float:
        """Seconds until a queued request gets a slot; 0 for a running one."""
        if ticket.admitted_at is not None:
            return 0.0
        before = itertools.takewhile(lambda other: other is not ticket, self._queue(ticket.background))
        return self._wait_s(ticket.background, [*self._interactive, *before] if ticket.background else before)

    def average_remaining_s(self, ticket: Ticket) -> float:
        held_s = 0.0 if ticket.admitted_at is None else self._clock() - ticket.admitted_at
        return max(0.0, (self.mean_service_s or 0.0) - held_s)

    def others(self, ticket: Ticket) -> int:
        """The number of requests that share the device with this one. An interactive one ignores background ones.

        For a queued request: the most that it can be.
        """
        if ticket.admitted_at is None:
            return self.slots - 1
        return sum(other is not ticket and other.background <= ticket.background for other in self._running)

    def enqueue(self, background: bool = False, remaining_s: Callable[[], float | None] = lambda: None) -> Ticket:
        """A ticket at the end of the queue. The caller checks `is_full` before and calls `leave` at the end.

        Args:
            remaining_s: seconds that the request will still hold its slot; None: it cannot say.
        """
        ticket = Ticket(self, background, remaining_s)
        self._queue(background).append(ticket)
        self._admit()
        return ticket

    def refuse_waiting(self) -> None:
        """Refuse every queued request. Running requests continue."""
        for queue in (self._interactive, self._background):
            while queue:
                ticket = queue.popleft()
                ticket.has_left = True
                ticket._decide()

    def _limit(self, background: bool) -> int:
        return max(1, self.slots - 1) if background else self.slots

    def _queue(self, background: bool) -> deque[Ticket]:
        return self._background if background else self._interactive

    def _wait_s(self, background: bool, ahead: Iterable[Ticket]) -> float:
        limit = self._limit(background)
        ends = sorted(ticket.remaining_s for ticket in self._running)
        free_in = [0.0] * (limit - len(ends)) + ends[max(0, len(ends) - limit) :]  # ascending, so it is a heap
        for ticket in ahead:
            heapq.heapreplace(free_in, free_in[0] + ticket.remaining_s)
        return free_in[0]

    def _admit(self) -> None:
        for background in (False, True):
            queue = self._queue(background)
            while queue and self.running < self._limit(background):
                ticket = queue.popleft()
                self._running.append(ticket)
                ticket.admitted_at = self._clock()
                ticket._decide()

    def _leave(self, ticket: Ticket) -> None:
        if ticket.admitted_at is None:
            self._queue(ticket.background).remove(ticket)
        else:
            self._running.remove(ticket)
            self._learn(self._clock() - ticket.admitted_at)
        self._admit()

    def _learn(self, service_s: float) -> None:
        mean = service_s if self.mean_service_s is None else self.mean_service_s
        self.mean_service_s = mean + _SMOOTHING * (service_s - mean)
