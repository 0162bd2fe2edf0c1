"""Places for requests in progress, and the bounded line of those that wait for one.

Interactive requests enter first, background ones when none of those waits; each kind in the order of arrival, in a
line of its own, so that a batch cannot fill the chat's. One place stays free of background work (where there is more
than one), so that a chat never waits for a batch to end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

_SMOOTHING = 0.2  # weight of the newest service time in the average


class Turn:
    """A request's stand in the line and then its place; `leave` gives up whichever it has, once."""

    __slots__ = ("_called", "_slots", "background", "entered_at", "has_left")

    def __init__(self, slots: Slots, background: bool) -> None:
        self.background = background
        self.entered_at: float | None = None
        self.has_left = False
        self._slots = slots
        self._called = asyncio.get_running_loop().create_future()

    async def wait(self) -> bool:
        """True when the request has its place, False when it was turned away."""
        await self._called
        return not self.has_left

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
        self.running = 0
        self.mean_service_s: float | None = None  # how long a place is held, smoothed; None: none was yet
        self._clock = clock
        self._interactive: deque[Turn] = deque()
        self._background: deque[Turn] = deque()

    @property
    def waiting(self) -> int:
        return len(self._interactive) + len(self._background)

    def is_full(self, background: bool = False) -> bool:
        return len(self._line(background)) >= self.queue and self.running >= self._limit(background)

    def expected_wait_s(self, background: bool = False) -> float:
        """Seconds until a request that comes now gets its place, from the measured service rate; 0 before any was."""
        if self.running < self._limit(background) and not self._ahead_of(background):
            return 0.0
        return (self._ahead_of(background) + 1) * (self.mean_service_s or 0.0) / self._limit(background)

    def join(self, background: bool = False) -> Turn:
        """A stand at the end of the line; the caller has looked at `is_full`, and will `leave`."""
        turn = Turn(self, background)
        self._line(background).append(turn)
        self._let_in()
        return turn

    def turn_away(self) -> None:
        """Send everybody home who waits; those in progress stay."""
        for background in (False, True):
            line = self._line(background)
            while line:
                turn = line.popleft()
                turn.has_left = True
                turn._call()

    def _limit(self, background: bool) -> int:
        return max(1, self.places - 1) if background else self.places

    def _line(self, background: bool) -> deque[Turn]:
        return self._background if background else self._interactive

    def _ahead_of(self, background: bool) -> int:
        return self.waiting if background else len(self._interactive)

    def _let_in(self) -> None:
        for background in (False, True):
            line = self._line(background)
            while line and self.running < self._limit(background):
                self._enter(line.popleft())

    def _enter(self, turn: Turn) -> None:
        self.running += 1
        turn.entered_at = self._clock()
        turn._call()

    def _give_up(self, turn: Turn) -> None:
        if turn.entered_at is None:
            self._line(turn.background).remove(turn)
        else:
            self.running -= 1
            self._learn(self._clock() - turn.entered_at)
        self._let_in()

    def _learn(self, service_s: float) -> None:
        mean = service_s if self.mean_service_s is None else self.mean_service_s
        self.mean_service_s = mean + _SMOOTHING * (service_s - mean)
