"""Places for requests in progress, and the bounded line of those that wait for one.

Interactive requests enter first, background ones when none of those waits; each kind in the order of arrival, in a
line of its own, so that a batch cannot fill the chat's. One place stays free of background work (where there is more
than one), so that a chat never waits for a batch to end.

The wait for a place is played through: each request in progress gives up its place when its turn says, each one ahead
in the line takes the first that is given up, and gives it up in ticket.
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
    """A request's stand in the line and then its place; `leave` gives up whichever it has, once."""

    __slots__ = ("_called", "_remaining_s", "_slots", "background", "entered_at", "has_left")

    def __init__(self, slots: Slots, background: bool, remaining_s: Callable[[], float | None]) -> None:
        self.background = background
        self.entered_at: float | None = None
        self.has_left = False
        self._remaining_s = remaining_s
        self._slots = slots
        self._called = asyncio.get_running_loop().create_future()

    async def wait(self) -> bool:
        """True when the request has its place, False when it was turned away."""
        await self._called
        return not self.has_left

    @property
    def remaining_s(self) -> float:
        """Seconds that it will still hold a place: as its owner says, or as others held theirs."""
        seconds = self._remaining_s()
        return self._slots.usual_s(self) if seconds is None else seconds

    def leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            self._slots._give_up(self)

    def _call(self) -> None:
        if not self._called.done():
            self._called.set_result(None)


class Slots:
    """`places` requests may be in progress, and `queue` more of each kind may wait."""

    def __init__(self, places: int, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.places = places
        self.queue = queue
        self.inside: list[Ticket] = []
        self.mean_service_s: float | None = None  # how long a place is held, smoothed; None: none was yet
        self._clock = clock
        self._interactive: deque[Ticket] = deque()
        self._background: deque[Ticket] = deque()

    @property
    def running(self) -> int:
        return len(self.inside)

    @property
    def waiting(self) -> int:
        return len(self._interactive) + len(self._background)

    def is_full(self, background: bool = False) -> bool:
        return len(self._line(background)) >= self.queue and self.running >= self._limit(background)

    def expected_wait_s(self, background: bool = False) -> float:
        """Seconds until a request that comes now gets its place; 0 before anything was measured."""
        ahead = [*self._interactive, *self._background] if background else self._interactive
        return self._wait_s(background, ahead)

    def wait_s(self, ticket: Ticket) -> float:
        """Seconds until one that is here gets its place; 0 when it has it."""
        if ticket.entered_at is not None:
            return 0.0
        line = self._line(ticket.background)
        before = itertools.takewhile(lambda other: other is not ticket, line)
        return self._wait_s(ticket.background, [*self._interactive, *before] if ticket.background else before)

    def usual_s(self, ticket: Ticket) -> float:
        held_s = 0.0 if ticket.entered_at is None else self._clock() - ticket.entered_at
        return max(0.0, (self.mean_service_s or 0.0) - held_s)

    def others(self, ticket: Ticket) -> int:
        """How many it has beside it in progress, or will have; those in the background make way."""
        if ticket.entered_at is None:
            return self.places - 1
        return sum(other is not ticket and other.background <= ticket.background for other in self.inside)

    def join(self, background: bool = False, remaining_s: Callable[[], float | None] = lambda: None) -> Ticket:
        """A stand at the end of the line; the caller has looked at `is_full`, and will `leave`.

        `remaining_s`: seconds that it will still hold a place, asked now and then; None: it cannot say.
        """
        ticket = Ticket(self, background, remaining_s)
        self._line(background).append(ticket)
        self._let_in()
        return ticket

    def turn_away(self) -> None:
        """Send everybody home who waits; those in progress stay."""
        for background in (False, True):
            line = self._line(background)
            while line:
                ticket = line.popleft()
                ticket.has_left = True
                ticket._call()

    def _limit(self, background: bool) -> int:
        return max(1, self.places - 1) if background else self.places

    def _line(self, background: bool) -> deque[Ticket]:
        return self._background if background else self._interactive

    def _wait_s(self, background: bool, ahead: Iterable[Ticket]) -> float:
        limit = self._limit(background)
        ends = sorted(ticket.remaining_s for ticket in self.inside)
        free_in = [0.0] * (limit - len(ends)) + ends[max(0, len(ends) - limit) :]  # ascending, so a heap
        for ticket in ahead:
            heapq.heapreplace(free_in, free_in[0] + ticket.remaining_s)
        return free_in[0]

    def _let_in(self) -> None:
        for background in (False, True):
            line = self._line(background)
            while line and self.running < self._limit(background):
                self._enter(line.popleft())

    def _enter(self, ticket: Ticket) -> None:
        self.inside.append(ticket)
        ticket.entered_at = self._clock()
        ticket._call()

    def _give_up(self, ticket: Ticket) -> None:
        if ticket.entered_at is None:
            self._line(ticket.background).remove(ticket)
        else:
            self.inside.remove(ticket)
            self._learn(self._clock() - ticket.entered_at)
        self._let_in()

    def _learn(self, service_s: float) -> None:
        mean = service_s if self.mean_service_s is None else self.mean_service_s
        self.mean_service_s = mean + _SMOOTHING * (service_s - mean)
