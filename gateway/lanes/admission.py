"""The admission queue of a lane: a number of slots for running requests, and bounded queues in front of them.

1. Interactive requests are admitted first, background requests only while no interactive request waits. Each kind has
   its own queue, so a batch job cannot fill the queue of the chats. If there is more than one slot, background requests
   leave one free, so a chat does not wait for the end of a batch job.
2. Clients take turns. A free slot goes to the waiting client with the fewest running requests; of several, in a round
   robin. The requests of one client are admitted in order of arrival.
3. No client can fill the queue. One client alone may use all waiting positions. When a request of another client finds
   the queue full, the newest waiting request of the client with the most is evicted, unless the new client would then
   have more.
4. If the engine's requests take turns on the device (`guests`), a client without a running request does not wait for
   the end of another client's answer: it is admitted above the number of slots. Each kind has its own slots then,
   because background requests give theirs up on the device.
5. If they do not, a slot stays free for a client that has sent a request in the last minute and has none running.

The expected wait is simulated by the same rules: each running request frees its slot after its `remaining_s`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

from gateway.lanes.recent_clients import RecentClients

_SMOOTHING = 0.2  # weight of the newest service time in the average

Refusal = Literal["evicted", "breaker_open"]
#: The number of running requests of each client, by `background`.
Running = dict[bool, Counter[str]]


class Ticket:
    """A request's ticket: queued, then running. `leave()` is idempotent."""

    __slots__ = ("_decided", "_queue", "_remaining_s", "admitted_at", "background", "client", "has_left", "refusal")

    def __init__(
        self, queue: AdmissionQueue, client: str, background: bool, remaining_s: Callable[[], float | None]
    ) -> None:
        self.client = client
        self.background = background
        self.admitted_at: float | None = None  # None: still queued
        self.has_left = False
        self.refusal: Refusal | None = None  # why it lost its position in the queue
        self._remaining_s = remaining_s
        self._queue = queue
        self._decided = asyncio.Event()

    async def wait(self) -> bool:
        """True when the request has a slot, False when it was refused; then `refusal` says why."""
        await self._decided.wait()
        return not self.has_left

    @property
    def remaining_s(self) -> float:
        """Seconds that the request will still hold its slot: its own forecast, else the average of past requests."""
        seconds = self._remaining_s()
        return self._queue.average_remaining_s(self) if seconds is None else seconds

    def leave(self, service_s: float | None = None) -> None:
        """Give back the slot or the position.

        Args:
            service_s: seconds that the engine worked for the request; None: nothing is learned from it.
        """
        if not self.has_left:
            self.has_left = True
            self._queue._leave(self, service_s)
            self._remaining_s = lambda: None  # the old one and the request refer to each other

    def admit(self, now: float) -> None:
        """The queue has given it a slot."""
        self.admitted_at = now
        self._decided.set()

    def refuse(self, refusal: Refusal) -> None:
        """The queue has removed it."""
        self.has_left, self.refusal = True, refusal
        self._decided.set()


class WaitingTickets:
    """The queued requests of one kind, by client. Clients are in the order of their turns."""

    def __init__(self) -> None:
        self._clients: dict[str, deque[Ticket]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def copy(self) -> WaitingTickets:
        other = WaitingTickets()
        other._clients = {client: deque(tickets) for client, tickets in self._clients.items()}
        other._count = self._count
        return other

    def count(self, client: str) -> int:
        return len(self._clients.get(client, ()))

    def append(self, ticket: Ticket) -> None:
        self._clients.setdefault(ticket.client, deque()).append(ticket)
        self._count += 1

    def remove(self, ticket: Ticket) -> None:
        tickets = self._clients[ticket.client]
        tickets.remove(ticket)
        self._count -= 1
        if not tickets:
            del self._clients[ticket.client]

    def next(self, running: Counter[str]) -> Ticket | None:
        """The request to admit next. `running`: the number of running requests of each client."""
        fewest: str | None = None
        for client in self._clients:
            if fewest is None or running[client] < running[fewest]:
                fewest = client
            if not running[fewest]:
                break  # so this looks at no more clients than there are running ones
        return None if fewest is None else self._clients[fewest][0]

    def admit(self, ticket: Ticket) -> None:
        """Remove the first request of a client. The client's next turn comes after those of the others."""
        self.remove(ticket)
        if tickets := self._clients.pop(ticket.client, None):
            self._clients[ticket.client] = tickets

    def newest_of_largest(self) -> Ticket | None:
        """The newest request of the client with the most."""
        return max(self._clients.values(), key=len)[-1] if self._clients else None

    def pop_all(self) -> list[Ticket]:
        tickets = [ticket for tickets in self._clients.values() for ticket in tickets]
        self._clients, self._count = {}, 0
        return tickets


class AdmissionQueue:
    """Args:
    slots: the number of requests that may run at the same time.
    max_waiting: the number of requests of each kind that may wait.
    clock: seconds, monotonic.
    guests: the number of requests that may run above `slots` now, one for each client without a running request.
    """

    def __init__(
        self,
        slots: int,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        guests: Callable[[], int] = lambda: 0,
    ) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.guests = guests
        self.mean_service_s: float | None = None  # smoothed time of an engine's work; None: not measured yet
        self._clock = clock
        self._recent = RecentClients(clock)
        self._running: list[Ticket] = []
        self._counts: Running = {False: Counter(), True: Counter()}
        self._waiting = {False: WaitingTickets(), True: WaitingTickets()}  # by `background`

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting[False]) + len(self._waiting[True])

    def is_full(self, background: bool = False, client: str = "") -> bool:
        """True if a request of `client` that comes now is refused."""
        has_space = len(self._waiting[background]) < self.max_waiting or self._is_admitted_now(background, client)
        return not has_space and self._evicted_for(background, client, 1) is None

    def expected_wait_s(self, background: bool = False, client: str = "") -> float:
        """Seconds until a request of `client` that comes now gets a slot; 0 before the first measurement."""
        ticket = Ticket(self, client, background, lambda: 0.0)
        waiting = self._copy_waiting()
        waiting[background].append(ticket)
        return self._wait_s(ticket, waiting)

    def wait_s(self, ticket: Ticket) -> float:
        """Seconds until a queued request gets a slot; 0 for one that is not queued."""
        is_queued = ticket.admitted_at is None and not ticket.has_left
        return self._wait_s(ticket, self._copy_waiting()) if is_queued else 0.0

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

    def enqueue(
        self, background: bool = False, remaining_s: Callable[[], float | None] = lambda: None, *, client: str = ""
    ) -> Ticket:
        """A ticket at the end of the client's queue. The caller checks `is_full` before and calls `leave` at the end.

        Args:
            remaining_s: seconds that the request will still hold its slot; None: it cannot say.
        """
        ticket, waiting = Ticket(self, client, background, remaining_s), self._waiting[background]
        self._recent.note(client)
        waiting.append(ticket)
        self._admit()
        evicted = self._evicted_for(background, client) if len(waiting) > self.max_waiting else None
        if ticket.admitted_at is None and evicted is not None:
            waiting.remove(evicted)
            evicted.refuse("evicted")
        return ticket

    def refuse_waiting(self) -> None:
        """Refuse every queued request. Running requests continue."""
        for waiting in self._waiting.values():
            for ticket in waiting.pop_all():
                ticket.refuse("breaker_open")

    def _limit(self, background: bool) -> int:
        return max(1, self.slots - 1) if background else self.slots

    def _has_slot(self, running: Running, client: str, background: bool) -> bool:
        """True if a request may run now. Where requests take turns, only those of its kind count."""
        same_kind, guests = running[background], self.guests()
        count = same_kind.total() if guests else sum(kind.total() for kind in running.values())
        is_kept = not (guests or background) and self._recent.has_absent(same_kind)
        return count < self._limit(background) + (-is_kept if same_kind[client] else guests)

    def _is_admitted_now(self, background: bool, client: str) -> bool:
        """True if a new request does not wait. A background one waits as long as an interactive one does."""
        return self._has_slot(self._counts, client, background) and not (background and self._waiting[False])

    def _evicted_for(self, background: bool, client: str, new: int = 0) -> Ticket | None:
        """The queued request that gives its position to `client`, with `new` requests more; None: it has its share."""
        waiting = self._waiting[background]
        newest = waiting.newest_of_largest()
        if newest is None or newest.client == client:
            return None
        return newest if waiting.count(newest.client) > waiting.count(client) + new else None

    def _wait_s(self, ticket: Ticket, waiting: dict[bool, WaitingTickets]) -> float:
        """Run a copy of the queue in simulated time until `ticket` is admitted."""
        now, running = 0.0, {background: counts.copy() for background, counts in self._counts.items()}
        ends = [(other.remaining_s, number, other) for number, other in enumerate(self._running)]
        heapq.heapify(ends)
        for number in itertools.count(len(ends)):
            while not (admitted := self._next(waiting, running)):
                now, _, ended = heapq.heappop(ends)
                running[ended.background][ended.client] -= 1
            if admitted is ticket:
                break
            waiting[admitted.background].admit(admitted)
            running[admitted.background][admitted.client] += 1
            heapq.heappush(ends, (now + admitted.remaining_s, number, admitted))
        return now

    def _copy_waiting(self) -> dict[bool, WaitingTickets]:
        return {background: waiting.copy() for background, waiting in self._waiting.items()}

    def _next(self, waiting: dict[bool, WaitingTickets], running: Running) -> Ticket | None:
        """The queued request that gets a slot now, if one does."""
        ticket = waiting[False].next(running[False]) or waiting[True].next(running[True])
        return ticket if ticket and self._has_slot(running, ticket.client, ticket.background) else None

    def _admit(self) -> None:
        while (self._waiting[False] or self._waiting[True]) and (ticket := self._next(self._waiting, self._counts)):
            self._waiting[ticket.background].admit(ticket)
            self._running.append(ticket)
            self._counts[ticket.background][ticket.client] += 1
            ticket.admit(self._clock())

    def _leave(self, ticket: Ticket, service_s: float | None) -> None:
        if ticket.admitted_at is None:
            self._waiting[ticket.background].remove(ticket)
        else:
            self._running.remove(ticket)
            counts = self._counts[ticket.background]
            counts[ticket.client] -= 1
            if not counts[ticket.client]:
                del counts[ticket.client]
            if service_s is not None:
                self._learn(service_s)
        self._admit()

    def _learn(self, service_s: float) -> None:
        mean = service_s if self.mean_service_s is None else self.mean_service_s
        self.mean_service_s = mean + _SMOOTHING * (service_s - mean)
